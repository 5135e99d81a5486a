"""Guides with a ViT inside: they explain what a model attends to, from its attention and the gradient to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral

import torch
from torch import Tensor, nn

from vitsal.errors import UserError, check_choice, quoted
from vitsal.guides import rollout
from vitsal.guides.attention import AttentionPass, Attentions, attention_of, check_block
from vitsal.guides.flow import attention_flow
from vitsal.models.tokens import grid_size, readout_options
from vitsal.reduction.surgery import eval_mode


@dataclass(frozen=True)
class ModelGuide:
    """What guides with a ViT inside share: `model` sees the images, the map is laid on its own patch grid.

    `model` is a timm ViT in eval mode, `images` in its own normalisation and size, as `model_transform(model)` makes
    them; `AdaptedGuide` takes images prepared for another model.
    """

    model: nn.Module

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Saliency of a batch: (B, 3, H, W) -> (B, gh, gw)."""
        return self.explain(AttentionPass(self.model, images))

    @torch.no_grad()
    def explain(self, record: Attentions) -> Tensor:
        """The same from a pass that was recorded before, without another one: (B, gh, gw)."""
        return self._saliency(record).unflatten(-1, grid_size(self.model, record.images))

    def _saliency(self, record: Attentions) -> Tensor:
        """(B, P), from what is asked of the record."""
        raise NotImplementedError


@dataclass(frozen=True)
class RolloutGuide(ModelGuide):
    """Attention rollout of `model` (`vitsal.guides.attention_rollout`), of which it ranks all patches.

    A discard ratio leaves patches at exactly 0. They are ranked by the rollout without it (`settle_zeros`).

    Args:
        head_fusion: "mean", "max" or "min".
        discard_ratio: fraction of each block's attention to drop, in [0, 1).

    Raises:
        UserError: unknown head fusion, discard ratio outside [0, 1).
    """

    head_fusion: str = "mean"
    discard_ratio: float = 0.0

    def __post_init__(self) -> None:
        check_choice("head fusion", self.head_fusion, rollout.HEAD_FUSIONS)
        rollout.check_discard(self.discard_ratio)

    def _saliency(self, record: Attentions) -> Tensor:
        fused = self._fused(record)
        saliency = rollout.attention_rollout(fused, discard_ratio=self.discard_ratio, **readout_options(self.model))
        return _settled(saliency, fused, self.model)

    def _fused(self, record: Attentions) -> list[Tensor]:
        return record.fused(partial(rollout.fuse_heads, head_fusion=self.head_fusion))


@dataclass(frozen=True)
class FlowGuide(RolloutGuide):
    """Attention flow of `model` (`vitsal.guides.attention_flow`): one maximum flow per patch, seconds for an image.

    Args, Raises: as `RolloutGuide`.
    """

    def _saliency(self, record: Attentions) -> Tensor:
        fused = self._fused(record)
        saliency = attention_flow(fused, discard_ratio=self.discard_ratio, **readout_options(self.model))
        return _settled(saliency, fused, self.model)


@dataclass(frozen=True)
class LastAttentionGuide(ModelGuide):
    """Last block's attention, mean over heads, from the class token (or the mean patch) to the patches."""

    def _saliency(self, record: Attentions) -> Tensor:
        (fused,) = record.fused(rollout.fuse_heads, blocks=[-1])
        return rollout.last_attention(fused, **readout_options(self.model))


@dataclass(frozen=True)
class HeadGuide(ModelGuide):
    """Attention of one head of one block, or of each, from the class token (or the mean patch) to the patches, raw.

    With the prefix tokens' share each map would sum to 1. Caron et al. 2021 (arXiv:2104.14294, figure 1) show them for
    DINO. Heads are also looked at while a model is trained: it is run in eval mode, and left as it was.

    Args:
        model: a timm ViT.
        block: its number from 0, or negative from the end.
        head: likewise; None shows all heads of the block: maps are (B, heads, gh, gw) then.

    Raises:
        UserError: the model has no such block, or the block no such head.
    """

    block: int = -1
    head: int | None = None

    def __post_init__(self) -> None:
        check_block(self.model, self.block)
        heads = attention_of(self.model, self.block).num_heads
        if self.head is not None and self.head not in range(-heads, heads):
            raise UserError(f"There is no head {self.head!r}: block {self.block} has {heads}, 0 to {heads - 1}.")

    def _saliency(self, record: Attentions) -> Tensor:
        heads = slice(None) if self.head is None else self.head
        with eval_mode(self.model):
            (attention,) = record.fused(lambda attention: attention[:, heads].float(), blocks=[self.block])
        rows = rollout.last_attention(attention.flatten(0, -3), **readout_options(self.model))
        return rows.unflatten(0, attention.shape[:-2])


@dataclass(frozen=True)
class GradientRolloutGuide(ModelGuide):
    """Gradient rollout of `model`: each head's attention weighed by the gradient of a class logit to it.

    Zeros are ranked as by `RolloutGuide`.

    Args:
        model: a timm ViT in eval mode, with a classifier.
        category_index: the class to explain; None explains the class that the model predicts, image by image.
        discard_ratio: fraction of each block's weighted attention to drop, in [0, 1).

    Raises:
        UserError: no classifier, a class that the model does not have, discard ratio outside [0, 1).
    """

    category_index: int | None = None
    discard_ratio: float = 0.0

    def __post_init__(self) -> None:
        rollout.check_discard(self.discard_ratio)
        check_category(self.model, self.category_index)

    def _saliency(self, record: Attentions) -> Tensor:
        fused = [rollout.fuse_gradient(*pair) for pair in record.with_gradients(self.category_index)]
        saliency = rollout.attention_rollout(fused, discard_ratio=self.discard_ratio, **readout_options(self.model))
        return _settled(saliency, fused, self.model)


@dataclass(frozen=True)
class GradientAttentionGuide(ModelGuide):
    """Gradient times attention of `model`, after Chefer et al. 2021 (`vitsal.guides.attention_relevance`).

    Args:
        model: a timm ViT in eval mode, with a classifier.
        category_index: the class to explain; None explains the class that the model predicts, image by image.

    Raises:
        UserError: no classifier, or a class that the model does not have.
    """

    category_index: int | None = None

    def __post_init__(self) -> None:
        check_category(self.model, self.category_index)

    def _saliency(self, record: Attentions) -> Tensor:
        fused = [rollout.fuse_positive_gradient(*pair) for pair in record.with_gradients(self.category_index)]
        return rollout.attention_relevance(fused, **readout_options(self.model))


def _settled(saliency: Tensor, fused: Sequence[Tensor], model: nn.Module) -> Tensor:
    """A map without zeros where the rollout of the same attention, nothing discarded, has none: (B, P) -> (B, P)."""
    if (saliency > 0).all():
        return saliency
    return rollout.settle_zeros(saliency, rollout.attention_rollout(fused, **readout_options(model)))


def check_category(model: nn.Module, category_index: int | None) -> None:
    """Raise UserError if `model` has no classifier or does not have this class (None: any)."""
    if not model.num_classes:
        raise UserError("Gradient rollout explains a class, and this model has no classifier; use attention rollout.")
    whole = isinstance(category_index, Integral) and not isinstance(category_index, bool)
    if category_index is not None and not (whole and category_index in range(model.num_classes)):
        raise UserError(
            f"Category index {quoted(category_index)} is not a class of this model: it has {model.num_classes} "
            f"classes, 0 to {model.num_classes - 1}."
        )
