"""vitsal: how far can a Vision Transformer be pushed by showing it only the patches that matter?"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.backend_bases import FigureCanvasBase

from vitsal import benchmark as benchmarks
from vitsal import evaluation, runs
from vitsal.data import open_data
from vitsal.errors import UserError, check_choice, check_number
from vitsal.guides import GUIDES, METHODS, make_guide
from vitsal.images import open_image
from vitsal.models import load_model, model_transform
from vitsal.outcomes import Outcomes, outcomes_file, summarize
from vitsal.plotting import overlay, show_pictures, to_pixels, use_slide_style

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)

HeadFusionOption = Annotated[str, typer.Option(help="mean, max or min over the heads.")]
DiscardOption = Annotated[float, typer.Option(help="Fraction of each block's attention to drop, from 0 to below 1.")]
CategoryOption = Annotated[int | None, typer.Option(help="Class to explain; by default the predicted one.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
CheckpointOption = Annotated[Path | None, typer.Option(help="Weights: safetensors, or pickled tensors.")]


@app.command()
def explain(
    image: Annotated[Path, typer.Argument(help="An image file.")],
    model: Annotated[str, typer.Option(help="Any timm ViT.")] = "deit_tiny_patch16_224",
    checkpoint: CheckpointOption = None,
    method: Annotated[
        str | None,
        typer.Option(help="rollout, grad-rollout or last-attention; a category index asks for grad-rollout."),
    ] = None,
    head_fusion: HeadFusionOption = "max",
    discard_ratio: DiscardOption = 0.9,
    category_index: CategoryOption = None,
    device: DeviceOption = "auto",
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture to write: .png, .svg, .pdf, ...")] = Path(
        "explanation.png"
    ),
) -> None:
    """Draw which patches of an image matter to a ViT (vit-explain's options and defaults, any timm ViT)."""
    method = check_choice("method", method or ("rollout" if category_index is None else "grad-rollout"), METHODS)
    check_choice("picture format", output.suffix.lstrip(".").lower(), FigureCanvasBase.filetypes)
    picture = open_image(image)
    vit = load_model(model, checkpoint, device=find_device(device))
    guide = make_guide(method, vit, head_fusion=head_fusion, discard_ratio=discard_ratio, category_index=category_index)
    images = model_transform(vit)(picture)[None].to(next(vit.parameters()).device)
    pixels = to_pixels(images, vit)[0]
    use_slide_style()
    figure = show_pictures([[pixels, overlay(pixels, guide(images)[0].cpu())]], [image.name, f"{method}, {model}"])
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)
    print(output)


