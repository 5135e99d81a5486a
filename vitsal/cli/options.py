"""What several commands share: their options, and how a word of the command line becomes a value."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from vitsal.choices import GUIDE_OPTIONS, HEAD_FUSIONS, RESTS, VIT_EXPLAIN
from vitsal.data.places import OWN_DATA
from vitsal.errors import (
    LARGEST_COUNT,
    LARGEST_SEED,
    UserError,
    check_choice,
    check_file,
    check_number,
    check_whole,
    quoted,
)

OPTION_NAMES = {"model": "guide_model"}  # where the command line's differs from the function's
MOST_BLOCKS = 1_000
MOST_EPOCHS = 1_000_000
LONGEST_INPUT = 8_192  # pixels
LONGEST_VALUE = 10_000  # characters of a value that is read as Python writes it; of more, its parser may crash


def takers(option: str) -> str:
    """The guides that take an option of `make_guide`."""
    return ", ".join(guide for guide, options in GUIDE_OPTIONS.items() if option in options)


HEAD_FUSION_HELP = f"mean, max or min over the heads, for {takers('head_fusion')}."
DISCARD_HELP = f"Fraction of each block's attention to drop, from 0 to below 1, for {takers('discard_ratio')}."
CATEGORY_HELP = f"Index of the class to explain, for {takers('category_index')}; by default the predicted one."
BLOCK_HELP = f"Number of the one block that is looked at, from 0, or negative from the end, for {takers('block')}."
SIZE_HELP = "Pixels of the model's input, such as 288x512 or 288,512, or one number; by default the model's own."
MERGE_HELP = (
    "Tokens that each block merges away: 8, 16- (decreasing), 8@6 (from block 6 on), or a number for each block with "
    "blanks between them; with c at the end, such as 8c, those first that the class token attends to least. Several "
    "with commas between them."
)
INPUT_HELP = (
    "Pixels to which images are resized for the target, such as 224,160 or 160x224; with commas between them. The "
    "target's own by default."
)
# None is what nobody has given: what a guide does not take is refused (`taken_options`), and so must be told from that
HeadFusion = Annotated[str | None, typer.Option(help=HEAD_FUSION_HELP, show_default="max")]
Discard = Annotated[float | None, typer.Option(help=DISCARD_HELP, show_default="0.9")]
PlainHeadFusion = Annotated[str | None, typer.Option(help=HEAD_FUSION_HELP, show_default="mean")]
PlainDiscard = Annotated[float | None, typer.Option(help=DISCARD_HELP, show_default="0.0")]
Block = Annotated[int | None, typer.Option(help=BLOCK_HELP, min=-MOST_BLOCKS, max=MOST_BLOCKS, show_default="3")]
Network = Annotated[str | None, typer.Option(help=f"For the guide {takers('network')}: any timm convnet.")]
Category = Annotated[int | None, typer.Option(help=CATEGORY_HELP)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
Checkpoint = Annotated[Path | None, typer.Option(help="Weights: safetensors, or pickled tensors.")]
ImageSize = Annotated[str | None, typer.Option(help=SIZE_HELP)]
Limit = Annotated[
    int | None, typer.Option(help="Number of images, spread evenly over the data.", min=1, max=LARGEST_COUNT)
]
LimitOfEach = Annotated[
    int | None, typer.Option(help="Number of images of each data set, spread evenly.", min=1, max=LARGEST_COUNT)
]
BatchSize = Annotated[int, typer.Option(help="Images at once.", min=1, max=65_536)]
StepSize = Annotated[int, typer.Option(help="Images per step, over all processes.", min=1, max=65_536)]
Epochs = Annotated[int, typer.Option(min=1, max=MOST_EPOCHS)]
LearningRate = Annotated[float, typer.Option(max=1e30)]
Workers = Annotated[int, typer.Option(help="Processes that decode images.", min=0, max=256)]
Seed = Annotated[int, typer.Option(help="Of weights, order and augmentation.", min=0, max=LARGEST_SEED)]
SOFTEN_HELP = (
    "How attention is softened for fewer patches: 0 leaves it as it is, 1 multiplies its logits by ln n / ln N, 1- the"
    " more the earlier the block. Several with commas between them."
)
REST_HELP = (
    "What becomes of the other patches: dropped, or coarse: shown at half the resolution, four as one. Both with a"
    " comma between them."
)
Soften = Annotated[
    str | None,
    typer.Option(help="How attention is softened, as drop-curve has it.", show_default="1-, where it can be"),
]
Images = Annotated[list[str], typer.Option("--data", help="Images; labels are not used. Several by several --data.")]
Data = Annotated[str, typer.Option(help="A folder, a tar file, digits, imagenette, hfds/..., hfids/..., wds/...")]
Split = Annotated[str, typer.Option(help="Part of the data, where it has parts.")]
FastTarget = Annotated[str, typer.Option(help="The ViT to make faster: any timm ViT.")]
GuideStudent = Annotated[str | None, typer.Option(help="For the guide student, as drop-curve has it.")]
Models = Annotated[str, typer.Option(help="Any timm ViT; several with commas between them, side by side.")]


def taken_options(guides: Sequence[str], **given: object) -> dict[str, object]:
    """The options for guides that were given on the command line, by their names in `make_guide`; None is not given.

    Raises UserError if one was given that none of the guides takes, or with a value that none has.
    """
    given = {name: value for name, value in given.items() if value is not None}
    taken = {option for guide in guides for option in GUIDE_OPTIONS.get(guide, ())}
    for option in (name for name in given if name not in taken):
        refuse_option(OPTION_NAMES.get(option, option), ", ".join(guides), takers(option))
    if "head_fusion" in given:
        check_choice("head fusion", given["head_fusion"], HEAD_FUSIONS)
    if "discard_ratio" in given:
        check_number("discard ratio", given["discard_ratio"], 0, 1, open_end="high")
    return given


def explain_options(methods: Sequence[str], **given: object) -> dict[str, object]:
    """The same for the commands that do what vit-explain does: with its own where nothing is given."""
    return VIT_EXPLAIN | taken_options(methods, **given)


def check_checkpoints(*paths: Path | None) -> None:
    """Raise UserError if one of these checkpoints, as far as they were given, is not there."""
    for path in filter(None, paths):
        check_file("checkpoint", path)


def data_path(source: str) -> str:
    """Where data lies, by its name on the command line; "" for data sets that are no folder of that name."""
    return "" if source in OWN_DATA else source.removeprefix("wds/")


def model_path(name: str) -> str:
    """Where a model lies, by its name on the command line; "" for those that are no folder."""
    return name.partition("local-dir:")[2]


def check_apart(data: Sequence[str], split: str, test_data: str, test_split: str) -> None:
    """Raise UserError if what is to be reported on is among what is chosen on."""
    if test_data in data and (test_split == split or data_path(test_data)):
        raise UserError(f"{test_data} is what the operating point is chosen on; report accuracy on other images.")


def refuse_option(option: str, user: str, others: str) -> NoReturn:
    """Raise the UserError that says that `user` would pass over an option, and who takes it."""
    raise UserError(f"--{option.replace('_', '-')} says nothing to {user}: it is for {others}. Leave it out.")


def parse_ratios(text: str) -> list[float]:
    """Read keep ratios such as "1.0,0.7,0.5"; raise UserError if one of them is no number in (0, 1]."""
    ratios = [check_number("keep ratio", parse_value(part), 0, 1, open_end="low") for part in text.split(",")]
    return list(dict.fromkeys(ratios))


def parse_input_sizes(text: str | None) -> list[tuple[int, int] | None]:
    """Read sizes such as "224,160x192" (HEIGHTxWIDTH); None is the target's own size; UserError for anything else."""
    sizes = []
    for part in [] if text is None else text.split(","):
        found = re.fullmatch(r"\s*([0-9]{1,9})(?:x([0-9]{1,9}))?\s*", part)
        if not found:
            raise UserError(f"An input size is a number of pixels, such as 160, or 160x224; got {quoted(part)}.")
        height, width = int(found[1]), int(found[2] or found[1])
        sizes.append(tuple(check_whole("input size", side, 1, LONGEST_INPUT) for side in (height, width)))
    return sizes or [None]


