"""The commands that draw: `explain`, `video`, `probe`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import typer
from matplotlib.backend_bases import FigureCanvasBase
from torch import Tensor, nn
from tqdm import tqdm

from vitsal.analysis.exploration import Exploration
from vitsal.analysis.probing import mean_attention_distance, patch_distances, projection_filters
from vitsal.choices import METHODS, PICTURED, SEGMENT, VIT_EXPLAIN, WIDEST
from vitsal.cli.options import (
    DATA_HELP,
    BatchSizeOption,
    CategoryOption,
    CheckpointOption,
    DeviceOption,
    DiscardOption,
    HeadFusionOption,
    ImageSizeOption,
    LimitOption,
    WorkersOption,
    data_path,
    load_sized_model,
    taken_options,
)
from vitsal.data.images import Batch, batches
from vitsal.data.opening import open_data
from vitsal.data.pictures import open_images, warn_of_skipped
from vitsal.errors import LARGEST_COUNT, check_choice, printable
from vitsal.guides.explainers import HeadGuide
from vitsal.guides.factory import Guide, make_guide
from vitsal.jobs.files import write_whole
from vitsal.jobs.outputs import check_output, check_output_folder
from vitsal.jobs.processes import find_device
from vitsal.models.classes import Prediction
from vitsal.models.loading import load_model
from vitsal.models.tokens import grid_size, model_transform
from vitsal.pictures.charts import plot_attention_distances, share_legend
from vitsal.pictures.overlays import overlay, tile_pictures
from vitsal.pictures.sheets import SLIDE, contact_sheet, write_titles
from vitsal.pictures.style import save_figure, shorten, use_slide_style
from vitsal.pictures.video import draw_on_video
from vitsal.pictures.video_panels import Column

METHOD_HELP = (
    f"{', '.join(METHODS)}, or heads, which shows the last block's heads one by one. (Abnar & Zuidema's flow is flow "
    "with --head-fusion mean --discard-ratio 0.)"
)


def explain(
    image: Annotated[Path, typer.Argument(help="An image file, or a folder of images, for a contact sheet.")],
    model: Annotated[str, typer.Option(help="Any timm ViT.")] = "deit_tiny_patch16_224",
    checkpoint: CheckpointOption = None,
    method: Annotated[
        str | None,
        typer.Option(help=f"{METHOD_HELP} Several with commas between them. A category index asks for grad-rollout."),
    ] = None,
    head_fusion: HeadFusionOption = None,
    discard_ratio: DiscardOption = None,
    category_index: CategoryOption = None,
    image_size: ImageSizeOption = None,
    limit: Annotated[
        int, typer.Option(help="Images of a folder, spread evenly over it.", min=1, max=LARGEST_COUNT)
    ] = 6,
    device: DeviceOption = "auto",
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture to write: .png, .svg, .pdf, ...")] = Path(
        "explanation.png"
    ),
) -> None:
    """Draw which patches of an image matter to a ViT, and print the classes it thinks likeliest, with their indices.

    The model sees the middle of the image, cut to the shape of its input (a square, unless --image-size says
    otherwise), as its own transform does it. Options and defaults are vit-explain's; any timm ViT.
    """
    default = "rollout" if category_index is None else "grad-rollout"
    methods = [
        check_choice("method", name.strip(), PICTURED) for name in (default if method is None else method).split(",")
    ]
    kind = check_choice("picture format", output.suffix.lstrip(".").lower(), FigureCanvasBase.filetypes)
    options = {"head_fusion": head_fusion, "discard_ratio": discard_ratio, "category_index": category_index}
    options = VIT_EXPLAIN | taken_options(methods, **options)
    check_output(output, image, checkpoint, *(image.iterdir() if os.path.isdir(image) else ()))
    if os.path.isdir(image):
        check_output_folder(output.parent, image)
    pictures = open_images(image, limit)
    vit = load_sized_model(model, image_size, device, checkpoint)
    guides = {name: picture_guide(name, vit, **options) for name in methods}
    samples, lines = [], []
    for name, picture in tqdm(pictures.items(), desc="images", mininterval=1, delay=2):
        seen = Exploration(vit, picture)
        samples.append(draw_sample(Path(name).stem, seen, guides, category_index))
        if seen.predictions:
            lines.append(
                f"{printable(name)}: " + ", ".join(f"class {top.index}: {top}" for top in seen.predictions[:3])
            )
    use_slide_style()
    figure = contact_sheet(samples)
    figure.suptitle(printable(model), parse_math=False)
    write_whole(output, partial(figure.savefig, format=kind))
    print(*lines, output, sep="\n")


def picture_guide(method: str, vit: nn.Module, **options: object) -> Guide:
    """The guide that a command draws: one of METHODS with its options (`make_guide`), or "heads"."""
    return HeadGuide(vit) if method == "heads" else make_guide(method, vit, **options)


def draw_sample(
    name: str, seen: Exploration, guides: Mapping[str, Guide], category_index: int | None
) -> dict[str, np.ndarray]:
    """A picture as the model sees it, and the guides' maps over it: heading -> (H, W, 3).

    The picture's heading tells what the model takes it for; that of a map by gradients, the class that it explains.
    """
    takes_for = f"\n{seen.predictions[0]}" if seen.predictions else ""
    sample = {shorten(name, 32) + takes_for: seen.pixels}
    for method, guide in guides.items():
        maps = seen.saliency(guide)
        if maps.ndim == 3:
            sample |= {f"head {number}": overlay(seen.pixels, head) for number, head in enumerate(maps, 1)}
        else:
            explained = f":\n{prediction_of(seen, category_index)}" if method.startswith("grad-") else ""
            sample[method + explained] = overlay(seen.pixels, maps)
    return sample


def prediction_of(seen: Exploration, category_index: int | None) -> Prediction:
    """What the model thinks of one class; of the likeliest, where none is given."""
    if category_index is None:
        return seen.predictions[0]
    probabilities = seen.record.logits[0].softmax(dim=0)
    return Prediction(category_index, seen.names[category_index], probabilities[category_index].item())


def video(
    source: Annotated[Path, typer.Argument(help="A video file.")],
    output: Annotated[Path, typer.Argument(help="What to write: .mp4, .mov, .mkv, or .gif for slides.")],
    model: Annotated[
        str, typer.Option(help="Any timm ViT; several with commas between them, side by side.")
    ] = "deit_tiny_patch16_224",
    method: Annotated[str, typer.Option(help=METHOD_HELP)] = "rollout",
    head_fusion: HeadFusionOption = None,
    discard_ratio: DiscardOption = None,
    category_index: CategoryOption = None,
    image_size: ImageSizeOption = None,
    width: Annotated[int | None, typer.Option(help="Most pixels of all panels together.", min=2, max=WIDEST)] = None,
    batch_size: Annotated[int, typer.Option(help="Frames at once.", min=1, max=SEGMENT)] = 8,
    device: DeviceOption = "auto",
) -> None:
    """Draw what matters to ViTs over every frame of a video; sound and timing are kept, and a killed run goes on.

    Each frame is squeezed into the model's input, a square, unless --image-size says otherwise: 288,512 for 16:9.
    """
    check_choice("method", method, PICTURED)
    options = {"head_fusion": head_fusion, "discard_ratio": discard_ratio, "category_index": category_index}
    options = VIT_EXPLAIN | taken_options([method], **options)
    check_output(output, source)
    columns = {"video": Column()}
    for name in map(str.strip, model.split(",")):
        vit = load_sized_model(name, image_size, device)
        columns[name] = Column(picture_guide(method, vit, **options), vit)
    print(draw_on_video(source, output, columns, width=width, batch_size=batch_size))


def probe(
    data: Annotated[str, typer.Option(help=DATA_HELP)],
    model: Annotated[
        str, typer.Option(help="Any timm ViT; several with commas between them, side by side.")
    ] = "deit_tiny_patch16_224",
    split: Annotated[str, typer.Option(help="Part of the data, where it has parts.")] = "validation",
    limit: LimitOption = 1_000,
    batch_size: BatchSizeOption = 32,
    num_workers: WorkersOption = 0,
    device: DeviceOption = "auto",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for table and figure.")] = Path("runs/probe"),
) -> None:
    """How far each head of ViTs looks, over many images, and their first filters; notebook 5 shows more."""
    check_output_folder(output, data_path(data))
    names = [name.strip() for name in model.split(",")]
    use_slide_style()
    figure, axes = plt.subplots(2, len(names), squeeze=False)
    tables = []
    for (upper, lower), name in zip(axes.T, names, strict=True):
        vit = load_model(name, device=find_device(device))
        dataset = open_data(data, model_transform(vit), split=split)
        lower.imshow(tile_pictures(projection_filters(vit), columns=7))
        lower.axis("off")
        images = Readable(batches(dataset, batch_size, limit=limit, num_workers=num_workers))
        distances, spreads = mean_attention_distance(vit, images)
        plot_attention_distances(upper, distances, patch_distances(grid_size(vit), vit.patch_embed.patch_size).mean())
        tables.append(distance_table(name, distances, spreads))
    write_titles(axes[0], names, SLIDE[0] / len(names))
    share_legend(figure, axes[0, 0])
    table = pd.concat(tables, ignore_index=True)
    picture = save_figure(figure, output, "probe")
    write_whole(output / "attention_distance.csv", partial(table.to_csv, index=False))
    means = table.groupby(["model", "block"], sort=False).mean_px.agg(["min", "mean", "max"])
    print(f"mean attention distance of the heads of each block, in pixels, over {images.count} images")
    print(means.round(1).to_string())
    print(picture)


@dataclass
class Readable:
    """The images of batches, counted; at the end, those that could not be read are named."""

    batches: Iterable[Batch]
    count: int = 0

    def __iter__(self) -> Iterator[Tensor]:
        skipped: dict[str, str] = {}
        for batch in self.batches:
            self.count += len(batch.names)
            skipped |= batch.skipped
            yield batch.images
        warn_of_skipped(skipped)


def distance_table(name: str, distances: Tensor, spreads: Tensor) -> pd.DataFrame:
    """One row per head: model, block, head, mean distance and its spread over images, in pixels."""
    num_blocks, num_heads = distances.shape
    heads = pd.MultiIndex.from_product([[name], range(1, num_blocks + 1), range(1, num_heads + 1)])
    values = {"mean_px": distances.flatten().tolist(), "std_px": spreads.flatten().tolist()}
    return pd.DataFrame(values, heads.set_names(["model", "block", "head"])).reset_index()
