"""Maps over pictures: over one, and over the frames of a film, in panels side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from vitsal.data.pictures import Transform
from vitsal.guides.factory import Guide
from vitsal.models.tokens import input_size

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
    luma = sum(weight * pixels[..., channel] for channel, weight in enumerate(LUMA))  # not @: it may round otherwise
    grey = (1 - LIGHTER) * luma + LIGHTER * white
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


def paint_groups(pixels: np.ndarray, tokens: Tensor, shade: float = 0.85) -> np.ndarray:
    """Show what became of each patch: (H, W, 3) in [0, 1] and (gh, gw) -> (H, W, 3).

    Patches of one number have become one token: they are painted in their mean colour. A patch that is alone shows what
    it showed, one that was dropped (-1) is grey. White lines lie between tokens.

    Example:
        >>> painted = paint_groups(pixels, fast.explain(images).tokens[0])  # doctest: +SKIP
    """
    numbers, groups = np.unique(tokens.cpu().numpy(), return_inverse=True)
    rows, columns = map(_patch_of, pixels.shape, tokens.shape)
    of_pixel = groups.reshape(tokens.shape)[rows][:, columns]
    weights = [np.bincount(of_pixel.flat, pixels[..., channel].flat) for channel in range(3)]
    means = (np.stack(weights, axis=1) / np.bincount(of_pixel.flat)[:, None]).astype(pixels.dtype)
    means[numbers == -1] = shade
    plain = (np.bincount(groups.flat) == 1) & (numbers != -1)
    painted = np.where(plain[of_pixel, None], pixels, means[of_pixel])
    painted[np.diff(of_pixel, axis=0, prepend=of_pixel[:1]) != 0] = 1
    painted[np.diff(of_pixel, axis=1, prepend=of_pixel[:, :1]) != 0] = 1
    return painted


def paint_coarse(pixels: np.ndarray, tokens: Tensor) -> np.ndarray:
    """Show which patches are seen coarsely: (H, W, 3), of even H and W, and (gh, gw) -> (H, W, 3).

    Patches of one number, of which there are four (`vitsal.reduction.coarsen_patches`), show their pixels at half the
    resolution; all others are left as they are.
    """
    _, groups, counts = np.unique(tokens.cpu().numpy(), return_inverse=True, return_counts=True)
    rows, columns = map(_patch_of, pixels.shape, tokens.shape)
    coarse = (counts[groups] == 4).reshape(tokens.shape)[rows][:, columns, None]
    height, width, channels = pixels.shape
    half = pixels.reshape(height // 2, 2, width // 2, 2, channels).mean(axis=(1, 3)).astype(pixels.dtype)
    return np.where(coarse, half.repeat(2, axis=0).repeat(2, axis=1), pixels)


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


@dataclass(frozen=True)
class Column:
    """One panel beside the others: the guide's map over the frames, or, without a guide, the frames as they are.

    Args:
        guide: maps images as `model` takes them, (B, 3, H, W), to (B, gh, gw), or to (B, K, gh, gw), which makes K
            panels.
        model: the ViT whose input size and normalisation the guide's images have.
    """

    guide: Guide | Callable[[Tensor], Tensor] | None = None
    model: nn.Module | None = None

    @torch.no_grad()
    def maps(self, frames: Sequence[np.ndarray]) -> Tensor:
        """Saliency of frames, each (H, W, 3) in uint8: (B, K, gh, gw)."""
        transform = whole_frame_transform(self.model)
        images = torch.stack([transform(Image.fromarray(frame)) for frame in frames])
        saliency = self.guide(images.to(next(self.model.parameters()).device))
        return saliency if saliency.ndim == 4 else saliency[:, None]


def whole_frame_transform(model: nn.Module) -> Transform:
    """The model's evaluation transform without its crop: PIL image -> (3, H, W), the whole frame squeezed into it.

    So the model sees all that the map is laid over; the price is that a wide frame's things look slender to it.
    """
    own = resolve_model_data_config(model)
    return create_transform(**own | {"input_size": (3, *input_size(model)), "crop_pct": 1.0, "crop_mode": "squash"})


def draw_frames(
    frames: Sequence[np.ndarray],
    columns: Mapping[str, Column],
    size: tuple[int, int] | None = None,
    *,
    strength: float = 0.7,
    names: bool = True,
) -> np.ndarray:
    """Draw a few frames with their maps, one panel beside the other: (H, W, 3) each, uint8 -> (B, h, panels * w, 3).

    Args:
        frames: pictures of one size.
        columns: name -> column, from left to right. Each map is scaled by its own minimum and maximum, frame by frame.
        size: (h, w) of a panel, in pixels; the frame's own by default. Guides see the frames at their own size.
        strength: opacity of the most salient patch, in [0, 1]; see `overlay`.
        names: write a column's name into the corner of its panel.
    """
    size = size or frames[0].shape[:2]
    small = [resized(frame, size) for frame in frames]
    panels = []
    for name, column in columns.items():
        maps = [None] if column.guide is None else column.maps(frames).unbind(1)
        for number, values in enumerate(maps, 1):
            laid = small if values is None else [overlay(*pair, strength) for pair in zip(small, values, strict=True)]
            drawn = np.stack(laid)
            title = name if len(maps) == 1 else f"{name} {number}"
            panels.append(_with_name(drawn, title) if names else drawn)
    return np.concatenate(panels, axis=2)


def resized(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture (H, W, 3) in uint8 at `size`, (h, w)."""
    same = frame.shape[:2] == size
    return frame if same else np.asarray(Image.fromarray(frame).resize(size[::-1], Image.Resampling.LANCZOS))


def _with_name(pictures: np.ndarray, name: str) -> np.ndarray:
    """Write a name into the upper left corner of pictures (B, h, w, 3), in place, readable on any ground."""
    height, width = pictures.shape[1:3]
    letter = max(8, height // 20)
    rows = min(height, 2 * letter)
    text, ink = _name_tag(name, (rows, width), letter)
    pictures[:, :rows][:, text] = ink[text][:, None]
    return pictures


@cache
def _name_tag(name: str, size: tuple[int, int], letter: int) -> tuple[np.ndarray, np.ndarray]:
    """Where a name covers a picture of this size, and how bright: (h, w) in bool and uint8."""
    tag = Image.new("LA", size[::-1])
    font = ImageFont.load_default(letter)
    draw = ImageDraw.Draw(tag)
    draw.text((letter // 2, letter // 4), name, (255, 255), font, stroke_width=1 + letter // 12, stroke_fill=(0, 255))
    ink, cover = np.moveaxis(np.asarray(tag), -1, 0)
    return cover > 127, ink
