"""Checkpoints: read without executing anything, and loaded whole or refused with what differs."""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from pathlib import Path

import torch
from timm.models import load_state_dict
from torch import Tensor, nn

from vitsal.errors import UserError, check_file, cut, first_few

WEIGHT_TYPES = ("float32", "float16", "bfloat16", "float64")  # and no quantized model's integers


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by name; nothing in it is executed.

    Raises:
        UserError: no such file, or none that can be read safely as a dictionary of tensors.
    """
    check_file("checkpoint", path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # MAE's training code saves its arguments in one
            state = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # whatever the readers raise over bytes that are no checkpoint
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{path} is no checkpoint that can be read safely; nothing in it was executed. Only safetensors files and "
            f"pickled dictionaries of tensors are read ({reason})."
        ) from error
    if not isinstance(state, dict) or not all(type(key) is str and isinstance(state[key], Tensor) for key in state):
        raise UserError(f"{path} does not hold a dictionary of tensors.")
    return state


def options_from(state: dict[str, Tensor]) -> dict[str, object]:
    """What the checkpoint itself says about the model: its classes, and whether it pools its patches."""
    head = state.get("head.weight")
    options: dict[str, object] = {"num_classes": len(head)} if head is not None and head.ndim else {}
    if "fc_norm.weight" in state and "norm.weight" not in state:
        options["global_pool"] = "avg"
    return options


def load_state(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """Load `state`, in its authors' layout or timm's, or say which keys and shapes differ."""
    to_timm_layout = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    with suppress(Exception):  # what a filter makes of another architecture's; named below
        state = to_timm_layout(state, model) if to_timm_layout else state
    own = model.state_dict()
    differences = {
        "missing": [key for key in own if key not in state],
        "not in the model": [key for key in state if key not in own],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ],
    }
    if any(differences.values()):
        name = model.pretrained_cfg.get("architecture", "")
        said = "; ".join(f"{first_few(keys)} {what}" for what, keys in differences.items() if keys)
        raise UserError(f"{path} does not fit {type(model).__name__} {name}: {said}.")
    floating = [key for key in state if own[key].is_floating_point()]  # others are counts, or indices
    if wrong := [f"{key} ({_type(state[key])})" for key in floating if _type(state[key]) not in WEIGHT_TYPES]:
        raise UserError(
            f"{path} holds weights of a type that cannot be used: {first_few(wrong)}. Save it in "
            f"{', '.join(WEIGHT_TYPES)}."
        )
    try:
        model.load_state_dict(state)
    except RuntimeError as error:  # sparse ones, or without values
        raise UserError(f"{path} holds weights that cannot be used: {cut(str(error), 500)}") from error
    if endless := [key for key, value in own.items() if not value.isfinite().all()]:  # loaded by now
        raise UserError(f"{path} holds weights that are not finite: {first_few(endless)}. It is damaged.")


def _type(values: Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")
