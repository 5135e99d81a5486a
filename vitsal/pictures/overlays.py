"""Maps over pictures."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

HEAT_MAP = "plasma"  # perceptually uniform, told apart with any colour vision, and no colour of it is grey
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # of red, green and blue in grey, Rec. 601
LIGHTER, GRID = 0.15, 0.12  # towards white, so that dark pictures show; darker lines between patches


def scale_map(saliency: Tensor | np.ndarray) -> np.ndarray:
    """Scale one map (gh, gw) to [0, 1] by its own minimum and maximum: for looking at, not for comparing images."""
    values = np.asarray(torch.as_tensor(saliency).float().cpu())
    span = values.max() - values.min()
    return (values - values.min()) / span if span > 0 else np.zeros_like(values)


def overlay(pixels: np.ndarray, saliency: Tensor | np.ndarray, strength: float = 0.7) -> np.ndarray:
    """Lay a saliency map, scaled, over its image, patch by patch: (H, W, 3) and (gh, gw) -> (H, W, 3).

    The image turns grey, so that all colour is the map's. A patch is the more opaque the more salient it is: the least
    salient one shows the image alone, the most salient one has the opacity `strength`, in [0, 1].

    Pixels in uint8 give uint8, to the nearest level; all others are in [0, 1], and so is what they give.
    """
    whole = pixels.dtype == np.uint8
    white = np.float32(255 if whole else 1)
    scaled = scale_map(saliency)
    opacity = np.float32(strength) * scaled
    heat = white * opacity[..., None] * plt.get_cmap(HEAT_MAP)(scaled)[..., :3].astype(np.float32)
    rows, columns = map(_patch_of, pixels.shape, scaled.shape)
    grey = (1 - LIGHTER) * (pixels @ LUMA) + LIGHTER * white
    laid = heat[rows][:, columns] + ((1 - opacity)[rows][:, columns] * grey)[..., None]
    laid[np.diff(rows, prepend=0) > 0] *= 1 - GRID
    laid[:, np.diff(columns, prepend=0) > 0] *= 1 - GRID
    return (laid + 0.5).astype(np.uint8) if whole else laid


def _patch_of(size: int, cells: int) -> np.ndarray:
    """For each of `size` pixels in a row, which of the `cells` patches it lies in: (size,)."""
    return np.arange(size) * cells // size


def hide_dropped(pixels: np.ndarray, keep: Tensor, grid_size: tuple[int, int], shade: float = 0.85) -> np.ndarray:
    """Grey out the patches that are not kept: (H, W, 3) and (K,) -> (H, W, 3)."""
    kept = np.isin(np.arange(grid_size[0] * grid_size[1]), keep.cpu().numpy()).reshape(grid_size)
    rows, columns = map(_patch_of, pixels.shape, grid_size)
    return np.where(kept[rows][:, columns, None], pixels, pixels.dtype.type(shade))


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
