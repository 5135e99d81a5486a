"""The commands that change a target: `tune-target` and `accelerate`."""

from __future__ import annotations

import shlex
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

import vitsal as vs
from vitsal.choices import GUIDES, TUNABLE, TuningSettings
from vitsal.cli import options
from vitsal.data.places import check_data
from vitsal.errors import LARGEST_COUNT, check_choice, check_number
from vitsal.jobs.paths import check_output, check_output_folder


def tune_target(
    target: Annotated[str, typer.Option(help="The ViT to tune: any timm ViT.")],
    data: options.Images,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the tuned weights and the report.")],
    guide: Annotated[str, typer.Option(help="Who chooses patches: drop-curve's guides.")] = "rollout,random",
    student: options.GuideStudent = None,
    network: options.Network = None,
    head_fusion: options.HeadFusion = None,
    discard_ratio: options.Discard = None,
    checkpoint: options.Checkpoint = None,
    split: options.Split = "train",
    limit: options.LimitOfEach = TuningSettings.limit,
    steps: Annotated[
        int | None, typer.Option(help="Steps of the optimizer.", min=1, max=LARGEST_COUNT, show_default="one pass")
    ] = TuningSettings.steps,
    batch_size: options.StepSize = TuningSettings.batch_size,
    learning_rate: options.LearningRate = TuningSettings.learning_rate,
    whole: Annotated[
        float, typer.Option(help="Weight of the answers on whole images.", max=1e30)
    ] = TuningSettings.whole,
    parameters: Annotated[
        str, typer.Option(help="Names of the parameters that are tuned, with commas between them, * for anything.")
    ] = ",".join(TUNABLE),
    keep: Annotated[str, typer.Option(help="Lowest and highest keep ratio of a lesson.")] = ",".join(
        map(str, TuningSettings.keep_ratios)
    ),
    merge: Annotated[
        str | None, typer.Option(help="As drop-curve has it; by default what suits the target's depth.")
    ] = None,
    input_size: Annotated[
        str | None, typer.Option(help="As drop-curve has it; by default 8, 10 and 12 fourteenths of the patches.")
    ] = None,
    soften: options.Soften = None,
    rest: Annotated[str, typer.Option(help=options.REST_HELP)] = ",".join(TuningSettings.rests),
    shares: Annotated[
        str, typer.Option(help="Of the lessons: patches dropped, tokens merged, smaller images.")
    ] = ",".join(map(str, TuningSettings.shares)),
    num_workers: options.Workers = 0,
    seed: options.Seed = 0,
) -> None:
    """Make a target tolerant, without labels: a few of its parameters are tuned on images that are reduced.

    Patches dropped, tokens merged, smaller images: it learns to say of them what it said of the whole ones. Its report
    is on images that were held out. Started again, it goes on; several processes as for train-student.
    """
    names = [check_choice("guide", name.strip(), GUIDES) for name in guide.split(",")]
    explained = options.explain_options(names, head_fusion=head_fusion, discard_ratio=discard_ratio)
    options.taken_options(names, student=student, network=network)
    settings = TuningSettings(
        steps=steps, batch_size=batch_size, learning_rate=learning_rate, whole=whole, limit=limit, seed=seed,
        parameters=tuple(pattern.strip() for pattern in parameters.split(",")), shares=options.parse_values(shares),
        keep_ratios=options.parse_values(keep), merges=merge and tuple(part.strip() for part in merge.split(",")),
        sizes=input_size and tuple(options.parse_input_sizes(input_size)), soften=soften,
        rests=tuple(part.strip() for part in rest.split(",")),
    )  # fmt: skip
    places = [options.data_path(source) for source in data]
    check_output_folder(output, *places, options.model_path(target), student, within=True)
    check_output(output / "model.safetensors", checkpoint)
    options.check_checkpoints(checkpoint)
    for source in data:
        check_data(source, split)
    vs.tuning.check_tuning_folder(output)
    accelerator, where = vs.jobs.make_accelerator(), vs.find_device("auto")
    vit = vs.load_model(target, checkpoint, device=where)
    guides = vs.guides.load_choosers(names, vit, student, network, **explained)
    datasets = [vs.open_data(source, vs.model_transform(vit), split=split) for source in data]
    report = vs.tune_target(vit, datasets, guides, output, settings, num_workers=num_workers, accelerator=accelerator)
    if accelerator.is_main_process:
        print(report.to_string(index=False, float_format="{:.4f}".format))
        print(output)


