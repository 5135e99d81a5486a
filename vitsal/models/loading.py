"""Loading any timm ViT with its weights; where they come from, and what is refused."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants, get_session, try_to_load_from_cache
from timm.data import resolve_model_data_config
from timm.layers import PatchEmbed
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.types import Device

from vitsal.errors import UserError, cut, is_out_of_memory, quoted, suggestion
from vitsal.models.convnets import feature_map
from vitsal.models.digits import MODEL_NAMES  # and registers the embedded models with timm
from vitsal.models.sizes import check_size
from vitsal.models.weights import load_state, options_from, read_checkpoint

SUPPORTED = (VisionTransformer, Eva, Beit)
SOURCES = ("hf-hub", "hf_hub", "local-dir")  # of timm, beside its own names
WEIGHTS_DIR_VARIABLE = "VITSAL_WEIGHTS_DIR"
Check = Callable[[nn.Module, str], None]  # of a network without weights, and its name: refuses it by a UserError
FILLING = ("kaiming_uniform_", "uniform_", "normal_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_")
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # as timm looks for them


def load_model(
    name: str, checkpoint: str | Path | None = None, *, pretrained: bool = True, device: Device = "cpu", **options: Any
) -> nn.Module:
    """Load a timm ViT in eval mode, onto a device.

    Weights are looked for in this order: `checkpoint`; `<name>.safetensors` in the folder that the environment
    variable VITSAL_WEIGHTS_DIR names; the hub (or the package itself, for the embedded models), and a download is
    announced on stderr. A checkpoint tells the number of classes, and a pooled one (`fc_norm`, as fine-tuned MAE has)
    average pooling.

    Args:
        name: a timm model name, with or without a weight tag, or a hub name ("hf-hub:...").
        checkpoint: a safetensors file, or a pickled one, which is read with `weights_only=True`; what training code
            saves beside the weights, {"model": ..., "optimizer": ..., "args": ...}, is passed over.
        pretrained: False gives random weights, and then no checkpoint may be named.
        options: passed to `timm.create_model`, such as `img_size=(224, 160)`.

    Returns:
        The timm model itself; its transform is `model_transform(model)`.

    Raises:
        UserError: unknown name, unsupported model, no weights to be had, or a checkpoint that does not fit, is damaged,
            or would execute code.
    """
    return _load(name, checkpoint, _check_supported, pretrained, device, options)


def load_network(
    name: str, checkpoint: str | Path | None = None, *, pretrained: bool = True, device: Device = "cpu", **options: Any
) -> nn.Module:
    """Load a timm convnet in eval mode, onto a device, for the feature map that it makes last (`feature_map`).

    Args, Raises: as `load_model`; unsupported is here what gives no such map, such as a ViT.
    """
    return _load(name, checkpoint, _check_mapped, pretrained, device, options)


def _load(
    name: str,
    checkpoint: str | Path | None,
    check: Check,
    pretrained: bool,
    device: Device,
    options: dict[str, Any],
) -> nn.Module:
    """As `load_model` tells it, whatever passes a check of its outline."""
    _check_name(name)
    path = checkpoint or (weights_dir_file(f"{name}.safetensors") if pretrained else None)
    if path is None:
        model = _create(name, check, pretrained=pretrained, **options)
    else:
        state = read_checkpoint(Path(path))
        model = _create(name, check, pretrained=False, **options_from(state) | options)
        load_state(model, state, path)
    return model.eval().to(device)


def load_sized_model(
    name: str, size: tuple[int, int] | None, checkpoint: str | Path | None = None, *, device: Device = "cpu"
) -> nn.Module:
    """`load_model` for images of this size, (H, W) in pixels; None leaves the model's own.

    UserError for a size that is no whole number of patches.
    """
    model = load_model(name, checkpoint, device=device, **({"img_size": size} if size else {}))
    if size:
        check_size(model, size)
    return model


def _check_name(name: str) -> None:
    source, colon, place = name.partition(":")
    if colon:
        if source in SOURCES and place.strip():
            return
        raise UserError(
            f"Unknown model {quoted(name)}: hf-hub:OWNER/NAME names one of the hub, local-dir:FOLDER a folder."
        )
    if not timm.is_model(name):
        known = set(timm.list_models()) | set(timm.list_pretrained())
        raise UserError(f"Unknown model {quoted(name)}: timm has none of this name.{suggestion(name, known)}")
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        architecture, _, tag = name.partition(".")
        known = sorted(model.partition(".")[2] for model in timm.list_pretrained(f"{architecture}.*"))
        raise UserError(
            f"{architecture!r} has no weights {quoted(tag)}.{suggestion(tag, known)} Known: {', '.join(known)}."
        ) from error


def weights_dir_file(filename: str) -> Path | None:
    """The file of this name in the folder that VITSAL_WEIGHTS_DIR names; None where there is none."""
    folder = os.environ.get(WEIGHTS_DIR_VARIABLE)
    path = Path(folder, filename) if folder else None
    return path if path and os.path.isfile(path) else None  # where a name is too long, `path.is_file()` raises


def outline(name: str, **options: object) -> nn.Module:
    """The model without memory for its weights, on torch's meta device: for sizes, shapes and operation counts."""
    with torch.device("meta"), _Unfilled():
        return timm.create_model(name, pretrained=False, **options).eval()


