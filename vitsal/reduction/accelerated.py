"""One module for the whole way: image, guide, patches to keep, target."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from vitsal.errors import check_number
from vitsal.reduction.drop import forward_kept
from vitsal.reduction.keep import top_k_patches


class AcceleratedViT(nn.Module):
    """A ViT that sees only the patches that a guide finds most salient: images (B, 3, H, W) -> logits.

    Args:
        target: a timm ViT in eval mode.
        guide: maps the target's images to saliency, (B, 3, H, W) -> (B, gh, gw).
        keep_ratio: fraction of patches kept, in (0, 1]; at 1 no guide is asked.

    Raises:
        UserError: the keep ratio is no number in (0, 1]; on running, saliency that is not finite.
    """

    def __init__(self, target: nn.Module, guide: Callable[[Tensor], Tensor], keep_ratio: float) -> None:
        super().__init__()
        self.target, self.guide, self.training = target, guide, target.training
        self.keep_ratio = check_number("keep ratio", keep_ratio, 0, 1, open_end="low")

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch: (B, 3, H, W) -> (B, classes)."""
        if self.keep_ratio == 1:
            return self.target(images)
        return forward_kept(self.target, images, top_k_patches(self.guide(images), self.keep_ratio))
