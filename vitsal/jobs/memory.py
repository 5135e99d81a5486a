"""Going on where memory runs out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor


@dataclass
class Halving:
    """Calls (B, ...) -> (B, ...) on a batch, and on halves of it, and of them, once memory has run out; says so."""

    function: Callable[[Tensor], Tensor]
    size: int = 0  # images at a time; 0 is the whole first batch

    def __call__(self, images: Tensor) -> Tensor:
        """The function's value for the whole batch."""
        self.size = self.size or len(images)
        while True:
            try:
                return torch.cat([self.function(part) for part in images.split(self.size)])
            except RuntimeError as error:
                if not should_reduce_batch_size(error) or self.size == 1:
                    raise
                self.size //= 2
                warnings.warn(f"Out of memory: going on with {self.size} images at a time.", stacklevel=2)
            clear_device_cache()
