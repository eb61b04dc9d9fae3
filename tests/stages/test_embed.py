"""Embeddings: where a strategy compares images there is one of each that counts, and the first query can spread by them."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import sqlalchemy as sa

from activeseg.core.embedding import unpack
from activeseg.db import checkpoints
from activeseg.db.models import (
    Arm,
    Embedder,
    Embedding,
    Image,
    ImageStatus,
    Query,
    Round,
    RoundStatus,
    Score,
    ScoringConfig,
    Split,
)
from activeseg.errors import ConfigError, NotReadyError
from activeseg.loop import advance_round, preview_query
from activeseg.nn.zoo import build_model
from activeseg.stages.pool import sync_pool
from activeseg.stages.score import score_pool
from activeseg.workspace import Workspace
from tests.factories import MODEL
from tests.forked import exit_status
from tests.stages.embedding_worker import advance

Make = Callable[..., Workspace]


def embedded(workspace: Workspace, kind: str = "") -> dict[int, bytes]:
    """Embeddings by image, of embedders whose name begins so."""
    statement = sa.select(Embedding).join(Embedder, Embedder.id == Embedding.embedder_id)
    with workspace.database.read() as session:
        return {row.image_id: row.vector for row in session.scalars(statement.where(Embedder.name.startswith(kind)))}


def ids(workspace: Workspace, split: Split) -> set[int]:
    with workspace.database.read() as session:
        return set(session.scalars(sa.select(Image.id).where(Image.split == split)))


def count(workspace: Workspace, table: Any) -> int:
    with workspace.database.read() as session:
        return session.scalar(sa.select(sa.func.count()).select_from(table)) or 0


@pytest.fixture
def scored(make_workspace: Make, train_champion: Callable[[Workspace], None]) -> Workspace:
    """Five images, scored by a champion for the default acquisition."""
    workspace = make_workspace(pool=5)
    train_champion(workspace)
    sync_pool(workspace)
    assert score_pool(workspace).written == 5
    return workspace


def test_a_strategy_that_compares_images_takes_one_short_pass_over_those_trained_on(
    scored: Workspace, make_workspace: Make
) -> None:
    pool, labelled = ids(scored, Split.POOL), ids(scored, Split.TRAIN)
    assert embedded(scored, "features").keys() == pool
    workspace = make_workspace(pool=5, selection={"acquisition": "entropy_kcenter"})
    report = score_pool(workspace)
    assert (report.written, report.details["embedded only"]) == (6, 6)
    assert embedded(workspace, "features").keys() == pool | labelled
    assert count(workspace, Score) == 5
    assert score_pool(workspace).written == 0
    # A file that is gone is the training's to complain about: it stays what it is.
    [first, *_] = sorted(labelled)
    with workspace.database.write() as session:
        session.execute(sa.delete(Embedding).where(Embedding.image_id == first))
        Path(session.get_one(Image, first).uri).unlink()
    assert score_pool(workspace).failed == 1
    with workspace.database.read() as session:
        assert session.get_one(Image, first).status == ImageStatus.ACTIVE


def test_scores_of_an_older_version_stay_and_get_their_embedding_when_it_is_needed(
    scored: Workspace, make_workspace: Make
) -> None:
    before = embedded(scored)
    with scored.database.write() as session:
        session.execute(sa.delete(Embedding))
        session.execute(sa.delete(Embedder))
    assert score_pool(scored).written == 0
    workspace = make_workspace(pool=5, selection={"acquisition": "kcenter"})
    assert score_pool(workspace).details["embedded only"] == 11
    after = embedded(workspace)
    assert unpack([after[image] for image in before]) == pytest.approx(unpack(list(before.values())), abs=0.01)
    assert count(workspace, Score) == 5


@pytest.mark.parametrize("acquisition", ["bald", "power_tta_jsd", "badge_seg"])
def test_what_only_some_strategies_need_is_another_configuration_and_the_default_stays_valid(
    scored: Workspace, make_workspace: Make, acquisition: str
) -> None:
    workspace = make_workspace(pool=5, selection={"acquisition": acquisition})
    assert score_pool(workspace).written == 5
    with workspace.database.read() as session:
        usual, other = session.scalars(sa.select(ScoringConfig).order_by(ScoringConfig.id)).all()
        assert other.definition.keys() - usual.definition.keys() == {
            {"power_tta_jsd": "tta_jsd", "badge_seg": "gradients"}.get(acquisition, acquisition)
        }
        rows = session.scalars(sa.select(Score).where(Score.scoring_config_id == other.id)).all()
    for row in rows:
        assert (row.bald is not None) == (acquisition == "bald")
        assert (row.tta_jsd is not None) == (acquisition == "power_tta_jsd")
    assert embedded(workspace, "gradients").keys() == (ids(workspace, Split.POOL) if acquisition == "badge_seg" else set())
    assert score_pool(make_workspace(pool=5)).written == 0


def test_a_champion_s_temperature_is_part_of_the_configuration_unless_it_is_1_or_not_wanted(
    scored: Workspace, make_workspace: Make
) -> None:
    def scores_with(fitted: float | None, **scoring: Any) -> int:
        with scored.database.write() as session:
            checkpoints.require_champion(session).temperature = fitted
        return score_pool(make_workspace(pool=5, scoring=scoring)).written

    assert [scores_with(1.0), scores_with(1.004), scores_with(1.5, temperature="none")] == [0, 0, 0]
    assert [scores_with(1.5), scores_with(1.5), scores_with(1.499)] == [5, 0, 0]
    with scored.database.read() as session:
        newest = session.scalars(sa.select(ScoringConfig).order_by(ScoringConfig.id.desc())).first()
        assert newest is not None
        assert newest.definition["temperature"] == 1.5
        by_config = session.execute(sa.select(sa.func.sum(Score.entropy_sum)).group_by(Score.scoring_config_id)).scalars()
        assert len({round(total, 3) for total in by_config}) == 2


def first_round_on(make: Make, **sections: Any) -> Workspace:
    """A pool, imported weights, and a first query of six that spreads, two of it to validate with."""
    encoder = build_model("fcn_mobilenet_v2", 3, width=MODEL["width"], seed=7).encoder
    data = safetensors.torch.save({f"features.{name}": value.contiguous() for name, value in encoder.state_dict().items()})
    selection = {"bootstrap": "kcenter", "bootstrap_size": 6, "val_size": 2} | sections.pop("selection", {})
    model = {"weights": hashlib.sha256(data).hexdigest()} | sections.pop("model", {})
    workspace = make(pool=12, selection=selection, model=model, **sections)
    workspace.artifacts.put(data, "weights", ".safetensors")
    return workspace


@pytest.fixture
def first_round(make_workspace: Make) -> Callable[..., Workspace]:
    """`first_round_on` both databases."""
    return partial(first_round_on, make_workspace)


def query(workspace: Workspace) -> list[Query]:
    with workspace.database.read() as session:
        return list(session.scalars(sa.select(Query).order_by(Query.shown_order)))


def test_the_first_query_spreads_by_the_start_weights_but_for_what_validates(first_round: Callable[..., Workspace]) -> None:
    workspace = first_round()
    reports = {report.stage: report for report in advance_round(workspace, None)}
    assert reports["embed"].written == 12
    vectors = embedded(workspace, "start weights")
    features = dict(zip(vectors, unpack(list(vectors.values())), strict=True))
    rows = query(workspace)
    taken = [row.image_id for row in rows if row.arm == Arm.CONTROL]
    assert len(taken) == 2
    for row in rows:
        if row.arm == Arm.CHOSEN:
            far = {one: min(np.linalg.norm(vector - features[other]) for other in taken) for one, vector in features.items()}
            assert far[row.image_id] == pytest.approx(max(far.values()), rel=1e-4)
            taken.append(row.image_id)
    assert len(taken) == 6
    with workspace.database.read() as session:
        [row] = session.scalars(sa.select(Round))
    assert (row.acquisition, row.status, row.scoring_config_id) == ("kcenter", RoundStatus.PUSHED, None)


@pytest.mark.slow
def test_a_killed_night_goes_on_and_asks_about_the_same_images(
    make_sqlite_workspace: Make,
) -> None:
    workspace = first_round_on(make_sqlite_workspace, scoring={"batch_size": 2, "chunk_size": 4})
    assert exit_status(advance, workspace.settings, 5) == -signal.SIGKILL
    kept = embedded(workspace)
    assert len(kept) == 4
    reports = {report.stage: report for report in advance_round(workspace, None)}
    assert reports["embed"].written == 12 - len(kept)
    resumed, asked = embedded(workspace), [row.image_id for row in query(workspace)]
    assert {image: resumed[image] for image in kept} == kept
    with workspace.database.write() as session:
        for table in (Query, Round, Embedding):
            session.execute(sa.delete(table))
    advance_round(workspace, None)
    assert (embedded(workspace), [row.image_id for row in query(workspace)]) == (resumed, asked)


def test_a_second_look_embeds_nothing_again_and_the_default_never_does(
    first_round: Callable[..., Workspace], make_workspace: Make
) -> None:
    workspace = first_round()
    advance_round(workspace, None)
    assert "embed" not in [report.stage for report in advance_round(workspace, None)]
    with workspace.database.write() as session:
        for table in (Query, Round, Embedding, Embedder):
            session.execute(sa.delete(table))
    plain = first_round(selection={"bootstrap": "random"})
    assert "embed" not in [report.stage for report in advance_round(plain, None)]
    assert {row.arm for row in query(plain)} == {Arm.CONTROL}
    assert count(plain, Embedder) == 0


def test_random_start_weights_compare_nothing_and_the_remedy_is_told(first_round: Callable[..., Workspace]) -> None:
    workspace = first_round(model={"weights": None, "pretrained": False})
    with pytest.raises(ConfigError, match=r"activeseg weights import.*bootstrap = \"random\""):
        advance_round(workspace, None)
    assert count(workspace, Round) == 0


def test_a_first_query_that_is_not_chosen_yet_cannot_be_previewed(first_round: Callable[..., Workspace]) -> None:
    workspace = first_round()
    sync_pool(workspace)
    with pytest.raises(NotReadyError, match="k-center"):
        preview_query(workspace, None)
    assert count(workspace, Embedding) == 0


def test_an_unreadable_image_is_set_aside_and_not_asked_about(first_round: Callable[..., Workspace]) -> None:
    workspace = first_round(selection={"bootstrap_size": 12})
    sync_pool(workspace)
    (workspace.settings.root / "pool" / "ball_0003.png").write_bytes(b"not an image any more")
    reports = {report.stage: report for report in advance_round(workspace, None)}
    assert reports["embed"].failed + reports["embed"].written <= 12
    with workspace.database.read() as session:
        known = sa.select(Image.id).where(Image.status == ImageStatus.ACTIVE, Image.split == Split.POOL)
        assert {row.image_id for row in query(workspace)} <= set(session.scalars(known))
