"""first tables"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


# A copy of activeseg.db.views as it was: a migration must not change when the program does.
VIEWS = {
    "champion": """
SELECT c.id AS checkpoint_id, c.model_version, c.architecture, p.created_at AS since
FROM promotions p JOIN checkpoints c ON c.id = p.checkpoint_id
WHERE p.id = (SELECT max(id) FROM promotions WHERE decision <> 'refused')
""",
    "champion_scoring_config": """
SELECT r.scoring_config_id, ch.checkpoint_id, ch.model_version
FROM champion ch JOIN scoring_configs sc ON sc.checkpoint_id = ch.checkpoint_id
JOIN scoring_runs r ON r.scoring_config_id = sc.id
WHERE r.id = (
    SELECT max(r2.id) FROM scoring_runs r2 JOIN scoring_configs sc2 ON sc2.id = r2.scoring_config_id
    WHERE sc2.checkpoint_id = ch.checkpoint_id
)
""",
    "uncertainty_ranking": """
SELECT row_number() OVER (ORDER BY s.entropy_sum DESC, s.image_id) AS rank,
       s.image_id, i.uri, s.entropy_sum, s.entropy_mean, s.valid_pixels, s.entropy_share, s.margin_mean,
       s.least_confidence_mean, cc.model_version, s.scored_at
FROM champion_scoring_config cc
JOIN scores s ON s.scoring_config_id = cc.scoring_config_id
JOIN images i ON i.id = s.image_id
WHERE i.split = 'pool' AND i.status = 'active'
""",
    "uncertainty_ranking_history": """
SELECT c.model_version, s.scoring_config_id,
       row_number() OVER (PARTITION BY s.scoring_config_id ORDER BY s.entropy_sum DESC, s.image_id) AS rank,
       s.image_id, i.uri, s.entropy_sum, s.entropy_mean, s.valid_pixels, s.scored_at
FROM scores s
JOIN scoring_configs sc ON sc.id = s.scoring_config_id
JOIN checkpoints c ON c.id = sc.checkpoint_id
JOIN images i ON i.id = s.image_id
""",
    "current_annotations": """
SELECT id AS annotation_id, image_id, query_id, source, label_set_id, mask_location, mask_sha256, annotator, lead_time,
       changed_share, received_at
FROM (
    SELECT v.*, row_number() OVER (
               PARTITION BY v.image_id ORDER BY coalesce(v.external_updated_at, v.received_at) DESC, v.id DESC) AS recency
    FROM (
        SELECT a.*, row_number() OVER (
                   PARTITION BY a.source, a.labeling_project_id, coalesce(a.external_annotation_id, -a.id)
                   ORDER BY a.external_updated_at DESC, a.id DESC) AS version
        FROM annotations a
    ) v
    WHERE v.version = 1 AND v.status = 'valid'
) newest
WHERE recency = 1
""",
    "learning_curve": """
SELECT t.id AS training_run_id, c.model_version, t.num_images, e.split, e.value AS mean_iou, e.num_images AS evaluated_images,
       t.ended_at
FROM training_runs t
JOIN checkpoints c ON c.id = t.checkpoint_id
JOIN evaluations e ON e.checkpoint_id = c.id AND e.metric = 'mean_iou' AND e.class_name = '*'
""",
    "annotation_progress": """
SELECT r.number AS round, r.status, r.acquisition, r.opened_at, r.pushed_at, r.closed_at,
       count(q.id) AS images,
       sum(CASE WHEN q.status = 'annotated' THEN 1 ELSE 0 END) AS annotated,
       sum(CASE WHEN q.status = 'skipped' THEN 1 ELSE 0 END) AS skipped,
       sum(CASE WHEN q.status = 'withdrawn' THEN 1 ELSE 0 END) AS withdrawn,
       sum(CASE WHEN q.status IN ('selected', 'pushed') THEN 1 ELSE 0 END) AS open
FROM rounds r LEFT JOIN queries q ON q.round_id = r.id
GROUP BY r.id, r.number, r.status, r.acquisition, r.opened_at, r.pushed_at, r.closed_at
""",
    "scoring_throughput": """
