"""From one model's pixels to another's, and back to what people see: normalisation, size, grid."""

from __future__ import annotations

import numpy as np
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F

from vitsal.models.tokens import input_size


def convert_images(images: Tensor, source: nn.Module, target: nn.Module) -> Tensor:
    """Turn images prepared for `source` into images for `target`: (B, 3, H, W) -> (B, 3, H', W').

    Undoes one normalisation, resizes, applies the other: a guide sees what the target sees, in its own scale.
    """
    return renormalize(resize(images, input_size(target)), source, target)


def renormalize(images: Tensor, source: nn.Module, target: nn.Module) -> Tensor:
    """Undo one model's normalisation and apply another's, in the same size: (B, 3, H, W) -> (B, 3, H, W)."""
    have, want = resolve_model_data_config(source), resolve_model_data_config(target)
    if (have["mean"], have["std"]) == (want["mean"], want["std"]):
        return images
    mean, std = _normalization(target, images)
    return (denormalize(images, source) - mean) / std


def resize(images: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Resize images as ViTs' transforms do, bicubic, antialiased: (B, 3, H, W) -> (B, 3, *size); None leaves them."""
    if size is None or images.shape[-2:] == size:
        return images
    return _interpolate(images, size, "bicubic")


def denormalize(images: Tensor, model: nn.Module) -> Tensor:
    """Undo a model's normalisation: (B, 3, H, W) -> the same in pixels, 0 to 1 but for what resampling overshot."""
    mean, std = _normalization(model, images)
    return images * std + mean


def _normalization(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of a model's data config, each (3, 1, 1)."""
    config = resolve_model_data_config(model)
    return tuple(images.new_tensor(config[key])[:, None, None] for key in ("mean", "std"))


def to_pixels(images: Tensor, model: nn.Module) -> np.ndarray:
    """Undo a model's normalisation for drawing: (B, 3, H, W) -> (B, H, W, 3) in [0, 1]."""
    return denormalize(images, model).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()


def fit_grid(features: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """Lay feature maps on a grid of another size: (B, C, h, w) -> (B, C, gh, gw)."""
    if features.shape[-2:] == grid_size:
        return features
    return _interpolate(features, grid_size, "bilinear")


def _interpolate(values: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Antialiased, which torch does in single and in double precision only."""
    precise = values if values.element_size() > 2 else values.float()
    return F.interpolate(precise, size, mode=mode, antialias=True, align_corners=False).to(values)


def downsample(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Shrink images by the mean over each area, (B, 3, H, W) -> (B, 3, h, w), as students are trained and used."""
    return images if images.shape[-2:] == size else F.interpolate(images, size, mode="area")
