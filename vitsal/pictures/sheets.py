"""Contact sheets: pictures with their maps beside them, laid out as large as a slide allows."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from vitsal.analysis.exploration import Exploration
from vitsal.guides.factory import Guide
from vitsal.models.classes import Prediction
from vitsal.pictures.overlays import overlay, tile_pictures
from vitsal.pictures.style import SLIDE, shorten

TITLE, BAR = 0.5, 1.0  # inches left for a title of the whole sheet; for a colour bar under the pictures or beside them
NAME = 2.0  # inches that a row's name takes at least, to lie flat
Grid = list[list[tuple[str, np.ndarray] | None]]  # headings and pictures in rows, all of one length


def explain_pictures(
    pictures: Mapping[str, Image.Image],
    model: nn.Module,
    guides: Mapping[str, Guide],
    category_index: int | None = None,
) -> tuple[list[dict[str, np.ndarray]], dict[str, list[Prediction]]]:
    """Explain pictures, name of the file -> picture in RGB, to a timm ViT in eval mode, one after the other.

    Args:
        guides: name -> guide, such as `picture_guide` makes.
        category_index: the class that guides by gradients explain; None is the likeliest.

    Returns:
        The samples of a contact sheet (`draw_sample`), and name -> likeliest classes, none of a model without any.
    """
    samples, predictions = [], {}
    for name, picture in tqdm(pictures.items(), desc="images", mininterval=1, delay=2):
        seen = Exploration(model, picture)
        samples.append(draw_sample(Path(name).stem, seen, guides, category_index))
        predictions[name] = seen.predictions
    return samples, predictions


def draw_sample(
    name: str, seen: Exploration, guides: Mapping[str, Guide], category_index: int | None = None
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
            explained = f":\n{seen.prediction(category_index)}" if method.startswith("grad-") else ""
            sample[method + explained] = overlay(seen.pixels, maps)
    return sample


def contact_sheet(samples: Sequence[Mapping[str, np.ndarray]], title: str = "") -> plt.Figure:
    """Draw samples, each a picture with its maps beside it, under headings; one that stands above already is left out.

    One colour bar serves all maps (`add_colour_bar`).

    Args:
        samples: heading -> picture, (H, W, 3) in [0, 1] and all of one shape; each sample's first one is its picture,
            the others, at least one, are its maps, as many in each sample.
        title: of the whole sheet.
    """
    ways = product(range(1, len(samples[0])), range(1, len(samples) + 1))
    grids = [_arrange(samples, across, abreast) for across, abreast in ways]
    grid = max(grids, key=lambda grid: (_picture_width(grid), -len(grid) * len(grid[0])))  # of equals, fewest gaps
    figure, axes = plt.subplots(len(grid), len(grid[0]), squeeze=False, figsize=SLIDE, layout="compressed")
    width = _picture_width(grid, below=BAR)
    for axis, cell in zip(axes.flat, chain(*grid), strict=True):
        axis.axis("off")
        if cell:
            show_picture(axis, cell[1])
            write_titles([axis], [cell[0]], width)
    add_colour_bar(figure)
    if title:
        figure.suptitle(title, parse_math=False)
    return figure


def _arrange(samples: Sequence[Mapping[str, np.ndarray]], across: int, abreast: int) -> Grid:
    """Lay samples out, `abreast` of them side by side, each with its picture at the left and `across` maps in a row."""
    down = -(-(len(samples[0]) - 1) // across)
    grid: Grid = [[None] * abreast * (1 + across) for _ in range(down * -(-len(samples) // abreast))]
    above: dict[int, str] = {}  # column -> the heading last met there
    for number, sample in enumerate(samples):
        top, left = number // abreast * down, number % abreast * (1 + across)
        for index, (heading, picture) in enumerate(sample.items(), -1):
            row, column = (top, left) if index < 0 else (top + index // across, left + 1 + index % across)
            grid[row][column] = ("" if above.get(column) == heading else heading, picture)
            above[column] = heading
    return grid


def _picture_width(grid: Grid, below: float = 0.0) -> float:
    """Width of each picture of a sheet, in inches, headings allowed for, and so many inches below."""
    headings = [[cell[0] for cell in row if cell] for row in grid]
    return picture_size(grid[0][0][1], headings, len(grid[0]), below)[1]


def picture_size(
    picture: np.ndarray, headings: Sequence[Sequence[str]], columns: int, below: float = 0.0
) -> tuple[float, float]:
    """Height and width, in inches, of pictures shaped as this one, (H, W, 3), in a grid that fills a slide.

    A title is left room for above, and so many inches `below`; headings are written over the pictures, row by row, in
    lines of 16 letters (`fit_text`).
    """
    aspect = picture.shape[1] / picture.shape[0]
    lines = sum(max((len(fit_text(text, width=1)[0].splitlines()) for text in row), default=0) for row in headings)
    # of 16 letters across a picture a line is an eighth of it high
    height = min((SLIDE[1] - TITLE - below) / (len(headings) + lines * aspect / 8), SLIDE[0] / columns / aspect)
    return height, height * aspect


def show_picture(axis: plt.Axes, picture: np.ndarray) -> None:
    """Draw a picture (H, W, 3) without ticks or frame."""
    axis.imshow(picture)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def write_titles(axes: Iterable[plt.Axes], titles: Iterable[str], width: float) -> None:
    """Write a title over each of these axes, which are `width` inches wide."""
    for axis, title in zip(axes, titles, strict=True):
        text, size = fit_text(title, width)
        axis.set_title(text, fontsize=size, parse_math=False)  # a name may hold dollar signs


def fit_text(text: str, width: float) -> tuple[str, float]:
    """Wrap a text to a width in inches, and give the size of its type: 20 points, or what leaves room for 16 letters.

    Where a line is too long, underscores turn into blanks, so that a model's name breaks between its words.

    Example:
        >>> fit_text("vit_base_patch16_224", 2.0)
        ('vit base patch16\\n224', 15.0)
    """
    letter = 0.6  # width of most letters, in sizes of the type
    size = min(20.0, 72 * width / (16 * letter))
    room = round(72 * width / (letter * size))
    lines = text.replace(" %", "\u00a0%").splitlines()  # no line begins with a percent sign
    whole = [line if len(line) <= room else line.replace("_", " ") for line in lines]
    return "\n".join(textwrap.fill(line, room) for line in whole), size


def show_pictures(
    rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], row_names: Sequence[str] = ()
) -> plt.Figure:
    """Rows of pictures (H, W, 3), as large as a slide allows, a title over each column, a name beside each row.

    Names lie flat where the slide has room for them, and stand upright where pictures fill its width.
    """
    columns = len(rows[0])
    height, width = picture_size(rows[0][0], [titles, *[[]] * (len(rows) - 1)], columns)
    figure, axes = plt.subplots(len(rows), columns, squeeze=False, figsize=SLIDE, layout="compressed")
    for axis, picture in zip(axes.flat, chain(*rows), strict=True):
        show_picture(axis, picture)
    write_titles(axes[0], titles, width)
    room = SLIDE[0] - columns * width - BAR
    flat = {"rotation": "horizontal", "ha": "right", "va": "center"} if room > NAME else {}
    for axis, name in zip(axes[:, 0], row_names, strict=False):
        text, size = fit_text(name, min(room, 2.5 * NAME) if flat else height)
        axis.set_ylabel(text, fontsize=size, parse_math=False, **flat)
    return figure


def add_colour_bar(figure: plt.Figure) -> None:
    """Add one colour bar for all overlays of a figure of pictures: their colours over a grey of middle brightness.

    It goes where the slide has room: to the right, or, of pictures that fill the width, below them.
    """
    ramp = overlay(np.full((1, 512, 3), 0.5, dtype=np.float32), np.linspace(0, 1, 256)[None])[0, 1::2]  # between lines
    grid, picture = figure.axes[0].get_gridspec(), figure.axes[0].images[0].get_array()
    if grid.ncols * picture.shape[1] / (grid.nrows * picture.shape[0]) > 1.7:
        place, between = {"location": "bottom", "shrink": 0.5, "aspect": 40}, " "
    else:
        place, between = {"location": "right", "shrink": 0.6}, "\n"
    bar = figure.colorbar(ScalarMappable(cmap=ListedColormap(ramp)), ax=figure.axes, **place)
    bar.set_ticks([0, 1], labels=[f"{end} salient{between}patch of{between}each map" for end in ("least", "most")])


def draw_filters(filters: Mapping[str, Tensor]) -> plt.Figure:
    """Draw models' filters side by side, name -> (n, h, w, 3), in as many columns as fill a slide."""
    room = SLIDE[0] / len(filters), SLIDE[1] - TITLE
    sheets = {name: tile_pictures(tiles, columns_that_fill(len(tiles), *room)) for name, tiles in filters.items()}
    return _draw_sheets(sheets)