SELECT r.id AS scoring_run_id, c.model_version, r.device, r.images_planned, r.images_done, r.images_failed,
       r.images_per_second, r.coverage, r.started_at, r.ended_at
FROM scoring_runs r
JOIN scoring_configs sc ON sc.id = r.scoring_config_id
JOIN checkpoints c ON c.id = sc.checkpoint_id
""",
}


def upgrade() -> None:
    op.create_table(
        "images",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("uri", sa.String(length=2048), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=True),
        sa.Column("height", sa.Integer(), nullable=True),
        sa.Column("group_name", sa.String(length=255), nullable=True),
        sa.Column(
            "split",
            sa.Enum("pool", "train", "val", "test", name="split", native_enum=False, create_constraint=True, length=20),
            nullable=False,
        ),
        sa.Column(
            "status",
            sa.Enum(
                "active",
                "quarantined",
                "superseded",
                "missing",
                name="imagestatus",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("reason", sa.String(length=500), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_images")),
        sa.UniqueConstraint("uri", "sha256", name=op.f("uq_images_uri_sha256")),
    )
    with op.batch_alter_table("images", schema=None) as batch_op:
        batch_op.create_index("ix_images_group_name", ["group_name"], unique=False)
        batch_op.create_index("ix_images_split_status", ["split", "status"], unique=False)

    op.create_table(
        "job_runs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("job", sa.String(length=50), nullable=False),
        sa.Column("planned_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column(
            "outcome",
            sa.Enum(
                "running",
                "done",
                "failed",
                "busy",
                "abandoned",
                name="joboutcome",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("message", sa.String(length=1000), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_runs")),
    )
    op.create_table(
        "label_sets",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("definition", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_label_sets")),
        sa.UniqueConstraint("fingerprint", name=op.f("uq_label_sets_fingerprint")),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(length=50), nullable=False),
        sa.Column("holder", sa.String(length=255), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )
    op.create_table(
        "requests",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=50), nullable=False),
        sa.Column("argument", sa.JSON(), nullable=False),
        sa.Column("requested_by", sa.String(length=100), nullable=False),
        sa.Column("reason", sa.String(length=500), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("taken_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_requests")),
    )
    op.create_table(
        "schedule_slots",
        sa.Column("job", sa.String(length=50), nullable=False),
        sa.Column("planned_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("job", "planned_at", name=op.f("pk_schedule_slots")),
    )
    op.create_table(
        "checkpoints",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model_version", sa.String(length=100), nullable=False),
        sa.Column("location", sa.String(length=500), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("architecture", sa.String(length=100), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("label_set_id", sa.Integer(), nullable=False),
        sa.Column("parent_id", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["label_set_id"], ["label_sets.id"], name=op.f("fk_checkpoints_label_set_id")),
        sa.ForeignKeyConstraint(["parent_id"], ["checkpoints.id"], name=op.f("fk_checkpoints_parent_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_checkpoints")),
        sa.UniqueConstraint("model_version", name=op.f("uq_checkpoints_model_version")),
    )
    op.create_table(
        "labeling_projects",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("server_url", sa.String(length=500), nullable=False),
        sa.Column("instance_key", sa.String(length=100), nullable=False),
        sa.Column("external_project_id", sa.Integer(), nullable=False),
        sa.Column("title", sa.String(length=50), nullable=False),
        sa.Column("mask_kind", sa.String(length=20), nullable=False),
        sa.Column("config_sha256", sa.String(length=64), nullable=False),
        sa.Column("label_set_id", sa.Integer(), nullable=False),
        sa.Column("pulled_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["label_set_id"], ["label_sets.id"], name=op.f("fk_labeling_projects_label_set_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_labeling_projects")),
        sa.UniqueConstraint(
            "instance_key",
            "external_project_id",
            name=op.f("uq_labeling_projects_instance_key_external_project_id"),
        ),
    )
    op.create_table(
        "evaluations",
        sa.Column("checkpoint_id", sa.Integer(), nullable=False),
        sa.Column(
            "split",
            sa.Enum("pool", "train", "val", "test", name="split", native_enum=False, create_constraint=True, length=20),
            nullable=False,
        ),
        sa.Column("metric", sa.String(length=50), nullable=False),
        sa.Column("class_name", sa.String(length=255), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("num_images", sa.Integer(), nullable=False),
        sa.Column("evaluated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoints.id"], name=op.f("fk_evaluations_checkpoint_id")),
        sa.PrimaryKeyConstraint("checkpoint_id", "split", "metric", "class_name", name=op.f("pk_evaluations")),
    )
    op.create_table(
        "predictions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("image_id", sa.Integer(), nullable=False),
        sa.Column("source", sa.String(length=120), nullable=False),
        sa.Column("checkpoint_id", sa.Integer(), nullable=True),
        sa.Column("mask_location", sa.String(length=500), nullable=False),
        sa.Column("mask_sha256", sa.String(length=64), nullable=False),
        sa.Column("entropy_location", sa.String(length=500), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoints.id"], name=op.f("fk_predictions_checkpoint_id")),
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name=op.f("fk_predictions_image_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_predictions")),
        sa.UniqueConstraint("image_id", "source", name=op.f("uq_predictions_image_id_source")),
    )
    op.create_table(
        "promotions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("checkpoint_id", sa.Integer(), nullable=False),
        sa.Column("previous_id", sa.Integer(), nullable=True),
        sa.Column(
            "decision",
            sa.Enum(
                "promoted",
                "refused",
                "rolled_back",
                name="decision",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("reason", sa.String(length=500), nullable=False),
        sa.Column("statistics", sa.JSON(), nullable=False),
        sa.Column("decided_by", sa.String(length=100), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoints.id"], name=op.f("fk_promotions_checkpoint_id")),
        sa.ForeignKeyConstraint(["previous_id"], ["checkpoints.id"], name=op.f("fk_promotions_previous_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_promotions")),
    )
    op.create_table(
        "push_journal",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("labeling_project_id", sa.Integer(), nullable=False),
        sa.Column("keys", sa.JSON(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "intended",
                "done",
                "doubt",
                "settled",
                name="journalstate",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("note", sa.String(length=500), nullable=True),
        sa.Column("intended_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["labeling_project_id"], ["labeling_projects.id"], name=op.f("fk_push_journal_labeling_project_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_push_journal")),
    )
    with op.batch_alter_table("push_journal", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_push_journal_labeling_project_id"), ["labeling_project_id"], unique=False)

    op.create_table(
        "scoring_configs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("checkpoint_id", sa.Integer(), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("definition", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoints.id"], name=op.f("fk_scoring_configs_checkpoint_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scoring_configs")),
        sa.UniqueConstraint("checkpoint_id", "fingerprint", name=op.f("uq_scoring_configs_checkpoint_id_fingerprint")),
    )
    op.create_table(
        "training_runs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column(
            "status",
            sa.Enum("running", "done", "failed", name="trainingstatus", native_enum=False, create_constraint=True, length=20),
            nullable=False,
        ),
        sa.Column("reason", sa.String(length=200), nullable=False),
        sa.Column("configuration", sa.JSON(), nullable=False),
        sa.Column("code_version", sa.String(length=50), nullable=False),
        sa.Column("label_set_id", sa.Integer(), nullable=False),
        sa.Column("parent_id", sa.Integer(), nullable=True),
        sa.Column("checkpoint_id", sa.Integer(), nullable=True),
        sa.Column("num_images", sa.Integer(), nullable=False),
        sa.Column("history", sa.JSON(), nullable=False),
        sa.Column("error", sa.String(length=1000), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoints.id"], name=op.f("fk_training_runs_checkpoint_id")),
        sa.ForeignKeyConstraint(["label_set_id"], ["label_sets.id"], name=op.f("fk_training_runs_label_set_id")),
        sa.ForeignKeyConstraint(["parent_id"], ["checkpoints.id"], name=op.f("fk_training_runs_parent_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_training_runs")),
    )
    op.create_table(
        "class_scores",
        sa.Column("scoring_config_id", sa.Integer(), nullable=False),
        sa.Column("image_id", sa.Integer(), nullable=False),
        sa.Column("class_index", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("channel_entropy_sum", sa.Double(), nullable=False),
        sa.Column("region_pixels", sa.Integer(), nullable=False),
        sa.Column("region_entropy_sum", sa.Double(), nullable=False),
        sa.Column("mean_confidence", sa.Double(), nullable=True),
        sa.CheckConstraint(
            "channel_entropy_sum >= 0 AND channel_entropy_sum < 1e300", name=op.f("ck_class_scores_channel_entropy_sum_finite")
        ),
        sa.CheckConstraint(
            "region_entropy_sum >= 0 AND region_entropy_sum < 1e300", name=op.f("ck_class_scores_region_entropy_sum_finite")
        ),
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name=op.f("fk_class_scores_image_id")),
        sa.ForeignKeyConstraint(["scoring_config_id"], ["scoring_configs.id"], name=op.f("fk_class_scores_scoring_config_id")),
        sa.PrimaryKeyConstraint("scoring_config_id", "image_id", "class_index", name=op.f("pk_class_scores")),
    )
    op.create_table(
        "rounds",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column(
            "status",
            sa.Enum(
                "open",
                "selected",
                "pushed",
                "closed",
                name="roundstatus",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("scoring_config_id", sa.Integer(), nullable=True),
        sa.Column("acquisition", sa.String(length=50), nullable=False),
        sa.Column("query_size", sa.Integer(), nullable=False),
        sa.Column("control_share", sa.Double(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("error", sa.String(length=1000), nullable=True),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("pushed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["scoring_config_id"], ["scoring_configs.id"], name=op.f("fk_rounds_scoring_config_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rounds")),
        sa.UniqueConstraint("number", name=op.f("uq_rounds_number")),
    )
    op.create_table(
        "scoring_runs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("scoring_config_id", sa.Integer(), nullable=False),
        sa.Column("device", sa.String(length=100), nullable=False),
        sa.Column("images_planned", sa.Integer(), nullable=False),
        sa.Column("images_done", sa.Integer(), nullable=False),
        sa.Column("images_failed", sa.Integer(), nullable=False),
        sa.Column("images_per_second", sa.Double(), nullable=True),
        sa.Column("coverage", sa.Double(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["scoring_config_id"], ["scoring_configs.id"], name=op.f("fk_scoring_runs_scoring_config_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scoring_runs")),
    )
    with op.batch_alter_table("scoring_runs", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_scoring_runs_scoring_config_id"), ["scoring_config_id"], unique=False)

    op.create_table(
        "queries",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("round_id", sa.Integer(), nullable=False),
        sa.Column("image_id", sa.Integer(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=True),
        sa.Column("score", sa.Double(), nullable=True),
        sa.Column(
            "arm",
            sa.Enum("chosen", "control", name="arm", native_enum=False, create_constraint=True, length=20),
            nullable=False,
        ),
        sa.Column("shown_order", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(length=200), nullable=False),
        sa.Column(
            "status",
            sa.Enum(
                "selected",
                "pushed",
                "annotated",
                "skipped",
                "withdrawn",
                name="querystatus",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name=op.f("fk_queries_image_id")),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.id"], name=op.f("fk_queries_round_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_queries")),
        sa.UniqueConstraint("round_id", "image_id", name=op.f("uq_queries_round_id_image_id")),
    )
    with op.batch_alter_table("queries", schema=None) as batch_op:
        batch_op.create_index("ix_queries_status", ["status"], unique=False)
        batch_op.create_index(
            "uq_queries_open_image",
            ["image_id"],
            unique=True,
            sqlite_where=sa.text("status IN ('selected', 'pushed')"),
            postgresql_where=sa.text("status IN ('selected', 'pushed')"),
        )

    op.create_table(
        "scores",
        sa.Column("scoring_config_id", sa.Integer(), nullable=False),
        sa.Column("image_id", sa.Integer(), nullable=False),
        sa.Column("scoring_run_id", sa.Integer(), nullable=False),
        sa.Column("entropy_sum", sa.Double(), nullable=False),
        sa.Column("entropy_mean", sa.Double(), nullable=False),
        sa.Column("valid_pixels", sa.Integer(), nullable=False),
        sa.Column("entropy_share", sa.Double(), nullable=False),
        sa.Column("margin_mean", sa.Double(), nullable=False),
        sa.Column("least_confidence_mean", sa.Double(), nullable=False),
        sa.Column("grid", sa.JSON(), nullable=False),
        sa.Column("scored_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("entropy_mean >= 0 AND entropy_mean < 1e300", name=op.f("ck_scores_entropy_mean_finite")),
        sa.CheckConstraint("entropy_share >= 0 AND entropy_share < 1e300", name=op.f("ck_scores_entropy_share_finite")),
        sa.CheckConstraint("margin_mean >= 0 AND margin_mean < 1e300", name=op.f("ck_scores_margin_mean_finite")),
        sa.CheckConstraint(
            "least_confidence_mean >= 0 AND least_confidence_mean < 1e300", name=op.f("ck_scores_least_confidence_mean_finite")
        ),
        sa.CheckConstraint("entropy_sum >= 0 AND entropy_sum < 1e300", name=op.f("ck_scores_entropy_sum_finite")),
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name=op.f("fk_scores_image_id")),
        sa.ForeignKeyConstraint(["scoring_config_id"], ["scoring_configs.id"], name=op.f("fk_scores_scoring_config_id")),
        sa.ForeignKeyConstraint(["scoring_run_id"], ["scoring_runs.id"], name=op.f("fk_scores_scoring_run_id")),
        sa.PrimaryKeyConstraint("scoring_config_id", "image_id", name=op.f("pk_scores")),
    )
    with op.batch_alter_table("scores", schema=None) as batch_op:
        batch_op.create_index("ix_scores_image_id", ["image_id"], unique=False)
        batch_op.create_index("ix_scores_ranking", ["scoring_config_id", sa.text("entropy_sum DESC"), "image_id"], unique=False)

    op.create_table(
        "annotations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("image_id", sa.Integer(), nullable=False),
        sa.Column("query_id", sa.Integer(), nullable=True),
        sa.Column(
            "source",
            sa.Enum("labelstudio", "import", name="annotationsource", native_enum=False, create_constraint=True, length=20),
            nullable=False,
        ),
        sa.Column(
            "status",
            sa.Enum(
                "valid",
                "skipped",
                "quarantined",
                "deleted",
                name="annotationstatus",
                native_enum=False,
                create_constraint=True,
                length=20,
            ),
            nullable=False,
        ),
        sa.Column("reason", sa.String(length=500), nullable=True),
        sa.Column("label_set_id", sa.Integer(), nullable=False),
        sa.Column("mask_location", sa.String(length=500), nullable=True),
        sa.Column("mask_sha256", sa.String(length=64), nullable=True),
        sa.Column("labeling_project_id", sa.Integer(), nullable=True),
        sa.Column("external_task_id", sa.BigInteger(), nullable=True),
        sa.Column("external_annotation_id", sa.BigInteger(), nullable=True),
        sa.Column("external_updated_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("import_sha256", sa.String(length=64), nullable=True),
        sa.Column("annotator", sa.String(length=255), nullable=True),
        sa.Column("lead_time", sa.Double(), nullable=True),
        sa.Column("changed_share", sa.Double(), nullable=True),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name=op.f("fk_annotations_image_id")),
        sa.ForeignKeyConstraint(["label_set_id"], ["label_sets.id"], name=op.f("fk_annotations_label_set_id")),
        sa.ForeignKeyConstraint(
            ["labeling_project_id"], ["labeling_projects.id"], name=op.f("fk_annotations_labeling_project_id")
        ),
        sa.ForeignKeyConstraint(["query_id"], ["queries.id"], name=op.f("fk_annotations_query_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_annotations")),
        sa.UniqueConstraint(
            "labeling_project_id",
            "external_annotation_id",
            "external_updated_at",
            name=op.f("uq_annotations_version"),
        ),
    )
    with op.batch_alter_table("annotations", schema=None) as batch_op:
        batch_op.create_index("ix_annotations_image_id", ["image_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_annotations_query_id"), ["query_id"], unique=False)

    op.create_table(
        "tasks",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("labeling_project_id", sa.Integer(), nullable=False),
        sa.Column("query_id", sa.Integer(), nullable=False),
        sa.Column("prediction_id", sa.Integer(), nullable=True),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("external_task_id", sa.BigInteger(), nullable=True),
        sa.Column("image_url", sa.String(length=1000), nullable=True),
        sa.Column("entropy_url", sa.String(length=1000), nullable=True),
        sa.Column(
            "status",
            sa.Enum("planned", "pushed", "deleted", name="taskstatus", native_enum=False, create_constraint=True, length=20),
            nullable=False,
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("pushed_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["labeling_project_id"], ["labeling_projects.id"], name=op.f("fk_tasks_labeling_project_id")),
        sa.ForeignKeyConstraint(["prediction_id"], ["predictions.id"], name=op.f("fk_tasks_prediction_id")),
        sa.ForeignKeyConstraint(["query_id"], ["queries.id"], name=op.f("fk_tasks_query_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tasks")),
        sa.UniqueConstraint(
            "labeling_project_id", "external_task_id", name=op.f("uq_tasks_labeling_project_id_external_task_id")
        ),
        sa.UniqueConstraint("labeling_project_id", "key", name=op.f("uq_tasks_labeling_project_id_key")),
        sa.UniqueConstraint("query_id", name=op.f("uq_tasks_query_id")),
    )
    op.create_table(
        "training_run_annotations",
        sa.Column("training_run_id", sa.Integer(), nullable=False),
        sa.Column("annotation_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["annotation_id"], ["annotations.id"], name=op.f("fk_training_run_annotations_annotation_id")),
        sa.ForeignKeyConstraint(
            ["training_run_id"], ["training_runs.id"], name=op.f("fk_training_run_annotations_training_run_id")
        ),
        sa.PrimaryKeyConstraint("training_run_id", "annotation_id", name=op.f("pk_training_run_annotations")),
    )

    for name, select in VIEWS.items():
        op.execute(f"CREATE VIEW {name} AS {select}")


def downgrade() -> None:
    for name in reversed(VIEWS):
        op.execute(f"DROP VIEW {name}")
    op.drop_table("training_run_annotations")
    op.drop_table("tasks")
    with op.batch_alter_table("annotations", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_annotations_query_id"))
        batch_op.drop_index("ix_annotations_image_id")

    op.drop_table("annotations")
    with op.batch_alter_table("scores", schema=None) as batch_op:
        batch_op.drop_index("ix_scores_image_id")
        batch_op.drop_index("ix_scores_ranking")

    op.drop_table("scores")
    with op.batch_alter_table("queries", schema=None) as batch_op:
        batch_op.drop_index(
            "uq_queries_open_image",
            sqlite_where=sa.text("status IN ('selected', 'pushed')"),
            postgresql_where=sa.text("status IN ('selected', 'pushed')"),
        )
        batch_op.drop_index("ix_queries_status")

    op.drop_table("queries")
    with op.batch_alter_table("scoring_runs", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_scoring_runs_scoring_config_id"))

    op.drop_table("scoring_runs")
    op.drop_table("rounds")
    op.drop_table("class_scores")
    op.drop_table("training_runs")
    op.drop_table("scoring_configs")
    with op.batch_alter_table("push_journal", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_push_journal_labeling_project_id"))

    op.drop_table("push_journal")
    op.drop_table("promotions")
    op.drop_table("predictions")
    op.drop_table("evaluations")
    op.drop_table("labeling_projects")
    op.drop_table("checkpoints")
    op.drop_table("schedule_slots")
    op.drop_table("requests")
    op.drop_table("leases")
    op.drop_table("label_sets")
    op.drop_table("job_runs")
    with op.batch_alter_table("images", schema=None) as batch_op:
        batch_op.drop_index("ix_images_split_status")
        batch_op.drop_index("ix_images_group_name")

    op.drop_table("images")
