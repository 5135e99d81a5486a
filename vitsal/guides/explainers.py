"""Guides with a ViT inside: they explain what a model attends to, from its attention and the gradient to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor, nn

from vitsal.analysis.probing import _probing
from vitsal.errors import UserError, check_choice, check_number, quoted
from vitsal.guides.attention import AttentionRecord, attention_of, check_block, record_attention
from vitsal.guides.flow import attention_flow
from vitsal.guides.legacy import legacy_gradient_rollout, legacy_rollout
from vitsal.guides.rollout import (
    HEAD_FUSIONS,
    attention_relevance,
    attention_rollout,
    fuse_gradient,
    fuse_heads,
    fuse_positive_gradient,
    last_attention,
)
from vitsal.models.tokens import default_readout, grid_size


@dataclass(frozen=True)
class ModelGuide:
    """What guides with a ViT inside share: `model` sees the images, the map is laid on its own patch grid.

    `images` are in the model's own normalisation and size, as `model_transform(model)` makes them; `AdaptedGuide` takes
    images prepared for another model.
    """

    model: nn.Module

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Saliency of a batch: (B, 3, H, W) -> (B, gh, gw)."""
        return self._saliency(images).unflatten(1, grid_size(self.model, images))

    @torch.no_grad()
    def explain(self, record: AttentionRecord) -> Tensor:
        """The same from a pass that was recorded before, without another one: (B, gh, gw)."""
        return self._explain(record).unflatten(1, grid_size(self.model, record.images))

    def _saliency(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, P)."""
        return self._explain(AttentionRecord(self.model, images, reusable=False))

    def _explain(self, record: AttentionRecord) -> Tensor:
        """(B, P)."""
        raise NotImplementedError

    @property
    def _tokens(self) -> dict[str, int | str]:
        """What the arithmetic needs to know of the model's tokens."""
        return {"num_prefix_tokens": self.model.num_prefix_tokens, "readout": default_readout(self.model)}


@dataclass(frozen=True)
class _AttentionGuide(ModelGuide):
    """What guides share that need no gradient: each block's map is reduced as soon as it is there."""

    def _saliency(self, images: Tensor) -> Tensor:
        with record_attention(self.model, self._fuse, blocks=self._blocks) as fused:
            self.model(images)
        return self._read(fused)

    def _explain(self, record: AttentionRecord) -> Tensor:
        blocks = range(len(record.attentions)) if self._blocks is None else self._blocks
        return self._read([self._fuse(record.attentions[block]) for block in blocks])

    @property
    def _blocks(self) -> list[int] | None:
        """Blocks that are needed; None for all."""
        return None

    def _fuse(self, attention: Tensor) -> Tensor:
        """One block: (B, H, N, N) -> (B, N, N)."""
        raise NotImplementedError

    def _read(self, fused: Sequence[Tensor]) -> Tensor:
        """Matrices (B, N, N) of the blocks that are needed -> (B, P)."""
        raise NotImplementedError


@dataclass(frozen=True)
class _FusedGuide(_AttentionGuide):
    """What guides share that fuse the heads of each block and discard its lowest attention."""

    head_fusion: str = "mean"
    discard_ratio: float = 0.0

    def __post_init__(self) -> None:
        check_choice("head fusion", self.head_fusion, HEAD_FUSIONS)
        check_number("discard ratio", self.discard_ratio, 0, 1, open_end="high")

    def _fuse(self, attention: Tensor) -> Tensor:
        return fuse_heads(attention, self.head_fusion)


@dataclass(frozen=True)
class RolloutGuide(_FusedGuide):
    """Attention rollout of `model` (`vitsal.guides.attention_rollout`).

    Args:
        model: a timm ViT in eval mode.
        head_fusion: "mean", "max" or "min".
        discard_ratio: fraction of each block's attention to drop, in [0, 1).
        legacy: vit-explain's published arithmetic instead (`vitsal.guides.legacy`), for comparison only.

    Raises:
        UserError: unknown head fusion, discard ratio outside [0, 1).
    """

    legacy: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.legacy:
            _check_legacy(self.model)

    def _read(self, fused: Sequence[Tensor]) -> Tensor:
        if self.legacy:
            return legacy_rollout(fused, discard_ratio=self.discard_ratio)
        return attention_rollout(fused, discard_ratio=self.discard_ratio, **self._tokens)


@dataclass(frozen=True)
class FlowGuide(_FusedGuide):
    """Attention flow of `model` (`vitsal.guides.attention_flow`): one maximum flow per patch, seconds for an image.

    Args:
        model: a timm ViT in eval mode.
        head_fusion: "mean", "max" or "min".
        discard_ratio: fraction of each block's attention to drop, in [0, 1).

    Raises:
        UserError: unknown head fusion, discard ratio outside [0, 1).
    """

    def _read(self, fused: Sequence[Tensor]) -> Tensor:
        return attention_flow(fused, discard_ratio=self.discard_ratio, **self._tokens)


@dataclass(frozen=True)
class LastAttentionGuide(_AttentionGuide):
    """Last block's attention, mean over heads, from the class token (or the mean patch) to the patches."""

    @property
    def _blocks(self) -> list[int]:
        return [-1]

    def _fuse(self, attention: Tensor) -> Tensor:
        return fuse_heads(attention)

    def _read(self, fused: Sequence[Tensor]) -> Tensor:
        return last_attention(fused[0], **self._tokens)


