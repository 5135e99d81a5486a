"""Softer attention for fewer tokens: a softmax that was trained over many is too sharp over few."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
from torch import Tensor, nn

from vitsal.errors import UserError, quoted
from vitsal.models.sizes import whole_grid

SOFTEST = 10  # exponents of more make early attention uniform over any number of tokens


@contextmanager
def soften_attention(model: nn.Module, num_patches: int, schedule: float | str = "1-") -> Iterator[nn.Module]:
    """Inside this context the attention of `model` is softened, as suits so many patches (`attention_scale`).

    Queries are multiplied, so that fused attention stays fused. Tokens that are merged meanwhile count as the patches
    they stand for, as they do in proportional attention. A model counts as trained at its own input size; a twin of
    another size (`vitsal.models.resized`) at that of its original.

    Args:
        model: a timm ViT (`vitsal.load_model`).
        num_patches: how many the first block sees of each image, prefix tokens not counted.
        schedule: of exponents (`soften_schedule`); 0 leaves attention as it is.

    Raises:
        UserError: a schedule that is none, or blocks whose queries cannot be reached.
    """
    prefix = model.num_prefix_tokens
    tokens, own = prefix + num_patches, prefix + math.prod(whole_grid(model))
    queries = query_norms(model)
    with ExitStack() as stack:
        for norm, exponent in zip(queries, soften_schedule(schedule, len(queries)), strict=True):
            if (scale := attention_scale(tokens, own, exponent)) != 1:
                hook = partial(_scaled, scale)
                stack.enter_context(norm.register_forward_hook(hook))
        yield model


def _scaled(scale: float, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    return output * scale


def attention_scale(num_tokens: int, own_tokens: int, exponent: float = 1.0) -> float:
    """What the logits of a softmax over n tokens are multiplied by: (ln n / ln N) ** exponent, 1 for n >= N.

    To draw half of the attention one token's logit must lead the N - 1 others' by ln(N - 1): a model that was trained
    with N tokens has learnt leads of that size, and over n they are ln N / ln n too large. With exponent 1 it is the
    scale of Chiang and Cholak 2022 (arXiv:2202.12172), who multiply by ln n so that lengths generalize; Jin et al. 2023
    (arXiv:2306.08645) have 1/2, for images of other sizes in diffusion models.

    Example:
        >>> round(attention_scale(60, 197), 3), attention_scale(197, 197)
        (0.775, 1.0)
    """
    return (math.log(num_tokens) / math.log(own_tokens)) ** exponent if num_tokens < own_tokens else 1.0


def soften_schedule(spec: float | str, depth: int) -> tuple[float, ...]:
    """The exponent of each of `depth` blocks, (depth,).

    Args:
        spec: "1" in every block; "1-" decreasing, from 2 in the first block in equal steps down to 0 in the last, 1 on
            average, as schedules of merging do (`vitsal.reduction.merge_schedule`).

    Raises:
        UserError: anything else, or an average that is not from 0 to below 10.

    Example:
        >>> soften_schedule("1-", 5), soften_schedule(0.5, 2)
        ((2.0, 1.5, 1.0, 0.5, 0.0), (0.5, 0.5))
    """
    average, decreasing = read_softening(spec)
    if not decreasing:
        return (average,) * depth
    return tuple(2 * average * (depth - 1 - block) / max(depth - 1, 1) for block in range(depth))


def read_softening(spec: float | str) -> tuple[float, bool]:
    """Average of a schedule of exponents, and whether it decreases; UserError for what is none (`soften_schedule`)."""
    found = re.fullmatch(r"((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)(-?)", str(spec).strip())
    if not found or isinstance(spec, bool) or float(found[1]) >= SOFTEST:
        raise UserError(
            f"Softening of attention is a number from 0 to below {SOFTEST}, such as '1', in every block, or '1-', "
            f"decreasing from 2 to 0; got {quoted(spec)}."
        )
    return float(found[1]), bool(found[2])


def plain_softening(spec: float | str) -> str:
    """The one text of all that say the same schedule (`soften_schedule`), which reads as it: "01.0-" is "1-".

    All digits of the number are in it, and no exponent.

    Raises:
        UserError: what is none.

    Example:
        >>> plain_softening("01.0-"), plain_softening(1e-5), plain_softening("0-")
        ('1-', '0.00001', '0')
    """
    average, decreasing = read_softening(spec)
    text = np.format_float_positional(average, trim="-")
    return f"{text}-" if average and decreasing else text


def query_norms(model: nn.Module) -> list[nn.Module]:
    """Each block's module that queries come out of, (B, H, N, d).

    Raises:
        UserError: blocks that have none.
    """
    attentions = [getattr(block, "attn", None) for block in model.blocks]
    if lacking := [attention for attention in attentions if not hasattr(attention, "q_norm")]:
        name, kind = model.pretrained_cfg["architecture"], type(lacking[0] or model.blocks[0]).__name__
        raise UserError(
            f"The attention of {name} cannot be softened: its {kind} does not let queries be reached. Leave softening "
            f"out."
        )
    return [attention.q_norm for attention in attentions]