def parse_levers(
    keep: str, merge: str, input_size: str | None, soften: str = "0", rest: str = "dropped"
) -> list[tuple[float, str, tuple[int, int] | None, str, str]]:
    """Every keep ratio with every merging, input size, softening and rest, as `vitsal.Reduction` takes them.

    UserError for a keep ratio, a size or a rest that is none; whether a target takes a schedule, or a size, it says
    itself, and `Reduction` what is no softening.
    """
    merges, softenings = ([part.strip() for part in text.split(",")] for text in (merge, soften))
    rests = [check_choice("rest", part.strip(), RESTS) for part in rest.split(",")]
    return list(product(parse_ratios(keep), merges, parse_input_sizes(input_size), softenings, rests))


def parse_values(text: str) -> tuple[Any, ...]:
    """Read values such as "0.7,0.15,0.15" (`parse_value`); whoever takes them checks them."""
    return tuple(parse_value(part) for part in text.split(","))


def parse_counts(text: str) -> list[int]:
    """Read numbers of samples such as "5000,50000"; raise UserError if one is no whole number from 1 on."""
    return [check_whole("number of samples", parse_value(part), 1, LARGEST_COUNT) for part in text.split(",")]


def parse_image_size(text: str | None) -> tuple[int, int] | None:
    """Read an image size, (H, W): "288x512", "288,512", or "384" for a square; None is the own one; or UserError."""
    if text is None:
        return None
    parts = [part.strip() for part in re.split("[,x]", text)]
    if len(parts) > 2 or not all(re.fullmatch("[0-9]{1,9}", part) and int(part) for part in parts):
        raise UserError(
            f"The image size must be HEIGHTxWIDTH in pixels, such as 288x512, or one number; got {quoted(text)}."
        )
    height, width = (check_whole("image size", int(part), 1, LONGEST_INPUT) for part in (parts[0], parts[-1]))
    return height, width


def parse_value(text: str) -> Any:
    """Read a number, True, False, None or a list as Python writes them; anything else is text."""
    text = text.strip()
    try:
        return ast.literal_eval(text) if len(text) <= LONGEST_VALUE else text
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # "{[]:1}"; nested without end
        return text


def parse_run_arguments(arguments: list[str]) -> tuple[list[int], dict[str, Any]]:
    """Split `1 3 -p preset digits` into notebook numbers and parameters; raise UserError for anything else."""
    numbers, parameters, rest = [], {}, list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "-p" and len(rest) >= 2:
            name, value = rest.pop(0), rest.pop(0)
            parameters[name] = parse_value(value)
        elif re.fullmatch("[0-9]{1,9}", word):
            numbers.append(int(word))
        else:
            raise UserError(
                f"{quoted(word)} is neither a notebook's number nor a parameter: vitsal run 1 3 -p NAME VALUE."
            )
    return numbers, parameters
