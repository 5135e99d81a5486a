"""One process or many, as accelerate's launcher has started them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list

from vitsal.errors import UserError, check_choice
from vitsal.jobs.files import check_folder, locked

MIXED_PRECISIONS = ("no", "bf16", "fp16")  # accelerate's names of those that need no other model


def make_accelerator(**options: Any) -> Accelerator:
    """Hugging Face accelerate, with these options; number of processes, device and precision are the launcher's.

    Raises:
        UserError: a precision that is unknown, or cannot be had here.
    """
    patient = InitProcessGroupKwargs(timeout=timedelta(days=1))  # one process may work for long while others wait
    try:
        accelerator = Accelerator(kwargs_handlers=[patient], **options)
    except (ValueError, ImportError) as error:  # such as a precision that this machine has not
        raise UserError(f"The launcher asks for what cannot be had here: {error}.") from error
    check_choice("mixed precision", accelerator.mixed_precision, MIXED_PRECISIONS)
    if accelerator.device.type == "cpu" and "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        warnings.warn(
            "`accelerate launch --cpu` starts one process only, whatever --num_processes says, unless through mpirun. "
            "Use ACCELERATE_USE_CPU=true torchrun --nproc-per-node N ... instead.",
            stacklevel=2,
        )
    return accelerator


def same_on_all(value: Any) -> Any:
    """What the main process has, on every process."""
    return broadcast_object_list([value])[0]


def check_split(batch_size: int, accelerator: Accelerator, accumulate: int = 1) -> None:
    """Raise UserError unless a batch falls into equal shares for all processes, taken in so many parts."""
    shares = accumulate * accelerator.num_processes
    if batch_size % shares:
        raise UserError(
            f"A batch of {batch_size} images cannot be split evenly into {accumulate} parts on "
            f"{accelerator.num_processes} processes; choose a multiple of {shares}."
        )


@contextmanager
def alone_in(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Hold a folder, in which the main process writes; a second training there is refused, on each process."""
    refused = ""
    check_folder(folder)
    with ExitStack() as held:
        if accelerator.is_main_process:
            try:
                busy = f"Another run is training in {folder}. Wait for it, or name another output."
                held.enter_context(locked(folder, busy=busy))
            except UserError as error:
                refused = str(error)
        if said := same_on_all(refused):
            raise UserError(said)
        yield


def computed_precision(accelerator: Accelerator) -> str:
    """What matrices are multiplied in, "float32" or "bfloat16" say: asked of torch; fp16 on a CPU is float32."""
    kind = accelerator.device.type
    with accelerator.autocast():
        lowered = torch.is_autocast_enabled(kind)
        return str(torch.get_autocast_dtype(kind)).removeprefix("torch.") if lowered else "float32"
