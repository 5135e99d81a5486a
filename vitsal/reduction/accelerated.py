"""One module for the whole way: image, guide, patches to keep, target, tokens to merge."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from vitsal.models.pixels import resize
from vitsal.models.sizes import resized
from vitsal.reduction.reduction import Reduction, as_reduction, check_reduction, forward_reduced


class AcceleratedViT(nn.Module):
    """A ViT that sees only the patches that a guide finds most salient: images (B, 3, H, W) -> logits.

    Args:
        target: a timm ViT in eval mode.
        guide: maps the target's images to saliency, (B, 3, H, W) -> (B, gh, gw).
        reduction: fraction of patches kept, in (0, 1]; or a `vitsal.Reduction`, which can also merge tokens and show
            the target smaller images. Where all patches are kept no guide is asked.

    Raises:
        UserError: a keep ratio that is no number in (0, 1], or a reduction that the target does not allow; on running,
            saliency that is not finite.
    """

    def __init__(self, target: nn.Module, guide: Callable[[Tensor], Tensor], reduction: float | Reduction) -> None:
        super().__init__()
        self.reduction = as_reduction(reduction)
        self.target = resized(target, self.reduction.input_size)
        self.guide, self.training = guide, target.training
        check_reduction(self.target, self.reduction)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch: (B, 3, H, W) -> (B, classes)."""
        saliency = self.guide(images) if self.reduction.guided else None
        return forward_reduced(self.target, resize(images, self.reduction.input_size), self.reduction, saliency)
