"""Loading any timm ViT with its weights and its own transform; what the rest needs to know about its tokens."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import suppress
from pathlib import Path

import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache
from timm.data import create_transform, resolve_model_data_config
from timm.layers import PatchEmbed
from timm.models import load_state_dict
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

import vitsal.embedded  # registers the embedded models with timm
from vitsal.errors import UserError, cut, is_out_of_memory, quoted, suggestion

SUPPORTED = (VisionTransformer, Eva, Beit)
SOURCES = ("hf-hub", "hf_hub", "local-dir")  # of timm, beside its own names
WEIGHT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
WEIGHTS_DIR_VARIABLE = "VITSAL_WEIGHTS_DIR"
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # as timm looks for them


def load_model(
    name: str,
    checkpoint: str | Path | None = None,
    *,
    pretrained: bool = True,
    device: str | torch.device = "cpu",
    **options: object,
) -> nn.Module:
    """Load a timm ViT in eval mode.

    Weights are looked for in this order: `checkpoint`; `<name>.safetensors` in the folder that the environment
    variable VITSAL_WEIGHTS_DIR names; the hub (or the package itself, for the embedded models), and a download is
    announced on stderr. A checkpoint tells the number of classes, and a pooled one (`fc_norm`, as fine-tuned MAE has)
    average pooling.

    Args:
        name: a timm model name, with or without a weight tag, or a hub name ("hf-hub:...").
        checkpoint: a safetensors file, or a pickled one, which is read with `weights_only=True`; what training code
            saves beside the weights, {"model": ..., "optimizer": ..., "args": ...}, is passed over.
        pretrained: False gives random weights, and then no checkpoint may be named.
        device: where to put the model.
        options: passed to `timm.create_model`, such as `img_size=(224, 160)`.

    Returns:
        The timm model itself; its transform is `model_transform(model)`.

    Raises:
        UserError: unknown name, unsupported model, no weights to be had, or a checkpoint that does not fit, is damaged,
            or would execute code.
    """
    _check_name(name)
    path = checkpoint or (weights_dir_file(f"{name}.safetensors") if pretrained else None)
    if path is None:
        model = _create(name, pretrained=pretrained, **options)
    else:
        state = _read_checkpoint(Path(path))
        model = _create(name, pretrained=False, **_options_from(state) | options)
        _load_state(model, state, path)
    return model.eval().to(device)


def _check_name(name: str) -> None:
    source, colon, place = name.partition(":")
    if colon and source in SOURCES and place.strip():
        return
    if colon:
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
    with torch.device("meta"):
        return timm.create_model(name, pretrained=False, **options).eval()


def megabytes(model: nn.Module) -> float:
    """Size of a model's parameters in single precision, in MB (10^6 bytes); an `outline` will do."""
    return 4 * sum(parameter.numel() for parameter in model.parameters()) / 1e6


def find_weights(name: str) -> str:
    """Where a model's weights lie on this machine: "weights folder", "embedded", "hub cache"; "" where nowhere."""
    if weights_dir_file(f"{name}.safetensors"):
        return "weights folder"
    if name.partition(".")[0] in vitsal.embedded.MODEL_NAMES:
        return "embedded"
    repository, _, revision = _hub_id(name).partition("@")
    cached = repository and any(
        isinstance(try_to_load_from_cache(repository, file, revision=revision or None), str) for file in HUB_FILES
    )
    return "hub cache" if cached else ""


def _hub_id(name: str) -> str:
    """Repository on the hub, "owner/name" or "owner/name@revision"; "" for what comes from elsewhere."""
    if ":" in name:
        return name.removeprefix("hf-hub:") if name.startswith("hf-hub:") else ""
    config = timm.get_pretrained_cfg(name)
    return (config and config.hf_hub_id) or ""


def _announce_download(name: str) -> None:
    """Say on stderr what will come from the hub and how big it is, before it starts."""
    if _hub_id(name) and not find_weights(name) and not constants.HF_HUB_OFFLINE:
        size = megabytes(outline(name))
        print(f"Downloading the weights of {name} from the hub: {size:.0f} MB.", file=sys.stderr, flush=True)


def _create(name: str, *, pretrained: bool, **options: object) -> nn.Module:
    """Create the model; an unsupported one is refused before its weights are fetched."""
    try:
        _check_supported(outline(name, **options), name)
        if pretrained:
            _announce_download(name)
        return timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # each family of timm's has its own way to refuse options, each source to hold nothing
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        raise UserError(_no_model(name, pretrained, options, error)) from error


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


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    if not os.path.isfile(path):
        raise UserError(f"There is no checkpoint file at {path}.")
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


