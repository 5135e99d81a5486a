"""Changing a model for a while, and leaving it as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from timm.models.eva import Eva
from torch import Tensor, nn


@contextmanager
def replaced(module: nn.Module, name: str, value: object) -> Iterator[None]:
    """Inside this context `module` has `value` in the place of its attribute, submodule or method of this name."""
    its_own = name in vars(module) or name in module._modules
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        delattr(module, name)  # first: torch keeps modules apart from other attributes, and one may stand for the other
        if its_own:
            setattr(module, name, before)


@contextmanager
def before_blocks(model: nn.Module, change: Callable[[Tensor], Tensor], keep: Tensor | None = None) -> Iterator[None]:
    """Inside this context the first block of `model` sees its tokens, (B, N, C) with their positions, after `change`.

    That is timm's own place for dropping patches. `keep`: numbers of the patches that stay, (B, K), for positions that
    must follow them; None where none must.
    """
    with replaced(model, "patch_drop", _Change(change, keep, returns_indices=isinstance(model, Eva))):
        yield


class _Change(nn.Module):
    """Stands in for timm's PatchDropout: changes the tokens so, instead of dropping random ones."""

    def __init__(self, change: Callable[[Tensor], Tensor], keep: Tensor | None, returns_indices: bool) -> None:
        super().__init__()
        self.change, self.keep, self.returns_indices = change, keep, returns_indices

    def forward(self, tokens: Tensor) -> Tensor | tuple[Tensor, Tensor | None]:
        changed = self.change(tokens)
        return (changed, self.keep) if self.returns_indices else changed  # Eva picks rotary positions by the indices


@contextmanager
def before_pooling(model: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside this context what pools over patches at the end of `model` sees its tokens, (B, N, C), after `change`.

    A model that reads its class token alone is left as it is: it would not see what has become of others.
    """
    pool = model.pool
    changed = replaced(model, "pool", lambda tokens, *options: pool(change(tokens), *options))
    with nullcontext() if model.global_pool == "token" else changed:
        yield


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients; afterwards each module is in its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            yield model.eval()
    finally:
        for module, training in modes:
            module.training = training
