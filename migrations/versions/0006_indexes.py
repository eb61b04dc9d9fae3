"""indexes for what housekeeping deletes and what every pull counts"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

INDEXES = {
    # `activeseg gc` asks of each prediction whether a task shows it, and the foreign key asks again of each that it deletes.
    "ix_tasks_prediction_id": ("tasks", "prediction_id"),
    # Every pull counts the annotations no training has seen: without it, one look-up for each of them and each training.
    "ix_training_run_annotations_annotation_id": ("training_run_annotations", "annotation_id"),
}


def upgrade() -> None:
    for name, (table, column) in INDEXES.items():
        op.create_index(name, table, [column])


def downgrade() -> None:
    for name, (table, _) in reversed(INDEXES.items()):
        op.drop_index(name, table)
