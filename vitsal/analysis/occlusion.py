"""Hiding patches in the image, where `vitsal.reduction` removes their tokens: grey, or filled from around them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from quantus.functions.perturb_func import noisy_linear_imputation
from torch import Tensor, nn

Fill = Callable[[Tensor, Tensor], Tensor]


def hide_grey(images: Tensor, there: Tensor) -> Tensor:
    """Paint hidden pixels of images (B, 3, H, W) in the mean colour of their normalisation, which is 0 in it.

    Pixels stay that are `there`, (B, 1, H, W) bool.
    """
    return images * there


def hide_smoothly(images: Tensor, there: Tensor) -> Tensor:
    """Fill hidden pixels from those around them, by noisy linear imputation (Rong et al. 2022).

    Each becomes the weighted mean of its eight neighbours, hidden ones solved for, with a little noise from numpy's
    global state. Somewhere something must be left to begin from. Shapes are those of `hide_grey`.
    """
    filled = images.cpu().numpy().copy()
    for image, hidden in zip(filled, ~there.flatten(1).cpu().numpy(), strict=True):
        if hidden.any():
            image[:] = noisy_linear_imputation(arr=image, indices=np.flatnonzero(hidden))
    return torch.from_numpy(filled).to(images)


class PatchSwitches(nn.Module):
    """A target as a function of which patches it is shown of its images: 1 or 0, (B, 1, gh, gw) -> logits (B, classes).

    So a patch is to a metric what a pixel is elsewhere: it is hidden whole or not at all, and has one saliency. What
    was asked before is not computed again. The target is a timm ViT in eval mode, its images are (B, 3, H, W) in its
    normalisation, and patches are hidden by `fill`, which is `hide_grey` or `hide_smoothly`.
    """

    def __init__(self, target: nn.Module, images: Tensor, fill: Fill = hide_grey) -> None:
        super().__init__()
        self.target, self.images, self.fill = target, images, fill
        self.training = target.training
        self.answers: dict[bytes, Tensor] = {}

    def forward(self, switches: Tensor) -> Tensor:
        """Logits for the images with only these patches there."""
        key = switches.cpu().numpy().tobytes()
        if key not in self.answers:
            self.answers[key] = self.target(self.fill(self.images, self.pixels(switches > 0)))
        return self.answers[key]

    def pixels(self, there: Tensor) -> Tensor:
        """Each patch's value for all of its pixels: (B, 1, gh, gw) -> (B, 1, H, W)."""
        patch_height, patch_width = self.target.patch_embed.patch_size
        height, width = self.images.shape[-2:]
        return there.repeat_interleave(patch_height, 2).repeat_interleave(patch_width, 3)[..., :height, :width]


def switch_off(arr: np.ndarray, indices: np.ndarray, **options: object) -> np.ndarray:
    """Hide patches, as Quantus asks for it: (1, gh, gw) of 1 and 0, and which, (K,) -> (1, gh, gw)."""
    switches = arr.copy()
    switches.reshape(-1)[indices] = 0
    return switches
