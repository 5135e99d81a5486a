"""Token merging: running a timm ViT on fewer and fewer tokens, the most similar ones joined block by block.

Bolya et al. 2023, "Token Merging: Your ViT But Faster", arXiv:2210.09461 (ToMe). Lee et al. 2024, "Multi-criteria
Token Fusion", arXiv:2403.10030, merge last what tokens attend to, as is done here where it is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from timm.layers import Attention
from timm.models.eva import EvaAttention, EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.functional import normalize

from vitsal.errors import UserError, quoted
from vitsal.models.tokens import default_readout, position_kind
from vitsal.reduction.drop import gather_tokens
from vitsal.reduction.surgery import before_pooling, replaced

MERGEABLE = (Block, Attention), (EvaBlock, EvaAttention)
SPARED = 0.1  # of cosine, for each factor of e in class attention; chosen on training images (README)


class Merged:
    """What became of the tokens in the last forward pass inside `merge_tokens`.

    Attributes:
        sizes: of how many tokens each of the N that are left is the mean, (B, N), prefix tokens (1 each) first; each
            row sums to the number of tokens that went in.
    """

    sizes: Tensor

    def __init__(self, num_prefix_tokens: int, sparing: bool) -> None:
        self._num_prefix_tokens, self._sparing = num_prefix_tokens, sparing

    @property
    def groups(self) -> Tensor:
        """For each of P patches, which of the N tokens it is now part of, (B, P): those of one number have become one.

        The patches are those of the image in row-major order, or those that `keep_patches` kept, in its order.
        """
        return self._groups[:, self._num_prefix_tokens :]

    def _start(self, block: nn.Module, args: tuple) -> None:
        """Before the first block: every token stands for itself."""
        batch, num_tokens = args[0].shape[:2]
        self._groups = torch.arange(num_tokens, device=args[0].device).expand(batch, -1)
        self.sizes = torch.ones_like(self._groups)

    def _has_merged(self) -> bool:
        return self.sizes.shape[1] < self._groups.shape[1]

    def _attention_bias(self, dtype: torch.dtype) -> Tensor | None:
        """Log size of each key, (B, 1, 1, N), equation 1; None before anything has been merged."""
        return self.sizes.log().to(dtype)[:, None, None] if self._has_merged() else None

    def _merge(self, tokens: Tensor, query: Tensor, keys: Tensor, r: int) -> Tensor:
        """Merge r of the tokens (B, N, C), by a block's keys (B, h, N, d), and the query of the class token."""
        r = min(r, num_mergeable(tokens.shape[1], self._num_prefix_tokens))
        if not r:
            return tokens
        spared = SPARED * class_attention(query, keys, self.sizes).log() if self._sparing else None
        groups = match_tokens(keys.mean(dim=1), self._num_prefix_tokens, r, spared)
        tokens, self.sizes = merge_groups(tokens, self.sizes, groups, tokens.shape[1] - r)
        self._groups = groups.gather(1, self._groups)
        return tokens

    def _unmerge(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> as many tokens as went in, each the one that it is now part of."""
        return gather_tokens(tokens, self._groups) if self._has_merged() else tokens


@contextmanager
def merge_tokens(model: nn.Module, schedule: int | str | Sequence[int]) -> Iterator[Merged]:
    """Inside this context each block of `model` merges similar patch tokens, for every forward pass of any B images.

    As Bolya et al. have it (section 3): between attention and MLP of a block, by the keys of that attention; and a
    token that stands for several draws as much attention as they would (proportional attention, equation 1).

    What pools over patches at the end (MAE's mean, SigLIP's attention) sees a merged token once for each patch in it.
    A mean is thus weighted by size, as in the authors' code for MAE: without weights, sky merged into one token would
    count no more than one eye. Within `keep_patches`, or around it, patches are dropped first, then merged among those
    kept.

    A schedule that ends in "c" spares what the class token attends to (not in ToMe): of two pairs that are as similar,
    the one that it attends to less is merged (`match_tokens`).

    Args:
        model: a timm ViT (`vitsal.load_model`) with absolute positions alone.
        schedule: how many tokens to merge away in each block, see `merge_schedule`; 0 leaves the model as it is.

    Yields:
        `Merged`, which holds sizes and groups of the last forward pass.

    Raises:
        UserError: a schedule that is none, or a model with rotary or relative positions, or unknown blocks; "c" with
            a model that does not read its class token.

    Example:
        >>> with merge_tokens(model, 16) as merged:  # doctest: +SKIP
        ...     logits = model(images)
        >>> merged.sizes.shape, merged.groups.shape  # doctest: +SKIP
        (torch.Size([8, 11]), torch.Size([8, 196]))
    """
    counts, sparing = merge_schedule(schedule, len(model.blocks)), spares(schedule)
    _check_mergeable(model)
    if sparing:
        _check_sparing(model)
    merged = Merged(model.num_prefix_tokens, sparing)
    with ExitStack() as stack:
        stack.enter_context(model.blocks[0].register_forward_pre_hook(merged._start))
        for block, r in zip(model.blocks, counts, strict=True):
            stack.enter_context(replaced(block, "forward", partial(_merging_forward, block, merged, r)))
        stack.enter_context(before_pooling(model, merged._unmerge))
        yield merged


def _merging_forward(block: nn.Module, merged: Merged, r: int, tokens: Tensor, **unused: None) -> Tensor:
    """timm's forward pass of a block, with merging in its middle. (Eva hands on rotary positions, None here.)"""
    attention, seen = block.attn, {}
    with (
        attention.q_norm.register_forward_hook(lambda module, args, output: seen.update(query=output[:, :, :1])),
        attention.k_norm.register_forward_hook(lambda module, args, output: seen.update(keys=output)),
    ):
        attended = attention(block.norm1(tokens), attn_mask=merged._attention_bias(tokens.dtype))
    tokens = tokens + block.drop_path1(_scaled(block, 1, attended))
    tokens = merged._merge(tokens, attention.scale * seen["query"], seen["keys"], r)
    return tokens + block.drop_path2(_scaled(block, 2, block.mlp(block.norm2(tokens))))


def _scaled(block: nn.Module, half: int, branch: Tensor) -> Tensor:
    """A block's LayerScale after its attention (1) or its MLP (2)."""
    if isinstance(block, EvaBlock):
        gamma = (block.gamma_1, block.gamma_2)[half - 1]
        return branch if gamma is None else gamma * branch
    return (block.ls1, block.ls2)[half - 1](branch)


def num_mergeable(num_tokens: int, num_prefix_tokens: int) -> int:
    """How many tokens can be merged away at once: half of the patch tokens, as each must find one that stays."""
    return (num_tokens - num_prefix_tokens) // 2


@torch.no_grad()
def class_attention(query: Tensor, keys: Tensor, sizes: Tensor) -> Tensor:
    """How much the class token attends to each token, mean over heads.

    Args:
        query: the class token's, scaled, (B, h, 1, d).
        keys: (B, h, N, d).
        sizes: of how many tokens each is the mean, (B, N), for proportional attention.

    Returns:
        (B, N), each row sums to 1.
    """
    logits = (query @ keys.mT).squeeze(2).float() + sizes[:, None].log()
    return logits.softmax(dim=-1).mean(dim=1)


@torch.no_grad()
def match_tokens(keys: Tensor, num_prefix_tokens: int, r: int, spared: Tensor | None = None) -> Tensor:
    """Bipartite soft matching (section 3): the group of each token, those of one group to be merged.

    Tokens alternate between two sets, beginning with A; prefix tokens are counted but take no part. Each token of A
    finds the most similar one of B, by cosine, and the r most similar of A are merged into theirs. Groups are numbered
    in this order: prefix tokens, the rest of A, B, each in the order it had.

    Args:
        keys: mean of the heads' keys, (B, N, d).
        r: how many tokens to merge away, at most `num_mergeable`.
        spared: by how much less similar a pair counts where it is made of this token, (B, N), the mean of both; where
            tokens matter, so that others are merged before them.

    Returns:
        Numbers of groups, 0 to N - r - 1, (B, N).
    """
    prefix, odd = num_prefix_tokens, num_prefix_tokens % 2
    a, b = slice(prefix + odd, None, 2), slice(prefix + 1 - odd, None, 2)
    keys = normalize(keys, dim=-1)
    similarity, partner = (keys[:, a] @ keys[:, b].mT).max(dim=2)
    if spared is not None:
        similarity = similarity - (spared[:, a] + spared[:, b].gather(1, partner)) / 2
    most_similar = similarity.argsort(dim=1, descending=True, stable=True)[:, :r]
    merged = torch.zeros_like(partner, dtype=torch.bool).scatter(1, most_similar, True)
    first_of_b = prefix + partner.shape[1] - r
    groups = torch.arange(keys.shape[1], device=keys.device).repeat(keys.shape[0], 1)
    groups[:, a] = torch.where(merged, first_of_b + partner, prefix - 1 + (~merged).cumsum(dim=1))
    groups[:, b] = torch.arange(first_of_b, keys.shape[1] - r, device=keys.device)
    return groups


def merge_groups(tokens: Tensor, sizes: Tensor, groups: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Mean of the tokens of each group, weighted by their sizes (section 3, "Tracking Token Size").

    Args:
        tokens: (B, N, C).
        sizes: of how many tokens each is already the mean, (B, N).
        groups: 0 to num_groups - 1, (B, N), see `match_tokens`.

    Returns:
        Tokens (B, num_groups, C) and their sizes (B, num_groups), the sums of those merged.
    """
    group_sizes = sizes.new_zeros(sizes.shape[0], num_groups).scatter_add(1, groups, sizes)
    weights = (sizes / group_sizes.gather(1, groups)).to(tokens.dtype)
    rows = groups + num_groups * torch.arange(groups.shape[0], device=groups.device)[:, None]  # of all images together
    merged = tokens.new_zeros(groups.shape[0] * num_groups, tokens.shape[2])
    merged = merged.index_add(0, rows.flatten(), (weights[:, :, None] * tokens).flatten(0, 1))
    return merged.unflatten(0, (groups.shape[0], num_groups)), group_sizes


def merge_schedule(spec: int | str | Sequence[int], depth: int) -> tuple[int, ...]:
    """How many tokens each of `depth` blocks merges away, (depth,).

    Args:
        spec: "16", in every block; "16-", the paper's decreasing schedule: from 32 in the first block in equal
            steps down to 0 in the last, 16 on average, rounded down; "8@6", from block 6 on, counted from 0;
            "16 16 8 ...", a number for each block. A block merges no more than half of its patch tokens. A "c" at the
            end of any says which tokens are merged (`spares`), not how many.

    Raises:
        UserError: anything else, a list of another length, or a block that is not there.

    Example:
        >>> merge_schedule("3-", 4), merge_schedule("8@2c", 4)
        ((6, 4, 2, 0), (0, 0, 8, 8))
    """
    text = " ".join(map(str, spec)) if isinstance(spec, list | tuple) else str(spec).strip().removesuffix("c")
    numbers = [int(number) for number in re.findall("[0-9]{1,9}", text)]
    if re.fullmatch("[0-9]{1,9}", text) and not isinstance(spec, list | tuple):
        return (numbers[0],) * depth
    if re.fullmatch("[0-9]{1,9}-", text):
        return tuple(2 * numbers[0] * (depth - 1 - block) // max(depth - 1, 1) for block in range(depth))
    if re.fullmatch("[0-9]{1,9}@[0-9]{1,9}", text) and numbers[1] < depth:
        return tuple(numbers[0] if block >= numbers[1] else 0 for block in range(depth))
    if re.fullmatch("[0-9]{1,9}( +[0-9]{1,9})*", text) and len(numbers) == depth:
        return tuple(numbers)
    raise UserError(
        f"Tokens to merge must be whole numbers: '16' in every block, '16-' decreasing from 32 to 0, '8@6' from block "
        f"6 on (this model's are 0 to {depth - 1}), or {depth} numbers, one for each block, with blanks between them; "
        f"a 'c' at the end spares what the class token attends to; got {quoted(spec)}."
    )


def spares(spec: int | str | Sequence[int]) -> bool:
    """Whether a schedule spares what the class token attends to: those that end in "c" do."""
    return str(spec).strip().endswith("c")


def plain_merging(spec: int | str) -> str:
    """The one text of all that say the same schedule (`merge_schedule`): "08@06" is "8@6", "0-" is "0".

    What is no schedule of any depth is left as it is, for `merge_schedule` to refuse.

    Example:
        >>> plain_merging(8), plain_merging(" 016-"), plain_merging("8  08 00")
        ('8', '16-', '8 8 0')
    """
    text = str(spec).strip()
    if not re.fullmatch("[0-9]{1,9}(-|@[0-9]{1,9}|( +[0-9]{1,9})*)c?", text):
        return text
    plain = re.sub(r"\b0+(?=[0-9])", "", re.sub(" +", " ", text))
    return "0" if re.fullmatch("0-?c?", plain) else plain


def _check_mergeable(model: nn.Module) -> None:
    unknown = [block for block in model.blocks if (type(block), type(getattr(block, "attn", None))) not in MERGEABLE]
    positions = position_kind(model)
    if positions == "relative":
        reason = "relative positions, and a merged token has no place that they could be relative to"
    elif positions == "rotary":
        reason = "rotary positions, and a merged token has no one place to be rotated to"
    elif unknown:
        reason = f"blocks of a kind that merging does not know ({_kind(unknown[0])})"
    else:
        return
    name = model.pretrained_cfg["architecture"]
    raise UserError(
        f"The tokens of {name} cannot be merged: it has {reason}. Drop patches, or show it a smaller image instead."
    )


def _check_sparing(model: nn.Module) -> None:
    if default_readout(model) != "class":
        name = model.pretrained_cfg["architecture"]
        raise UserError(
            f"Merging in {name} cannot spare what its class token attends to: its answer is not read from one. Leave "
            "the 'c' out."
        )


def _kind(block: nn.Module) -> str:
    kind = type(block).__name__
    return f"{kind} with {type(block.attn).__name__}" if hasattr(block, "attn") else kind
