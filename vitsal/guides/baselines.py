"""Guides that look at no model: chance, and the center."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from vitsal.errors import LARGEST_SEED, check_whole


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
        maps = []
        for image in images.detach().cpu():
            seed = zlib.crc32(image.contiguous().view(torch.uint8).numpy(), self.seed)  # torch takes 32 bits, not more
            maps.append(torch.rand(self.grid_size, generator=torch.Generator().manual_seed(seed)))
        return torch.stack(maps).to(images.device)


@dataclass(frozen=True)
class CenterGuide:
    """The nearer to the image's center, the more salient: minus the distance, in patches, (B, gh, gw)."""

    grid_size: tuple[int, int]

    def __call__(self, images: Tensor) -> Tensor:
        """Saliency of a batch: (B, 3, H, W) -> (B, gh, gw)."""
        height, width = self.grid_size
        y = torch.arange(height, device=images.device) - (height - 1) / 2
        x = torch.arange(width, device=images.device) - (width - 1) / 2
        return -torch.hypot(y[:, None], x[None, :]).expand(len(images), -1, -1)
