"""Choosing the patches to keep."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vitsal.errors import UserError, check_number

_shuffles: dict[int, Tensor] = {}


def num_kept(num_patches: int, keep_ratio: float) -> int:
    """Number of patches kept: keep_ratio * num_patches to the nearest integer (halves up), at least one.

    UserError for a keep ratio that is no number in (0, 1].
    """
    ratio = check_number("keep ratio", keep_ratio, 0, 1, open_end="low")
    return max(1, math.floor(ratio * num_patches + 0.5))


def can_look(values: Tensor) -> bool:
    """Whether values are there to be checked: not on the meta device, nor while a model is compiled or exported."""
    return not (values.is_meta or torch.compiler.is_compiling())


def rank_patches(saliency: Tensor) -> Tensor:
    """Patches of each image, most salient first: (B, gh, gw) or (B, P) -> indices (B, P).

    Equally salient patches follow in an order that favours no place: a fixed shuffle of the P patches, the same for
    every image and on every device. (In row-major order a map of many zeros would look at the image's top.)

    Raises:
        UserError: the saliency is not finite.
    """
    flat = saliency.flatten(1)
    if can_look(flat) and not torch.isfinite(flat).all():
        raise UserError("The saliency holds values that are not finite, so patches cannot be ranked by it.")
    shuffle = shuffle_of(flat.shape[1]).to(flat.device)
    return shuffle[flat[:, shuffle].argsort(dim=1, descending=True, stable=True)]


def shuffle_of(number: int) -> Tensor:
    """The order in which equal patches follow, (number,): drawn once, so that graphs that are traced later hold it."""
    if number not in _shuffles:
        with torch.inference_mode(mode=False):
            drawn = torch.randperm(number, generator=torch.Generator().manual_seed(number))
        if type(drawn) is not Tensor:  # a tracer's, without values
            return drawn
        _shuffles[number] = drawn
    return _shuffles[number]


def top_k_patches(saliency: Tensor, keep_ratio: float) -> Tensor:
    """Indices of the most salient patches of each image, in ascending order: (B, gh, gw) or (B, P) -> (B, K).

    Of equally salient patches it keeps the same ones every time, all over the image: see `rank_patches`.

    Raises:
        UserError: the keep ratio is no number in (0, 1], or the saliency is not finite.

    Example:
        >>> top_k_patches(torch.tensor([[0.1, 0.4, 0.2, 0.3]]), keep_ratio=0.5)
        tensor([[1, 3]])
    """
    order = rank_patches(saliency)
    return order[:, : num_kept(order.shape[1], keep_ratio)].sort(dim=1).values
