"""What several commands share: their options, and how a word of the command line becomes a value."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from vitsal.errors import UserError, check_number

HeadFusionOption = Annotated[str, typer.Option(help="mean, max or min over the heads.")]
DiscardOption = Annotated[float, typer.Option(help="Fraction of each block's attention to drop, from 0 to below 1.")]
CategoryOption = Annotated[int | None, typer.Option(help="Class to explain; by default the predicted one.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
CheckpointOption = Annotated[Path | None, typer.Option(help="Weights: safetensors, or pickled tensors.")]
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
