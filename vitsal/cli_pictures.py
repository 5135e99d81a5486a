"""The commands that draw: `explain`, `video`, `probe`; thin, over the same functions as the notebooks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import matplotlib.pyplot as plt
import pandas as pd
import typer
from matplotlib.backend_bases import FigureCanvasBase
from torch import Tensor
from tqdm import tqdm

from vitsal.data import open_data
from vitsal.errors import check_choice
from vitsal.files import write_whole
from vitsal.guides import METHODS, make_guide
from vitsal.images import batches, open_images
from vitsal.models import grid_size, load_model, model_transform
from vitsal.options import (
    DATA_HELP,
    CategoryOption,
    CheckpointOption,
    DeviceOption,
    DiscardOption,
    HeadFusionOption,
    LimitOption,
    WorkersOption,
    find_device,
)
from vitsal.plotting import (
    overlay,
    plot_attention_distances,
    save_figure,
    shorten,
    show_pictures,
    tile_pictures,
    to_pixels,
    use_slide_style,
)
from vitsal.probing import mean_attention_distance, patch_distances, projection_filters
from vitsal.video import draw_on_video
from vitsal.video_panels import Column, HeadsGuide


def explain(
    image: Annotated[Path, typer.Argument(help="An image file, or a folder of images, for a contact sheet.")],
    model: Annotated[str, typer.Option(help="Any timm ViT.")] = "deit_tiny_patch16_224",
    checkpoint: CheckpointOption = None,
    method: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(METHODS)}; several with commas between them. A category index asks for grad-rollout."
        ),
    ] = None,
    head_fusion: HeadFusionOption = "max",
    discard_ratio: DiscardOption = 0.9,
    category_index: CategoryOption = None,
    limit: Annotated[int, typer.Option(help="Images of a folder, spread evenly over it.", min=1)] = 6,
    device: DeviceOption = "auto",
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture to write: .png, .svg, .pdf, ...")] = Path(
        "explanation.png"
    ),
) -> None:
    """Draw which patches of an image matter to a ViT (vit-explain's options and defaults, any timm ViT)."""
    default = "rollout" if category_index is None else "grad-rollout"
    methods = [check_choice("method", name.strip(), METHODS) for name in (method or default).split(",")]
    check_choice("picture format", output.suffix.lstrip(".").lower(), FigureCanvasBase.filetypes)
    pictures = open_images(image, limit)
    vit = load_model(model, checkpoint, device=find_device(device))
    options = {"head_fusion": head_fusion, "discard_ratio": discard_ratio, "category_index": category_index}
    guides = [make_guide(name, vit, **options) for name in methods]
    transform, rows = model_transform(vit), []
    for picture in tqdm(pictures.values(), desc="images", mininterval=1, delay=2):
        images = transform(picture)[None].to(next(vit.parameters()).device)
        pixels = to_pixels(images, vit)[0]
        rows.append([pixels, *(overlay(pixels, guide(images)[0].cpu()) for guide in guides)])
    use_slide_style()
    figure = show_pictures(rows, ["image", *methods], [shorten(name, max(8, 40 // len(pictures))) for name in pictures])
    figure.suptitle(model)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)
    print(output)


def video(
    source: Annotated[Path, typer.Argument(help="A video file.")],
    output: Annotated[Path, typer.Argument(help="What to write: .mp4, .mov, .mkv, or .gif for slides.")],
    model: Annotated[
        str, typer.Option(help="Any timm ViT; several with commas between them, side by side.")
    ] = "deit_tiny_patch16_224",
    method: Annotated[
        str, typer.Option(help=f"{', '.join(METHODS)}, or heads, which shows the last block's heads one by one.")
    ] = "rollout",
    head_fusion: HeadFusionOption = "max",
    discard_ratio: DiscardOption = 0.9,
    category_index: CategoryOption = None,
    width: Annotated[int | None, typer.Option(help="Most pixels of all panels together.", min=2)] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    device: DeviceOption = "auto",
) -> None:
    """Draw what matters to ViTs over every frame of a video; sound and timing are kept, and a killed run goes on."""
    check_choice("method", method, (*METHODS, "heads"))
    options = {"head_fusion": head_fusion, "discard_ratio": discard_ratio, "category_index": category_index}
    columns = {"video": Column()}
    for name in map(str.strip, model.split(",")):
        vit = load_model(name, device=find_device(device))
        columns[name] = Column(HeadsGuide(vit) if method == "heads" else make_guide(method, vit, **options), vit)
    print(draw_on_video(source, output, columns, width=width, batch_size=batch_size))


def probe(
    data: Annotated[str, typer.Option(help=DATA_HELP)],
    model: Annotated[
        str, typer.Option(help="Any timm ViT; several with commas between them, side by side.")
    ] = "deit_tiny_patch16_224",
    split: Annotated[str, typer.Option(help="Part of the data, where it has parts.")] = "validation",
    limit: LimitOption = 1_000,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    num_workers: WorkersOption = 0,
    device: DeviceOption = "auto",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for table and figure.")] = Path("runs/probe"),
) -> None:
    """How far each head of ViTs looks, over many images, and their first filters; notebook 5 shows more."""
    names = [name.strip() for name in model.split(",")]
    use_slide_style()
    figure, axes = plt.subplots(2, len(names), squeeze=False)
    tables = []
    for (upper, lower), name in zip(axes.T, names, strict=True):
        vit = load_model(name, device=find_device(device))
        dataset = open_data(data, model_transform(vit), split=split)
        lower.imshow(tile_pictures(projection_filters(vit), columns=7))
        lower.axis("off")
        stream = (batch.images for batch in batches(dataset, batch_size, limit=limit, num_workers=num_workers))
        distances, spreads = mean_attention_distance(vit, stream)
        plot_attention_distances(upper, distances, patch_distances(grid_size(vit), vit.patch_embed.patch_size).mean())
        upper.set_title(name)
        tables.append(distance_table(name, distances, spreads))
    table = pd.concat(tables, ignore_index=True)
    picture = save_figure(figure, output, "probe")
    write_whole(output / "attention_distance.csv", partial(table.to_csv, index=False))
    means = table.groupby(["model", "block"], sort=False).mean_px.agg(["min", "mean", "max"])
    print("mean attention distance of the heads of each block, in pixels")
    print(means.round(1).to_string())
    print(picture)


def distance_table(name: str, distances: Tensor, spreads: Tensor) -> pd.DataFrame:
    """One row per head: model, block, head, mean distance and its spread over images, in pixels."""
    num_blocks, num_heads = distances.shape
    heads = pd.MultiIndex.from_product([[name], range(1, num_blocks + 1), range(1, num_heads + 1)])
    values = {"mean_px": distances.flatten().tolist(), "std_px": spreads.flatten().tolist()}
    return pd.DataFrame(values, heads.set_names(["model", "block", "head"])).reset_index()
