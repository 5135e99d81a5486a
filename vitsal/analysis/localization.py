"""Saliency judged against the truth: does it lie on the object?"""

from __future__ import annotations

from torch import Tensor

from vitsal.reduction.keep import rank_patches


def pointing_game(saliency: Tensor, masks: Tensor) -> Tensor:
    """Whether the most salient patch touches the object: (B, gh, gw) and its mask -> (B,) bool.

    Zhang et al. 2018, "Top-down neural attention by excitation backprop" (arXiv:1608.00507), on patches, without
    tolerance. Of equally salient patches one counts, whichever place it has (`vitsal.reduction.rank_patches`).
    """
    top = rank_patches(saliency)[:, :1]
    return masks.flatten(1).gather(1, top)[:, 0]


def mask_energy(saliency: Tensor, masks: Tensor) -> Tensor:
    """Share of the saliency that lies on patches that the object touches: (B, gh, gw) and its mask -> (B,).

    Wang et al. 2020, "Score-CAM" (arXiv:1910.01279), section 4.3, there with bounding boxes. Saliency must not be
    negative; the share of patches in the mask is what a uniform map would reach.
    """
    return (saliency * masks).flatten(1).sum(1) / saliency.flatten(1).sum(1)
