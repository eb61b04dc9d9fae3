"""Queries by every strategy, from rows: what is read, what is chosen, and what each row says of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
import torch
from sqlalchemy.orm import Session

from activeseg.config import Settings
from activeseg.config.strategies import BASES, STRATEGY_NAMES
from activeseg.core.embedding import pack, project
from activeseg.core.selection import Selection
from activeseg.db import embeddings, rounds
from activeseg.db.arms import percentile
from activeseg.db.database import Database
from activeseg.db.models import Image, ImageStatus, QueryStatus, RequestRow, Round, RoundStatus, Score, Split
from activeseg.db.statistics import statistics
from activeseg.errors import NonFiniteScoreError
from activeseg.loop import open_round_if_due, preview_query
from activeseg.records import QueryItem
from activeseg.stages import rank
from activeseg.stages.pool import sync_pool
from activeseg.stages.rank import CHOICE, choose_images, rank_round
from activeseg.stages.score import score_pool
from activeseg.workspace import Workspace
from tests.db.rows import Rows

CLASSES = 3


class Site:
    """A scored pool: image i of clip i // 10 is frame 10 i, and doubt falls from the first image on."""

    def __init__(self, database: Database, *, size: int = 30, falls: float = 1.0, classes: int = CLASSES) -> None:
        self.database, self.rows = database, Rows(database)
        self.config = self.rows.config(self.rows.checkpoint())
        self.ids = [
            self.rows.image(uri=f"file:///pool/clip{i // 10}/{10 * i:05d}.png", group_name=f"clip{i // 10}")
            for i in range(size)
        ]
        self.vectors = np.random.default_rng(4).normal(size=(size, 16)).astype(np.float32)
        with database.write() as session:
            for place, image in enumerate(self.ids):
                value = 100.0 - falls * place
                of_committee = {"bald": 1 / (falls * place + 1), "tta_jsd": falls * place / 64}
                columns = {"entropy_sum": value, "entropy_mean": value / 10} | of_committee
                session.add(self.rows.score_row(self.config, image, valid_pixels=300, **columns))
                for index in range(classes):
                    part = self.rows.class_row(self.config, image, index, value / classes)
                    part.region_pixels, part.region_entropy_sum = 300 // classes, value * (index == falls * place % classes)
                    session.add(part)

    def embed(self, places: range) -> None:
        """Features and gradients of these images."""
        projected = project(torch.from_numpy(self.vectors)).numpy()
        with self.database.write() as session:
            for make in (embeddings.feature_embedder, embeddings.gradient_embedder):
                packed = {self.ids[place]: pack(projected[place]) for place in places}
                embeddings.insert(session, make(session, self.config), packed)

    def choose(self, acquisition: str, size: int = 6, **columns: Any) -> list[QueryItem]:
        """A round's images."""
        row = Round(number=1, status=RoundStatus.OPEN, scoring_config_id=self.config, acquisition=acquisition)
        values = {"control_share": 0.0, "seed": 5, "selection": None} | columns
        for name, value in values.items():
            setattr(row, name, value)
        row.query_size = size
        with self.database.read() as session:
            return choose_images(session, row)

    def places(self, items: list[QueryItem]) -> list[int]:
        """By place in the pool, in shown order."""
        return [self.ids.index(item.image_id) for item in items]


def embedded(database: Database) -> Site:
    site = Site(database)
    site.embed(range(30))
    return site


@pytest.fixture
def sqlite(sqlite_url: str) -> Iterator[Database]:
    """For what no database can change."""
    database = Database(sqlite_url)
    yield database
    database.close()


@pytest.fixture
def site(sqlite: Database) -> Site:
    """A scored pool with embeddings, on SQLite."""
    return embedded(sqlite)


@pytest.fixture
def each_site(database: Database) -> Site:
    """The same on both databases."""
    return embedded(database)


def test_every_strategy_fills_a_query_and_each_row_says_how(each_site: Site) -> None:
    site = each_site
    for name in STRATEGY_NAMES:
        items = site.choose(name, control_share=0.25)
        assert len({item.image_id for item in items}) == 6, name
        assert Counter(item.arm for item in items) == ({"control": 6} if name == "random" else {"chosen": 4, "control": 2})
        for item in items:
            assert f"rank {item.rank} of 30" in item.reason
            assert ("random control draw" in item.reason) == (item.arm == "control")
            assert len(item.reason) <= 200
        wrapped = [word for word in ("power", "softrank") if name.startswith(word)]
        chosen = [item.reason for item in items if item.arm == "chosen"]
        assert all(f"drawn by {wrapped[0]} beta 1" in reason for reason in chosen) if wrapped else True
        if name in ("kcenter", "entropy_kcenter", "badge_seg"):
            assert all("to the nearest taken" in reason for reason in chosen)


