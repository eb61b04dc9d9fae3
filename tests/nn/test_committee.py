"""What a scoring pass gives besides the usual statistics equals loops over passes, views, pixels and classes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from activeseg.core.disagreement import disagreement, dropped
from activeseg.core.embedding import pack, project, shorten, unpack
from activeseg.core.reduction import can_compile
from activeseg.errors import NonFiniteScoreError
from activeseg.nn.checkpoint import Segmenter
from activeseg.nn.committee import DROPOUT, PASSES, SCALES, cells_inside, class_gradients, seeds_of, tta_jsd
from activeseg.nn.data import to_input, to_pixels
from activeseg.nn.infer import score_images
from activeseg.nn.zoo import build_model
from activeseg.records import ImageRef, ImageScore

CPU = torch.device("cpu")
ALL = frozenset({"bald", "tta_jsd", "gradients"})
SIZES = [(48, 64), (40, 51), (48, 64), (1, 1), (48, 64)]
NETWORKS = [("fcn_mobilenet_v2", {"width": 0.25}), ("fcn16s_vgg16", {"width": 0.05}), ("lraspp_mobilenet_v3_large", {})]


def refs(count: int = len(SIZES)) -> list[ImageRef]:
    return [ImageRef(100 + number, f"mem:{number}", f"{number:064x}") for number in range(count)]


def read(image: ImageRef) -> np.ndarray:
    number = image.image_id - 100
    return np.random.default_rng(number).integers(0, 256, size=(*SIZES[number], 3), dtype=np.uint8)


def largest(numbers: np.ndarray) -> float:
    return float(np.abs(numbers).max())


@pytest.fixture(params=[False, True], ids=["softmax", "sigmoid"])
def unsure(request: pytest.FixtureRequest, make_segmenter: Callable, make_overlapping: Callable) -> Segmenter:
    """Random weights whose predictions differ from place to place."""
    segmenter: Segmenter = make_overlapping() if request.param else make_segmenter()
    if not request.param:
        with torch.no_grad():
            for layer in segmenter.module.score.values():
                layer.weight.mul_(1000)
    return segmenter


def seen(segmenter: Segmenter, image: ImageRef) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """Input, features and coarse logits of one image."""
    x = to_input(to_pixels(read(image))[None], segmenter.spec.input_policy, CPU)
    module = segmenter.module.eval()
    with torch.inference_mode():
        features = module.features(x)
        return x, features, module.scores(features)


def scored(segmenter: Segmenter, **options) -> dict[int, ImageScore]:
    found = score_images(segmenter, refs(), read, device=CPU, precision="float32", **options)
    return {one.image_id: one for one in found if isinstance(one, ImageScore)}


@pytest.mark.slow
def test_an_embedding_comes_with_every_score_and_the_rest_where_it_is_asked_for(unsure: Segmenter) -> None:
    plain, full = scored(unsure, batch_size=2), scored(unsure, batch_size=2, needs=ALL)
    assert plain.keys() == full.keys() == {ref.image_id for ref in refs()}
    for number, one in plain.items():
        assert (one.bald, one.tta_jsd, one.gradient) == (None, None, None)
        _, features, _ = seen(unsure, refs()[number - 100])
        expected = pack(project(features[-1].mean(dim=(2, 3)))[0].numpy())
        assert unpack([one.feature]) == pytest.approx(unpack([expected]), abs=2e-2 * largest(unpack([expected])))
        assert full[number].entropy_sum == one.entropy_sum
        assert full[number].feature == one.feature


@pytest.mark.slow
def test_bald_equals_passes_one_by_one_and_comes_again_in_another_batch(unsure: Segmenter) -> None:
    sigmoid = unsure.spec.head == "sigmoid"
    together, alone = (scored(unsure, batch_size=size, needs={"bald"}) for size in (8, 1))
    for image in refs():
        x, features, _ = seen(unsure, image)
        members = []
        for number in range(PASSES):
            thinned = [
                dropped(one, seeds_of([image]), share=DROPOUT, draw=number * len(features) + place)
                for place, one in enumerate(features)
            ]
            with torch.inference_mode():
                logits = unsure.module.scores(tuple(thinned))
            # Score i lies on pixel 8 i: those of the padding do not count.
            members.append(logits[..., : -(-x.shape[2] // 8), : -(-x.shape[3] // 8)])
        expected = disagreement(members, sigmoid=sigmoid).item()
        assert expected > 1e-6
        assert together[image.image_id].bald == pytest.approx(expected, rel=1e-3)
        assert alone[image.image_id].bald == pytest.approx(expected, rel=1e-3)


def lying_at(logits: Tensor, size: tuple[int, int], y: float, x: float) -> Tensor:
    """Coarse logits (C, h, w) of stride 8 at a place in pixels, by the four around it."""
    height, width = logits.shape[-2:]
    row, column = (min(max(at / 8, 0.0), last - 1.0) for at, last in ((y, height), (x, width)))
    top, left = int(row), int(column)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = row - top, column - left
    upper = (1 - across) * logits[:, top, left] + across * logits[:, top, right]
    lower = (1 - across) * logits[:, bottom, left] + across * logits[:, bottom, right]
    return (1 - down) * upper + down * lower


def test_views_are_compared_where_they_lie_on_the_image(unsure: Segmenter) -> None:
    found = scored(unsure, batch_size=4, needs={"tta_jsd"})
    for image in refs(2):
        x, _, logits = seen(unsure, image)
        height, width = x.shape[-2:]
        views = [x, x.flip(-1)]
        for scale in SCALES:
            size = (round(scale * height), round(scale * width))
            views.append(F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True))
        with torch.inference_mode():
            coarse = [unsure.module.coarse(view)[0] for view in views]
        rows, columns = range(0, height, 8), range(0, width, 8)
        members = [torch.zeros(1, logits.shape[1], len(rows), len(columns)) for _ in views]
        for i, y in enumerate(rows):
            for j, x_ in enumerate(columns):
                places = [(y, x_), (y, width - 1 - x_)]
                for view in views[2:]:
                    h, w = view.shape[-2:]
                    places.append(((y + 0.5) * h / height - 0.5, (x_ + 0.5) * w / width - 0.5))
                for member, one, place, view in zip(members, coarse, places, views, strict=True):
                    member[0, :, i, j] = lying_at(one, view.shape[-2:], *place)
        expected = disagreement(members, sigmoid=unsure.spec.head == "sigmoid").item()
        assert expected > 1e-6
        assert found[image.image_id].tta_jsd == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("architecture", "options"), NETWORKS)
def test_an_image_without_any_structure_looks_the_same_from_all_sides(architecture: str, options: dict) -> None:
    """Whatever the geometry of the network: where all places say the same, views read at wrong ones would, too, but
    mirrored halves would not."""
    network = build_model(architecture, 3, seed=1, **options).eval()
    halves = torch.zeros(1, 3, 96, 161)
    halves[..., :80] = 2.0
    with torch.inference_mode():
        plain = torch.ones(1, 3, 96, 161)
        flat = tta_jsd(network, plain, network.coarse(plain), temperature=1.0, sigmoid=False).item()
        # As strong as what the network says of an edge at all.
        logits = network.coarse(halves)
        same = tta_jsd(network, halves, logits, temperature=1.0, sigmoid=False).item()
    assert math.isfinite(flat)
    assert 0 <= flat < 0.05
    assert 0 <= same < 0.2
    rows, columns = cells_inside(network, logits, (96, 161))
    assert (rows.min() >= 0, rows.max() <= 95.5, columns.max() <= 160.5) == (True, True, True)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_gradients_by_class_equal_loops_over_places(sigmoid: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 3, 4, 5, generator=generator)
    features = torch.randn(2, 6, 4, 5, generator=generator)
    expected = np.zeros((2, 3, 6))
    for image in range(2):
        for row in range(4):
            for column in range(5):
                z = logits[image, :, row, column].double().numpy()
                p = 1 / (1 + np.exp(-z)) if sigmoid else np.exp(z) / np.exp(z).sum()
                for c in np.flatnonzero(p > 0.5) if sigmoid else [p.argmax()]:
                    expected[image, c] += (1 - p[c]) * features[image, :, row, column].double().numpy() / 20
    found = class_gradients(logits, features, sigmoid=sigmoid)
    assert found.numpy() == pytest.approx(expected.reshape(2, 18), abs=1e-5)


def test_stored_gradients_keep_their_length_and_a_sure_image_has_none(unsure: Segmenter) -> None:
    found = scored(unsure, needs={"gradients"})
    for image in refs():
        _, features, logits = seen(unsure, image)
        sigmoid = unsure.spec.head == "sigmoid"
        expected = shorten(class_gradients(logits, features[-1], sigmoid=sigmoid))[0].numpy()
        assert unpack([found[image.image_id].gradient])[0] == pytest.approx(expected, abs=2e-2 * largest(expected))
    sure = class_gradients(torch.tensor([50.0, -50.0]).view(1, 2, 1, 1), torch.ones(1, 4, 1, 1), sigmoid=False)
    assert not sure.any()


@pytest.mark.slow
def test_a_temperature_divides_the_logits_of_everything_but_the_embedding(unsure: Segmenter) -> None:
    cool, hot = scored(unsure, needs=ALL), scored(unsure, needs=ALL, temperature=2.0)
    with torch.no_grad():
        for name, parameter in unsure.module.named_parameters():
            if name.startswith("score."):
                parameter.div_(2.0)
    halved = scored(unsure, needs=ALL)
    for number, one in hot.items():
        for name in ("entropy_sum", "margin_mean", "bald", "tta_jsd"):
            assert getattr(one, name) == pytest.approx(getattr(halved[number], name), rel=1e-3, abs=1e-7)
            # All views of a single pixel are alike.
            assert getattr(one, name) != getattr(cool[number], name) or one.valid_pixels == 1
        assert unpack([one.gradient]) == pytest.approx(unpack([halved[number].gradient]), abs=1e-3)
        assert one.feature == cool[number].feature


def test_features_that_are_not_finite_are_no_embedding(make_segmenter: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = make_segmenter()
    features = segmenter.module.features

    def with_infinity(x: Tensor) -> tuple[Tensor, ...]:
        *finer, coarsest = features(x)
        return (*finer, coarsest + math.inf)

    monkeypatch.setattr(segmenter.module, "features", with_infinity)
    monkeypatch.setattr(segmenter.module, "scores", lambda found: found[0][:, :4])
    with pytest.raises(NonFiniteScoreError, match=r"image 100 .* has embedding or disagreement"):
        scored(segmenter)


@pytest.mark.slow
@pytest.mark.skipif(can_compile() is not None, reason=str(can_compile()))
def test_compiled_and_eager_give_the_same(make_segmenter: Callable, tmp_path) -> None:
    segmenter = make_segmenter()
    with torch.no_grad():
        for layer in segmenter.module.score.values():
            layer.weight.mul_(1000)
    same = [image for image in refs() if SIZES[image.image_id - 100] == (48, 64)]
    eager, compiled = (
        list(score_images(segmenter, same, read, device=CPU, precision="float32", needs=ALL, compile=mode, cache=tmp_path))
        for mode in ("never", "always")
    )
    for one, other in zip(eager, compiled, strict=True):
        for name in ("bald", "tta_jsd"):
            assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-3, abs=1e-7)
        for name in ("feature", "gradient"):
            mine, theirs = (unpack([getattr(score, name)])[0] for score in (one, other))
            assert theirs == pytest.approx(mine, abs=2e-2 * largest(mine))
