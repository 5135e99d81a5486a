"""What the work runs on: one process or many, as accelerate's launcher has started them, and which device."""

from __future__ import annotations

import os
import warnings
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs


def make_accelerator(**options: Any) -> Accelerator:
    """Hugging Face accelerate; number of processes, device and precision are the launcher's.

    Args:
        options: passed to `accelerate.Accelerator`.
    """
    patient = InitProcessGroupKwargs(timeout=timedelta(days=1))  # one process may work for long while others wait
    accelerator = Accelerator(kwargs_handlers=[patient], **options)
    if accelerator.device.type == "cpu" and "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        warnings.warn(
            "`accelerate launch --cpu` starts one process only, whatever --num_processes says, unless through mpirun. "
            "Use ACCELERATE_USE_CPU=true torchrun --nproc-per-node N ... instead.",
            stacklevel=2,
        )
    return accelerator


def device_name(device: torch.device) -> str:
    """A GPU's own name, or "cpu", "mps", ..."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
