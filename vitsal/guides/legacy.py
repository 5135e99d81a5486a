"""vit-explain's rollout as published, errors included, to show beside ours what they do to the picture.

Use `vitsal.guides.explainers` for everything else. What differs here (jacobgil/vit-explain, `vit_rollout.py` and
`vit_grad_rollout.py`):

1. `a / a.sum(dim=-1)` divides column j by the sum of row j: rows no longer sum to 1.
2. Gradient rollout zips attentions, first block first, with gradients, last block first.
3. Its backward hook sits on a dropout that is an identity in eval mode, and so sees the gradient of the attention
   scores before the softmax instead of the gradient of the attention.

Its discard step writes to the first image of a batch only; here images are treated one by one, as it was used.
Its maps are divided by their maximum; here they are raw, as ours: scaling is the drawing's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitsal.errors import UserError
from vitsal.guides.attention import Attentions
from vitsal.guides.explainers import GradientRolloutGuide, RolloutGuide
from vitsal.guides.rollout import check_discard
from vitsal.models.tokens import default_readout


@dataclass(frozen=True)
class LegacyRolloutGuide(RolloutGuide):
    """What `RolloutGuide` would be by vit-explain's arithmetic, for models with one class token alone.

    Args, Raises: as `RolloutGuide`; other models are refused too.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_legacy(self.model)

    def _saliency(self, record: Attentions) -> Tensor:
        return legacy_rollout(self._fused(record), discard_ratio=self.discard_ratio)


@dataclass(frozen=True)
class LegacyGradientRolloutGuide(GradientRolloutGuide):
    """What `GradientRolloutGuide` would be by vit-explain's arithmetic, for models with one class token alone.

    Args, Raises: as `GradientRolloutGuide`; other models are refused too.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_legacy(self.model)

    def _saliency(self, record: Attentions) -> Tensor:
        attentions, gradients = zip(*record.with_gradients(self.category_index), strict=True)
        return legacy_gradient_rollout(attentions, gradients, discard_ratio=self.discard_ratio)


def _check_legacy(model: nn.Module) -> None:
    if model.num_prefix_tokens != 1 or default_readout(model) != "class":
        raise UserError(
            "vit-explain's rollout (legacy) knows models with one class token and no other prefix token only."
        )


def legacy_rollout(fused: Sequence[Tensor], *, discard_ratio: float = 0.9) -> Tensor:
    """vit-explain's attention rollout: L matrices (B, N, N) -> saliency (B, N - 1), raw; refuses as `check_discard`."""
    check_discard(discard_ratio)
    row = torch.zeros_like(fused[0][:, 0])
    row[:, 0] = 1
    for attention in reversed(fused):
        matrix = _discard(attention, discard_ratio) + torch.eye(attention.shape[-1], device=attention.device)
        matrix = matrix / matrix.sum(dim=-1)[:, None]  # error 1: row sums along the columns
        row = torch.bmm(row[:, None], matrix)[:, 0]
    return row[:, 1:]


def legacy_gradient_rollout(
    attentions: Sequence[Tensor], gradients: Sequence[Tensor], *, discard_ratio: float = 0.9
) -> Tensor:
    """vit-explain's gradient rollout: L attentions and gradients (B, H, N, N) -> saliency (B, N - 1), raw.

    Args:
        attentions, gradients: softmaxed attention and the true gradient of the class logit to it, both first block
            first; errors 2 and 3 are made here.
        discard_ratio: fraction of the N * N entries to drop; refused as by `check_discard`.
    """
    # backward of the softmax: the gradient of the scores from the gradient of the attention
    scores = [a * (g - (g * a).sum(dim=-1, keepdim=True)) for a, g in zip(attentions, gradients, strict=True)]
    fused = [(a * g).mean(dim=1).clamp_min(0) for a, g in zip(attentions, reversed(scores), strict=True)]
    return legacy_rollout(fused, discard_ratio=discard_ratio)


def _discard(attention: Tensor, discard_ratio: float) -> Tensor:
    flat = attention.flatten(1)
    lowest = flat.topk(int(flat.shape[1] * discard_ratio), dim=1, largest=False).indices
    kept = flat.scatter(1, lowest, 0)
    kept[:, 0] = flat[:, 0]
    return kept.view_as(attention)
