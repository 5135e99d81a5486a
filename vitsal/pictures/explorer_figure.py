"""The explorer's figure: what a model sees, what matters to it by each guide, and what it makes of that alone."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from vitsal.analysis.exploration import Exploration, View
from vitsal.models.classes import Prediction
from vitsal.models.tokens import grid_size
from vitsal.pictures.overlays import hide_dropped, overlay
from vitsal.pictures.style import COLOURS, SLIDE, figure_bytes, shorten

MARGIN, HEADING, BAR = 0.2, 0.5, 0.44  # inches: between pictures; above one, for its title; of a bar with its gap


def draw_exploration(exploration: Exploration, views: Mapping[str, View]) -> Figure:
    """Draw a picture, and for each guide its map and the patches kept, with the model's likeliest classes.

    Views are what `exploration.look` gives, by the guide's name: one or two, of which the second is compared to the
    first. All is drawn by hand into one pair of axes, in inches from the top left: with axes for every part it takes
    twice as long, and the explorer draws anew at each move of a slider. No pyplot, which would keep the figure.
    """
    figure = Figure(figsize=SLIDE, layout="none")
    canvas = add_canvas(figure)
    columns, top, size = (3, 4.95, 20) if len(views) == 1 else (4, SLIDE[1] / 2 + HEADING, 14)
    side = min(SLIDE[0] / columns, top - HEADING) - MARGIN
    lefts = [(column + 0.5) * SLIDE[0] / columns - side / 2 for column in range(columns)]
    place_picture(canvas, (lefts[0], HEADING, side), exploration.pixels, "image", size)
    place_predictions(canvas, (lefts[0], top, side), exploration.predictions[:5], size)
    first = next(iter(views.values()))
    for row, (name, view) in enumerate(views.items()):
        above = HEADING + row * SLIDE[1] / 2
        title = f"{len(view.keep)} of {view.saliency.numel()} patches" if view is first else _agreement(first, view)
        kept = hide_dropped(exploration.pixels, view.keep, grid_size(exploration.model, exploration.images))
        place_picture(
            canvas, (lefts[1], above, side), overlay(exploration.pixels, view.saliency), shorten(name, 30), size
        )
        place_picture(canvas, (lefts[2], above, side), kept, title, size)
        place = (lefts[2], top, side) if columns == 3 else (lefts[3], above, side)
        place_predictions(canvas, place, view.predictions, size)
    return figure


def add_canvas(figure: Figure) -> Axes:
    """Axes that cover a slide, in inches from its top left, without anything on them."""
    canvas = figure.add_axes((0, 0, 1, 1), xlim=(0, SLIDE[0]), ylim=(SLIDE[1], 0))
    canvas.axis("off")
    return canvas


def place_picture(
    canvas: Axes, place: tuple[float, float, float], picture: np.ndarray, title: str = "", size: float = 20.0
) -> None:
    """A picture in the square at (left, top, side), its longer side as long as the square's."""
    left, top, side = place
    height, width = side * np.array(picture.shape[:2]) / max(picture.shape[:2])
    canvas.imshow(picture, extent=(left, left + width, top + height, top), aspect="auto")
    canvas.text(left + width / 2, top - 0.1, title, ha="center", fontsize=size, parse_math=False)


def place_predictions(
    canvas: Axes, place: tuple[float, float, float], predictions: Sequence[Prediction], size: float
) -> None:
    """Bars of probability at (left, top, width of a certain class), likeliest on top, with the names over them."""
    if not predictions:
        return
    left, top, width = place
    middles = [top + (row + 0.5) * BAR for row in range(len(predictions))]
    canvas.barh(middles, [width * one.probability for one in predictions], 0.85 * BAR, left, color=COLOURS[5])
    for middle, one in zip(middles, predictions, strict=True):
        canvas.text(left + 0.05, middle, shorten(one.name, 24), va="center", fontsize=0.8 * size, parse_math=False)
    bottom = top + len(predictions) * BAR
    canvas.plot([left, left + width], [bottom, bottom], color="black", lw=1)
    for share, label in {0: "0", 0.5: "probability", 1: "1"}.items():
        canvas.text(left + share * width, bottom + 0.05, label, ha="center", va="top", fontsize=0.8 * size)


def _agreement(first: View, other: View) -> str:
    """How far two guides agree: on which patches to keep, and on the order of all."""
    correlation = spearmanr(first.saliency.flatten(), other.saliency.flatten()).statistic
    shared = len(set(first.keep.tolist()) & set(other.keep.tolist())) / len(other.keep)
    return f"{100 * shared:.0f} % shared, Spearman {correlation:.2f}"


def download_links(figure: Figure, name: str) -> str:
    """Links, in HTML, that hand a figure to the browser as `<name>.png`, at 200 dpi, and as `<name>.svg`."""
    return " ".join(
        f'<a download="{escape(name)}.{kind}" href="data:image/{mime};base64,'
        f'{b64encode(figure_bytes(figure, kind)).decode()}">{kind.upper()}</a>'
        for kind, mime in {"png": "png", "svg": "svg+xml"}.items()
    )
