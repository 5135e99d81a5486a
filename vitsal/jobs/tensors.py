"""Files of tensors, with what is said about them: whole and as they were written, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vitsal.jobs.files import write_whole
from vitsal.jobs.identity import tensors_checksum


class DamagedError(Exception):
    """A file of tensors cannot be read, or holds what nobody has written."""


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """Write tensors, and texts about them, into a safetensors file with a checksum of both."""
    tensors = {name: values.detach().cpu().contiguous() for name, values in tensors.items()}
    about = dict(about or {})
    told = {"format": "pt", **about, "checksum": tensors_checksum(tensors, about)}
    write_whole(path, partial(save_file, tensors, metadata=told))


def read_tensors(path: str | Path, *, unsigned: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, and texts about them, from a file of `write_tensors`; the tensors are read as they are used.

    `unsigned` takes files without a checksum too, which other programs write.

    Raises:
        DamagedError: no such file, no file of tensors, or one that does not fit its checksum.
    """
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DamagedError(str(error)) from error
    kind, promised = about.pop("format", "pt"), about.pop("checksum", None)
    if kind != "pt" or (promised != tensors_checksum(tensors, about) and not (unsigned and promised is None)):
        raise DamagedError("its checksum does not fit")
    return tensors, about
