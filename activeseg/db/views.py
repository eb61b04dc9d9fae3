"""SQL views for people: stable, documented in docs/sql.md, the same on SQLite and PostgreSQL.

The text is created by a migration. A changed view needs a new migration that drops and creates it.
"""

from __future__ import annotations

CHAMPION = """
SELECT c.id AS checkpoint_id, c.model_version, c.architecture, p.created_at AS since
FROM promotions p JOIN checkpoints c ON c.id = p.checkpoint_id
WHERE p.id = (SELECT max(id) FROM promotions WHERE decision <> 'refused')
"""

# The champion's configuration that was scored with last: changing a setting and changing it back keeps working.
CHAMPION_SCORING_CONFIG = """
SELECT r.scoring_config_id, c.id AS checkpoint_id, c.model_version
FROM scoring_runs r
JOIN scoring_configs sc ON sc.id = r.scoring_config_id
JOIN checkpoints c ON c.id = sc.checkpoint_id
WHERE r.id = (
    SELECT max(r2.id) FROM scoring_runs r2 JOIN scoring_configs sc2 ON sc2.id = r2.scoring_config_id
    WHERE sc2.checkpoint_id = (SELECT checkpoint_id FROM champion)
)
"""

# The configuration is a scalar, so that both planners read ix_scores_ranking in its order and stop at the LIMIT. The rank
# must number the whole pool: it stands where it is left out of a query that does not ask for it, and conditions on the
# other columns still reach the index. SQLite leaves out a scalar subquery (and numbers once, into an automatic index),
# PostgreSQL an outer join that is known to find one row at most, by its GROUP BY. Neither can do the other's. CROSS JOIN
# keeps SQLite, which plans without regard to LIMIT, from beginning at the images and sorting once ANALYZE was run.
UNCERTAINTY_RANKING = """
SELECT (
           SELECT place.rank
           FROM (
               SELECT s2.image_id, row_number() OVER (ORDER BY s2.entropy_sum DESC, s2.image_id) AS rank
               FROM scores s2 CROSS JOIN images i2
               WHERE i2.id = s2.image_id AND s2.scoring_config_id = (SELECT scoring_config_id FROM champion_scoring_config)
                 AND i2.split = 'pool' AND i2.status = 'active'
           ) place
           WHERE place.image_id = s.image_id
       ) AS rank,
       s.image_id, i.uri, s.entropy_sum, s.entropy_mean, s.valid_pixels, s.entropy_share, s.margin_mean,
       s.least_confidence_mean, (SELECT model_version FROM champion) AS model_version, s.scored_at
FROM scores s
CROSS JOIN images i
WHERE i.id = s.image_id AND s.scoring_config_id = (SELECT scoring_config_id FROM champion_scoring_config)
  AND i.split = 'pool' AND i.status = 'active'
"""
UNCERTAINTY_RANKING_POSTGRESQL = """
SELECT place.rank,
       s.image_id, i.uri, s.entropy_sum, s.entropy_mean, s.valid_pixels, s.entropy_share, s.margin_mean,
       s.least_confidence_mean, (SELECT model_version FROM champion) AS model_version, s.scored_at
FROM scores s
JOIN images i ON i.id = s.image_id
LEFT JOIN (
    SELECT s2.image_id, row_number() OVER (ORDER BY max(s2.entropy_sum) DESC, s2.image_id) AS rank
    FROM scores s2 JOIN images i2 ON i2.id = s2.image_id
    WHERE s2.scoring_config_id = (SELECT scoring_config_id FROM champion_scoring_config)
      AND i2.split = 'pool' AND i2.status = 'active'
    GROUP BY s2.image_id
) place ON place.image_id = s.image_id
WHERE s.scoring_config_id = (SELECT scoring_config_id FROM champion_scoring_config)
  AND i.split = 'pool' AND i.status = 'active'
"""

