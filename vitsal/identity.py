"""What identifies an experiment: names, weights and data, in a form that can be written down and compared."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import torch
from torch import nn

from vitsal.images import BROKEN_IMAGE, IndexedImages, StreamedImages, decode, spread

PROBES = 8  # images whose pixels are looked at, spread over the data


def describe(value: Any) -> Any:
    """A guide, a model or a plain value as JSON can hold it: models by name and weights, guides by their fields.

    What has no fields to tell it by, such as a function, is described anew each time: nothing is ever taken for it.
    """
    if isinstance(value, nn.Module):
        name = getattr(value, "architecture", None) or value.pretrained_cfg.get("architecture")
        return f"{name} {weights_fingerprint(value)}"
    if dataclasses.is_dataclass(value):
        parts = {part.name: describe(getattr(value, part.name)) for part in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **parts}
    return f"{type(value).__name__} {uuid4()}" if callable(value) else value


def weights_fingerprint(model: nn.Module) -> str:
    """First 12 hexadecimal digits of the SHA-256 of all weights, to tell models of one name apart."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().flatten().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


def data_fingerprint(dataset: IndexedImages | StreamedImages) -> str:
    """First 12 hexadecimal digits of the SHA-256 of all sample names, and of eight samples' labels and pixels.

    So that another version of a data set, with files of the same names, is told apart without reading all of it. For a
    stream its source stands, as its samples cannot be listed.
    """
    if isinstance(dataset, StreamedImages):
        return f"stream of {dataset.source}"
    digest = hashlib.sha256("\n".join(dataset.name(index) for index in range(len(dataset))).encode())
    for index in spread(len(dataset), PROBES):
        source, label, *_ = dataset.read(index)
        digest.update(f"\n{index} {label} ".encode() + _pixels(source))
    return digest.hexdigest()[:12]


def _pixels(source: Any) -> bytes:
    """An image, decoded: its size and pixels; of one that cannot be read, nothing."""
    try:
        image = decode(source)
    except BROKEN_IMAGE:
        return b"unreadable"
    return str(image.size).encode() + image.tobytes()


def question_hash(question: Mapping[str, Any]) -> str:
    """First 10 hexadecimal digits of the SHA-256 of a question, to name files by."""
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:10]


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name the parts in which two questions differ, with both values; '' where they are the same."""
    parts = sorted(part for part in there.keys() | now.keys() if there.get(part) != now.get(part))
    return "; ".join(f"{part}: {there.get(part)!r} there, {now.get(part)!r} now" for part in parts)
