"""Which device the work runs on; without accelerate, which takes as long to import as torch."""

from __future__ import annotations

import os

import torch

from vitsal.errors import UserError, cut, quoted

YES = ("1", "true", "yes", "on", "y", "t")  # as accelerate reads its variables


def find_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is the one that accelerate takes.

    That is a GPU where there is one, of several processes on a machine each its own; and the CPU where
    ACCELERATE_USE_CPU says so.

    Raises:
        UserError: torch does not know it, or it is not there.
    """
    if name == "auto":
        if os.environ.get("ACCELERATE_USE_CPU", "").lower() in YES or not torch.accelerator.is_available():
            return torch.device("cpu")
        kind = torch.accelerator.current_accelerator().type
        return torch.device(kind, int(os.environ["LOCAL_RANK"])) if "LOCAL_RANK" in os.environ else torch.device(kind)
    try:
        torch.zeros(1, device=name).item()  # the device "meta" makes tensors, and has no values
        return torch.device(name)
    except Exception as error:  # each kind of device has its own way to be absent
        reason = cut(str(error).partition("\n")[0]) or type(error).__name__
        raise UserError(f"Device {quoted(name)} cannot be used: {reason}") from error


def device_name(device: torch.device) -> str:
    """A GPU's own name, or "cpu", "mps", ..."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def torch_version() -> str:
    """As torch itself tells it, with what it was built for."""
    return torch.__version__