UNCERTAINTY_RANKING_HISTORY = """
SELECT c.model_version, s.scoring_config_id,
       row_number() OVER (PARTITION BY s.scoring_config_id ORDER BY s.entropy_sum DESC, s.image_id) AS rank,
       s.image_id, i.uri, s.entropy_sum, s.entropy_mean, s.valid_pixels, s.scored_at
FROM scores s
JOIN scoring_configs sc ON sc.id = s.scoring_config_id
JOIN checkpoints c ON c.id = sc.checkpoint_id
JOIN images i ON i.id = s.image_id
"""

# An annotation's newest version counts; of several annotations of one image the one changed last counts.
CURRENT_ANNOTATIONS = """
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
"""

LEARNING_CURVE = """
SELECT t.id AS training_run_id, c.model_version, t.num_images, e.split, e.value AS mean_iou, e.num_images AS evaluated_images,
       t.ended_at
FROM training_runs t
JOIN checkpoints c ON c.id = t.checkpoint_id
JOIN evaluations e ON e.checkpoint_id = c.id AND e.metric = 'mean_iou' AND e.class_name = '*'
"""

ANNOTATION_PROGRESS = """
SELECT r.number AS round, r.status, r.acquisition, r.opened_at, r.pushed_at, r.closed_at,
       count(q.id) AS images,
       sum(CASE WHEN q.status = 'annotated' THEN 1 ELSE 0 END) AS annotated,
       sum(CASE WHEN q.status = 'skipped' THEN 1 ELSE 0 END) AS skipped,
       sum(CASE WHEN q.status = 'withdrawn' THEN 1 ELSE 0 END) AS withdrawn,
       sum(CASE WHEN q.status IN ('selected', 'pushed') THEN 1 ELSE 0 END) AS open
FROM rounds r LEFT JOIN queries q ON q.round_id = r.id
GROUP BY r.id, r.number, r.status, r.acquisition, r.opened_at, r.pushed_at, r.closed_at
"""

SCORING_THROUGHPUT = """
SELECT r.id AS scoring_run_id, c.model_version, r.device, r.images_planned, r.images_done, r.images_failed,
       r.images_per_second, r.coverage, r.started_at, r.ended_at, r.compile_seconds, r.compiled_images,
       r.waiting_decode, r.waiting_device, r.waiting_database, r.batch_size, r.work_order, r.budget
FROM scoring_runs r
JOIN scoring_configs sc ON sc.id = r.scoring_config_id
JOIN checkpoints c ON c.id = sc.checkpoint_id
"""

# The newest version of each annotation of Label Studio's, by who submitted it; what several agreed on is nobody's work.
ANNOTATORS = """
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
"""

BACKTEST_CURVE = """
SELECT u.backtest_id, u.strategy, u.labels, u.round, count(*) AS seeds, avg(u.mean_iou) AS mean_iou,
       min(u.mean_iou) AS lowest_mean_iou, max(u.mean_iou) AS highest_mean_iou
FROM backtest_units u
GROUP BY u.backtest_id, u.strategy, u.labels, u.round
"""

VIEWS: dict[str, str] = {
    "champion": CHAMPION,
    "champion_scoring_config": CHAMPION_SCORING_CONFIG,
    "uncertainty_ranking": UNCERTAINTY_RANKING,
    "uncertainty_ranking_history": UNCERTAINTY_RANKING_HISTORY,
    "current_annotations": CURRENT_ANNOTATIONS,
    "learning_curve": LEARNING_CURVE,
    "annotation_progress": ANNOTATION_PROGRESS,
    "scoring_throughput": SCORING_THROUGHPUT,
    "annotators": ANNOTATORS,
    "backtest_curve": BACKTEST_CURVE,
}
"""In the order they must be created; later ones read earlier ones."""

POSTGRESQL_VIEWS: dict[str, str] = {"uncertainty_ranking": UNCERTAINTY_RANKING_POSTGRESQL}
"""What says the same in other words on PostgreSQL."""
