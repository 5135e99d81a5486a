"""Going on where memory runs out."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor


class Halving:
    """Calls a function on a batch, and on halves of it, and of them, once memory has run out; says so.

    Args:
        function: (B, ...) -> (B, ...).
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function, self.size = function, 0

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
