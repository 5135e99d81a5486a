"""The commands that draw: `explain`, `video`, `probe`."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

import vitsal as vs
from vitsal.choices import METHODS, PICTURE_FORMATS, PICTURED, SEGMENT, TABLE_FORMATS, WIDEST
from vitsal.cli import options
from vitsal.data.places import check_data
from vitsal.errors import LARGEST_COUNT, check_choice, check_file, printable
from vitsal.jobs.files import write_whole
from vitsal.jobs.paths import check_output, check_output_folder

PICTURE = Path("explanation.png")
METHOD_HELP = (
    f"{', '.join(METHODS)}, or heads, which shows the last block's heads one by one. (Abnar & Zuidema's flow is flow "
    "with --head-fusion mean --discard-ratio 0.)"
)


def explain(
    image: Annotated[Path, typer.Argument(help="An image file, or a folder of images, for a contact sheet.")],
    model: Annotated[str, typer.Option(help="Any timm ViT.")] = "deit_tiny_patch16_224",
    checkpoint: options.Checkpoint = None,
    method: Annotated[
        str | None,
        typer.Option(help=f"{METHOD_HELP} Several with commas between them. A category index asks for grad-rollout."),
    ] = None,
    head_fusion: options.HeadFusion = None,
    discard_ratio: options.Discard = None,
    category_index: options.Category = None,
    image_size: options.ImageSize = None,
    limit: Annotated[
        int, typer.Option(help="Images of a folder, spread evenly over it.", min=1, max=LARGEST_COUNT)
    ] = 6,
    device: options.Device = "auto",
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Picture to write, .png, .svg, ...; or .csv, .parquet: the numbers."),
    ] = PICTURE,
) -> None:
    """Draw which patches of an image matter to a ViT, and print the classes it thinks likeliest, with their indices.

    The model sees the middle of the image, cut to the shape of its input (a square, unless --image-size says
    otherwise), as its own transform does it. Options and defaults are vit-explain's; any timm ViT.
    """
    if method is None:
        method = "rollout" if category_index is None else "grad-rollout"
    methods = [check_choice("method", name.strip(), PICTURED) for name in method.split(",")]
    kind = check_choice("format", output.suffix.lstrip(".").lower(), (*PICTURE_FORMATS, *TABLE_FORMATS))
    given = options.explain_options(
        methods, head_fusion=head_fusion, discard_ratio=discard_ratio, category_index=category_index
    )
    check_output(output, image, checkpoint, *(image.iterdir() if os.path.isdir(image) else ()))
    if os.path.isdir(image):
        check_output_folder(output.parent, image)
    size = options.parse_image_size(image_size)
    options.check_checkpoints(checkpoint)
    pictures = vs.data.open_images(image, limit)
    vit = vs.models.load_sized_model(model, size, checkpoint, device=vs.find_device(device))
    guides = {name: vs.guides.picture_guide(name, vit, **given) for name in methods}
    if kind in TABLE_FORMATS:
        table = vs.analysis.map_table(pictures, vit, guides)
        write_whole(output, partial(getattr(table, f"to_{kind}"), index=False))
        print(output)
        return
    samples, predictions = vs.pictures.explain_pictures(pictures, vit, guides, category_index)
    vs.pictures.set_slide_style()
    write_whole(output, partial(vs.pictures.contact_sheet(samples, printable(model)).savefig, format=kind))
    for name, likeliest in predictions.items():
        if likeliest:
            print(f"{printable(name)}:", ", ".join(f"class {top.index}: {top}" for top in likeliest[:3]))
    print(output)


def video(
    source: Annotated[Path, typer.Argument(help="A video file.")],
    output: Annotated[Path, typer.Argument(help="What to write: .mp4, .mov, .mkv, or .gif for slides.")],
    model: options.Models = "deit_tiny_patch16_224",
    method: Annotated[str, typer.Option(help=METHOD_HELP)] = "rollout",
    head_fusion: options.HeadFusion = None,
    discard_ratio: options.Discard = None,
    category_index: options.Category = None,
    image_size: options.ImageSize = None,
    width: Annotated[int | None, typer.Option(help="Most pixels of all panels together.", min=2, max=WIDEST)] = None,
    batch_size: Annotated[int, typer.Option(help="Frames at once.", min=1, max=SEGMENT)] = 8,
    device: options.Device = "auto",
) -> None:
    """Draw what matters to ViTs over every frame of a video; sound and timing are kept, and a killed run goes on.

    Each frame is squeezed into the model's input, a square, unless --image-size says otherwise: 288,512 for 16:9.
    """
    check_choice("method", method, PICTURED)
    given = options.explain_options(
        [method], head_fusion=head_fusion, discard_ratio=discard_ratio, category_index=category_index
    )
    size = options.parse_image_size(image_size)
    check_output(output, source)
    check_file("video", source)
    columns = {"video": vs.pictures.Column()}
    for name in map(str.strip, model.split(",")):
        vit = vs.models.load_sized_model(name, size, device=vs.find_device(device))
        columns[name] = vs.pictures.Column(vs.guides.picture_guide(method, vit, **given), vit)
    print(vs.pictures.draw_on_video(source, output, columns, width=width, batch_size=batch_size))


def probe(
    data: options.Data,
    model: options.Models = "deit_tiny_patch16_224",
    split: options.Split = "validation",
    limit: options.Limit = 1_000,
    batch_size: options.BatchSize = 32,
    num_workers: options.Workers = 0,
    device: options.Device = "auto",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for table and figure.")] = Path("runs/probe"),
) -> None:
    """How far each head of ViTs looks, over many images, and their first filters; notebook 5 shows more."""
    check_output_folder(output, options.data_path(data))
    check_data(data, split)
    probes = {}
    for name in map(str.strip, model.split(",")):
        vit = vs.load_model(name, device=vs.find_device(device))
        dataset = vs.open_data(data, vs.model_transform(vit), split=split)
        probes[name] = vs.analysis.probe_model(vit, dataset, batch_size, limit=limit, num_workers=num_workers)
    vs.pictures.set_slide_style()
    picture = vs.pictures.save_figure(vs.pictures.plot_probes(probes), output, "probe")
    table = vs.analysis.distance_table(probes)
    write_whole(output / "attention_distance.csv", partial(table.to_csv, index=False))
    means = table.groupby(["model", "block"], sort=False).mean_px.agg(["min", "mean", "max"])
    print(f"mean attention distance of the heads of each block, in pixels, over {probes[name].images} images")
    print(means.round(1).to_string())
    print(picture)
