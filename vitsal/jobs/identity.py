"""What identifies an experiment: names, weights and data, in a form that can be written down and compared."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from vitsal.errors import UserError

REVISION = 2  # of guides: raised when their maps, or the order of equal patches, change; old results are not taken then


def describe(value: Any) -> Any:
    """A guide, a model or a plain value as JSON can hold it: models by name and weights, guides by their fields.

    What has no fields to tell it by, such as a function, is described anew each time: nothing is ever taken for it.
    """
    if isinstance(value, nn.Module):
        name = getattr(value, "architecture", None) or value.pretrained_cfg.get("architecture")
        return f"{name} {weights_fingerprint(value)}"
    if dataclasses.is_dataclass(value):
        parts = {part.name: describe(getattr(value, part.name)) for part in dataclasses.fields(value)}
        return {"kind": type(value).__name__, "revision": REVISION, **parts}
    return f"{type(value).__name__} {uuid4()}" if callable(value) else value


def weights_fingerprint(model: nn.Module) -> str:
    """First 12 hexadecimal digits of the SHA-256 of all weights and settings, to tell models of one name apart.

    Settings are what else may differ between models that are loaded by name: buffers that are not saved, a student's
    configuration; of a timm model the pixels' scale, the pooling, the numbers of heads.
    """
    digest = hashlib.sha256(json.dumps(_settings(model), sort_keys=True, default=str).encode())
    for name, value in (model.state_dict() | dict(model.named_buffers())).items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().flatten().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


def _settings(model: nn.Module) -> dict[str, Any]:
    if hasattr(model, "configuration"):
        return model.configuration
    config = resolve_model_data_config(model)
    heads = [module.num_heads for module in model.modules() if hasattr(module, "num_heads")]
    pooling = getattr(model, "global_pool", None)  # of a convnet a module, told by its text
    return {"global_pool": pooling, "heads": heads, "mean": config["mean"], "std": config["std"]}


def checksum(*parts: str | bytes) -> str:
    """CRC-32 of texts or bytes, one after the other, 8 hexadecimal digits: tells what is whole from what is damaged."""
    value = 0
    for part in parts:
        value = zlib.crc32(part.encode() if isinstance(part, str) else part, value)
    return f"{value:08x}"


def seed_of(*parts: object) -> int:
    """A seed that follows from numbers and words, 32 bits: what is drawn for a step of a work depends on no other."""
    return zlib.crc32(str(list(parts)).encode())


def tensors_checksum(tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> str:
    """The checksum of tensors, with their names and what is said about them."""
    pairs = sorted(tensors.items())
    names = [(name, str(values.dtype), *values.shape) for name, values in pairs]
    content = (values.flatten().contiguous().view(torch.uint8).numpy() for _, values in pairs)
    return checksum(json.dumps([names, sorted((about or {}).items())]), *content)


def file_hash(path: Path, claim: str = "") -> str:
    """First 16 hexadecimal digits of the SHA-256 of a claim and a file's content: what it is, and that it is whole."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha256(claim.encode())).hexdigest()[:16]


def question_hash(question: Mapping[str, Any]) -> str:
    """First 10 hexadecimal digits of the SHA-256 of a question, to name files by."""
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:10]


def refuse_other(there: Mapping[str, Any], now: Mapping[str, Any], what: str, advice: str) -> None:
    """Raise UserError if what is kept is of something else than what is asked, both as JSON holds them.

    It says what is there, in which parts they differ, with both values, and what to do.
    """
    now = json.loads(json.dumps(now))
    parts = sorted(part for part in there.keys() | now.keys() if there.get(part) != now.get(part))
    if parts:
        said = "; ".join(f"{part}: {there.get(part)!r} there, {now.get(part)!r} now" for part in parts)
        raise UserError(f"{what} ({said}). {advice}")
