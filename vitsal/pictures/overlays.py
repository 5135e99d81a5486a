"""Maps over pictures."""

from __future__ import annotations

from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

HEAT_MAP = "inferno"


def scale_map(saliency: Tensor | np.ndarray) -> np.ndarray:
    """Scale one map (gh, gw) to [0, 1] by its own minimum and maximum: for looking at, not for comparing images."""
    values = np.asarray(torch.as_tensor(saliency).float().cpu())
    span = values.max() - values.min()
    return (values - values.min()) / span if span > 0 else np.zeros_like(values)


def overlay(pixels: np.ndarray, saliency: Tensor | np.ndarray, strength: float = 0.6) -> np.ndarray:
    """Lay a saliency map, scaled and enlarged, over its image: (H, W, 3) and (gh, gw) -> (H, W, 3).

    Pixels in uint8 give uint8, to the nearest level; all others are in [0, 1], and so is what they give.
    """
    whole = pixels.dtype == np.uint8
    scaled = torch.from_numpy(scale_map(saliency))[None, None]
    large = F.interpolate(scaled, pixels.shape[:2], mode="bilinear", align_corners=False)[0, 0]
    heat = _heat(strength, whole)[(256 * large).clamp(0, 255).to(torch.uint8).numpy()]
    heat += (np.float32(1 - strength) if whole else 1 - strength) * pixels
    return heat.astype(np.uint8) if whole else heat


@cache
def _heat(strength: float, whole: bool) -> np.ndarray:
    """The heat map's 256 colours, ready to be added, (256, 3); to whole numbers, with one half, which rounds."""
    colours = plt.get_cmap(HEAT_MAP)(np.arange(256))[:, :3]
    return (255 * strength * colours + 0.5).astype(np.float32) if whole else strength * colours


def hide_dropped(pixels: np.ndarray, keep: Tensor, grid_size: tuple[int, int], shade: float = 0.85) -> np.ndarray:
    """Grey out the patches that are not kept: (H, W, 3) and (K,) -> (H, W, 3)."""
    kept = torch.zeros(grid_size[0] * grid_size[1])
    kept[keep.cpu()] = 1
    mask = F.interpolate(kept.view(1, 1, *grid_size), pixels.shape[:2], mode="nearest")[0, 0].numpy()[..., None]
    return pixels * mask + shade * (1 - mask)


def tile_pictures(pictures: np.ndarray | Tensor, columns: int, gap: int = 1) -> np.ndarray:
    """Lay small pictures side by side, row by row: (n, h, w) or (n, h, w, 3) -> one picture with gaps between them.

    Gaps, and places without a picture, are not a number, which matplotlib leaves blank.
    """
    pictures = np.asarray(torch.as_tensor(pictures).cpu(), dtype=np.float32)
    count, height, width, *channels = pictures.shape
    rows = -(-count // columns)
    size = (rows * (height + gap) - gap, columns * (width + gap) - gap, *channels)
    sheet = np.full(size, np.nan, dtype=np.float32)
    for number, picture in enumerate(pictures):
        top, left = (number // columns) * (height + gap), (number % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return sheet
