from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torchvision.models import mobilenet_v2

from activeseg.errors import CheckpointError
from activeseg.nn.checkpoint import (
    NetworkSpec,
    checkpoint_bytes,
    import_weights,
    load_checkpoint,
    new_segmenter,
    read_weights,
)
from activeseg.records import InputPolicy


def test_a_checkpoint_gives_back_the_same_network(make_segmenter) -> None:
    segmenter = make_segmenter(short_side=64, seed=5, decoder_stride=16)
    segmenter.module.train()(torch.rand(2, 3, 64, 64))  # moves the norms' statistics
    loaded = load_checkpoint(checkpoint_bytes(segmenter), model_version="m2", device="cpu")
    assert loaded.spec == segmenter.spec
    assert loaded.model_version == "m2"
    assert not loaded.module.training
    x = torch.rand(1, 3, 70, 50)
    with torch.inference_mode():
        assert torch.equal(loaded.module(x)["out"], segmenter.module.eval()(x)["out"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("fcn16s_vgg16", {"width": 1 / 16, "upsampling": "bilinear"}),
        ("fcn8s_vgg16", {"width": 1 / 16}),
        ("lraspp_mobilenet_v3_large", {}),
        ("deeplabv3_mobilenet_v3_large", {"aux": False}),
    ],
)
def test_a_checkpoint_keeps_the_choices_of_its_architecture(label_set, architecture: str, options: dict[str, Any]) -> None:
    spec = replace(NetworkSpec(architecture, 1.0, 8, label_set, InputPolicy()), **options)
    segmenter = new_segmenter(spec, model_version="m1", seed=3)
    loaded = load_checkpoint(checkpoint_bytes(segmenter), model_version="m2", device="cpu")
    assert loaded.spec == spec
    x = torch.rand(1, 3, 40, 50)
    with torch.inference_mode():
        assert torch.equal(loaded.module(x)["out"], segmenter.module.eval()(x)["out"])


def test_checkpoints_from_before_there_was_a_choice_of_upsampling_load(make_segmenter) -> None:
    segmenter = make_segmenter()
    described = {
        "format": 1,
        "spec": {
            "architecture": "fcn_mobilenet_v2",
            "width": 0.25,
            "decoder_stride": 8,
            "label_set": segmenter.spec.label_set.as_dict(),
            "input_policy": segmenter.spec.input_policy.as_dict(),
            "head": "softmax",
        },
    }
    weights = read_weights(checkpoint_bytes(segmenter))
    data = safetensors.torch.save(weights, {"activeseg": json.dumps(described)})
    loaded = load_checkpoint(data, model_version="m1", device="cpu")
    assert loaded.spec == segmenter.spec
    assert (loaded.spec.upsampling, loaded.spec.aux) == ("transposed", True)


def test_training_continues_the_same_network_with_or_without_its_auxiliary_head(make_segmenter) -> None:
    spec = make_segmenter().spec
    assert spec.continues(spec)
    assert spec.continues(replace(spec, aux=False))
    for other in ({"width": 0.5}, {"upsampling": "bilinear"}, {"decoder_stride": 16}, {"input_policy": InputPolicy(64)}):
        assert not spec.continues(replace(spec, **other))


def test_equal_networks_give_equal_bytes(make_segmenter) -> None:
    data = checkpoint_bytes(make_segmenter(seed=1))
    assert data == checkpoint_bytes(make_segmenter(seed=1))
    assert data == checkpoint_bytes(load_checkpoint(data, model_version="other", device="cpu"))
    assert data != checkpoint_bytes(make_segmenter(seed=2))


def test_damaged_checkpoints_are_refused(make_segmenter) -> None:
    data = checkpoint_bytes(make_segmenter())
    for damaged in (b"", data[:5], data[:100], data[:-1], b"PK" + data, b"\xff" * 64, data[:8] + b"[]" + data[10:]):
        with pytest.raises(CheckpointError):
            load_checkpoint(damaged, model_version="m1", device="cpu")


def test_weights_that_do_not_match_their_description_are_refused(make_segmenter) -> None:
    segmenter = make_segmenter()
    weights = read_weights(checkpoint_bytes(segmenter))
    metadata = {"activeseg": _description(segmenter)}
    weights.pop("score.8.bias")
    with pytest.raises(CheckpointError, match=r"score\.8\.bias"):
        load_checkpoint(safetensors.torch.save(weights, metadata), model_version="m1", device="cpu")


def test_bare_weights_and_future_formats_are_told_apart(make_segmenter) -> None:
    weights = read_weights(checkpoint_bytes(make_segmenter()))
    with pytest.raises(CheckpointError, match="weights import"):
        load_checkpoint(safetensors.torch.save(weights), model_version="m1", device="cpu")
    future = safetensors.torch.save(weights, {"activeseg": '{"format": 99}'})
    with pytest.raises(CheckpointError, match="upgrade"):
        load_checkpoint(future, model_version="m1", device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"state_dict": w}, lambda w: {"model": w, "epoch": 3}])
def test_foreign_state_dicts_become_safetensors(tmp_path: Path, wrap) -> None:
    weights = mobilenet_v2(weights=None, width_mult=0.25, num_classes=3).state_dict()
    torch.save(wrap(weights), tmp_path / "foreign.pth")
    imported = read_weights(import_weights(tmp_path / "foreign.pth"))
    assert imported.keys() == weights.keys()
    assert all(torch.equal(imported[name], weights[name]) for name in weights)


def test_names_from_data_parallel_training_lose_their_prefix(tmp_path: Path) -> None:
    torch.save({"module.a.weight": torch.ones(2)}, tmp_path / "foreign.pth")
    assert list(read_weights(import_weights(tmp_path / "foreign.pth"))) == ["a.weight"]


def test_tensors_that_share_memory_are_imported_apart(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    torch.save({"a": shared, "b": shared[:3]}, tmp_path / "foreign.pth")
    imported = read_weights(import_weights(tmp_path / "foreign.pth"))
    assert imported["b"].tolist() == [0, 1, 2]


def test_safetensors_are_imported_without_their_metadata(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors", metadata={"x": "y"})
    assert import_weights(tmp_path / "w.safetensors") == safetensors.torch.save({"a": torch.ones(2)})


class _WritesAFile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "owned")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_hostile_pickle_is_refused_with_the_remedy_and_does_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"features.0.0.weight": _WritesAFile(trace)}, tmp_path / "zip.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(_WritesAFile(trace)))
    for name in ("zip.pth", "plain.pth"):
        with pytest.raises(CheckpointError, match=r"safetensors\.torch\.save_file"):
            import_weights(tmp_path / name)
    assert not trace.exists()
    pickle.loads((tmp_path / "plain.pth").read_bytes())  # noqa: S301  # shows that the bomb was live
    assert trace.exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04broken"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_are_no_weights_are_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    (tmp_path / f"w{suffix}").write_bytes(content)
    with pytest.raises(CheckpointError):
        import_weights(tmp_path / f"w{suffix}")


@pytest.mark.parametrize("value", [{}, [torch.ones(1)], {"a": 3}, torch.ones(2), {1: torch.ones(1)}])
def test_pickles_without_a_state_dict_are_refused(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="state dict"):
        import_weights(tmp_path / "w.pth")


def test_missing_weights_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.pth"):
        import_weights(tmp_path / "nothing.pth")


def _description(segmenter) -> str:
    data = checkpoint_bytes(new_segmenter(segmenter.spec, model_version="m"))
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header["__metadata__"]["activeseg"]
