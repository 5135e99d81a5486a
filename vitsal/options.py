"""What several commands share: their options, and how a word of the command line becomes a value."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from vitsal.errors import UserError, check_number
from vitsal.models import load_model

HeadFusionOption = Annotated[str, typer.Option(help="mean, max or min over the heads.")]
DiscardOption = Annotated[float, typer.Option(help="Fraction of each block's attention to drop, from 0 to below 1.")]
CategoryOption = Annotated[
    int | None, typer.Option(help="Index of the class to explain; by default the predicted one.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
CheckpointOption = Annotated[Path | None, typer.Option(help="Weights: safetensors, or pickled tensors.")]
ImageSizeOption = Annotated[
    str | None,
    typer.Option(
        help="Pixels of the model's input, HEIGHT,WIDTH or one number for a square; by default the model's own."
    ),
]
LimitOption = Annotated[int | None, typer.Option(help="Number of images, spread evenly over the data.", min=1)]
WorkersOption = Annotated[int, typer.Option(help="Processes that decode images.", min=0)]
DATA_HELP = "A folder, a tar file, digits, imagenette, hfds/..., hfids/..., wds/..."


def find_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is a GPU where there is one.

    Raises:
        UserError: torch does not know it, or it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"Device {name!r} cannot be used: {str(error).splitlines()[0]}") from error


def parse_ratios(text: str) -> list[float]:
    """Read keep ratios such as "1.0,0.7,0.5".

    Raises:
        UserError: one of them is no number in (0, 1].
    """
    ratios = [check_number("keep ratio", parse_value(part), 0, 1, open_end="low") for part in text.split(",")]
    return list(dict.fromkeys(ratios))


def load_sized_model(
    name: str, image_size: str | None, device: str = "auto", checkpoint: str | Path | None = None
) -> nn.Module:
    """Load a model for images of this size, such as "288,512": (H, W) in pixels; None leaves the model's own.

    Raises:
        UserError: no such size, one that is no whole number of patches, or what `load_model` and `find_device` raise.
    """
    options = {} if image_size is None else {"img_size": parse_image_size(image_size)}
    model = load_model(name, checkpoint, device=find_device(device), **options)
    patch = model.patch_embed.patch_size
    if any(pixels % step for pixels, step in zip(options.get("img_size", (0, 0)), patch, strict=True)):
        raise UserError(
            f"The image size {image_size} is no whole number of patches: {name} takes {patch[0]} x {patch[1]}."
        )
    return model


def parse_image_size(text: str) -> tuple[int, int]:
    """Read an image size, (H, W) in pixels: "288,512", or "384" for a square.

    Raises:
        UserError: anything else.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"The image size must be HEIGHT,WIDTH in pixels, such as 288,512, or one number; got {text!r}.")
    return int(parts[0]), int(parts[-1])


def parse_value(text: str) -> Any:
    """Read a number, True, False, None or a list as Python writes them; anything else is text."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text.strip()


def parse_run_arguments(arguments: list[str]) -> tuple[list[int], dict[str, Any]]:
    """Split `1 3 -p preset digits` into notebook numbers and parameters.

    Raises:
        UserError: something that is neither a number nor `-p NAME VALUE`.
    """
    numbers, parameters, rest = [], {}, list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "-p" and len(rest) >= 2:
            name, value = rest.pop(0), rest.pop(0)
            parameters[name] = parse_value(value)
        elif word.isdecimal():
            numbers.append(int(word))
        else:
            raise UserError(f"{word!r} is neither a notebook's number nor a parameter: vitsal run 1 3 -p NAME VALUE.")
    return numbers, parameters
