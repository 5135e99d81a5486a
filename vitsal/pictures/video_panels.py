"""Frames with heat maps over them: panels in one row, a guide for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from vitsal.data.pictures import Transform
from vitsal.guides.factory import Guide
from vitsal.models.tokens import input_size
from vitsal.pictures.overlays import overlay


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