def accelerate(
    target: options.FastTarget,
    speed_up: Annotated[float, typer.Option(help="By how many times fewer operations.")],
    data: options.Images,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the model and its card.")],
    student: Annotated[
        str | None, typer.Option(help="Who chooses patches: a folder or hub name; without one none is dropped.")
    ] = None,
    checkpoint: options.Checkpoint = None,
    split: options.Split = "train",
    limit: options.LimitOfEach = 300,
    test_data: Annotated[
        str | None, typer.Option(help="Other images, with labels, to report accuracy on (journal: in runs).")
    ] = None,
    test_split: Annotated[str, typer.Option(help="Their part, where they have parts.")] = "validation",
    test_limit: options.Limit = None,
    batch_size: options.BatchSize = 32,
    num_workers: options.Workers = 0,
    device: options.Device = "auto",
) -> None:
    """Make one module of target and student that is so many times cheaper, and changes the target's answers least.

    Patches dropped or shown coarsely, tokens merged, smaller images, and all together: of those that come to this
    speed-up by count of operations the best is chosen by the target's own answers, and timed. Python:
    vs.AcceleratedViT.from_pretrained.
    """
    check_number("speed-up", speed_up, 1, 1_000, open_end="low")
    places = [options.data_path(source) for source in (*data, test_data or "")]
    check_output_folder(output, *places, options.model_path(target), student)
    check_output(output / "README.md", checkpoint)
    options.check_checkpoints(checkpoint)
    for source, part in [*((source, split) for source in data), *([(test_data, test_split)] if test_data else [])]:
        check_data(source, part)
    if test_data:
        options.check_apart(data, split, test_data, test_split)
    vs.guides.check_accelerated_folder(output)
    where = vs.find_device(device)
    vit = vs.load_model(target, checkpoint, device=where)
    pupil = None if student is None else vs.load_student(student, where)
    _warn_of_limits(vit, pupil)
    transform, accuracy = vs.model_transform(vit), None
    tested = None if test_data is None else vs.open_data(test_data, transform, split=test_split)
    if tested is not None:
        vs.data.check_classes(tested, vit)
    images = vs.tuning.MixedImages([vs.open_data(source, transform, split=split) for source in data], limit)
    batches = images.batches(range(len(images)), batch_size, num_workers, progress="answers")
    fast, table = vs.experiments.accelerate(vit, pupil, batches, speed_up)
    print(table.head(5).to_string(index=False, float_format="{:.4f}".format))
    cost = vs.experiments.accelerated_cost(fast)
    print(cost.to_string(index=False, float_format="{:.4f}".format))
    if tested is not None:
        given = {"limit": test_limit, "batch_size": batch_size, "num_workers": num_workers}
        accuracy = vs.experiments.accelerated_accuracy(fast, tested, target, **given)
        print(accuracy.to_string(index=False, float_format="{:.4f}".format))
    command = shlex.join(["vitsal", *sys.argv[1:]])
    fast.save_pretrained(output, vs.experiments.model_card(target, table.loc[0].to_dict(), cost, accuracy, command))
    print(output)


def _warn_of_limits(vit: object, pupil: object) -> None:
    """Say what of a target's levers is not to be had, and that a student's grid is another."""
    if not vs.reduction.allows(vit, vs.Reduction(merge="1")):
        warnings.warn("The target's tokens cannot be merged: that lever is left out.", stacklevel=2)
    if pupil and pupil.grid_size != vs.grid_size(vit):
        theirs, own = (" x ".join(map(str, grid)) for grid in (pupil.grid_size, vs.grid_size(vit)))
        warnings.warn(f"The student's grid is {theirs}, its maps are laid on the target's {own}.", stacklevel=2)
