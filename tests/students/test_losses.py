"""Losses against loops over patches and pairs, and on a problem small enough to be solved."""

import math

import pytest
import torch
from helpers import assert_close

from vitsal.students.fidelity import rank_correlation
from vitsal.students.losses import LOSS_FUNCTIONS

SHAPES = [(1, 1, 2), (2, 3, 4), (3, 5, 2), (1, 6, 6)]


def rows(values):
    return values.flatten(1).tolist()


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def slow_kl(logits, maps):
    def one(scores, values):
        log_total = math.log(sum(math.exp(score) for score in scores))
        shares = [value / sum(values) for value in values]
        return sum(p * (math.log(p) - score + log_total) for p, score in zip(shares, scores, strict=True) if p)

    return mean(one(scores, values) for scores, values in zip(rows(logits), rows(maps), strict=True))


def scaled_pairs(logits, maps):
    """Each patch's predicted share and its value in the map scaled to a maximum of 1."""
    for scores, values in zip(rows(logits), rows(maps), strict=True):
        for score, value in zip(scores, values, strict=True):
            yield sigmoid(score), value / max(values)


def slow_bce(logits, maps):
    return mean(-t * math.log(p) - (1 - t) * math.log(1 - p) for p, t in scaled_pairs(logits, maps))


def slow_mse(logits, maps):
    return mean((p - t) ** 2 for p, t in scaled_pairs(logits, maps))


def slow_rank(logits, maps):
    return mean(
        math.log(1 + math.exp(lower_score - higher_score))
        for scores, values in zip(rows(logits), rows(maps), strict=True)
        for higher_score, high in zip(scores, values, strict=True)
        for lower_score, low in zip(scores, values, strict=True)
        if high > low
    )


SLOW = {"kl": slow_kl, "bce": slow_bce, "mse": slow_mse, "rank": slow_rank}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", LOSS_FUNCTIONS)
def test_equals_the_slow_reference(name, shape):
    logits, maps = 2 * torch.randn(shape), torch.rand(shape)
    loss = LOSS_FUNCTIONS[name](logits, maps)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(SLOW[name](logits, maps), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", LOSS_FUNCTIONS)
def test_maps_with_ties_zeros_and_any_scale(name):
    logits, maps = torch.randn(2, 3, 4), torch.randint(0, 3, (2, 3, 4)).float()
    assert len(maps[0].unique()) == len(maps[1].unique()) == 3
    loss = LOSS_FUNCTIONS[name](logits, maps).item()
    assert loss == pytest.approx(SLOW[name](logits, maps), rel=1e-4, abs=1e-5)
    assert LOSS_FUNCTIONS[name](logits, 7 * maps).item() == pytest.approx(loss, rel=1e-4)
    assert LOSS_FUNCTIONS[name](logits, maps.half()).item() == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("name", LOSS_FUNCTIONS)
def test_gradients_are_finite_and_right(name):
    """By finite differences of the slow reference, in double precision where that matters."""
    logits, maps = torch.randn(1, 2, 3).requires_grad_(), torch.rand(1, 2, 3)
    LOSS_FUNCTIONS[name](logits, maps).backward()
    for patch in range(6):
        step = torch.zeros(6, dtype=torch.float64).index_fill(0, torch.tensor(patch), 1e-4).view(1, 2, 3)
        up, down = (SLOW[name](logits.detach().double() + sign * step, maps.double()) for sign in (1, -1))
        assert logits.grad.flatten()[patch].item() == pytest.approx((up - down) / 2e-4, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("level", [0.0, 1.0])
@pytest.mark.parametrize("name", LOSS_FUNCTIONS)
def test_a_map_without_differences_gives_finite_gradients(name, level):
    logits = torch.randn(2, 3, 4).requires_grad_()
    loss = LOSS_FUNCTIONS[name](logits, torch.full((2, 3, 4), level))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    if name == "rank":  # nothing to tell apart, nothing to learn
        assert loss.item() == 0
        assert logits.grad.abs().max() == 0


@pytest.mark.parametrize("name", LOSS_FUNCTIONS)
def test_far_off_logits_give_finite_losses(name):
    logits = torch.tensor([[[200.0, -200.0], [0.0, 90.0]]]).requires_grad_()
    loss = LOSS_FUNCTIONS[name](logits, torch.tensor([[[0.0, 3.0], [1.0, 2.0]]]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_kl_is_0_at_the_logarithms_of_the_shares_and_nowhere_lower():
    maps = 0.01 + torch.rand(3, 4, 4)
    best = maps.log() + torch.randn(3, 1, 1)  # up to a constant for each image
    assert LOSS_FUNCTIONS["kl"](best, maps).item() == pytest.approx(0, abs=1e-6)
    for _ in range(20):
        assert LOSS_FUNCTIONS["kl"](best + 0.1 * torch.randn(3, 4, 4), maps).item() > 1e-5


@pytest.mark.parametrize("name", ["bce", "mse"])
def test_minimal_where_the_sigmoid_is_the_scaled_map(name):
    maps = 0.05 + 0.9 * torch.rand(3, 4, 4)
    scaled = maps / maps.amax(dim=(1, 2), keepdim=True)
    best = scaled.clamp(max=0.999).logit()
    lowest = LOSS_FUNCTIONS[name](best, maps)
    for _ in range(20):
        assert LOSS_FUNCTIONS[name](best + 0.5 * torch.randn(3, 4, 4), maps) > lowest


@pytest.mark.parametrize("name", LOSS_FUNCTIONS)
def test_plain_gradient_descent_learns_the_order_of_the_patches(name):
    maps, logits = torch.rand(2, 4, 4), torch.randn(2, 4, 4).requires_grad_()
    rate = {"kl": 5.0, "bce": 20.0, "mse": 20.0, "rank": 20.0}[name]
    losses = []
    for _ in range(200):
        losses.append(LOSS_FUNCTIONS[name](logits, maps))
        (gradient,) = torch.autograd.grad(losses[-1], logits)
        logits = (logits - rate * gradient).detach().requires_grad_()
    values = torch.stack(losses).detach()
    assert values[-1] < 0.9 * values[0]
    assert (values.diff() < 1e-4).all()
    correlation = rank_correlation(logits.detach(), maps)
    assert correlation.min() > 0.9
    assert_close(correlation.mean(), 0.98, 0.05)
