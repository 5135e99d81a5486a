"""Image, guide, patches to keep, target, in one module: what its three lines give by hand, and nothing more."""

import pytest
import torch
from helpers import assert_close, randomise, traces

from vitsal.errors import UserError
from vitsal.guides import GradientRolloutGuide, RolloutGuide
from vitsal.guides.adapters import StudentGuide
from vitsal.guides.baselines import CenterGuide, RandomGuide
from vitsal.reduction.accelerated import AcceleratedViT
from vitsal.reduction.drop import forward_kept
from vitsal.reduction.keep import top_k_patches
from vitsal.students.student import Student

GUIDES = {
    "random": lambda target: RandomGuide((4, 4), seed=3),
    "center": lambda target: CenterGuide((4, 4)),
    "rollout": lambda target: RolloutGuide(target, "max", 0.5),
    "gradient": lambda target: GradientRolloutGuide(target),
    "student": lambda target: StudentGuide(randomise(Student(grid_size=(4, 4), width=4).eval()), target),
}


@pytest.fixture(params=GUIDES.values(), ids=GUIDES)
def guide(request, tiny_vit):
    return request.param(tiny_vit)


@torch.no_grad()
@pytest.mark.parametrize("keep_ratio", [0.75, 0.5, 0.01])
def test_equals_the_three_lines_by_hand(tiny_vit, images, guide, keep_ratio):
    before = traces(tiny_vit)
    saliency = guide(images)
    keep = top_k_patches(saliency, keep_ratio)
    logits = forward_kept(tiny_vit, images, keep)
    fast = AcceleratedViT(tiny_vit, guide, keep_ratio)
    assert torch.equal(fast(images), logits)
    assert torch.equal(fast(images), logits)  # and again
    assert (logits - tiny_vit(images)).abs().max() > 0.05  # the patches that went did matter
    assert traces(tiny_vit) == before


@torch.no_grad()
def test_batch_equals_its_single_images(tiny_vit, images, guide):
    fast = AcceleratedViT(tiny_vit, guide, 0.5)
    assert_close(torch.cat([fast(image[None]) for image in images]), fast(images))


@torch.no_grad()
@pytest.mark.parametrize("keep_ratio", [1, 1.0])
def test_keeping_all_is_the_untouched_model_and_asks_no_guide(tiny_vit, images, keep_ratio):
    fast = AcceleratedViT(tiny_vit, lambda images: pytest.fail("asked"), keep_ratio)
    assert torch.equal(fast(images), tiny_vit(images))


@pytest.mark.parametrize("keep_ratio", [0, 0.0, -0.5, 1.5, "half", "0.5", None, True, float("nan")])
def test_keep_ratio_outside_its_range(tiny_vit, keep_ratio):
    with pytest.raises(UserError, match=r"keep ratio must .*\(0, 1\]"):
        AcceleratedViT(tiny_vit, CenterGuide((4, 4)), keep_ratio)


def test_saliency_that_is_not_finite(tiny_vit, images):
    fast = AcceleratedViT(tiny_vit, lambda images: torch.full((4, 4, 4), float("nan")), 0.5)
    with pytest.raises(UserError, match="not finite"):
        fast(images)


def test_it_is_in_the_targets_mode_with_the_targets_weights(tiny_vit):
    for training in (False, True):
        fast = AcceleratedViT(tiny_vit.train(training), CenterGuide((4, 4)), 0.5)
        assert {module.training for module in fast.modules()} == {training}
    assert list(fast.parameters()) == list(tiny_vit.parameters())
