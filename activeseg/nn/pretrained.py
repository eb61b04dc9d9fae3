"""Foreign weights into a network: names are translated, and everything is checked before anything changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torchvision.models import WeightsEnum

from activeseg.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Naming:
    """How a file names the layers of a network, and what it may do without.

    prefixes: (in the file, in the network); the first that fits counts. ignored: beginnings of names in the file that the
    network has no use for. absent: layers of the network that the file may lack, each as a whole. resized: layers of the
    network that may have other shapes in the file, because they depend on the number of classes.
    """

    prefixes: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()

    def to_network(self, name: str) -> str:
        """The network's name for a name in the file; the same where it has none."""
        found = next(((theirs, ours) for theirs, ours in self.prefixes if name.startswith(theirs)), ("", ""))
        return found[1] + name.removeprefix(found[0])

    def to_file(self, name: str) -> str:
        """The file's name for one of the network's."""
        found = next(((theirs, ours) for theirs, ours in self.prefixes if name.startswith(ours)), ("", ""))
        return found[0] + name.removeprefix(found[1])


def fill(module: nn.Module, weights: Mapping[str, Tensor], naming: Naming, *, architecture: str, remedy: str) -> dict[str, str]:
    """Copy `weights` into `module`, in place. Returns the layers that stay as they are, each with the reason.

    A fully connected layer's weights fill the convolution over the whole of its input.

    Raises CheckpointError with the first layer that is missing, of another shape or unknown, and with `remedy`; nothing
    has changed then.
    """
    expected = module.state_dict()
    given = {naming.to_network(name): value for name, value in weights.items() if not name.startswith(naming.ignored)}
    given = {name: _as_convolution(value, expected.get(name)) for name, value in given.items()}
    misfit = next(_misfits(expected, given, naming), None)
    if misfit is not None:
        raise CheckpointError(f"weights do not fit {architecture}: layer {misfit}; {remedy}")
    fitting = {name: given[name] for name in expected if name in given and given[name].shape == expected[name].shape}
    module.load_state_dict(fitting, strict=False)
    left: dict[str, str] = {}
    for name in expected:
        if name not in fitting and not _is_counter(name):
            left.setdefault(name.rpartition(".")[0], _why(given.get(name), expected[name]))
    return left


def _misfits(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], naming: Naming) -> Iterator[str]:
    lacking = tuple(f"{layer}." for layer in naming.absent if not _any_within(given, layer))
    unused = tuple(f"{layer}." for layer in naming.absent if not _any_within(expected, layer))
    resized = tuple(f"{layer}." for layer in naming.resized)
    for name, parameter in expected.items():
        if name not in given:
            if not (name.startswith(lacking) or _is_counter(name)):
                yield f"{naming.to_file(name)} is missing"
        elif given[name].shape != parameter.shape and not name.startswith(resized):
            shapes = tuple(parameter.shape), tuple(given[name].shape)
            yield f"{naming.to_file(name)} should have shape {shapes[0]}, has {shapes[1]}"
    for name in given:
        if name not in expected and not name.startswith(unused):
            yield f"{naming.to_file(name)} is not part of it"


def _any_within(names: Iterable[str], layer: str) -> bool:
    return any(name.startswith(f"{layer}.") for name in names)


def _is_counter(name: str) -> bool:
    """A batch norm's step counter: older files have none, and nothing here reads it."""
    return name.endswith("num_batches_tracked")


def _as_convolution(value: Tensor, expected: Tensor | None) -> Tensor:
    if expected is not None and (value.ndim, expected.ndim) == (2, 4) and value.numel() == expected.numel():
        return value.reshape(expected.shape)
    return value


def _why(value: Tensor | None, expected: Tensor) -> str:
    if value is None:
        return "not in the file"
    return f"shape {tuple(value.shape)} in the file, {tuple(expected.shape)} here"


def download(weights: WeightsEnum, name: str, remedy: str) -> Mapping[str, Tensor]:
    """torchvision's published weights, from its cache where it has them.

    Raises CheckpointError with `remedy` where they cannot be had.
    """
    try:
        found: Mapping[str, Tensor] = weights.get_state_dict(
            progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"could not download torchvision's weights for {name} ({error}): go online once, or {remedy}"
        ) from error
    return found