@pytest.mark.parametrize("name", STRATEGY_NAMES)
def test_the_report_reads_the_percentile_out_of_whatever_reason_a_strategy_writes(sqlite: Database, name: str) -> None:
    """With embeddings of all, some and none of the images, inside limits and in spite of them."""
    site = Site(sqlite)
    items = site.choose(name, size=9, control_share=0.25)
    for places in (range(5, 9), range(30)):
        site.embed(places)
        items += site.choose(name, size=9, control_share=0.25)
    items += site.choose(name, size=9, selection={"min_frame_gap": 30, "max_per_group": 2, "noise_beta": 0.125})
    reasons = {item.reason.split(",")[0] for item in items}
    assert name == "random" or "by rank" in reasons, "of the last query some are there in spite of the limits"
    for item in items:
        assert item.rank is not None
        assert percentile(item.rank, item.reason) == pytest.approx((30 - item.rank) / 29)


def test_the_control_arm_is_the_same_images_whatever_chooses_the_others(site: Site) -> None:
    """Of one ranking: what is drawn at random does not depend on how the rest is chosen."""
    arms = {
        name: {item.image_id for item in site.choose(name, control_share=0.5) if item.arm == "control"}
        for name in ("entropy_sum", "power_entropy_sum", "softrank_entropy_sum", "kcenter", "badge_seg")
    }
    assert len({frozenset(arm) for arm in arms.values()}) == 1


def test_a_round_an_older_version_opened_takes_the_top_by_summed_entropy(site: Site) -> None:
    items = site.choose("entropy_sum", size=12, control_share=0.1, seed=7, selection=None)
    control = [item for item in items if item.arm == "control"]
    # What the version before strategies drew with this seed.
    assert site.places(control) == [CONTROL_OF_OLD]
    assert site.places([item for item in items if item.arm == "chosen"]) == [i for i in range(12) if i != CONTROL_OF_OLD]


CONTROL_OF_OLD = 6


def test_the_sum_reads_one_column_of_candidates_and_no_class_rows(each_site: Site) -> None:
    site = each_site
    read: list[str] = []
    sa.event.listen(site.database.engine, "before_cursor_execute", lambda *call: read.append(call[2]))
    site.choose("entropy_sum")
    (statement,) = (one for one in read if one.startswith("SELECT"))
    assert "class_scores" not in statement
    assert "entropy_mean" not in statement
    site.choose("class_balanced_entropy")
    assert sum("class_scores" in one for one in read) == 1


def test_statistics_are_the_rows_of_candidates_alone(each_site: Site) -> None:
    site = each_site
    other = site.rows.config(site.rows.checkpoint())
    site.rows.score(other, site.ids[0], 9.0, {0: 1.0, 7: 2.0})
    round_id = site.rows.round(RoundStatus.PUSHED)
    for place, status in enumerate((QueryStatus.PUSHED, QueryStatus.ANNOTATED, QueryStatus.SKIPPED, QueryStatus.WITHDRAWN)):
        site.rows.query(round_id, site.ids[place], status)
    with site.database.read() as session:
        pool = statistics(session, site.config, "class_balanced_entropy")
        one = statistics(session, other, "class_balanced_entropy", which=sa.true())
        none = statistics(session, other + 99, "class_balanced_entropy")
    assert pool.image_ids.tolist() == site.ids[3:]
    assert pool.columns["valid_pixels"].tolist() == [300.0] * 27
    pixels, entropy = pool.by_class()
    assert pool.class_indices is not None
    assert pool.class_indices.tolist() == [0, 1, 2]
    assert pixels.tolist() == [[100.0] * 3] * 27
    assert entropy.tolist() == [[(97.0 - i) * (c == i % 3) for c in range(3)] for i in range(27)]
    assert one.class_indices is not None
    assert (one.class_indices.tolist(), one.by_class()[0].tolist()) == ([0, 7], [[0.0, 0.0]])
    assert (none.image_ids.shape, none.by_class()[0].shape) == ((0,), (0, 0))


def test_an_image_whose_statistic_was_not_taken_is_named(each_site: Site) -> None:
    site = each_site
    with site.database.write() as session:
        session.execute(sa.update(Score).where(Score.image_id == site.ids[8]).values(bald=None))
    with pytest.raises(NonFiniteScoreError, match=rf"image {site.ids[8]} has bald nan \(1 such of 30\).*score the pool again"):
        site.choose("power_bald")
    assert site.places(site.choose("tta_jsd", size=2)) == [29, 28]


