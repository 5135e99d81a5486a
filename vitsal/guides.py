"""Guides: callables that map images (B, 3, H, W) to a saliency map (B, gh, gw), whatever is behind them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitsal.errors import LARGEST_SEED, UserError, check_choice, check_whole
from vitsal.model_guides import (
    FlowGuide,
    GradientAttentionGuide,
    GradientRolloutGuide,
    LastAttentionGuide,
    ModelGuide,
    RolloutGuide,
)
from vitsal.models import convert_images, denormalize, grid_size
from vitsal.students import Student, downsample, fit_grid

Guide = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class RandomGuide:
    """Uniformly random saliency, (B, gh, gw).

    Each image's map is drawn from `seed` and the image's own values, so that it does not depend on the batch, on the
    order, or on where a run was resumed.

    Raises:
        UserError: the seed is no whole number from 0 to 2**32 - 1.
    """

    grid_size: tuple[int, int]
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, 0, LARGEST_SEED)

    def __call__(self, images: Tensor) -> Tensor:
        """Saliency of a batch: (B, 3, H, W) -> (B, gh, gw)."""
        maps = [self._map(image) for image in images.detach().cpu()]
        return torch.stack(maps).to(images.device)

    def _map(self, image: Tensor) -> Tensor:
        seed = zlib.crc32(image.contiguous().view(torch.uint8).numpy(), self.seed)  # torch takes 32 bits, not more
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(self.grid_size, generator=generator)


@dataclass(frozen=True)
class CenterGuide:
    """The nearer to the image's centre, the more salient: minus the distance, in patches, (B, gh, gw)."""

    grid_size: tuple[int, int]

    def __call__(self, images: Tensor) -> Tensor:
        """Saliency of a batch: (B, 3, H, W) -> (B, gh, gw)."""
        height, width = self.grid_size
        y = torch.arange(height, device=images.device) - (height - 1) / 2
        x = torch.arange(width, device=images.device) - (width - 1) / 2
        return -torch.hypot(y[:, None], x[None, :]).expand(len(images), -1, -1)


@dataclass(frozen=True)
class AdaptedGuide:
    """Lets a guide work for another model: it sees the target's images in its own model's normalisation and size.

    Its map is laid on the target's grid, interpolated bilinearly where the grids differ.
    """

    guide: ModelGuide
    target: nn.Module

    def __call__(self, images: Tensor) -> Tensor:
        """Saliency of a batch: (B, 3, H, W) -> (B, gh, gw) of the target."""
        saliency = self.guide(convert_images(images, self.target, self.guide.model))
        return _lay_on(saliency, grid_size(self.target, images))


@dataclass(frozen=True)
class StudentGuide:
    """A student's prediction from a downsampled copy of the target's images, laid on the target's grid."""

    student: Student
    target: nn.Module

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Saliency of a batch: (B, 3, H, W) -> (B, gh, gw) of the target, each map with sum 1 before it is laid."""
        small = downsample(images, self.student.input_size)
        return _lay_on(self.student.saliency(denormalize(small, self.target)), grid_size(self.target, images))


def _lay_on(saliency: Tensor, size: tuple[int, int]) -> Tensor:
    return fit_grid(saliency[:, None], size)[:, 0]


GUIDE_OPTIONS = {
    "rollout": ("model", "head_fusion", "discard_ratio"),
    "grad-rollout": ("model", "category_index", "discard_ratio"),
    "last-attention": ("model",),
    "grad-attention": ("model", "category_index"),
    "flow": ("model", "head_fusion", "discard_ratio"),
    "student": ("student",),
    "random": ("seed",),
    "center": (),
}  # which of `make_guide`'s options a guide takes; it passes over the others
GUIDES = tuple(GUIDE_OPTIONS)
METHODS = tuple(name for name in GUIDES if "model" in GUIDE_OPTIONS[name])  # those that explain a model


def make_guide(
    name: str,
    target: nn.Module,
    *,
    model: nn.Module | None = None,
    student: Student | None = None,
    head_fusion: str = "mean",
    discard_ratio: float = 0.0,
    category_index: int | None = None,
    seed: int = 0,
) -> Guide:
    """Make a guide for images prepared for `target`.

    Args:
        name: one of GUIDES; GUIDE_OPTIONS tells which of the options below it takes, and the others are passed over.
        target: the ViT whose patches will be dropped.
        model: the ViT inside the guide; the target itself by default.
        student: the student, as `vitsal.students.load_student` gives it.
        head_fusion, discard_ratio, category_index, seed: what that guide takes; see its class.

    Raises:
        UserError: unknown guide, no student for "student", or one of the values cannot be used.
    """
    if name == "student" and student is None:
        raise UserError("The guide 'student' needs a student: a folder or a hub name that holds one (--student).")
    inner = target if model is None else model
    makers: dict[str, Callable[[], Guide]] = {
        "rollout": lambda: RolloutGuide(inner, head_fusion, discard_ratio),
        "grad-rollout": lambda: GradientRolloutGuide(inner, category_index, discard_ratio),
        "last-attention": lambda: LastAttentionGuide(inner),
        "grad-attention": lambda: GradientAttentionGuide(inner, category_index),
        "flow": lambda: FlowGuide(inner, head_fusion, discard_ratio),
        "student": lambda: StudentGuide(student, target),
        "random": lambda: RandomGuide(grid_size(target), seed),
        "center": lambda: CenterGuide(grid_size(target)),
    }
    guide = makers[check_choice("guide", name, GUIDES)]()
    needs_adapting = isinstance(guide, ModelGuide) and inner is not target
    return AdaptedGuide(guide, target) if needs_adapting else guide
