"""Running a timm ViT on kept patches alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial

import torch
from timm.models.beit import Beit
from torch import Tensor, nn

from vitsal.errors import UserError
from vitsal.models.pixels import resize
from vitsal.reduction.keep import can_look
from vitsal.reduction.surgery import before_blocks, replaced


@contextmanager
def keep_patches(model: nn.Module, keep: Tensor) -> Iterator[nn.Module]:
    """Inside this context, `model` runs on the patches in `keep` alone, for every forward pass of B images.

    All patches are embedded with their positions; those not kept are then removed before the first block, so that no
    block spends anything on them. Prefix tokens always stay. Rotary and relative positions follow the kept patches.

    Args:
        model: a timm ViT, Eva or Beit (`vitsal.load_model`).
        keep: patch indices to keep, (B, K), from 0 in row-major order, prefix tokens not counted.

    Raises:
        UserError: on running, indices that are no patches, are given twice, or for another number of images.
    """
    with ExitStack() as stack:
        hook = model.patch_embed.register_forward_hook
        stack.enter_context(hook(lambda m, args, tokens: check_keep(keep, tokens.shape[0], tokens.shape[1:-1].numel())))
        if isinstance(model, Beit):
            _keep_in_beit(model, keep, stack)
        else:
            stack.enter_context(before_blocks(model, partial(_keep_tokens, keep, model.num_prefix_tokens), keep))
        yield model


def forward_kept(model: nn.Module, images: Tensor, keep: Tensor) -> Tensor:
    """Logits of `model` for `images` (B, 3, H, W) from the patches in `keep` (B, K) alone."""
    with keep_patches(model, keep):
        return model(images)


@contextmanager
def embed_once(model: nn.Module, images: Tensor) -> Iterator[nn.Module]:
    """Inside this context `model` runs on these images alone, (B, 3, H, W), and embeds their patches only once.

    For many forward passes that differ only in the patches kept, or shown coarsely: those of the images at half their
    size are embedded once too, when they are first asked for (`embed_halved`).
    """
    with replaced(model.patch_embed, "forward", _Embedded(model.patch_embed, images)):
        yield model


class _Embedded:
    """Stands in for the forward pass of a patch embedding: what it has made of these images, whatever it is given."""

    def __init__(self, embed: nn.Module, images: Tensor) -> None:
        self.whole, self.halved = embed(images), cache(partial(_embed_halved, embed, images))

    def __call__(self, images: Tensor) -> Tensor:
        return self.whole


def embed_halved(embed: nn.Module, images: Tensor) -> Tensor:
    """Patches of images (B, 3, H, W) at half their size, as `embed` makes them of any: (B, P / 4, C)."""
    return embed.forward.halved() if isinstance(embed.forward, _Embedded) else _embed_halved(embed, images)


def _embed_halved(embed: nn.Module, images: Tensor) -> Tensor:
    half = resize(images, (images.shape[-2] // 2, images.shape[-1] // 2))
    return embed.norm(embed.proj(half).flatten(2).mT)


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """(B, N, C) and (B, M) -> (B, M, C)."""
    return tokens.gather(1, indices[:, :, None].expand(-1, -1, tokens.shape[-1]))


def _keep_tokens(keep: Tensor, num_prefix_tokens: int, tokens: Tensor) -> Tensor:
    return gather_tokens(tokens, _token_indices(keep, num_prefix_tokens))


def _token_indices(keep: Tensor, num_prefix_tokens: int) -> Tensor:
    prefix = torch.arange(num_prefix_tokens, device=keep.device).expand(keep.shape[0], -1)
    return torch.cat([prefix, keep + num_prefix_tokens], dim=1)


def check_keep(keep: Tensor, num_images: int, num_patches: int) -> None:
    """Raise UserError unless `keep` is (B, K) numbers of patches for so many images, none of them twice."""
    whole = not (keep.is_floating_point() or keep.is_complex() or keep.dtype == torch.bool)
    if not whole or keep.ndim != 2 or keep.shape[0] != num_images or not keep.shape[1]:
        raise UserError(
            f"Patches to keep must be whole numbers, {num_images} rows (one for each image) of one patch at least; got "
            f"{tuple(keep.shape)} of {str(keep.dtype).removeprefix('torch.')}."
        )
    ordered = keep.sort(dim=1).values
    outside = (ordered[:, 0] < 0) | (ordered[:, -1] >= num_patches)
    wrong = outside | (ordered[:, 1:] == ordered[:, :-1]).any(dim=1)
    if can_look(keep) and wrong.any():
        row = int(wrong.nonzero()[0])
        raise UserError(
            f"Patches to keep are numbered 0 to {num_patches - 1}, each once; image {row} has {ordered[row].tolist()}."
        )


def _keep_in_beit(model: Beit, keep: Tensor, stack: ExitStack) -> None:
    """Beit has no place for dropping patches: they go at the first block, their relative positions with them."""
    indices = cache(partial(_token_indices, keep, model.num_prefix_tokens))  # on running: checked by then

    def drop_tokens(block: nn.Module, args: tuple) -> tuple:
        return (gather_tokens(args[0], indices()), *args[1:])

    def pick_bias(bias: Tensor) -> Tensor:  # (1, H, N, N), or (H, N, N) where blocks share one -> (B, H, M, M)
        return bias.view(bias.shape[-3:])[:, indices()[:, :, None], indices()[:, None, :]].transpose(0, 1)

    stack.enter_context(model.blocks[0].register_forward_pre_hook(drop_tokens))
    if model.rel_pos_bias is not None:
        stack.enter_context(model.rel_pos_bias.register_forward_hook(lambda m, args, bias: pick_bias(bias)))
    for attention in [block.attn for block in model.blocks]:
        if attention.relative_position_bias_table is not None:
            bias_of = attention._get_rel_pos_bias
            stack.enter_context(replaced(attention, "_get_rel_pos_bias", lambda bias_of=bias_of: pick_bias(bias_of())))
