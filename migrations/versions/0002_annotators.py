"""what Label Studio told us about each annotation; the size of the picture annotators draw on"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


# A copy of activeseg.db.views as it was: a migration must not change when the program does.
VIEWS = {
    "annotators": """
SELECT annotator,
       sum(CASE WHEN status = 'valid' THEN 1 ELSE 0 END) AS annotations,
       sum(CASE WHEN status = 'skipped' THEN 1 ELSE 0 END) AS skipped,
       sum(CASE WHEN status = 'quarantined' THEN 1 ELSE 0 END) AS quarantined,
       sum(CASE WHEN status = 'valid' AND changed_share = 0 THEN 1 ELSE 0 END) AS unchanged,
       sum(CASE WHEN status = 'valid' AND rubber_stamp THEN 1 ELSE 0 END) AS rubber_stamps,
       avg(CASE WHEN status = 'valid' THEN lead_time END) AS mean_lead_time,
       avg(CASE WHEN status = 'valid' THEN changed_share END) AS mean_changed_share,
       avg(CASE WHEN status = 'valid' THEN agreement END) AS mean_agreement
FROM (
    SELECT a.*, row_number() OVER (
               PARTITION BY a.labeling_project_id, a.external_annotation_id
               ORDER BY a.external_updated_at DESC, a.id DESC) AS version
    FROM annotations a
    WHERE a.source = 'labelstudio' AND a.consensus_of IS NULL
) newest
WHERE version = 1
GROUP BY annotator
""",
}


def upgrade() -> None:
    op.add_column("tasks", sa.Column("shown_width", sa.Integer()))
    op.add_column("tasks", sa.Column("shown_height", sa.Integer()))
    op.add_column("annotations", sa.Column("overlap_share", sa.Double()))
    op.add_column("annotations", sa.Column("agreement", sa.Double()))
    op.add_column("annotations", sa.Column("ground_truth", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("annotations", sa.Column("rubber_stamp", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("annotations", sa.Column("consensus_of", sa.JSON(none_as_null=True)))
    for name, text in VIEWS.items():
        op.execute(f"CREATE VIEW {name} AS {text}")


def downgrade() -> None:
    _require_no_shrunk_pictures()
    # What several annotators agreed on would count as one more person's work. Trainings that saw such a row keep it.
    op.execute(
        "UPDATE annotations SET status = 'deleted', deleted_at = CURRENT_TIMESTAMP "
        "WHERE consensus_of IS NOT NULL AND status <> 'deleted'"
    )
    # Pictures of tasks not sent yet may be shrunk, too: they are delivered again.
    op.execute("UPDATE tasks SET image_url = NULL, entropy_url = NULL WHERE status = 'planned'")
    for name in reversed(VIEWS):
        op.execute(f"DROP VIEW {name}")
    for column in ("consensus_of", "rubber_stamp", "ground_truth", "agreement", "overlap_share"):
        op.drop_column("annotations", column)
    for column in ("shown_height", "shown_width"):
        op.drop_column("tasks", column)


def _require_no_shrunk_pictures() -> None:
    """What is drawn on a shrunk picture cannot be read without its size: every answer to it would be quarantined."""
    shrunk = op.get_bind().scalar(
        sa.text(
            "SELECT count(*) FROM tasks JOIN queries ON queries.id = tasks.query_id "
            "JOIN images ON images.id = queries.image_id WHERE tasks.status = 'pushed' AND queries.status = 'pushed' "
            "AND (tasks.shown_width <> images.width OR tasks.shown_height <> images.height)"
        )
    )
    if shrunk:
        raise CommandError(
            f"{shrunk} open tasks show their image shrunk, and schema 0001 cannot read what is drawn on them: have them "
            "answered, or delete them in Label Studio, then run `activeseg pull` and the downgrade again"
        )