@app.command()
def drop_curve(
    data: Annotated[str, typer.Option(help="A folder, a tar file, digits, imagenette, hfds/..., hfids/..., wds/...")],
    target: Annotated[str, typer.Option(help="The ViT whose patches are dropped: any timm ViT.")],
    guide: Annotated[str, typer.Option(help=f"{', '.join(GUIDES)}.")] = "rollout",
    guide_model: Annotated[str | None, typer.Option(help="The ViT inside the guide; the target by default.")] = None,
    head_fusion: HeadFusionOption = "mean",
    discard_ratio: DiscardOption = 0.0,
    category_index: CategoryOption = None,
    keep: Annotated[str, typer.Option(help="Keep ratios, with commas between them.")] = "1.0,0.9,0.7,0.5,0.3,0.2,0.1",
    checkpoint: CheckpointOption = None,
    guide_checkpoint: CheckpointOption = None,
    split: Annotated[str, typer.Option(help="Part of the data, where it has parts.")] = "validation",
    limit: Annotated[int | None, typer.Option(help="Number of images, spread evenly over the data.", min=1)] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    num_workers: Annotated[int, typer.Option(help="Processes that decode images.", min=0)] = 0,
    device: DeviceOption = "auto",
    seed: Annotated[int, typer.Option(help="Of the random guide.")] = 0,
    strict: Annotated[bool, typer.Option(help="Stop at an image that cannot be read, instead of skipping it.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Table to write, CSV; runs/drop-curve-<question>.csv by default."),
    ] = None,
) -> None:
    """Accuracy of a target that sees only the patches a guide chooses, for each keep ratio.

    Per-image outcomes are kept beside the table as they are made: the same command, started again, goes on.
    """
    ratios = parse_ratios(keep)
    where = find_device(device)
    vit = load_model(target, checkpoint, device=where)
    same_model = guide_model in (None, target) and guide_checkpoint in (None, checkpoint)
    inner = vit if same_model else load_model(guide_model or target, guide_checkpoint, device=where)
    chooser = make_guide(
        guide,
        vit,
        model=inner,
        head_fusion=head_fusion,
        discard_ratio=discard_ratio,
        category_index=category_index,
        seed=seed,
    )
    dataset = open_data(data, model_transform(vit), split=split)
    question = {**evaluation.question_of(vit, {guide: chooser}, dataset, ratios, limit=limit), "source": [data, split]}
    path = output.with_suffix(".outcomes.jsonl") if output else outcomes_file("runs", question)
    kept = Outcomes(path, question)
    evaluation.drop_curve(
        vit,
        {guide: chooser},
        dataset,
        ratios,
        batch_size=batch_size,
        limit=limit,
        num_workers=num_workers,
        strict=strict,
        outcomes=kept,
    )
    table = summarize(kept, target)
    written = output or path.with_suffix("").with_suffix(".csv")
    evaluation.write_table(table, written)
    print(table.to_string(index=False, float_format="{:.4f}".format))
    print(written)


@app.command(context_settings={"ignore_unknown_options": True})
def run(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[NUMBERS]... [-p NAME VALUE]...", help="Which notebooks; parameters.")
    ] = None,
    notebooks: Annotated[Path, typer.Option(help="Folder of the notebooks.")] = Path("notebooks"),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for all that is made; runs/<time>.")
    ] = None,
) -> None:
    """Execute numbered notebooks headlessly (all by default), export their figures, print their headline numbers."""
    numbers, parameters = parse_run_arguments(arguments or [])
    made = runs.run_notebooks(runs.find_notebooks(notebooks, numbers), output, parameters)
    for notebook, headlines in runs.read_headlines(made).items():
        print(f"\n{notebook}")
        for text, value in headlines.items():
            print(f"  {text}: {value}")
    print(f"\nNotebooks, figures and tables: {made}")


@app.command()
def benchmark(
    what: Annotated[str, typer.Argument(help="rollout or dropping.")],
    model: Annotated[str, typer.Option(help="Any timm ViT; random weights, since only time is measured.")] = "",
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    keep: Annotated[str, typer.Option(help="Keep ratios, for dropping.")] = "0.5,0.25",
    repeats: Annotated[int, typer.Option(min=1)] = 9,
    device: DeviceOption = "auto",
) -> None:
    """Time of rollout against a plain forward pass, or speed-up by dropping against its limit."""
    check_choice("benchmark", what, ("rollout", "dropping"))
    name = model or {"rollout": "deit_tiny_patch16_224", "dropping": "vit_base_patch16_224"}[what]
    vit = load_model(name, pretrained=False, device=find_device(device))
    if what == "rollout":
        table = benchmarks.rollout_cost(vit, batch_size or 32, repeats=repeats)
    else:
        table = benchmarks.dropping_speedup(vit, batch_size or 8, parse_ratios(keep), repeats=repeats)
    print(
        f"{name}, batch {batch_size or (32 if what == 'rollout' else 8)}, torch {torch.__version__}, {repeats} rounds"
    )
    print(table.to_string(index=False, float_format="{:.3f}".format))


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


def main() -> None:
    """Run the command line; what the user can mend is told in one paragraph, without a traceback."""
    try:
        app()
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
