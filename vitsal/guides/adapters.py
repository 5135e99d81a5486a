"""Guides for another model's images: a ViT's map, or a student's, laid on the target's grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitsal.guides.baselines import EarlyGuide
from vitsal.guides.explainers import ModelGuide
from vitsal.models.pixels import convert_images, denormalize, downsample, fit_grid
from vitsal.models.tokens import grid_size
from vitsal.students.student import Student


@dataclass(frozen=True)
class AdaptedGuide:
    """Lets a guide work for another model: it sees the target's images in its own model's normalisation and size.

    Its map is laid on the target's grid, interpolated bilinearly where the grids differ.
    """

    guide: ModelGuide | EarlyGuide
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
