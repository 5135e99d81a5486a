"""Fidelity of one map to another, by hand, by loops, and by scipy."""

import math

import pytest
import torch
from helpers import assert_close
from scipy.stats import entropy, spearmanr

from vitsal.students.fidelity import (
    OVERLAP_RATIOS,
    as_distribution,
    divergence,
    kept_overlap,
    measure_fidelity,
    rank_correlation,
)


def ordered(*values):
    """A 2 x 4 map with these values, as a batch of one."""
    return torch.tensor(values, dtype=torch.float).view(1, 2, 4)


@pytest.mark.parametrize(
    ("other", "ratio", "overlap"),
    [
        ((8, 7, 6, 5, 4, 3, 2, 1), 0.5, 1.0),
        ((1, 2, 3, 4, 5, 6, 7, 8), 0.5, 0.0),
        ((8, 7, 1, 2, 6, 5, 3, 4), 0.5, 2 / 6),  # 0, 1, 2, 3 against 0, 1, 4, 5
        ((1, 8, 7, 6, 5, 4, 3, 2), 0.5, 3 / 5),  # against 1, 2, 3, 4
        ((1, 8, 7, 6, 5, 4, 3, 2), 0.25, 1 / 3),  # 0, 1 against 1, 2
        ((7, 8, 1, 1, 1, 1, 1, 1), 0.1, 0.0),  # one patch each: 0 against 1
        ((1, 2, 3, 4, 5, 6, 7, 8), 1.0, 1.0),
    ],
)
def test_kept_overlap_by_hand(other, ratio, overlap):
    first = ordered(8, 7, 6, 5, 4, 3, 2, 1)
    assert kept_overlap(first, ordered(*other), ratio).item() == pytest.approx(overlap, abs=1e-6)
    assert kept_overlap(ordered(*other), first, ratio).item() == pytest.approx(overlap, abs=1e-6)


def test_kept_overlap_equals_sets_of_python():
    ours, theirs = torch.randn(6, 5, 7), torch.randn(6, 5, 7)
    for ratio in OVERLAP_RATIOS:
        kept = math.floor(ratio * 35 + 0.5)
        for index, overlap in enumerate(kept_overlap(ours, theirs, ratio).tolist()):
            one, other = (
                set(maps[index].flatten().argsort(descending=True)[:kept].tolist()) for maps in (ours, theirs)
            )
            assert overlap == pytest.approx(len(one & other) / len(one | other), abs=1e-6)


def test_rank_correlation_equals_scipys_row_by_row_with_ties():
    ours, theirs = torch.randn(8, 4, 5), torch.randn(8, 4, 5)
    ours[1:5], theirs[3:7] = ours[1:5].round(), theirs[3:7].round()  # ties in one, in both, in the other
    assert len(ours[2].unique()) < 10
    expected = [spearmanr(one.flatten(), other.flatten()).statistic for one, other in zip(ours, theirs, strict=True)]
    actual = rank_correlation(ours, theirs)
    assert actual.dtype == torch.float32
    assert_close(actual, torch.tensor(expected), 1e-6)


def test_a_map_without_differences_has_rank_correlation_0():
    assert rank_correlation(torch.ones(1, 3, 3), torch.rand(1, 3, 3)).item() == 0


def test_rank_correlation_of_reversed_order_is_minus_1():
    values = torch.rand(2, 3, 3)
    assert_close(rank_correlation(values, -values), [-1.0, -1.0], 1e-6)


def test_divergence_equals_a_plain_sum_and_scipys_entropy():
    logits, reference = 2 * torch.randn(5, 3, 4), torch.rand(5, 3, 4)
    reference[0, 0] = 0  # 0 log 0 is 0
    for row, value in enumerate(divergence(logits, reference).tolist()):
        exponentials = [math.exp(logit) for logit in logits[row].flatten().tolist()]
        shares = [exponential / sum(exponentials) for exponential in exponentials]
        wanted = [part / reference[row].sum().item() for part in reference[row].flatten().tolist()]
        by_hand = sum(p * math.log(p / q) for p, q in zip(wanted, shares, strict=True) if p)
        assert value == pytest.approx(by_hand, abs=1e-5)
        assert value == pytest.approx(entropy(wanted, shares), abs=1e-5)


def test_divergence_by_hand():
    """A quarter and three quarters, predicted as even: ln 2 minus the entropy."""
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert divergence(torch.full((1, 1, 2), 7.0), torch.tensor([[[1.0, 3.0]]])).item() == pytest.approx(
        expected, abs=1e-6
    )


def test_distribution():
    assert_close(as_distribution(torch.tensor([[[1.0, 3.0], [0.0, 4.0]]])), [[1 / 8, 3 / 8, 0, 1 / 2]], 1e-6)
    assert_close(as_distribution(torch.zeros(2, 3, 4)), torch.full((2, 12), 1 / 12), 1e-7)
    assert as_distribution(torch.rand(2, 3, 4).half()).dtype == torch.float32


def test_equal_maps_are_perfect():
    maps = 0.01 + torch.rand(3, 5, 4)
    measured = measure_fidelity(maps.log() + 3, maps)  # logits are known up to a constant
    assert list(measured) == ["kl", "spearman", "iou_50", "iou_30", "iou_20", "iou_10"]
    for name, values in measured.items():
        assert_close(values, [0.0 if name == "kl" else 1.0] * 3, 1e-5)


def test_fidelity_is_made_of_the_others_image_by_image():
    logits, maps = torch.randn(4, 5, 4), torch.rand(4, 5, 4)
    measured = measure_fidelity(logits, maps)
    assert torch.equal(measured["kl"], divergence(logits, maps))
    assert torch.equal(measured["spearman"], rank_correlation(logits, maps))
    assert torch.equal(measured["iou_30"], kept_overlap(logits, maps, 0.3))
    for index in range(4):
        alone = measure_fidelity(logits[index : index + 1], maps[index : index + 1])
        assert all(alone[name].item() == pytest.approx(measured[name][index].item(), abs=1e-6) for name in measured)


@pytest.mark.parametrize("ratio", OVERLAP_RATIOS)
def test_random_maps_overlap_by_chance_only(ratio):
    """Expected intersection r^2 P, union 2 r P - r^2 P; of 500 pairs of 196 patches the mean is near."""
    overlap = kept_overlap(torch.rand(500, 14, 14), torch.rand(500, 14, 14), ratio)
    assert overlap.mean().item() == pytest.approx(ratio / (2 - ratio), abs=0.01)


def test_order_alone_matters_to_overlap_and_rank_correlation():
    ours, theirs = torch.randn(4, 6, 6), torch.rand(4, 6, 6)
    for grown in (ours.exp(), 3 * ours - 5, ours.sigmoid(), ours**3):
        assert torch.equal(kept_overlap(grown, theirs, 0.3), kept_overlap(ours, theirs, 0.3))
        assert_close(rank_correlation(grown, theirs), rank_correlation(ours, theirs), 1e-6)
        assert_close(rank_correlation(theirs, grown), rank_correlation(theirs, ours), 1e-6)
