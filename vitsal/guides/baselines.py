"""Guides to compare with: chance, the center, and what neighbours choose tokens by, made anew from their papers."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitsal.errors import LARGEST_SEED, UserError, check_whole
from vitsal.guides.attention import check_block, record_attention
from vitsal.guides.rollout import fuse_heads, last_attention
from vitsal.models.convnets import feature_map
from vitsal.models.pixels import renormalize
from vitsal.models.tokens import grid_size, readout_options


@dataclass(frozen=True)
class RandomGuide:
    """Uniformly random saliency, (B, gh, gw).

    Each image's map is drawn from `seed` and the image's own values, so that it does not depend on the batch, on the
    order, or on where a run was resumed.

    Raises:
        UserError: the seed is no whole number from 0 to 2**32 - 1.
    """

    grid_size: tuple[int, int]
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, 0, LARGEST_SEED)

    def __call__(self, images: Tensor) -> Tensor:
        """Saliency of a batch: (B, 3, H, W) -> (B, gh, gw)."""
        maps = []
        for image in images.detach().cpu():
            seed = zlib.crc32(image.contiguous().view(torch.uint8).numpy(), self.seed)  # torch takes 32 bits, not more
            maps.append(torch.rand(self.grid_size, generator=torch.Generator().manual_seed(seed)))
        return torch.stack(maps).to(images.device)


@dataclass(frozen=True)
class CenterGuide:
    """The nearer to the image's center, the more salient: minus the distance, in patches, (B, gh, gw)."""

    grid_size: tuple[int, int]

    def __call__(self, images: Tensor) -> Tensor:
        """Saliency of a batch: (B, 3, H, W) -> (B, gh, gw)."""
        height, width = self.grid_size
        y = torch.arange(height, device=images.device) - (height - 1) / 2
        x = torch.arange(width, device=images.device) - (width - 1) / 2
        return -torch.hypot(y[:, None], x[None, :]).expand(len(images), -1, -1)


@dataclass(frozen=True)
class EarlyGuide:
    """What guides share that look at one block of `model`, and run it no further: later ones cost nothing.

    The map is laid on the model's own patch grid; `AdaptedGuide` takes images prepared for another model.

    Args:
        model: a timm ViT in eval mode; `images` are in its own normalisation and size.
        block: its number from 0, or negative from the end.

    Raises:
        UserError: the model has no such block.
    """

    model: nn.Module
    block: int = 3

    def __post_init__(self) -> None:
        check_block(self.model, self.block)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Saliency of a batch: (B, 3, H, W) -> (B, gh, gw)."""
        with self._watched() as seen:
            self.model.forward_intermediates(images, [self.block], stop_early=True, intermediates_only=True)
        return seen[0].unflatten(-1, grid_size(self.model, images))

    def _watched(self) -> AbstractContextManager[list[Tensor]]:
        """A context in which the block leaves (B, P) in a list."""
        raise NotImplementedError


@dataclass(frozen=True)
class ClassAttentionGuide(EarlyGuide):
    """Attention of one block, mean over heads, from the class token (or the mean patch) to the patches.

    EViT's score (Liang et al. 2022, arXiv:2202.07800), here of a model that was not trained to drop by it, and asked
    before the first block instead of between two.
    """

    def _watched(self) -> AbstractContextManager[list[Tensor]]:
        return record_attention(self.model, self._score, blocks=[self.block])

    def _score(self, attention: Tensor) -> Tensor:
        return last_attention(fuse_heads(attention), **readout_options(self.model))


@dataclass(frozen=True)
class NormChangeGuide(EarlyGuide):
    """By how much the MLP half of one block changes each patch's token: the L2 norm of what it adds.

    Representation shift (Choi et al. 2025, arXiv:2508.00367). It asks for no attention, which may stay fused.

    Raises:
        UserError: the model has no such block, or one without an MLP half.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not hasattr(block := self.model.blocks[self.block], "drop_path2"):
            raise UserError(
                f"Block {self.block} is a {type(block).__name__}, in which no MLP follows one attention: there is no "
                "change by it to be measured."
            )

    @contextmanager
    def _watched(self) -> Iterator[list[Tensor]]:
        seen: list[Tensor] = []
        prefix, last = self.model.num_prefix_tokens, self.model.blocks[self.block].drop_path2  # before it is added
        with last.register_forward_hook(lambda _, args, change: seen.append(change[:, prefix:].float().norm(dim=-1))):
            yield seen


@dataclass(frozen=True)
class ActivationGuide:
    """Mean over channels of the last feature map of a classifier, laid on the target's grid bicubically.

    PaPr's map (Mahmud et al. 2024, arXiv:2403.16020): `network`, a timm convnet in eval mode, was not trained for this,
    sees the target's images in their size, in its own normalisation, and needs no head.
    """

    network: nn.Module
    target: nn.Module

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Saliency of a batch: (B, 3, H, W) -> (B, gh, gw) of the target.

        UserError for a network whose last features are no map.
        """
        features = feature_map(self.network, renormalize(images, self.target, self.network))
        activation = features.float().mean(dim=1, keepdim=True)
        return F.interpolate(activation, grid_size(self.target, images), mode="bicubic")[:, 0]