def test_k_center_stays_away_from_what_is_labelled_or_asked_about(each_site: Site) -> None:
    """Brute force over the stored embeddings; an image of the training split and one of an open query are centers."""
    site = each_site
    site.rows.query(site.rows.round(), site.ids[3])
    with site.database.write() as session:
        session.get_one(Image, site.ids[8]).split = Split.TRAIN
    with site.database.read() as session:
        found, vectors = embeddings.load(session, embeddings.feature_embedder(session, site.config), site.ids)
    of = {image: vector.astype(float) for image, vector in zip(found, vectors, strict=True)}
    centers, expected = [site.ids[3], site.ids[8]], []
    for _ in range(5):
        far = {i: min(np.linalg.norm(of[i] - of[c]) for c in centers) for i in site.ids if i not in centers}
        centers.append(max(far, key=lambda i: far[i]))
        expected.append(centers[-1])
    assert [item.image_id for item in site.choose("kcenter", size=5)] == expected


@pytest.mark.parametrize("name", ["kcenter", "entropy_kcenter", "badge_seg"])
def test_without_embeddings_images_come_by_rank_and_say_so(sqlite: Database, name: str) -> None:
    site = Site(sqlite)
    base = "class_balanced_entropy" if name == "entropy_kcenter" else "entropy_sum"
    expected = [item.image_id for item in site.choose(base)]
    items = site.choose(name)
    assert [item.image_id for item in items] == expected
    assert all("no embedding compared" in item.reason for item in items)
    site.embed(range(25, 27))  # a run that was killed
    assert {25, 26} <= set(site.places(site.choose(name)))


def test_frames_lie_apart_in_a_query_and_from_those_of_earlier_ones(each_site: Site) -> None:
    """Frames are 10 apart: of a gap of 30 come every third one, beginning 3 behind the one asked about before."""
    site = each_site
    site.rows.query(site.rows.round(), site.ids[1], QueryStatus.ANNOTATED)
    assert site.places(site.choose("entropy_sum", size=4, selection={"min_frame_gap": 30})) == [4, 7, 10, 13]
    assert site.places(site.choose("entropy_sum", size=4, selection={"min_frame_gap": 10})) == [0, 2, 3, 4]


def test_a_clip_gives_no_more_than_its_share_and_the_rest_is_filled_by_rank(site: Site) -> None:
    items = site.choose("entropy_sum", size=8, selection={"max_per_group": 2})
    assert site.places(items) == [0, 1, 10, 11, 20, 21, 2, 3]
    assert ["gaps and caps left too few" in item.reason for item in items] == [False] * 6 + [True] * 2


