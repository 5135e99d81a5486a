"""The commands that measure: `drop-curve`, `benchmark`, `benchmark-data`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

import vitsal as vs
from vitsal.choices import BENCHMARKS, GUIDES, PRECISIONS
from vitsal.cli import options
from vitsal.data.places import check_data
from vitsal.errors import LARGEST_SEED, check_choice
from vitsal.jobs.paths import check_output, check_output_folder


def drop_curve(
    data: options.Data,
    target: Annotated[str, typer.Option(help="The ViT whose patches are dropped: any timm ViT.")],
    guide: Annotated[str, typer.Option(help=f"{', '.join(GUIDES)}; several with commas between them.")] = "rollout",
    guide_model: Annotated[str | None, typer.Option(help="The ViT inside the guide; the target by default.")] = None,
    student: Annotated[
        str | None, typer.Option(help="For the guide student: folders or hub names, with commas between them.")
    ] = None,
    network: options.Network = None,
    head_fusion: options.PlainHeadFusion = None,
    discard_ratio: options.PlainDiscard = None,
    category_index: options.Category = None,
    block: options.Block = None,
    keep: Annotated[str, typer.Option(help="Keep ratios, with commas between them.")] = "1.0,0.9,0.7,0.5,0.3,0.2,0.1",
    merge: Annotated[str, typer.Option(help=options.MERGE_HELP)] = "0",
    input_size: Annotated[str | None, typer.Option(help=options.INPUT_HELP)] = None,
    soften: Annotated[str, typer.Option(help=options.SOFTEN_HELP)] = "0",
    rest: Annotated[str, typer.Option(help=options.REST_HELP)] = "dropped",
    image_size: options.ImageSize = None,
    checkpoint: options.Checkpoint = None,
    guide_checkpoint: options.Checkpoint = None,
    split: options.Split = "validation",
    limit: options.Limit = None,
    batch_size: options.BatchSize = 32,
    num_workers: options.Workers = 0,
    device: options.Device = "auto",
    seed: Annotated[
        int | None, typer.Option(help="Of the random guide.", min=0, max=LARGEST_SEED, show_default="0")
    ] = None,
    strict: Annotated[bool, typer.Option(help="Stop at an image that cannot be read, instead of skipping it.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Table to write or add to, *.csv; runs/drop-curve-<hash>.csv by default."),
    ] = None,
    outcomes: Annotated[
        Path | None, typer.Option(help="Parquet file to write, with what is predicted for each image.")
    ] = None,
) -> None:
    """Accuracy of a target that sees only the patches a guide chooses, for each keep ratio.

    Also with tokens merged (--merge), on smaller images (--input-size), attention softened (--soften), the other
    patches shown coarsely (--rest): each with each.

    Per-image outcomes are kept beside the table as they are made: the same command, started again, goes on, and what
    is known there is not computed again. Several GPUs or machines: accelerate launch -m vitsal.cli drop-curve ...
    """
    levers = options.parse_levers(keep, merge, input_size, soften, rest)
    names = [check_choice("guide", name.strip(), GUIDES) for name in guide.split(",")]
    given = options.taken_options(
        names,
        head_fusion=head_fusion,
        discard_ratio=discard_ratio,
        category_index=category_index,
        block=block,
        seed=seed,
    )
    inside = guide_checkpoint if guide_model is None else guide_model
    options.taken_options(names, model=inside, student=student, network=network)
    weights = [Path(name.strip(), "model.safetensors") for name in (student or "").split(",")]
    size, read = options.parse_image_size(image_size), [options.data_path(data), checkpoint, guide_checkpoint, *weights]
    check_output(output or Path("runs", "table.csv"), *read)
    if outcomes:
        check_output(outcomes, *read)
    options.check_checkpoints(checkpoint, guide_checkpoint)
    check_data(data, split)
    reductions = [vs.Reduction(*chosen) for chosen in levers]
    there = None if output is None else vs.experiments.read_results(output)  # what is no table is refused at once
    if outcomes and outcomes.exists():
        vs.experiments.read_outcomes(outcomes)  # what is something else is left as it is
    accelerator, where = vs.jobs.make_accelerator(), vs.find_device(device)
    vit = vs.models.load_sized_model(target, size, checkpoint, device=where)
    inner_name = target if guide_model is None else guide_model
    same_model = inner_name == target and guide_checkpoint in (None, checkpoint)
    inner = vit if same_model else vs.load_model(inner_name, guide_checkpoint, device=where)
    choosers = vs.guides.load_choosers(names, vit, student, network, model=inner, **given)
    dataset = vs.open_data(data, vs.model_transform(vit), split=split)
    own = vs.models.input_size(vit)
    asked = tuple(replace(one, input_size=None) if one.input_size == own else one for one in reductions)
    question = vs.experiments.Question(vit, choosers, dataset, asked, limit)
    path = vs.experiments.table_for(question.about, target, output, there)
    known = vs.experiments.answer(question, path.parent, batch_size, num_workers, strict, progress=True)
    if accelerator.is_main_process:
        table = vs.experiments.results_table(known, target)
        if outcomes:
            vs.experiments.save_outcomes(known, outcomes)
        vs.experiments.add_results(table, path)
        columns = [*vs.experiments.SUMMARY_COLUMNS, *vs.experiments.DIFFERENCE]
        told = table[columns].drop(
            columns=[name for name, plain in vs.experiments.NOT_USED.items() if (table[name] == plain).all()]
        )
        print(told.to_string(index=False, float_format="{:.4f}".format))
        for (name, key), share in vs.experiments.student_shares(known).items():
            how = vs.reduction.as_reduction(key)
            print("{}, {}: share of the gap recovered {:.2f} [{:.2f}, {:.2f}]".format(name, how, *share))
        print(path)


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
    merge: Annotated[
        str | None, typer.Option(help=f"For pipeline and dropping. {options.MERGE_HELP}", show_default="0")
    ] = None,
    input_size: Annotated[str | None, typer.Option(help=f"For pipeline and dropping. {options.INPUT_HELP}")] = None,
    precision: Annotated[
        str | None, typer.Option(help="float32 or bfloat16, for pipeline and dropping.", show_default="float32")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, max=10_000)] = 9,
    device: options.Device = "auto",
) -> None:
    """Time of rollout or students against a plain forward pass; speed-up of pipeline or target against its limit.

    pipeline: student, choice of patches and target. dropping: the target alone, its patches chosen beforehand.
    """
    check_choice("benchmark", what, BENCHMARKS)
    given = {"student": student, "keep": keep, "merge": merge, "input_size": input_size, "precision": precision}
    for option, value in given.items():
        if value is not None and option not in BENCHMARKS[what]:
            takers = [name for name, taken in BENCHMARKS.items() if option in taken]
            options.refuse_option(option, what, ", ".join(takers))
    levers = options.parse_levers("0.5,0.25" if keep is None else keep, "0" if merge is None else merge, input_size)
    precision = "float32" if precision is None else check_choice("precision", precision, PRECISIONS)
    part = what in ("rollout", "student")  # these cost a part of a target; the others make one faster
    name = model or ("deit_tiny_patch16_224" if part else "vit_base_patch16_224")
    size = batch_size or (32 if part else 8)
    vit = vs.load_model(name, pretrained=False, device=vs.find_device(device))
    given = {"student": student, "precision": precision, "repeats": repeats}
    reductions = [vs.Reduction(*chosen) for chosen in levers]
    table = vs.analysis.run_benchmark(what, vit, batch_size=size, reductions=reductions, **given)
    print(f"{name}, batch {size}, torch {vs.jobs.torch_version()}, {repeats} rounds")
    print(table.to_string(index=False, float_format="{:.4f}".format))


def benchmark_data(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for journals, tables and maps.")],
    samples: Annotated[str, typer.Option(help="Numbers of samples, with commas between them.")] = "5000,50000",
) -> None:
    """Time and memory of what handles data, at real size: drop curve, journal, table, maps, with hardly any model.

    Made-up images, 3 guides, 4 keep ratios. Killed and started again, it goes on. Several processes: as drop-curve.
    """
    counts = options.parse_counts(samples)
    check_output_folder(output)
    table = vs.experiments.real_size_cost(counts, output)
    if vs.jobs.make_accelerator().is_main_process:
        print(table.to_string(index=False, float_format="{:.3f}".format))
