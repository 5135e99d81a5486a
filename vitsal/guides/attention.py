"""Recording a model's attention while it runs, and leaving the model as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from vitsal.errors import UserError
from vitsal.reduction.surgery import replaced


class AttentionNotRecorded(UserError):
    """A block gave no attention map, or has no attention that can be recorded."""


@contextmanager
def record_attention(
    model: nn.Module,
    fuse: Callable[[Tensor], Tensor] | None = None,
    *,
    blocks: Sequence[int] | None = None,
    with_gradient: bool = False,
) -> Iterator[list[Tensor]]:
    """Record the softmaxed attention of a timm ViT's blocks during one forward pass.

    timm's fused attention never forms the attention matrix, so it is switched off inside the context, block by block,
    and each block's `attn_drop`, which the matrix then passes through, is watched. On leaving, also by an exception,
    flags are restored and hooks removed. A second forward pass inside replaces the first one's maps.

    Args:
        model: a timm ViT (`vitsal.load_model`), in eval mode.
        fuse: what to keep of each map as soon as it is there, (B, H, N, N) -> anything smaller, such as
            `partial(fuse_heads, head_fusion="max")`; all heads are kept without it.
        blocks: indices of the blocks to record, negative from the end; all by default.
        with_gradient: keep the maps in the autograd graph, for `torch.autograd.grad(logit, maps)`; works with frozen
            parameters too. Otherwise they are detached.

    Yields:
        A list, filled by the forward pass: one tensor per recorded block, first block first.

    Raises:
        AttentionNotRecorded: a block has no attention to record, or gave none; the message names it.

    Example:
        >>> with record_attention(model) as maps:  # doctest: +SKIP
        ...     logits = model(images)
        >>> len(maps), maps[0].shape  # doctest: +SKIP
        (12, torch.Size([8, 3, 197, 197]))
    """
    all_blocks = range(len(model.blocks))
    indices = list(all_blocks) if blocks is None else [all_blocks[i] for i in blocks]
    maps: list[Tensor] = []

    def keep(module: nn.Module, args: tuple, attention: Tensor) -> None:
        if with_gradient and not attention.requires_grad:  # frozen parameters: the graph begins here
            attention.requires_grad_()
        attention = attention if with_gradient else attention.detach()
        maps.append(attention if fuse is None else fuse(attention))

    with ExitStack() as stack:
        stack.enter_context(model.patch_embed.register_forward_pre_hook(lambda *_: maps.clear()))
        modules = [attention_of(model, index) for index in indices]
        stack.enter_context(fused_attention(modules, False))
        for module in modules:
            stack.enter_context(module.attn_drop.register_forward_hook(keep))
        yield maps
    if len(maps) != len(indices):
        raise AttentionNotRecorded(
            f"Recorded {len(maps)} attention maps of blocks {indices} of {type(model).__name__}: run the model exactly "
            "once inside the `with` block; a block that does not call its attn_drop cannot be recorded."
        )


@contextmanager
def fused_attention(modules: Sequence[nn.Module], fused: bool) -> Iterator[None]:
    """Switch timm's fused attention on or off in these attention modules; each gets its own flag back."""
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(replaced(module, "fused_attn", fused))
        yield


def attention_of(model: nn.Module, index: int) -> nn.Module:
    """Return the attention module of block `index`: the one with timm's `attn_drop` and `fused_attn`.

    Raises:
        AttentionNotRecorded: the block has none, or several in parallel.
    """
    found = [m for m in model.blocks[index].modules() if hasattr(m, "attn_drop") and hasattr(m, "fused_attn")]
    if len(found) == 1:
        return found[0]
    raise AttentionNotRecorded(
        f"Block {index} of {type(model).__name__} is a {type(model.blocks[index]).__name__} with {len(found)} "
        "attention modules where rollout needs exactly one."
    )


def check_block(model: nn.Module, block: int) -> None:
    """Raise UserError if `model` has no block of this number."""
    depth = len(model.blocks)
    if not -depth <= block < depth:
        raise UserError(f"There is no block {block}: this model has {depth}, 0 to {depth - 1}, or -{depth} to -1.")


class AttentionPass:
    """What an `AttentionRecord` answers, once, from a pass made when it is asked: no more is held than asked for.

    Attributes:
        logits: (B, classes), once the pass was made.
    """

    logits: Tensor

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.model, self.images = model, images

    def fused(self, fuse: Callable[[Tensor], Tensor], blocks: Sequence[int] | None = None) -> list[Tensor]:
        """What `fuse` makes of each block's attention, (B, H, N, N) -> anything smaller, as soon as that is there."""
        with record_attention(self.model, fuse, blocks=blocks) as fused:
            self.logits = self.model(self.images)
        return fused

    def with_gradients(self, category_index: int | None) -> list[tuple[Tensor, Tensor]]:
        """Each block's attention and the gradient of a class's logit to it, see `AttentionRecord.gradients`."""
        record = AttentionRecord(self.model, self.images, reusable=False)
        self.logits = record.logits
        return record.with_gradients(category_index)


class AttentionRecord:
    """Attention of every block during one forward pass, and on demand the gradient of any class's logit to it.

    The pass stays in the autograd graph, so that another class takes another backward pass only; memory for it is held
    as long as the record is.

    Args:
        model: a timm ViT in eval mode.
        images: as `model_transform(model)` makes them, (B, 3, H, W).
        reusable: False lets the first backward pass free the graph, which takes a tenth less time; one class only.

    Attributes:
        attentions: L tensors (B, H, N, N), detached, first block first.
        logits: (B, classes), detached.

    Raises:
        AttentionNotRecorded: see `record_attention`.
    """

    @torch.inference_mode(False)
    def __init__(self, model: nn.Module, images: Tensor, *, reusable: bool = True) -> None:
        self.reusable = reusable
        self.images = images.clone() if images.is_inference() else images
        with torch.enable_grad(), record_attention(model, with_gradient=True) as attentions:
            logits = model(self.images)
        self._graph = attentions, logits
        self._gradients: dict[int | None, list[Tensor]] = {}
        self.attentions = [attention.detach() for attention in attentions]
        self.logits = logits.detach()

    @torch.inference_mode(False)
    def gradients(self, category_index: int | None = None) -> list[Tensor]:
        """Gradient of one class's logit to each block's attention, L tensors (B, H, N, N); None: the predicted class.

        The images do not influence each other, so the gradient of the summed logits holds each image's own.
        """
        if category_index not in self._gradients:
            attentions, logits = self._graph
            category = logits.argmax(dim=1) if category_index is None else torch.full_like(logits[:, 0], category_index)
            chosen = logits.gather(1, category.long()[:, None]).sum()
            self._gradients[category_index] = list(torch.autograd.grad(chosen, attentions, retain_graph=self.reusable))
        return self._gradients[category_index]

    def fused(self, fuse: Callable[[Tensor], Tensor], blocks: Sequence[int] | None = None) -> list[Tensor]:
        """What `fuse` makes of the attention of these blocks, or of all."""
        return [fuse(self.attentions[index]) for index in blocks or range(len(self.attentions))]

    def with_gradients(self, category_index: int | None) -> list[tuple[Tensor, Tensor]]:
        """Each block's attention and its gradient, L pairs of (B, H, N, N)."""
        return list(zip(self.attentions, self.gradients(category_index), strict=True))


Attentions = AttentionPass | AttentionRecord  # what guides ask
