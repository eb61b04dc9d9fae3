"""what a scoring run compiled and waited for, in which order it worked; what the storage says of a file's version"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


# Copies of activeseg.db.views as they became and as they were: a migration must not change when the program does.
VIEWS = {
    "champion_scoring_config": """
SELECT r.scoring_config_id, c.id AS checkpoint_id, c.model_version
FROM scoring_runs r
JOIN scoring_configs sc ON sc.id = r.scoring_config_id
JOIN checkpoints c ON c.id = sc.checkpoint_id
WHERE r.id = (
    SELECT max(r2.id) FROM scoring_runs r2 JOIN scoring_configs sc2 ON sc2.id = r2.scoring_config_id
    WHERE sc2.checkpoint_id = (SELECT checkpoint_id FROM champion)
)
""",
    "uncertainty_ranking": """
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
""",
    "scoring_throughput": """
SELECT r.id AS scoring_run_id, c.model_version, r.device, r.images_planned, r.images_done, r.images_failed,
       r.images_per_second, r.coverage, r.started_at, r.ended_at, r.compile_seconds, r.compiled_images,
       r.waiting_decode, r.waiting_device, r.waiting_database, r.batch_size, r.work_order, r.budget
FROM scoring_runs r
JOIN scoring_configs sc ON sc.id = r.scoring_config_id
JOIN checkpoints c ON c.id = sc.checkpoint_id
""",
}
POSTGRESQL_VIEWS = {
    "uncertainty_ranking": """
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
""",
}
BEFORE = {
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
    "scoring_throughput": """
SELECT r.id AS scoring_run_id, c.model_version, r.device, r.images_planned, r.images_done, r.images_failed,
       r.images_per_second, r.coverage, r.started_at, r.ended_at
FROM scoring_runs r
JOIN scoring_configs sc ON sc.id = r.scoring_config_id
JOIN checkpoints c ON c.id = sc.checkpoint_id
""",
}

RUN_COLUMNS: tuple[tuple[str, sa.types.TypeEngine[Any]], ...] = (
    ("compile_seconds", sa.Double()),
    ("waiting_decode", sa.Double()),
    ("waiting_device", sa.Double()),
    ("waiting_database", sa.Double()),
    ("batch_size", sa.Integer()),
    ("work_order", sa.String(50)),
    ("budget", sa.String(100)),
)


# scores.grid: JSON text -> four bytes a number, high byte first, and back.
PACK_GRID = """
CREATE FUNCTION pg_temp.pack_grid(grid json) RETURNS bytea LANGUAGE sql AS $$
SELECT coalesce(string_agg(float4send(value::float8::float4), ''::bytea ORDER BY place), ''::bytea)
FROM json_array_elements_text(grid) WITH ORDINALITY AS cell(value, place)
$$
"""
UNPACK_GRID = """
CREATE FUNCTION pg_temp.unpack_grid(grid bytea) RETURNS json LANGUAGE sql AS $$
SELECT coalesce(json_agg(CASE WHEN exponent = 0 THEN fraction * power(2::float8, -149)
                              ELSE (8388608 + fraction) * power(2::float8, exponent - 150) END ORDER BY place), '[]'::json)
FROM (
    SELECT place, ((get_byte(grid, 4 * place) & 127) << 1) + (get_byte(grid, 4 * place + 1) >> 7) AS exponent,
           ((get_byte(grid, 4 * place + 1) & 127) << 16) + (get_byte(grid, 4 * place + 2) << 8)
           + get_byte(grid, 4 * place + 3) AS fraction
    FROM generate_series(0, length(grid) / 4 - 1) AS place
) AS cells
$$
"""


def upgrade() -> None:
    for name, kind in RUN_COLUMNS:
        op.add_column("scoring_runs", sa.Column(name, kind))
    op.add_column("scoring_runs", sa.Column("compiled_images", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("images", sa.Column("stamp", sa.String(100)))
    op.create_index("ix_queries_image_id", "queries", ["image_id"])
    _index_images("split", "status", "id")
    _convert_grid(sa.LargeBinary(), PACK_GRID, "pack_grid", _packed)
    _replace(VIEWS | (POSTGRESQL_VIEWS if op.get_bind().dialect.name == "postgresql" else {}))


def downgrade() -> None:
    _replace(BEFORE)
    _convert_grid(sa.JSON(), UNPACK_GRID, "unpack_grid", _unpacked)
    _index_images("split", "status")
    op.drop_index("ix_queries_image_id", "queries")
    op.drop_column("images", "stamp")
    op.drop_column("scoring_runs", "compiled_images")
    for name, _ in RUN_COLUMNS:
        op.drop_column("scoring_runs", name)


def _index_images(*columns: str) -> None:
    op.drop_index("ix_images_split_status", "images")
    op.create_index("ix_images_split_status", "images", list(columns))


def _replace(views: dict[str, str]) -> None:
    for name in reversed(views):
        op.execute(f"DROP VIEW {name}")
    for name, text in views.items():
        op.execute(f"CREATE VIEW {name} AS {text}")


def _convert_grid(kind: sa.types.TypeEngine[Any], function: str, name: str, convert: Callable[[Any], Any]) -> None:
    """Rewrite the column in place on PostgreSQL; SQLite gets a new column with the old one's name."""
    bind = op.get_bind()
    if bind.dialect.name == "postgresql":
        op.execute(function)
        op.alter_column("scores", "grid", type_=kind, postgresql_using=f"pg_temp.{name}(grid)")
        op.execute(f"DROP FUNCTION pg_temp.{name}")
        return
    driver: Any = bind.connection.driver_connection
    driver.create_function(name, 1, convert, deterministic=True)
    empty = "x''" if isinstance(kind, sa.LargeBinary) else "'[]'"
    op.add_column("scores", sa.Column("new_grid", kind, nullable=False, server_default=sa.text(empty)))
    op.execute(f"UPDATE scores SET new_grid = {name}(grid)")
    op.drop_column("scores", "grid")
    op.alter_column("scores", "new_grid", new_column_name="grid")


def _packed(text: str) -> bytes:
    numbers = json.loads(text)
    return struct.pack(f">{len(numbers)}f", *numbers)


def _unpacked(data: bytes) -> str:
    return json.dumps(struct.unpack(f">{len(data) // 4}f", data))
