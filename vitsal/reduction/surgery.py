"""Changing a model for a while, and leaving it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


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
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients; afterwards each module is in its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            yield model.eval()
    finally:
        for module, training in modes:
            module.training = training
