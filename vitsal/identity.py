"""What identifies an experiment: names, weights and data, in a form that can be written down and compared."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vitsal.images import IndexedImages, StreamedImages


def describe(value: Any) -> Any:
    """A guide, a model or a plain value as JSON can hold it: models by name and weights, functions by name."""
    if isinstance(value, nn.Module):
        name = getattr(value, "architecture", None) or value.pretrained_cfg.get("architecture")
        return f"{name} {weights_fingerprint(value)}"
    if dataclasses.is_dataclass(value):
        parts = {part.name: describe(getattr(value, part.name)) for part in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **parts}
    return f"{value.__module__}.{value.__qualname__}" if inspect.isroutine(value) else value


def weights_fingerprint(model: nn.Module) -> str:
    """First 12 hexadecimal digits of the SHA-256 of all weights, to tell models of one name apart."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().flatten().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


def data_fingerprint(dataset: IndexedImages | StreamedImages) -> str:
    """First 12 hexadecimal digits of the SHA-256 of all sample names; a stream's source, as they cannot be listed."""
    if isinstance(dataset, StreamedImages):
        return f"stream of {dataset.source}"
    names = "\n".join(dataset.name(index) for index in range(len(dataset)))
    return hashlib.sha256(names.encode()).hexdigest()[:12]


def question_hash(question: Mapping[str, Any]) -> str:
    """First 10 hexadecimal digits of the SHA-256 of a question, to name files by."""
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:10]


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name the parts in which two questions differ, with both values; '' where they are the same."""
    parts = sorted(part for part in there.keys() | now.keys() if there.get(part) != now.get(part))
    return "; ".join(f"{part}: {there.get(part)!r} there, {now.get(part)!r} now" for part in parts)
