"""embeddings, disagreement, the temperature; how a round chose and which cells it asks for; backtests"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


# A copy of activeseg.db.views as it was: a migration must not change when the program does.
VIEWS = {
    "backtest_curve": """
SELECT u.backtest_id, u.strategy, u.labels, u.round, count(*) AS seeds, avg(u.mean_iou) AS mean_iou,
       min(u.mean_iou) AS lowest_mean_iou, max(u.mean_iou) AS highest_mean_iou
FROM backtest_units u
GROUP BY u.backtest_id, u.strategy, u.labels, u.round
""",
}


def upgrade() -> None:
    # With its check in one statement, which SQLite can do without copying a table of millions of rows.
    kind = sa.Double().compile(dialect=op.get_bind().dialect)
    for name in ("bald", "tta_jsd"):
        check = f"CONSTRAINT ck_scores_{name}_finite CHECK ({name} >= 0 AND {name} < 1e300)"
        op.execute(f"ALTER TABLE scores ADD COLUMN {name} {kind} {check}")
    op.add_column("checkpoints", sa.Column("temperature", sa.Double()))
    op.add_column("rounds", sa.Column("selection", sa.JSON(none_as_null=True)))
    op.add_column("queries", sa.Column("cells", sa.JSON(none_as_null=True)))
    op.create_table(
        "embedders",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("scoring_config_id", sa.Integer()),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["scoring_config_id"], ["scoring_configs.id"], name=op.f("fk_embedders_scoring_config_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_embedders")),
        sa.UniqueConstraint("name", name=op.f("uq_embedders_name")),
    )
    op.create_table(
        "embeddings",
        sa.Column("embedder_id", sa.Integer(), nullable=False),
        sa.Column("image_id", sa.Integer(), nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["embedder_id"], ["embedders.id"], name=op.f("fk_embeddings_embedder_id")),
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name=op.f("fk_embeddings_image_id")),
        sa.PrimaryKeyConstraint("embedder_id", "image_id", name=op.f("pk_embeddings")),
    )
    op.create_table(
        "backtests",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("protocol", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_backtests")),
        sa.UniqueConstraint("fingerprint", name=op.f("uq_backtests_fingerprint")),
    )
    op.create_table(
        "backtest_units",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("backtest_id", sa.Integer(), nullable=False),
        sa.Column("strategy", sa.String(80), nullable=False),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("labels", sa.Integer(), nullable=False),
        sa.Column("mean_iou", sa.Double()),
        sa.Column("result", sa.JSON(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["backtest_id"], ["backtests.id"], name=op.f("fk_backtest_units_backtest_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_backtest_units")),
        sa.UniqueConstraint(
            "backtest_id", "strategy", "seed", "round", name=op.f("uq_backtest_units_backtest_id_strategy_seed_round")
        ),
    )
    for name, text in VIEWS.items():
        op.execute(f"CREATE VIEW {name} AS {text}")


def downgrade() -> None:
    for name in reversed(VIEWS):
        op.execute(f"DROP VIEW {name}")
    for table in ("backtest_units", "backtests", "embeddings", "embedders"):
        op.drop_table(table)
    op.drop_column("queries", "cells")
    op.drop_column("rounds", "selection")
    op.drop_column("checkpoints", "temperature")
    for name in ("tta_jsd", "bald"):
        op.drop_column("scores", name)
