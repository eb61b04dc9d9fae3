"""when a run was last heard of and where its log lies; alerts; tokens; what a scoring run says of the pool's drift"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job_runs", sa.Column("beat_at", sa.Double()))
    op.add_column("job_runs", sa.Column("log", sa.String(500)))
    op.add_column("scoring_runs", sa.Column("shift", sa.Double()))
    op.add_column("scoring_runs", sa.Column("drift", sa.String(500)))
    waiting = sa.text("taken_at IS NULL")
    op.create_index("ix_requests_waiting", "requests", ["kind"], sqlite_where=waiting, postgresql_where=waiting)
    op.create_index("ix_job_runs_outcome", "job_runs", ["job", "outcome", "ended_at", "id"])
    op.create_table(
        "alerts",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(50), nullable=False),
        sa.Column("about", sa.String(100), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True)),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("error", sa.String(500)),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alerts")),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("scopes", sa.String(100), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
        sa.Column("revoked_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tokens")),
        sa.UniqueConstraint("name", name=op.f("uq_tokens_name")),
        sa.UniqueConstraint("sha256", name=op.f("uq_tokens_sha256")),
    )


def downgrade() -> None:
    for table in ("tokens", "alerts"):
        op.drop_table(table)
    op.drop_index("ix_job_runs_outcome", "job_runs")
    op.drop_index("ix_requests_waiting", "requests")
    for table, columns in {"scoring_runs": ("drift", "shift"), "job_runs": ("log", "beat_at")}.items():
        for column in columns:
            op.drop_column(table, column)
