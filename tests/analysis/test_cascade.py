"""A second look for the least sure, on cases worked out by hand."""

import math

import pytest
import torch
from helpers import assert_close

from vitsal.analysis.cascade import margins, second_look
from vitsal.errors import UserError

# margins 0.8, 0.1, 0.4 and 0.2: the second image is the hardest, then the fourth, the third, the first
FIRST = torch.tensor([[0.9, 0.1], [0.55, 0.45], [0.3, 0.7], [0.6, 0.4]]).log()
SECOND = torch.tensor([[0.0, 1.0], [0.0, 2.0], [3.0, 0.0], [0.0, 4.0]])


def test_margins_by_hand():
    assert_close(margins(FIRST), [0.8, 0.1, 0.4, 0.2])
    assert_close(margins(torch.tensor([[0.2, 0.5, 0.3]]).log() + 7), [0.2])  # what all logits share does not count


@pytest.mark.parametrize(
    ("budget", "again", "predictions"),
    [
        (0.25, [], [0, 0, 1, 0]),  # enough for the first look alone
        (0.374, [], [0, 0, 1, 0]),  # not enough for one image of four: (0.374 - 0.25) / 0.5 < 1/4
        (0.375, [1], [0, 1, 1, 0]),
        (0.5, [1, 3], [0, 1, 1, 1]),
        (0.75, [0, 1, 2, 3], [1, 1, 0, 1]),
        (math.inf, [0, 1, 2, 3], [1, 1, 0, 1]),
    ],
)
def test_as_many_as_the_budget_allows_the_least_sure_first(budget, again, predictions):
    looked = second_look(FIRST, SECOND, (0.25, 0.5), budget)
    assert looked.again.nonzero().flatten().tolist() == again
    assert looked.predictions.tolist() == predictions
    assert looked.share == len(again) / 4
    assert (looked.logits[again] == SECOND[again]).all()


def test_the_mean_cost_is_never_above_the_budget_and_hardly_below():
    logits = torch.randn(2, 97, 5, generator=torch.Generator().manual_seed(0))
    for budget in torch.linspace(0.2, 0.85, 20).tolist():
        cost = 0.2 + 0.65 * second_look(*logits, (0.2, 0.65), budget).share
        assert budget - 0.65 / 97 < cost < budget + 1e-5


def test_of_equals_the_first_come_first():
    same = torch.zeros(4, 3)
    assert second_look(same, same, (1, 1), 1.5).again.tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("first", "second", "costs", "budget", "message"),
    [
        (FIRST, SECOND[:3], (0.2, 0.5), 0.5, r"got \(4, 2\) and \(3, 2\)"),
        (FIRST[:, :1], SECOND[:, :1], (0.2, 0.5), 0.5, "2 classes at least"),
        (FIRST[:0], SECOND[:0], (0.2, 0.5), 0.5, "the same images"),
        (FIRST * math.nan, SECOND, (0.2, 0.5), 0.5, "not finite"),
        (FIRST, SECOND, (0.2, 0.0), 0.5, "more than nothing"),
        (FIRST, SECOND, (0.2, math.nan), 0.5, "more than nothing"),
        (FIRST, SECOND, (0.6, 0.5), 0.5, "The first look alone costs 0.6"),
        (FIRST, SECOND, (0.2, 0.5), math.nan, "the budget is nan"),
    ],
)
def test_what_makes_no_sense_is_refused(first, second, costs, budget, message):
    with pytest.raises(UserError, match=message):
        second_look(first, second, costs, budget)