def test_the_control_arm_is_not_bound_by_limits_but_counts_in_them(site: Site) -> None:
    items = site.choose("entropy_sum", size=12, control_share=0.5, selection={"max_per_group": 1})
    free = site.choose("entropy_sum", size=12, control_share=0.5)
    control = [{item.image_id for item in query if item.arm == "control"} for query in (items, free)]
    assert control[0] == control[1]
    touched = {site.ids.index(image) // 10 for image in control[0]}
    within = [item for item in items if item.arm == "chosen" and "left too few" not in item.reason]
    assert {place // 10 for place in site.places(within)} == {0, 1, 2} - touched


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("classes", [1, CLASSES])
@pytest.mark.parametrize("apart", [False, True], ids=["equal embeddings", "embeddings apart"])
def test_scores_that_are_all_the_same_and_a_single_class_give_a_full_query(sqlite: Database, apart: bool, classes: int) -> None:
    site = Site(sqlite, falls=0.0, classes=classes)
    if not apart:
        site.vectors[:] = site.vectors[0]
    site.embed(range(30))
    for name in STRATEGY_NAMES:
        items = site.choose(name, size=9)
        assert len(set(site.places(items))) == 9
        assert site.places(site.choose(name, size=9)) == site.places(items)
        # Ties go by id, in what is neither drawn nor spread.
        if name in BASES or (name in ("kcenter", "entropy_kcenter") and not apart):
            assert site.places(items) == list(range(9)), name


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_pool_smaller_than_the_query_and_one_without_candidates(sqlite: Database) -> None:
    site = Site(sqlite, size=3)
    site.embed(range(3))
    for name in STRATEGY_NAMES:
        assert sorted(site.places(site.choose(name, size=9))) == [0, 1, 2]
    with sqlite.write() as session:
        session.execute(sa.update(Image).values(split=Split.TRAIN))
    for name in STRATEGY_NAMES:
        assert site.choose(name) == []


def test_a_round_keeps_how_it_was_opened_and_its_report_says_what_the_limits_left(
    make_sqlite_workspace: Callable[..., Workspace], train_champion: Callable[[Workspace], None]
) -> None:
    selection = {"acquisition": "power_margin", "noise_beta": 3.0, "max_per_group": 1, "query_size": 3, "control_share": 0.0}
    workspace = make_sqlite_workspace(pool=5, pool_section={"group_pattern": "/pool/(ball)"}, selection=selection)
    sync_pool(workspace)
    train_champion(workspace)
    score_pool(workspace)
    opened = open_round_if_due(workspace)
    assert opened is not None
    assert (opened.acquisition, opened.control_share) == ("power_margin", 0.0)
    assert opened.selection is not None
    assert opened.selection.keys() == set(CHOICE)
    assert (opened.selection["noise_beta"], opened.selection["max_per_group"]) == (3.0, 1)
    report = rank_round(workspace, opened.id)
    assert (report.written, report.details["in spite of gap or cap"]) == (3, 2)
    with workspace.database.read() as session:
        reasons = [query.reason for query, _ in rounds.queries(session, opened.id)]
    assert sorted("beta 3" in reason for reason in reasons) == [False, False, True]
    assert rank_round(workspace, opened.id).written == 0


def test_limits_without_a_clip_to_bind_are_told(
    make_sqlite_workspace: Callable[..., Workspace], train_champion: Callable[[Workspace], None]
) -> None:
    workspace = make_sqlite_workspace(pool=3, selection={"min_frame_gap": 5})
    sync_pool(workspace)
    train_champion(workspace)
    score_pool(workspace)
    opened = open_round_if_due(workspace)
    assert opened is not None
    assert "no image has a clip or site" in rank_round(workspace, opened.id).details["gap and cap bind nothing"]


def test_a_random_round_is_a_control_arm(
    make_sqlite_workspace: Callable[..., Workspace], train_champion: Callable[[Workspace], None]
) -> None:
    workspace = make_sqlite_workspace(pool=4, selection={"acquisition": "random"})
    sync_pool(workspace)
    train_champion(workspace)
    score_pool(workspace)
    items = preview_query(workspace, 3)
    assert [item.arm for item in items] == ["control"] * 3
    assert all(item.rank for item in items), "a ranking tells what choosing would have been worth"


@pytest.fixture
def opened(each_site: Site, database: Database, tmp_path: Path) -> Opened:
    """A round to choose, in a workspace of rows only."""
    return Opened(each_site, Workspace(Settings(root=tmp_path, database={"url": str(database.masked_url)}), database))


class Opened:
    """A round, and what comes in between while its images are chosen."""

    def __init__(self, site: Site, workspace: Workspace) -> None:
        self.site, self.workspace = site, workspace
        self.other = Database(site.database.url.render_as_string(hide_password=False))
        columns = {"acquisition": "entropy_sum", "query_size": 3, "control_share": 0.0, "seed": 5}
        self.round = site.rows.add(Round(number=1, status=RoundStatus.OPEN, scoring_config_id=site.config, **columns))

    def rank(self, monkeypatch: pytest.MonkeyPatch, between: Callable[[Session], None]) -> tuple[list[int], int]:
        """Places of the images asked about, and how often images were chosen. between: another process, once."""
        choose, calls = rank._choose, []

        def chosen(session: Session, row: Round) -> Selection:
            found = choose(session, row)
            calls.append(row.id)
            if len(calls) == 1:
                with self.other.write() as another:
                    between(another)
            return found

        monkeypatch.setattr(rank, "_choose", chosen)
        rank_round(self.workspace, self.round)
        self.other.close()
        with self.site.database.read() as session:
            return [self.site.ids.index(ref.image_id) for _, ref in rounds.queries(session, self.round)], len(calls)


def test_others_write_while_images_are_chosen(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    def between(session: Session) -> None:
        session.add(RequestRow(kind="round", requested_by="test"))

    assert opened.rank(monkeypatch, between) == ([0, 1, 2], 1)


def test_an_image_that_leaves_the_pool_while_images_are_chosen_is_not_asked_about(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    def between(session: Session) -> None:
        session.get_one(Image, opened.site.ids[1]).status = ImageStatus.QUARANTINED

    assert opened.rank(monkeypatch, between) == ([0, 2, 3], 2)


def test_a_round_that_somebody_chose_meanwhile_is_left_as_it_is(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    def between(session: Session) -> None:
        row = session.get_one(Round, opened.round)
        rounds.insert_queries(session, row, [QueryItem(opened.site.ids[7], 1, 1.0, "chosen", 0, "by hand")])

    assert opened.rank(monkeypatch, between) == ([7], 1)
