"""Random views of images: crops and flips that a saliency map follows, and colours that it ignores."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST_AREA = 0.4  # of the image, that a crop shows
LARGEST_STRETCH = 4 / 3  # of its sides' ratio


def random_views(count: int, generator: torch.Generator) -> Tensor:
    """Draw crops and flips as affine matrices from a view's coordinates to its image's, (count, 2, 3).

    Inception's random resized crop (Szegedy et al. 2015, arXiv:1409.4842), drawn for each image; half are mirrored.
    """
    area = torch.empty(count).uniform_(SMALLEST_AREA, 1, generator=generator)
    stretch = torch.empty(count).uniform_(-1, 1, generator=generator).mul(math.log(LARGEST_STRETCH)).exp()
    sides = torch.stack([(area * stretch).sqrt(), (area / stretch).sqrt()], dim=1).clamp(max=1)
    shifts = (2 * torch.rand(count, 2, generator=generator) - 1) * (1 - sides)
    sides[:, 0] *= torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)  # mirrored, or not
    return torch.cat([sides.diag_embed(), shifts[:, :, None]], dim=2)


def warp(images: Tensor, views: Tensor) -> Tensor:
    """Show each image, or map, as its view does, at the same size, bilinearly: (B, C, H, W) -> (B, C, H, W)."""
    grid = F.affine_grid(views.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def jitter_colours(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast and saturation of each image by up to `strength`: (B, 3, H, W) in [0, 1]."""
    factors = torch.empty(3, len(pixels), 1, 1, 1).uniform_(1 - strength, 1 + strength, generator=generator)
    brightness, contrast, saturation = factors.to(pixels.device)
    pixels = pixels * brightness
    pixels = torch.lerp(pixels.mean(dim=(1, 2, 3), keepdim=True), pixels, contrast)
    return torch.lerp(pixels.mean(dim=1, keepdim=True), pixels, saturation).clamp(0, 1)