@dataclass(frozen=True)
class HeadGuide(_AttentionGuide):
    """Attention of one head of one block, from the class token (or the mean patch) to the patches.

    Args:
        model: a timm ViT in eval mode.
        block, head: their numbers from 0, or negative from the end.

    Raises:
        UserError: the model has no such block, or the block no such head.
    """

    block: int = -1
    head: int = 0

    def __post_init__(self) -> None:
        check_block(self.model, self.block)
        heads = attention_of(self.model, self.block).num_heads
        if self.head not in range(-heads, heads):
            raise UserError(f"There is no head {self.head!r}: block {self.block} has {heads}, 0 to {heads - 1}.")

    @property
    def _blocks(self) -> list[int]:
        return [self.block]

    def _fuse(self, attention: Tensor) -> Tensor:
        return attention[:, self.head].float()

    def _read(self, fused: Sequence[Tensor]) -> Tensor:
        return last_attention(fused[0], **self._tokens)


@dataclass(frozen=True)
class _GradientGuide(ModelGuide):
    """What guides share that weigh attention by the gradient of a class's logit to it."""

    category_index: int | None = None

    def __post_init__(self) -> None:
        check_category(self.model, self.category_index)


@dataclass(frozen=True)
class GradientRolloutGuide(_GradientGuide):
    """Gradient rollout of `model`: each head's attention weighed by the gradient of a class logit to it.

    Args:
        model: a timm ViT in eval mode, with a classifier.
        category_index: the class to explain; None explains the class that the model predicts, image by image.
        discard_ratio: fraction of each block's weighted attention to drop, in [0, 1).
        legacy: vit-explain's published arithmetic instead (`vitsal.guides.legacy`), for comparison only.

    Raises:
        UserError: no classifier, a class that the model does not have, discard ratio outside [0, 1).
    """

    discard_ratio: float = 0.0
    legacy: bool = False

    def __post_init__(self) -> None:
        check_number("discard ratio", self.discard_ratio, 0, 1, open_end="high")
        super().__post_init__()
        if self.legacy:
            _check_legacy(self.model)

    def _explain(self, record: AttentionRecord) -> Tensor:
        attentions, gradients = record.attentions, record.gradients(self.category_index)
        if self.legacy:
            return legacy_gradient_rollout(attentions, gradients, discard_ratio=self.discard_ratio)
        fused = [fuse_gradient(a, g) for a, g in zip(attentions, gradients, strict=True)]
        return attention_rollout(fused, discard_ratio=self.discard_ratio, **self._tokens)


@dataclass(frozen=True)
class GradientAttentionGuide(_GradientGuide):
    """Gradient times attention of `model`, after Chefer et al. 2021 (`vitsal.guides.attention_relevance`).

    Args:
        model: a timm ViT in eval mode, with a classifier.
        category_index: the class to explain; None explains the class that the model predicts, image by image.

    Raises:
        UserError: no classifier, or a class that the model does not have.
    """

    def _explain(self, record: AttentionRecord) -> Tensor:
        pairs = zip(record.attentions, record.gradients(self.category_index), strict=True)
        return attention_relevance([fuse_positive_gradient(*pair) for pair in pairs], **self._tokens)


def check_category(model: nn.Module, category_index: int | None) -> None:
    """Raise UserError if `model` has no classifier or does not have this class (None: any)."""
    if not model.num_classes:
        raise UserError("Gradient rollout explains a class, and this model has no classifier; use attention rollout.")
    if category_index is None:
        return
    whole = isinstance(category_index, Integral) and not isinstance(category_index, bool)
    if not whole or category_index not in range(model.num_classes):
        raise UserError(
            f"Category index {quoted(category_index)} is not a class of this model: it has {model.num_classes} "
            f"classes, 0 to {model.num_classes - 1}."
        )


def _check_legacy(model: nn.Module) -> None:
    if model.num_prefix_tokens != 1 or default_readout(model) != "class":
        raise UserError(
            "vit-explain's rollout (legacy) knows models with one class token and no other prefix token only."
        )


@dataclass(frozen=True)
class HeadsGuide:
    """Last block's attention, head by head, from the class token (or the mean patch) to the patches."""

    model: nn.Module

    def __call__(self, images: Tensor) -> Tensor:
        """Attention of a batch, see `vitsal.guides.head_maps`: (B, 3, H, W) -> (B, heads, gh, gw)."""
        return head_maps(self.model, images)


def head_maps(model: nn.Module, images: Tensor, block: int = -1) -> Tensor:
    """What each head of one block shows the token that is read: (B, 3, H, W) -> (B, H, gh, gw), raw.

    That token is the class token, or the mean of the patch tokens where the model pools them (`default_readout`). With
    the prefix tokens' share each map would sum to 1. Caron et al. 2021 (arXiv:2104.14294, figure 1) show them for DINO.

    Args:
        model: a timm ViT.
        images: as `model_transform(model)` makes them.
        block: number of the block, negative from the end.

    Raises:
        UserError: the model has no such block.
    """
    check_block(model, block)
    with _probing(model), record_attention(model, blocks=[block]) as maps:
        model(images)
    each_head = last_attention(
        maps[0].flatten(0, 1).float(), num_prefix_tokens=model.num_prefix_tokens, readout=default_readout(model)
    )
    return each_head.view(*maps[0].shape[:2], *grid_size(model, images))