class _Unfilled(TorchFunctionMode):
    """Where a tensor has no memory, no values are made for it: torch would take most of an outline's time for them."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = kwargs or {}
        filled = next(iter((*args, *given.values())), None) if func.__name__ in FILLING else None
        return filled if isinstance(filled, torch.Tensor) and filled.is_meta else func(*args, **given)


def megabytes(model: nn.Module) -> float:
    """Size of a model's parameters in single precision, in MB (10^6 bytes); an `outline` will do."""
    return 4 * sum(parameter.numel() for parameter in model.parameters()) / 1e6


def find_weights(name: str) -> str:
    """Where a model's weights lie on this machine: "weights folder", "embedded", "hub cache"; "" where nowhere."""
    if weights_dir_file(f"{name}.safetensors"):
        return "weights folder"
    if name.partition(".")[0] in MODEL_NAMES:
        return "embedded"
    repository, _, revision = _hub_id(name).partition("@")
    look = partial(try_to_load_from_cache, repository, revision=revision or None)
    return "hub cache" if repository and any(isinstance(look(file), str) for file in HUB_FILES) else ""


def _hub_id(name: str) -> str:
    """Repository on the hub, "owner/name" or "owner/name@revision"; "" for what comes from elsewhere."""
    source, colon, place = name.partition(":")
    if colon:
        return place if source == "hf-hub" else ""
    config = timm.get_pretrained_cfg(name)
    return (config and config.hf_hub_id) or ""


def _create(name: str, check: Check, *, pretrained: bool, **options: object) -> nn.Module:
    """Create the model: an unsupported one is refused, and a download announced, before its weights are fetched."""
    try:
        check(outline(name, **options), name)
        if pretrained and _hub_id(name) and not find_weights(name) and not constants.HF_HUB_OFFLINE:
            _check_reachable(constants.ENDPOINT)
            size = megabytes(outline(name))
            print(f"Downloading the weights of {name} from the hub: {size:.0f} MB.", file=sys.stderr, flush=True)
        return timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # each family of timm's has its own way to refuse options, each source to hold nothing
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        raise UserError(_no_model(name, pretrained, options, error)) from error


def _check_reachable(hub: str) -> None:
    """Ask the hub once: its own downloads try for three quarters of a minute before they say that it is not there."""
    try:
        get_session().head(hub, timeout=10)
    except Exception as error:  # as its library's library has them
        raise ConnectionError(f"no connection to {hub} ({error})") from error


def _no_model(name: str, pretrained: bool, options: dict[str, object], error: Exception) -> str:
    """Why there is no model of this name, which may be one of timm's: its weights, its options, or its folder."""
    reason = cut(str(error), 500) or type(error).__name__
    if ":" in name or not pretrained or not isinstance(error, (OSError, RuntimeError)):
        made = f" with {', '.join(f'{key}={value}' for key, value in options.items())}" if options else ""
        return f"The model {quoted(name)} cannot be made{made}: {reason}"
    return (
        f"No weights for {name!r}: neither a checkpoint was given, nor does {WEIGHTS_DIR_VARIABLE} "
        f"({os.environ.get(WEIGHTS_DIR_VARIABLE, 'not set')}) hold {name}.safetensors, and the hub gave: {reason}"
    )


def _check_supported(model: nn.Module, name: str) -> None:
    if not isinstance(model, SUPPORTED):
        raise UserError(
            f"{name!r} is a {type(model).__name__}, which has no sequence of patch tokens as a ViT has. Supported are "
            f"timm's {', '.join(kind.__name__ for kind in SUPPORTED)}: ViT, DeiT, DINO, DINOv2, CLIP, MAE, BEiT, EVA."
        )
    embedding = type(model.patch_embed)
    if embedding is not PatchEmbed:
        raise UserError(
            f"{name!r} is a hybrid: its tokens come out of a {embedding.__name__}, whose convolutions look beyond a "
            "patch, so that no patch can be dropped. Supported are ViTs whose tokens are patches."
        )


def _check_mapped(network: nn.Module, name: str) -> None:
    feature_map(network, torch.zeros(1, *resolve_model_data_config(network)["input_size"], device="meta"))
