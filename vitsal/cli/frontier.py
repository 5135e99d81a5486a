"""The command that finds how right a target still is at every speed: `frontier`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

import vitsal as vs
from vitsal.choices import GUIDES
from vitsal.cli import options
from vitsal.data.places import check_data
from vitsal.errors import check_choice, check_number
from vitsal.jobs.files import write_whole
from vitsal.jobs.paths import check_output, check_output_folder


def frontier(
    target: options.FastTarget,
    data: Annotated[list[str], typer.Option("--data", help="Images to choose on, without labels. Several by several.")],
    test_data: Annotated[str, typer.Option(help="Other images, with labels, to report on.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for journal, table and figure.")],
    guide: Annotated[str, typer.Option(help="Who may choose patches: drop-curve's guides.")] = "student,random",
    student: options.GuideStudent = None,
    network: options.Network = None,
    block: options.Block = None,
    head_fusion: options.HeadFusion = None,
    discard_ratio: options.Discard = None,
    checkpoint: options.Checkpoint = None,
    speeds: Annotated[str, typer.Option(help="By how many times fewer operations.")] = "2,2.5,3,3.5,4",
    soften: options.Soften = None,
    split: Annotated[str, typer.Option(help="Part of the data to choose on, where it has parts.")] = "train",
    limit: options.LimitOfEach = 100,
    test_split: Annotated[str, typer.Option(help="Part of the other data, where it has parts.")] = "validation",
    test_limit: options.Limit = None,
    batch_size: options.BatchSize = 32,
    num_workers: options.Workers = 0,
    device: options.Device = "auto",
) -> None:
    """How right a target still is at every speed, for each guide and without one; as a table and a slide.

    Patches dropped or shown coarsely, tokens merged, smaller images, all together: for each guide and speed the way
    that changes the target's answers least is chosen on some images, and its accuracy reported on others. Killed, it
    goes on.
    """
    names = [check_choice("guide", name.strip(), GUIDES) for name in guide.split(",")]
    explained = options.explain_options(names, head_fusion=head_fusion, discard_ratio=discard_ratio, block=block)
    options.taken_options(names, student=student, network=network)
    asked = [check_number("speed-up", value, 1, 1_000, open_end="low") for value in options.parse_values(speeds)]
    places = [options.data_path(source) for source in (*data, test_data)]
    check_output_folder(output, *places, options.model_path(target), student)
    check_output(output / "frontier.csv", checkpoint)
    options.check_checkpoints(checkpoint)
    for source, part in [*((source, split) for source in data), (test_data, test_split)]:
        check_data(source, part)
    options.check_apart(data, split, test_data, test_split)
    accelerator, where = vs.jobs.make_accelerator(), vs.find_device(device)
    vit = vs.load_model(target, checkpoint, device=where)
    guides = vs.guides.load_choosers(names, vit, student, network, **explained)
    transform = vs.model_transform(vit)
    tested = vs.open_data(test_data, transform, split=test_split)
    vs.data.check_classes(tested, vit)
    images = vs.tuning.MixedImages([vs.open_data(source, transform, split=split) for source in data], limit)
    softening = vs.tuning.softening_of(vit, soften)
    given = {"batch_size": batch_size, "num_workers": num_workers}
    with accelerator.main_process_first():  # others read what it has chosen
        points = vs.experiments.kept_points(output, vit, guides, images, asked, softening, **given)
    found = vs.experiments.measure_frontier(vit, guides, points, tested, folder=output, limit=test_limit, **given)
    if not accelerator.is_main_process:
        return
    table = found.table.join(vs.experiments.measured_speedups(vit, guides, points))
    write_whole(output / "frontier.csv", partial(table.to_csv, index=False))
    name = f"{target}, {checkpoint.parent.name or checkpoint.stem}" if checkpoint else target
    figure = vs.pictures.draw_frontier(table, found.whole.mean(), f"{name}\n{test_data}")
    shown = ["way", "speed", *vs.experiments.LEVERS, "operations", "speedup_1", "speedup_32", "best", "top1", "lost"]
    print(table[[*shown, "over no guide"]].to_string(index=False, float_format="{:.3f}".format))
    print(vs.pictures.save_figure(figure, output, "frontier"))
