"""Mutual information equals the formula pixel by pixel, and dropout falls by seed and place alone."""

from __future__ import annotations

import math

import pytest
import torch

from activeseg.core.disagreement import disagreement, dropped
from activeseg.errors import ConfigError


def random_members(count: int, shape: tuple[int, ...] = (2, 3, 4, 5), seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(shape, generator=generator) for _ in range(count)]


def entropy(probabilities: list[float]) -> float:
    return -sum(p * math.log(p) for p in probabilities if p > 0)


def brute_force(members: list[torch.Tensor], image: int, *, sigmoid: bool) -> float:
    """H(mean p) - mean H(p), one pixel and one member at a time, in float64."""
    _, _, height, width = members[0].shape
    total = 0.0
    for row in range(height):
        for column in range(width):
            outcomes: list[list[list[float]]] = []  # of each member: distributions, one, or one a channel
            for member in members:
                z = member[image, :, row, column].double().tolist()
                if sigmoid:
                    outcomes.append([[1 / (1 + math.exp(-v)), 1 / (1 + math.exp(v))] for v in z])
                else:
                    whole = sum(math.exp(v) for v in z)
                    outcomes.append([[math.exp(v) / whole for v in z]])
            for part in range(len(outcomes[0])):
                distributions = [outcome[part] for outcome in outcomes]
                mean = [sum(values) / len(members) for values in zip(*distributions, strict=True)]
                total += entropy(mean) - sum(map(entropy, distributions)) / len(members)
    return total / (height * width)


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("count", [2, 8])
def test_disagreement_equals_brute_force(count: int, sigmoid: bool) -> None:
    members = random_members(count)
    expected = [brute_force(members, image, sigmoid=sigmoid) for image in range(2)]
    assert disagreement(iter(members), sigmoid=sigmoid).tolist() == pytest.approx(expected, rel=1e-4)


def test_one_class_alone_is_certain_or_is_there_or_not() -> None:
    members = random_members(3, (2, 1, 4, 5))
    assert disagreement(iter(members), sigmoid=False).tolist() == pytest.approx([0, 0], abs=1e-7)
    expected = [brute_force(members, image, sigmoid=True) for image in range(2)]
    assert min(expected) > 0.01
    assert disagreement(iter(members), sigmoid=True).tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_members_of_one_opinion_do_not_disagree_however_unsure(sigmoid: bool) -> None:
    member = random_members(1)[0]
    for members in ([member], [member] * 8):
        found = disagreement(members, sigmoid=sigmoid)
        assert found.tolist() == pytest.approx([0, 0], abs=1e-6)
        assert (found >= 0).all()


def test_sure_members_of_two_opinions_disagree_by_log_2() -> None:
    one, other = torch.full((1, 4, 3, 3), -100.0), torch.full((1, 4, 3, 3), -100.0)
    one[:, 0], other[:, 2] = 100.0, 100.0
    assert disagreement([one, other], sigmoid=False).item() == pytest.approx(math.log(2))


def test_nan_is_not_hidden() -> None:
    members = random_members(3)
    members[1][0, 0, 0, 0] = math.nan
    found = disagreement(members, sigmoid=False)
    assert found.isnan().tolist() == [True, False]


def test_a_committee_of_nobody_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        disagreement([], sigmoid=False)


def mixed(x: int) -> int:
    """lowbias32, in whole numbers."""
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return x ^ x >> 16


def seeds(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def test_a_share_of_the_numbers_falls_and_the_mean_stays() -> None:
    found = dropped(torch.ones(4, 64, 20, 20), seeds(0, 1, -(2**31), 2**31 - 1), share=0.3, draw=5)
    assert found.unique().tolist() == [0.0, pytest.approx(1 / 0.7)]
    assert (found == 0).double().mean(dim=(1, 2, 3)).tolist() == pytest.approx([0.3] * 4, abs=0.01)


def test_what_falls_depends_on_seed_draw_and_place_alone() -> None:
    ones = torch.ones(3, 8, 6, 6)
    together = dropped(ones, seeds(7, 8, 7), share=0.5, draw=2)
    assert torch.equal(together[0], together[2])
    assert torch.equal(together[1], dropped(ones[:1], seeds(8), share=0.5, draw=2)[0])
    for other in (together[1], dropped(ones[:1], seeds(7), share=0.5, draw=3)[0]):
        agreeing = (other == together[0]).double().mean().item()
        assert 0.35 < agreeing < 0.65  # independent halves agree on half


@pytest.mark.parametrize("draw", [0, 1, 9])
def test_an_image_scored_on_another_machine_loses_the_same_numbers(draw: int) -> None:
    start = mixed((1 + draw * 0x9E3779B9) % 2**32)
    # Signed numbers of 32 bits are compared: the upper half of the unsigned ones is negative.
    expected = [mixed(start ^ place) < 2**31 for place in range(16)]
    assert (dropped(torch.ones(1, 1, 2, 8), seeds(1), share=0.5, draw=draw) > 0).flatten().tolist() == expected
