"""What is computed in bfloat16 on a CPU, with units for it or without, is what float32 says but for its rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from activeseg.core.entropy import reduce_logits
from activeseg.core.reduction import can_compile
from activeseg.nn.checkpoint import NetworkSpec, checkpoint_bytes, load_checkpoint, new_segmenter
from activeseg.nn.data import to_input, to_pixels
from activeseg.nn.device import autocast, pick_precision
from activeseg.nn.evaluate import evaluate
from activeseg.nn.fit import fit
from activeseg.nn.infer import predict_masks, score_images
from activeseg.nn.pace import Pace
from activeseg.records import ImageRef, InputPolicy

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
WHERE_IT_PAYS = pytest.mark.skipif(
    can_compile() is not None or pick_precision(CPU, "auto") != "bfloat16",
    reason="no compiler, or no units: what is compiled for bfloat16 then takes minutes",
)
REFS = [ImageRef(number, "", "") for number in range(6)]


def read(image: ImageRef) -> np.ndarray:
    return np.random.default_rng(image.image_id).integers(0, 256, (48, 64, 3), dtype=np.uint8)


@pytest.fixture
def trained(make_segmenter, scenes, recipe):
    segmenter = make_segmenter()
    fit(segmenter, scenes, recipe(steps=30, learning_rate=0.03), device=CPU, precision="float32")
    return segmenter


@pytest.mark.parametrize("compile", ["never", pytest.param("always", marks=WHERE_IT_PAYS)])
def test_scores_differ_by_rounding(trained, tmp_path, compile: str) -> None:
    exact = list(score_images(trained, REFS, read, device=CPU, precision="float32"))
    pace = Pace()
    options = {"compile": compile, "cache": tmp_path, "pace": pace}
    rounded = list(score_images(trained, REFS, read, device=CPU, precision="bfloat16", **options))
    assert pace.compiled_images == (len(REFS) if compile == "always" else 0)
    assert pace.not_compiled is None
    for one, other in zip(exact, rounded, strict=True):
        assert other.image_id == one.image_id
        assert other.entropy_sum == pytest.approx(one.entropy_sum, rel=0.05)
        assert other.entropy_sum != one.entropy_sum
        assert other.valid_pixels == one.valid_pixels
        # Summed in float32 from there on, so that the parts still make up the whole.
        assert sum(other.grid) == pytest.approx(other.entropy_sum, rel=1e-6)
        assert sum(each.channel_entropy_sum for each in other.classes) == pytest.approx(other.entropy_sum, rel=1e-4)


def test_logits_are_divided_by_the_temperature_in_float32(label_set) -> None:
    policy = InputPolicy(None, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    spec = NetworkSpec("lraspp_mobilenet_v3_large", 1.0, 8, label_set, policy, aux=False)
    segmenter = new_segmenter(spec, model_version="m1")
    module = segmenter.module.eval()
    with torch.no_grad():
        for name, weights in module.named_parameters():
            if "high_classifier" in name or "low_classifier" in name:
                weights.mul_(30)
    for score in score_images(segmenter, REFS, read, device=CPU, precision="bfloat16", batch_size=1, temperature=0.37):
        pixels = to_pixels(read(ImageRef(score.image_id, "", "")))[None]
        with torch.inference_mode(), autocast(CPU, "bfloat16"):
            logits = module.coarse(to_input(pixels, policy, CPU))
        assert logits.dtype == torch.bfloat16
        in_float32, rounded = (
            float(reduce_logits(module.enlargement(48, 64).apply(divided.float())).entropy_sum)
            for divided in (logits.float() / 0.37, logits / 0.37)
        )
        assert score.entropy_sum == pytest.approx(in_float32, rel=1e-5)
        assert rounded != pytest.approx(in_float32, rel=1e-5)


def test_masks_differ_where_two_classes_are_equally_likely(trained) -> None:
    exact, rounded = (list(predict_masks(trained, REFS, read, device=CPU, precision=name)) for name in ("float32", "bfloat16"))
    for one, other in zip(exact, rounded, strict=True):
        assert (one.mask == other.mask).mean() > 0.9
        assert other.entropy.dtype == np.float32
        assert other.entropy.sum() == pytest.approx(one.entropy.sum(), rel=0.05)


def test_a_training_learns_and_leaves_float32(make_segmenter, scenes, recipe) -> None:
    segmenter = make_segmenter()
    result = fit(segmenter, scenes, recipe(steps=30, learning_rate=0.03), device=CPU, precision="bfloat16")
    assert result.losses[-1] < 0.7 * result.losses[0]
    assert {value.dtype for value in segmenter.module.state_dict().values()} <= {torch.float32, torch.int64}
    again = make_segmenter()
    assert fit(again, scenes, recipe(steps=30, learning_rate=0.03), device=CPU, precision="bfloat16").losses == result.losses
    assert checkpoint_bytes(again) == checkpoint_bytes(segmenter)
    loaded = load_checkpoint(checkpoint_bytes(segmenter), model_version="m2", device="cpu")
    exact, rounded = (evaluate(loaded, scenes, device=CPU, precision=name).calibration for name in ("float32", "bfloat16"))
    assert rounded.nll == pytest.approx(exact.nll, rel=0.03)
    assert rounded.nll != exact.nll
