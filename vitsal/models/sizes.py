"""The same model for images of another size."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from itertools import chain

from torch import nn

from vitsal.errors import UserError
from vitsal.models.tokens import grid_size, input_size


def resized(model: nn.Module, size: tuple[int, int] | None) -> nn.Module:
    """A twin of a timm ViT for images of this size, (H, W) in pixels; `model` itself where that is its own, or None.

    It has the very weights of the model, not copies; what belongs to positions alone is interpolated as timm does it
    (`set_input_size`).

    Raises:
        UserError: a size that is no whole number of patches, or a model that timm cannot resize.
    """
    if size is None:
        return model
    check_size(model, size)
    if tuple(size) == input_size(model):
        return model
    if not hasattr(model, "set_input_size"):
        raise UserError(f"{type(model).__name__} has a fixed input size, {input_size(model)}; choose another target.")
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    twin = deepcopy(model, shared)
    twin.set_input_size(img_size=tuple(size))
    twin.whole_grid = whole_grid(model)
    return twin


def whole_grid(model: nn.Module) -> tuple[int, int]:
    """(gh, gw), the patch grid of a model at its own input size: for a twin of another size, that of its original."""
    return getattr(model, "whole_grid", None) or grid_size(model)


def resized_each(model: nn.Module, sizes: Iterable[tuple[int, int] | None]) -> dict[tuple[int, int] | None, nn.Module]:
    """Size -> the model's twin for images of that size (`resized`), one for each of these sizes; None is its own."""
    return {size: resized(model, size) for size in set(sizes)}


def check_size(model: nn.Module, size: tuple[int, int]) -> None:
    """Raise UserError unless this size, (H, W) in pixels, is a whole number of the model's patches."""
    patch, name = model.patch_embed.patch_size, model.pretrained_cfg["architecture"]
    if any(pixels < step or pixels % step for pixels, step in zip(size, patch, strict=True)):
        raise UserError(
            f"The image size {size[0]},{size[1]} is no whole number of patches: {name} takes {patch[0]} x {patch[1]}."
        )
