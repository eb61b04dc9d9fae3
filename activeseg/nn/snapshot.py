"""The state of an unfinished training, and the file it is saved to: safetensors with the figures as JSON metadata."""

from __future__ import annotations

import json
import logging
import math
import os
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from activeseg.errors import CheckpointError
from activeseg.nn.ema import MovingAverage
from activeseg.nn.teacher import Teacher

_KEY = "activeseg-training"


@dataclass(frozen=True, slots=True)
class Look:
    """Validation after so many steps; mean_iou is None where the split has no labelled pixel."""

    step: int
    mean_iou: float | None


def best_look(looks: list[Look]) -> Look | None:
    """The look with the highest mIoU, the first of equal ones; None without any."""
    measured = [look for look in looks if look.mean_iou is not None]
    return max(measured, key=lambda look: look.mean_iou or 0.0, default=None)


@dataclass
class Progress:
    """A training after `step` steps, with all that the next one depends on.

    losses: one per step. looks: validation in between. best: the weights of the best look, by name. teacher: where unlabelled
    images are learned from.
    """

    module: nn.Module
    optimizer: torch.optim.SGD
    scaler: torch.amp.GradScaler
    average: MovingAverage | None
    step: int = 0
    losses: list[float] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    teacher: Teacher | None = None

    @property
    def candidate(self) -> nn.Module:
        """The network that would be kept if training ended now."""
        return self.average.module if self.average else self.module

    def look(self, mean_iou: float | None) -> None:
        """Note what validation says of the candidate; its weights are set aside if they are the best so far."""
        measured = mean_iou if mean_iou is not None and math.isfinite(mean_iou) else None
        self.looks.append(Look(self.step, measured))
        if best_look(self.looks) is self.looks[-1]:
            self.best = {name: value.detach().clone() for name, value in self.candidate.state_dict().items()}

    def keep(self) -> int:
        """Put the best look's weights into the module, the candidate's where none was seen; returns the step they are of."""
        self.module.load_state_dict(self.best or self.candidate.state_dict())
        best = best_look(self.looks)
        return best.step if best else self.step

    def save(self, file: Path, identity: str) -> None:
        """Replace `file` by this state, at once or not at all. identity: what the training is, see `resume`.

        Where it cannot be written (a full disk), that is told in the log and nothing else happens: a training is worth
        more than its state.
        """
        meta = {"identity": identity, "step": self.step, "losses": self.losses, "scaler": self.scaler.state_dict()}
        meta["looks"] = [asdict(look) for look in self.looks]
        momentum = {name: self.optimizer.state[value].get("momentum_buffer") for name, value in self._parameters()}
        held = {name: value for name, value in momentum.items() if value is not None}
        try:
            _write(file, self._live() | _named("momentum", held) | _named("best", self.best), meta)
        except (OSError, safetensors.SafetensorError) as error:
            problem = f"the state of the training after step {self.step} could not be saved to {file} ({error})"
            logging.getLogger(__name__).warning("%s; it goes on without", problem)

    def resume(self, file: Path, identity: str) -> str | None:
        """Go on from `file` where it is there; returns why it was refused where it could not be used, else None.

        A damaged file, or one of another training (identity), changes nothing and is told in the log.
        """
        if not file.exists():
            return None
        try:
            tensors, meta = _read(file)
            if meta["identity"] != identity:
                raise CheckpointError("it is of another training")
            self._restore(tensors, meta)
        except (CheckpointError, KeyError, TypeError, ValueError) as error:
            refused = f"the saved training {file} is not used: {error or type(error).__name__}"
            logging.getLogger(__name__).warning("%s; starting over", refused)
            return refused
        return None

    def _restore(self, tensors: Mapping[str, Tensor], meta: dict[str, Any]) -> None:
        """Raises before anything is changed."""
        live = self._live()
        weights, parameters = self.module.state_dict(), dict(self._parameters())
        best = {name.removeprefix("best/"): value for name, value in tensors.items() if name.startswith("best/")}
        known = live | _named("momentum", parameters) | _named("best", weights)
        complete = live.keys() <= tensors.keys() and best.keys() in (set(), weights.keys())
        if not complete or any(name not in known or known[name].shape != value.shape for name, value in tensors.items()):
            raise CheckpointError("it holds other layers than this network")
        looks = [Look(int(look["step"]), look["mean_iou"]) for look in meta["looks"]]
        step, losses, scaler = int(meta["step"]), [float(loss) for loss in meta["losses"]], dict(meta["scaler"])
        with torch.no_grad():
            for name, place in live.items():
                place.copy_(tensors[name])
            for name, parameter in parameters.items():
                if (saved := tensors.get(f"momentum/{name}")) is not None:
                    self.optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(saved)
        self.best = {name: torch.empty_like(weights[name]).copy_(value) for name, value in best.items()}
        self.step, self.losses, self.looks = step, losses, looks
        if scaler:
            self.scaler.load_state_dict(scaler)

    def _live(self) -> dict[str, Tensor]:
        average = self.average.module.state_dict() if self.average else {}
        teacher = self.teacher.state if self.teacher else {}
        return _named("weights", self.module.state_dict()) | _named("average", average) | _named("teacher", teacher)

    def _parameters(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.module.named_parameters())


def _named(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{kind}/{name}": value for name, value in tensors.items()}


def _write(file: Path, tensors: Mapping[str, Tensor], meta: dict[str, Any]) -> None:
    # safetensors wants row-major tensors.
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    described = json.dumps(meta | {"crc32": _checksum(plain)})
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(file.name + ".unfinished")
    try:
        safetensors.torch.save_file(plain, unfinished, metadata={_KEY: described})
        with unfinished.open("rb") as stream:
            os.fsync(stream.fileno())
        unfinished.replace(file)
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safetensors.safe_open(file, "pt") as opened:
            meta = json.loads((opened.metadata() or {}).get(_KEY, "null"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"it is damaged ({error})") from error
    if not isinstance(meta, dict) or meta.get("crc32") != _checksum(tensors):
        raise CheckpointError("it is damaged, or no saved training")
    return tensors, meta


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, zlib.crc32(name.encode(), total))
    return total
