"""vitsal: how far can a Vision Transformer be pushed by showing it only the patches that matter?"""

from __future__ import annotations

import io
import os
import sys
import traceback
import warnings
from itertools import product
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

from vitsal import benchmark as benchmarks
from vitsal import recipes, requirements, results, runs
from vitsal.checkpoints import check_training_folder
from vitsal.cli_pictures import VIT_EXPLAIN, explain, probe, video
from vitsal.comparison import recovered_share
from vitsal.data import open_data
from vitsal.distillation import Recipe, accelerator_for, distill
from vitsal.errors import LARGEST_SEED, UserError, check_choice, tell
from vitsal.evaluation import DropExperiment
from vitsal.files import check_folder
from vitsal.guides import GUIDES, make_guide
from vitsal.losses import LOSSES
from vitsal.maps import TEACHERS, MapSettings, cache_maps, maps_folder
from vitsal.models import grid_size, load_model, model_transform
from vitsal.options import (
    DATA_HELP,
    BatchSizeOption,
    CategoryOption,
    CheckpointOption,
    DeviceOption,
    DiscardOption,
    HeadFusionOption,
    LimitOption,
    PlainDiscardOption,
    PlainHeadFusionOption,
    SeedOption,
    WorkersOption,
    data_path,
    find_device,
    parse_counts,
    parse_ratios,
    parse_run_arguments,
    refuse_option,
    taken_options,
)
from vitsal.outcomes import COLUMNS, Outcomes
from vitsal.outputs import check_output, check_output_folder
from vitsal.processes import make_accelerator
from vitsal.scale import real_size_cost
from vitsal.students import ARCHITECTURES, CELL, Student, load_student, load_students, new_student