def draw_positions(similarities: Mapping[str, Tensor]) -> plt.Figure:
    """Draw how alike models' position embeddings are, side by side, name -> (gh, gw, gh, gw), with a colour bar.

    Similarities are as `vitsal.analysis.position_similarity` returns them. Of the patches a few are shown, spread
    evenly and as many as fill a slide: of each, in its place, the map of its similarity to all patches.
    """
    lowest = min(similarity.min().item() for similarity in similarities.values())
    sheets = {}
    for name, similarity in similarities.items():
        height, width = similarity.shape[:2]
        down = min(height, 6)
        across = min(width, max(1, round(down * SLIDE[0] / len(similarities) / SLIDE[1])))
        rows, columns = (torch.linspace(0, *ends).round().long() for ends in ((height - 1, down), (width - 1, across)))
        sheets[name] = tile_pictures(similarity[rows][:, columns].flatten(0, 1), across, gap=2)
    figure = _draw_sheets(sheets, vmin=lowest, vmax=1)
    figure.colorbar(figure.axes[0].images[0], ax=figure.axes, label="cosine similarity", shrink=0.8)
    return figure


def _draw_sheets(sheets: Mapping[str, np.ndarray], **scale: float) -> plt.Figure:
    """Sheets of tiles side by side, a name above each."""
    figure, axes = plt.subplots(1, len(sheets), squeeze=False, layout="compressed", gridspec_kw={"wspace": 0.08})
    for axis, sheet in zip(axes[0], sheets.values(), strict=True):
        axis.imshow(sheet, cmap="viridis", **scale)
        axis.axis("off")
    write_titles(axes[0], sheets, 0.9 * SLIDE[0] / len(sheets))
    return figure


def columns_that_fill(count: int, width: float, height: float) -> int:
    """In how many columns `count` square tiles are largest in so much room."""
    return max(range(1, count + 1), key=lambda columns: min(width / columns, height / -(-count // columns)))
