"""Attention rollout and gradient rollout: pure functions on attention tensors.

Shapes: B images, H heads, N tokens (prefix tokens first, then P patch tokens), L blocks, first block first.
A row of an attention matrix holds what one token reads from all tokens, and sums to 1.

Sources: Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers" (arXiv:2005.00928); head fusion by
maximum or minimum, the discard ratio and gradient rollout are those of jacobgil/vit-explain, with its known
errors put right (see `vitsal.guides.legacy`, which keeps them for comparison).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from vitsal.errors import UserError, check_choice, check_number

HEAD_FUSIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda attention: attention.mean(dim=1),
    "max": lambda attention: attention.amax(dim=1),
    "min": lambda attention: attention.amin(dim=1),
}


def fuse_heads(attention: Tensor, head_fusion: str = "mean") -> Tensor:
    """Fuse the heads of one block's softmaxed attention: (B, H, N, N) -> (B, N, N), in float32 at least.

    `head_fusion` is "mean" (Abnar & Zuidema), "max" or "min" (vit-explain); raises UserError for any other.
    """
    fuse = HEAD_FUSIONS[check_choice("head fusion", head_fusion, HEAD_FUSIONS)]
    fused = fuse(attention)
    return fused.to(torch.promote_types(fused.dtype, torch.float32))


def fuse_gradient(attention: Tensor, gradient: Tensor) -> Tensor:
    """Weigh each head's attention by its gradient, average over heads, keep what is positive.

    max(0, mean_h(A_h * dy/dA_h)): (B, H, N, N) twice -> (B, N, N). As in vit-explain the negative part is cut after
    the mean; Chefer et al. 2021 (arXiv:2103.15679, equation 5) cut it before, head by head.
    """
    return (attention * gradient).mean(dim=1).clamp_min(0).float()


def fuse_positive_gradient(attention: Tensor, gradient: Tensor) -> Tensor:
    """mean_h(max(0, A_h * dy/dA_h)), cut head by head: (B, H, N, N) twice -> (B, N, N) (Chefer et al., equation 5)."""
    return (attention * gradient).clamp_min(0).mean(dim=1).float()


def check_discard(ratio: float) -> float:
    """Return a discard ratio that can be used; raise UserError if it is no number in [0, 1)."""
    return check_number("discard ratio", ratio, 0, 1, open_end="high")


def discard_lowest(fused: Tensor, discard_ratio: float, protect_class: bool = True) -> Tensor:
    """Set the lowest `discard_ratio` of each image's attention to zero: (B, N, N) -> (B, N, N).

    The k = int(discard_ratio * N * N) lowest entries of each image go, image by image, so a batch gives what its
    single images give. Entries tied with the lowest survivor stay: the result does not depend on their order.

    Args:
        fused: attention with its heads fused, (B, N, N).
        discard_ratio: fraction of the N * N entries to drop, in [0, 1).
        protect_class: keep entry [0, 0], the class token's attention to itself, as vit-explain does. Nothing else
            needs it: `propagate` adds the residual connection, so that every token keeps itself.

    Raises:
        UserError: the discard ratio is no number in [0, 1).
    """
    ratio = check_discard(discard_ratio)
    flat = fused.flatten(1)
    num_discarded = int(ratio * flat.shape[1])
    if num_discarded == 0:
        return fused
    lowest_survivor = _kth_smallest(flat, num_discarded + 1)
    kept = torch.where(flat < lowest_survivor[:, None], 0, flat).view_as(fused)
    if protect_class:
        kept[:, 0, 0] = fused[:, 0, 0]
    return kept


def _kth_smallest(rows: Tensor, k: int) -> Tensor:
    """The k-th smallest value of each row, k from 1: (B, M) -> (B,)."""
    if rows.device.type == "cpu":  # numpy selects with vector instructions: 12 times faster than torch.kthvalue
        return torch.from_numpy(np.partition(rows.detach().numpy(), k - 1, axis=1)[:, k - 1].copy())
    return rows.kthvalue(k, dim=1).values


def propagate(fused: Sequence[Tensor], start: Tensor) -> Tensor:
    """Carry one row of attention back through all blocks: start @ Â_L @ ... @ Â_1.

    Â = (A + I) / row sums is the attention with the residual connection, each row summing to 1. Abnar & Zuidema
    (equation 1) multiply whole matrices; only one row of the product is read, so vector-matrix products from the
    last block back give the same with about N times fewer operations. A sum of 1 in `start` is kept.

    Args:
        fused: L matrices (B, N, N), first block first.
        start: weights of the tokens that are read, (B, N).

    Returns:
        (B, N): how much each input token contributes to what is read.
    """
    row = start
    with torch.autocast(start.device.type, enabled=False):  # which would round the products to 16 bits
        for attention in reversed(fused):
            share = row / (attention.sum(dim=-1) + 1)
            row = torch.bmm(share[:, None], attention)[:, 0] + share
    return row


def readout_row(fused: Tensor, num_prefix_tokens: int, readout: str) -> Tensor:
    """The row vector (B, N) that reads the class token, or the mean of the patch tokens.

    Raises:
        UserError: unknown readout, or readout "class" of a model without a class token.
    """
    check_choice("readout", readout, ("class", "patches"))
    if readout == "class" and num_prefix_tokens == 0:
        raise UserError("Readout 'class' needs a class token and this model has none; use readout='patches'.")
    row = fused.new_zeros(fused.shape[:2])
    read = slice(0, 1) if readout == "class" else slice(num_prefix_tokens, None)
    row[:, read] = 1 / row[:, read].shape[1]
    return row


def attention_rollout(
    fused: Sequence[Tensor], *, num_prefix_tokens: int = 1, discard_ratio: float = 0.0, readout: str = "class"
) -> Tensor:
    """Attention rollout of each image: L matrices (B, N, N) -> saliency (B, P), raw.

    Args:
        fused: attention with its heads fused (`fuse_heads`, or `fuse_gradient` for gradient rollout), first block
            first.
        num_prefix_tokens: class, distillation and register tokens before the patch tokens. They take part in the
            propagation, and their columns are left out of the result.
        discard_ratio: see `discard_lowest`.
        readout: "class" reads the class token's row (token 0); "patches" the mean of the patch tokens' rows, for
            models that pool their patches.

    Returns:
        (B, P) contributions of the patches. With those of the prefix tokens they would sum to 1; they are not scaled
        further, so that images can be compared.

    Raises:
        UserError: no matrices, unknown readout, discard ratio outside [0, 1).

    Example:
        >>> uniform = torch.full((1, 3, 3), 1 / 3)
        >>> attention_rollout([uniform])  # half stays with the class token, half is spread over three
        tensor([[0.1667, 0.1667]])
    """
    if len(fused) == 0:
        raise UserError("Rollout needs the attention of at least one block; got none.")
    kept = [discard_lowest(attention, discard_ratio, num_prefix_tokens > 0) for attention in fused]
    row = propagate(kept, readout_row(kept[-1], num_prefix_tokens, readout))
    return row[:, num_prefix_tokens:]


def settle_zeros(saliency: Tensor, by: Tensor) -> Tensor:
    """Rank the patches that are exactly zero, as a discard ratio leaves them, by another map: (B, P) twice -> (B, P).

    They get values in the order of `by`, below a thousandth of the image's least positive one; the others stay. So a
    map that names a few patches only still ranks them all, and no order of the grid is taken for an answer.

    Example:
        >>> settle_zeros(torch.tensor([[0.0, 0.8, 0.0, 0.2]]), by=torch.tensor([[0.1, 0.3, 0.4, 0.2]]))
        tensor([[5.0000e-05, 8.0000e-01, 2.0000e-04, 2.0000e-01]])
    """
    zero = saliency == 0
    least = torch.where(zero, torch.inf, saliency).amin(dim=1, keepdim=True)
    least = torch.where(least.isinf(), 1, least)  # nothing but zeros
    largest = torch.where(zero, by, 0).amax(dim=1, keepdim=True).clamp_min(torch.finfo(by.dtype).tiny)
    return torch.where(zero, 1e-3 * least * by / largest, saliency)


def last_attention(fused: Tensor, *, num_prefix_tokens: int = 1, readout: str = "class") -> Tensor:
    """What one block's readout token attends to: the last block's fused matrix (B, N, N) -> saliency (B, P), raw.

    `num_prefix_tokens` and `readout` are as in `attention_rollout`.
    """
    row = readout_row(fused, num_prefix_tokens, readout)
    return (row[:, :, None] * fused).sum(dim=1)[:, num_prefix_tokens:]  # no bmm: autocast would round it to 16 bits


def attention_relevance(fused: Sequence[Tensor], *, num_prefix_tokens: int = 1, readout: str = "class") -> Tensor:
    """Relevance of each patch for a class: L matrices (B, N, N) -> saliency (B, P), raw.

    R <- R + Â R, block by block from R = I (Chefer et al. 2021, arXiv:2103.15679, equation 6), of which only the row
    that is read is carried back: row (I + Â_L) ... (I + Â_1). Unlike rollout it does not scale rows to 1, so that
    blocks in which nothing speaks for the class count little.

    Args:
        fused: L matrices of `fuse_positive_gradient`, first block first.
        num_prefix_tokens, readout: as in `attention_rollout`.

    Example:
        >>> attention_relevance([torch.tensor([[[0.0, 0.3, 0.1], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])])
        tensor([[0.3000, 0.1000]])
    """
    row = readout_row(fused[-1], num_prefix_tokens, readout)
    for attention in reversed(fused):
        row = row + (row[:, :, None] * attention).sum(dim=1)
    return row[:, num_prefix_tokens:]