BENCHMARKS = {
    "rollout": (),
    "dropping": ("keep", "precision"),
    "student": ("student",),
    "pipeline": ("student", "keep", "precision"),
}  # with the options that each takes
DEBUG = "--debug"  # anywhere on the command line
INTERRUPTED = 130  # as shells have it, and typer
MOST_EPOCHS = 1_000_000
app = typer.Typer(
    help=__doc__,
    epilog=f"{DEBUG}, before or after a command: show the traceback of an error as well.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


for command in (explain, video, probe):
    app.command()(command)


@app.command()
def drop_curve(
    data: Annotated[str, typer.Option(help=DATA_HELP)],
    target: Annotated[str, typer.Option(help="The ViT whose patches are dropped: any timm ViT.")],
    guide: Annotated[str, typer.Option(help=f"{', '.join(GUIDES)}; several with commas between them.")] = "rollout",
    guide_model: Annotated[str | None, typer.Option(help="The ViT inside the guide; the target by default.")] = None,
    student: Annotated[
        str | None, typer.Option(help="For the guide student: folders or hub names, with commas between them.")
    ] = None,
    head_fusion: PlainHeadFusionOption = None,
    discard_ratio: PlainDiscardOption = None,
    category_index: CategoryOption = None,
    keep: Annotated[str, typer.Option(help="Keep ratios, with commas between them.")] = "1.0,0.9,0.7,0.5,0.3,0.2,0.1",
    checkpoint: CheckpointOption = None,
    guide_checkpoint: CheckpointOption = None,
    split: Annotated[str, typer.Option(help="Part of the data, where it has parts.")] = "validation",
    limit: LimitOption = None,
    batch_size: BatchSizeOption = 32,
    num_workers: WorkersOption = 0,
    device: DeviceOption = "auto",
    seed: Annotated[
        int | None, typer.Option(help="Of the random guide.", min=0, max=LARGEST_SEED, show_default="0")
    ] = None,
    strict: Annotated[bool, typer.Option(help="Stop at an image that cannot be read, instead of skipping it.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Table to write or add to, *.csv; runs/drop-curve-<hash>.csv by default."),
    ] = None,
) -> None:
    """Accuracy of a target that sees only the patches a guide chooses, for each keep ratio.

    Per-image outcomes are kept beside the table as they are made: the same command, started again, goes on, and what
    is known there is not computed again. Several GPUs or machines: accelerate launch -m vitsal.cli drop-curve ...
    """
    ratios = parse_ratios(keep)
    names = [check_choice("guide", name.strip(), GUIDES) for name in guide.split(",")]
    options = taken_options(
        names, head_fusion=head_fusion, discard_ratio=discard_ratio, category_index=category_index, seed=seed
    )
    taken_options(names, model=guide_checkpoint if guide_model is None else guide_model, student=student)
    weights = [Path(name.strip(), "model.safetensors") for name in (student or "").split(",")]
    check_output(output or Path("runs", "table.csv"), data_path(data), checkpoint, guide_checkpoint, *weights)
    if output is not None:
        results.read_results(output)
    accelerator = make_accelerator()
    where = accelerator.device if device == "auto" else find_device(device)
    vit = load_model(target, checkpoint, device=where)
    inner_name = target if guide_model is None else guide_model
    same_model = inner_name == target and guide_checkpoint in (None, checkpoint)
    inner = vit if same_model else load_model(inner_name, guide_checkpoint, device=where)
    choosers = {name: make_guide(name, vit, model=inner, **options) for name in names if name != "student"}
    if "student" in names:
        pupils = load_students(student, where) if student else {"": None}
        choosers |= {f"student {name}": make_guide("student", vit, student=pupil) for name, pupil in pupils.items()}
    dataset = open_data(data, model_transform(vit), split=split)
    experiment = DropExperiment(vit, choosers, dataset, tuple(ratios), limit)
    identity = results.identity_table(experiment.about, target)
    path = output or results.results_file("runs", "drop-curve", identity)
    results.check_same(results.read_results(path), identity, path)
    outcomes = experiment.run(folder=path.parent, batch_size=batch_size, num_workers=num_workers, strict=strict)
    if accelerator.is_main_process:
        table = results.results_table(outcomes, target)
        results.add_results(table, path)
        print(table[[*COLUMNS, *results.DIFFERENCE]].to_string(index=False, float_format="{:.4f}".format))
        print_shares(outcomes, ratios)
        print(path)


def print_shares(outcomes: Outcomes, keep_ratios: list[float]) -> None:
    """Tell the share of the gap between random and rollout that a student recovers, where all three were asked for."""
    pupils = [name for name in outcomes.guides if name.startswith("student ")]
    if {"random", "rollout"} <= set(outcomes.guides):
        for pupil, ratio in product(pupils, (ratio for ratio in keep_ratios if ratio < 1)):
            share = recovered_share(outcomes, pupil, ratio, chance="random", ideal="rollout")
            print("{}, keep {}: share of the gap recovered {:.2f} [{:.2f}, {:.2f}]".format(pupil, ratio, *share))


@app.command()
def train_student(
    teacher: Annotated[str, typer.Option(help="The ViT whose rollout is learnt: any timm ViT.")],
    data: Annotated[str, typer.Option(help=DATA_HELP)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the student and its checkpoints.")],
    method: Annotated[str, typer.Option(help=f"{', '.join(TEACHERS)}.")] = "rollout",
    head_fusion: HeadFusionOption = None,
    discard_ratio: DiscardOption = None,
    category_index: CategoryOption = None,
    checkpoint: CheckpointOption = None,
    split: Annotated[str, typer.Option(help="Part of the data, where it has parts.")] = "train",
    limit: LimitOption = None,
    maps: Annotated[
        Path | None, typer.Option(help="Folder for the teacher's maps; runs/maps-<what they are of>.")
    ] = None,
    views: Annotated[
        int, typer.Option(help="Crops of each image that the teacher is asked about.", min=0, max=1_000)
    ] = 0,
    geometry: Annotated[
        bool | None,
        typer.Option(help="Crop and mirror images, and their maps with them; by default where there are no views."),
    ] = None,
    architecture: Annotated[str, typer.Option(help="convnet, transformer, or a timm model.")] = "convnet",
    pretrained: Annotated[bool, typer.Option(help="Start from the timm model's weights.")] = False,
    width: Annotated[
        int | None,
        typer.Option(help="Channels of a convnet's first stage.", min=4, max=4_096, show_default="32"),
    ] = None,
    cell: Annotated[int, typer.Option(help="Pixels of the input per patch, each way.", min=1, max=64)] = CELL,
    loss: Annotated[str, typer.Option(help=f"{', '.join(LOSSES)}.")] = Recipe.loss,
    epochs: Annotated[int, typer.Option(min=1, max=MOST_EPOCHS)] = Recipe.epochs,
    batch_size: Annotated[
        int, typer.Option(help="Images per step, over all processes.", min=1, max=65_536)
    ] = Recipe.batch_size,
    learning_rate: Annotated[float, typer.Option(max=1e30)] = Recipe.learning_rate,
    accumulate: Annotated[
        int, typer.Option(help="Compute a batch in so many parts.", min=1, max=65_536)
    ] = Recipe.accumulate,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many epochs without progress.", min=1, max=MOST_EPOCHS)
    ] = None,
    num_workers: WorkersOption = 0,
    seed: SeedOption = 0,
) -> None:
    """Teach a student to predict a ViT's rollout from a downsampled image; started again, it goes on.

    Several processes or machines, a GPU, mixed precision: accelerate launch -m vitsal.cli train-student ...
    """
    options = {"head_fusion": head_fusion, "discard_ratio": discard_ratio, "category_index": category_index}
    options = VIT_EXPLAIN | taken_options([check_choice("method", method, TEACHERS)], **options)
    if geometry and views:
        refuse_option("geometry", "a training with --views, which are cropped already", "one without")
    check_output(output / "model.safetensors", checkpoint)
    place, model_folder = data_path(data), teacher.partition("local-dir:")[2]
    check_output_folder(output, place, maps, model_folder, within=True)
    check_output_folder(maps or Path("runs", "maps"), place, within=True)
    check_training_folder(output)
    recipe = Recipe(
        loss=loss, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate,
        geometry=not views if geometry is None else geometry, accumulate=accumulate, patience=patience, seed=seed,
    )  # fmt: skip
    accelerator = accelerator_for(recipe)
    vit = load_model(teacher, checkpoint, device=accelerator.device)
    explainer = make_guide(method, vit, **options)
    torch.manual_seed(seed)
    pupil = new_student(
        architecture,
        grid_size(vit),
        pretrained=pretrained,
        input_size=[cell * cells for cells in grid_size(vit)],
        lesson={"teacher": teacher, "method": method, "data": data, "loss": loss},
        **({} if width is None else {"width": width}),
    )
    if width is not None and architecture not in ARCHITECTURES:
        refuse_option("width", architecture, " and ".join(ARCHITECTURES))
    settings = MapSettings(tuple(2 * pixels for pixels in pupil.input_size), limit, views, seed)
    dataset = open_data(data, model_transform(vit), split=split)
    cached = maps or maps_folder("runs", explainer, dataset, settings)
    cache_maps(
        explainer,
        dataset,
        cached,
        settings,
        num_workers=num_workers,
        process=accelerator.process_index,
        num_processes=accelerator.num_processes,
        progress=accelerator.is_main_process,
    )
    accelerator.wait_for_everyone()
    history = distill(pupil, cached, output, recipe, accelerator=accelerator)
    accelerator.print(history.tail(1).to_string(index=False, float_format="{:.4f}".format))
    accelerator.print(output)


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
    check_output_folder(output or Path("runs"), notebooks, within=True)
    made = runs.run_notebooks(runs.find_notebooks(notebooks, numbers), output, parameters)
    for notebook, headlines in runs.read_headlines(made).items():
        print(f"\n{notebook}")
        for text, value in headlines.items():
            print(f"  {text}: {value}")
    print(f"\nNotebooks, figures and tables: {made}")


@app.command("recipes")
def list_recipes(
    name: Annotated[str, typer.Argument(help="A recipe, to see all that it needs; by default all are listed.")] = "",
    students: Annotated[Path, typer.Option(help="Folder of the students' folders.")] = recipes.STUDENTS,
    device: DeviceOption = "auto",
) -> None:
    """List the published experiments: their models and sizes, what is not here yet, the time they take here."""
    check_folder(students)
    if name:
        return print_needs(recipes.choose_recipe(name), students)
    speed = requirements.measure_speed(find_device(device))
    for row in requirements.describe_recipes(students=students, speed=speed).itertuples():
        time = f"{60 * row.hours:.0f} minutes" if row.hours < 2 else f"{row.hours:,.0f} hours"
        print(f"{row.name}: {row.title}\n  models: {row.models}; {row.missing_mb:,.0f} MB are not here")
        print(f"  {row.images:,} images, {row.pflop:.3g} PFLOP, about {time} on this machine")
    print("\nAll that one of them needs, and the command that runs it: vitsal recipes NAME")


def print_needs(recipe: recipes.PublishedExperiment, students: Path) -> None:
    """Print what must be here before a recipe can run, where to get it, and the command that runs it."""
    print(recipe.title)
    for row in requirements.needs(recipe, students=students).itertuples():
        print(f"- {row.role} {row.model}, {row.megabytes:.1f} MB: {row.where or f'not here; {row.source}'}")
    print(
        f"- data {recipe.data}, split {recipe.split}, {recipe.num_images:,} images; or your own folder: -p data FOLDER"
    )
    notebook = "06_published_experiments.ipynb"
    print(f"\ncd notebooks && papermill {notebook} {recipe.name}.ipynb -p recipe {recipe.name}")


@app.command()
def benchmark(
    what: Annotated[str, typer.Argument(help=f"{', '.join(BENCHMARKS)}.")],
    model: Annotated[str, typer.Option(help="Any timm ViT; random weights, since only time is measured.")] = "",
    student: Annotated[
        str | None, typer.Option(help="A folder or a hub name; by default new ones of both kinds.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, max=65_536)] = None,
    keep: Annotated[
        str | None, typer.Option(help="Keep ratios, for pipeline and dropping.", show_default="0.5,0.25")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="float32 or bfloat16, for pipeline and dropping.", show_default="float32")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, max=10_000)] = 9,
    device: DeviceOption = "auto",
) -> None:
    """Time of rollout or students against a plain forward pass; speed-up of pipeline or target against its limit.

    pipeline: student, choice of patches and target. dropping: the target alone, its patches chosen beforehand.
    """
    check_choice("benchmark", what, BENCHMARKS)
    for option, value in {"student": student, "keep": keep, "precision": precision}.items():
        if value is not None and option not in BENCHMARKS[what]:
            refuse_option(option, what, ", ".join(name for name, taken in BENCHMARKS.items() if option in taken))
    ratios = parse_ratios("0.5,0.25" if keep is None else keep)
    precision = "float32" if precision is None else precision
    part = what in ("rollout", "student")  # these cost a part of a target; the others make one faster
    name = model or ("deit_tiny_patch16_224" if part else "vit_base_patch16_224")
    vit = load_model(name, pretrained=False, device=find_device(device))
    size = batch_size or (32 if part else 8)
    if what == "rollout":
        table = benchmarks.rollout_cost(vit, size, repeats=repeats)
    elif what == "student":
        table = benchmarks.student_cost(vit, students_to_time(student, vit), size, repeats=repeats)
    elif what == "dropping":
        table = benchmarks.dropping_speedup(vit, size, ratios, repeats=repeats, precision=precision)
    else:
        pupils = students_to_time(student, vit)
        guides = {pupil: make_guide("student", vit, student=module) for pupil, module in pupils.items()}
        table = benchmarks.pipeline_cost(vit, guides, ratios, batch_size=size, repeats=repeats, precision=precision)
    print(f"{name}, batch {size}, torch {torch.__version__}, {repeats} rounds")
    print(table.to_string(index=False, float_format="{:.4f}".format))


@app.command()
def benchmark_data(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for journals, tables and maps.")],
    samples: Annotated[str, typer.Option(help="Numbers of samples, with commas between them.")] = "5000,50000",
) -> None:
    """Time and memory of what handles data, at real size: drop curve, journal, table, maps, with hardly any model.

    Made-up images, 3 guides, 4 keep ratios. Killed and started again, it goes on. Several processes: as drop-curve.
    """
    counts = parse_counts(samples)
    check_output_folder(output)
    table = real_size_cost(counts, output)
    if make_accelerator().is_main_process:
        print(table.to_string(index=False, float_format="{:.3f}".format))


def students_to_time(name: str | None, target: nn.Module) -> dict[str, Student]:
    """The student of this name, or, without one, a new one of each kind for the target's grid."""
    device = next(target.parameters()).device
    if name is not None:
        return {name: load_student(name, device)}
    return {kind: new_student(kind, grid_size(target)).eval().to(device) for kind in ARCHITECTURES}


def main() -> None:
    """Run the command line: whatever goes wrong is told in one paragraph on stderr, and ends with status 2.

    With `--debug` the traceback comes before it. Ctrl-C ends with 130, a reader that went away (`| head`) with 1.
    """
    warnings.formatwarning = lambda message, *_: f"Warning: {message}\n"
    try:
        _run([word for word in sys.argv[1:] if word != DEBUG])
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if DEBUG in sys.argv:
            traceback.print_exc()
        print(f"Error: {tell(error)}", file=sys.stderr)
        sys.exit(2)


def _run(words: list[str]) -> None:
    """Run the command line on these words; what is printed is out when it ends."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files need not be UTF-8
    if "" in words and "run" not in words:  # of parameters, "" may be a value; of paths, it is the current folder
        raise UserError(
            "One of the words is empty, as a variable is that was never set; leave it out, or give it a value."
        )
    try:
        app(words)
    except SystemExit as ended:
        if ended.code == INTERRUPTED:  # typer has caught Ctrl-C
            raise KeyboardInterrupt from ended
        raise
    finally:
        _flush()


def _flush() -> None:
    """Write out what was printed now, while it can still be told if that fails."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again at its end
        raise


if __name__ == "__main__":
    main()