def _check_types(state: dict[str, Tensor], own: dict[str, Tensor], path: str | Path) -> None:
    """Raise UserError if weights are of another type of numbers, as a quantized model's integers are.

    What is a whole number in the model itself, such as a count or an index, is passed over.
    """
    wrong = [
        f"{key} ({str(value.dtype).removeprefix('torch.')})"
        for key, value in state.items()
        if own[key].is_floating_point() and value.dtype not in WEIGHT_TYPES
    ]
    if wrong:
        raise UserError(
            f"{path} holds weights of a type that cannot be used: {_shortened(wrong)}. Save it in "
            f"{', '.join(str(kind).removeprefix('torch.') for kind in WEIGHT_TYPES)}."
        )


def _options_from(state: dict[str, Tensor]) -> dict[str, object]:
    """What the checkpoint itself says about the model: its classes, and whether it pools its patches."""
    head = state.get("head.weight")
    options: dict[str, object] = {"num_classes": len(head)} if head is not None and head.ndim else {}
    if "fc_norm.weight" in state and "norm.weight" not in state:
        options["global_pool"] = "avg"
    return options


def _load_state(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
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
        said = "; ".join(f"{_shortened(keys)} {what}" for what, keys in differences.items() if keys)
        raise UserError(f"{path} does not fit {type(model).__name__} {_name_of(model)}: {said}.")
    _check_types(state, own, path)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:  # sparse ones, or without values
        raise UserError(f"{path} holds weights that cannot be used: {cut(str(error), 500)}") from error
    if endless := [key for key, value in own.items() if not value.isfinite().all()]:  # loaded by now
        raise UserError(f"{path} holds weights that are not finite: {_shortened(endless)}. It is damaged.")


def _shortened(keys: list[str], most: int = 4) -> str:
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more


def _name_of(model: nn.Module) -> str:
    return model.pretrained_cfg.get("architecture", "")


def model_transform(model: nn.Module) -> object:
    """The model's own evaluation transform: PIL image -> (3, H, W), with its size, crop, mean and deviation."""
    return create_transform(**resolve_model_data_config(model) | {"input_size": (3, *input_size(model))})


def input_size(model: nn.Module) -> tuple[int, int]:
    """(H, W) of the images that this model takes, which `img_size` may have set apart from its name's own."""
    size = getattr(model.patch_embed, "img_size", None)
    return tuple(size or resolve_model_data_config(model)["input_size"][-2:])


def grid_size(model: nn.Module, images: Tensor | None = None) -> tuple[int, int]:
    """(gh, gw), the patch grid of the model, or of these images (B, 3, H, W) where the model takes any size."""
    if images is None:
        return tuple(model.patch_embed.grid_size)
    return tuple(model.patch_embed.dynamic_feat_size(images.shape[-2:]))


def default_readout(model: nn.Module) -> str:
    """Where the model reads its answer: "class" token, or "patches" for average-pooled models."""
    has_class_token = getattr(model, "cls_token", None) is not None
    return "class" if has_class_token and model.global_pool in ("token", "") else "patches"


def convert_images(images: Tensor, source: nn.Module, target: nn.Module) -> Tensor:
    """Turn images prepared for `source` into images for `target`: (B, 3, H, W) -> (B, 3, H', W').

    Undoes one normalisation, resizes, applies the other: a guide sees what the target sees, in its own scale.
    """
    if images.shape[-2:] != input_size(target):
        images = F.interpolate(images, input_size(target), mode="bicubic", antialias=True, align_corners=False)
    have, want = resolve_model_data_config(source), resolve_model_data_config(target)
    if (have["mean"], have["std"]) == (want["mean"], want["std"]):
        return images
    mean, std = _normalization(target, images)
    return (denormalize(images, source) - mean) / std


def denormalize(images: Tensor, model: nn.Module) -> Tensor:
    """Undo a model's normalisation: (B, 3, H, W) -> the same in pixels, 0 to 1 but for what resampling overshot."""
    mean, std = _normalization(model, images)
    return images * std + mean


def _normalization(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of a model's data config, each (3, 1, 1)."""
    config = resolve_model_data_config(model)
    mean, std = (images.new_tensor(config[key])[:, None, None] for key in ("mean", "std"))
    return mean, std
