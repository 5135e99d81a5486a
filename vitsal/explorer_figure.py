"""The explorer's figure: what a model sees, what matters to it by each guide, and what it makes of that alone."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from vitsal.classes import Prediction
from vitsal.exploration import Exploration, View
from vitsal.models import grid_size
from vitsal.plotting import COLOURS, SLIDE, hide_dropped, overlay, shorten

ROOM = {"left": 0.015, "right": 0.985, "top": 0.93, "bottom": 0.09, "wspace": 0.08, "hspace": 0.2}


def draw_exploration(exploration: Exploration, views: Mapping[str, View]) -> Figure:
    """Draw a picture, and for each guide its map and the patches kept, with the model's likeliest classes.

    Args:
        exploration: the picture in the model.
        views: guide's name -> what `exploration.look` gives; one or two, of which the second is compared to the first.
    """
    # laid out by hand, since constrained layout takes longer than all drawing; no pyplot, which would keep the figure
    figure = Figure(figsize=SLIDE, layout="none")
    wide = len(views) == 1
    axes = figure.subplots(2, 3 if wide else 4, gridspec_kw={"height_ratios": [5, 3] if wide else [1, 1], **ROOM})
    size = 20 if wide else 14
    _show(axes[0, 0], exploration.pixels, "image", size)
    _plot_predictions(axes[1, 0], exploration.predictions[:5], size)
    if wide:
        axes[1, 1].axis("off")
    rows = [(axes[0, 1], axes[0, 2], axes[1, 2])] if wide else axes[:, 1:]
    first = next(iter(views.values()))
    for (map_axis, kept_axis, bars_axis), (name, view) in zip(rows, views.items(), strict=True):
        kept = hide_dropped(exploration.pixels, view.keep, grid_size(exploration.model, exploration.images))
        title = f"{len(view.keep)} of {view.saliency.numel()} patches" if view is first else _agreement(first, view)
        _show(map_axis, overlay(exploration.pixels, view.saliency), shorten(name, 30), size)
        _show(kept_axis, kept, title, size)
        _plot_predictions(bars_axis, view.predictions, size)
    return figure


def _show(axis: Axes, picture: np.ndarray, title: str, size: float) -> None:
    axis.imshow(picture)
    axis.set_title(title, y=1.01, fontsize=size)  # a given height spares a search for one, a third of all drawing
    axis.axis("off")


def _plot_predictions(axis: Axes, predictions: Sequence[Prediction], size: float) -> None:
    """Bars of probability, likeliest on top, with the names over them."""
    if not predictions:
        axis.axis("off")
        return
    places = range(len(predictions))
    axis.barh(places, [top.probability for top in predictions], color=COLOURS[5], height=0.85)
    for place, top in zip(places, predictions, strict=True):
        axis.text(0.02, place, shorten(top.name, 24), va="center", fontsize=0.8 * size)
    axis.set(xlim=(0, 1), xticks=[0, 0.5, 1], yticks=[])
    axis.set_title("", y=1)
    axis.invert_yaxis()
    axis.set_xlabel("probability", fontsize=0.8 * size)
    axis.tick_params(labelsize=0.8 * size)
    axis.spines[["top", "right", "left"]].set_visible(False)


def _agreement(first: View, other: View) -> str:
    """How far two guides agree: on which patches to keep, and on the order of all."""
    correlation = spearmanr(first.saliency.flatten(), other.saliency.flatten()).statistic
    shared = len(set(first.keep.tolist()) & set(other.keep.tolist())) / len(other.keep)
    return f"{100 * shared:.0f} % shared, Spearman {correlation:.2f}"


def figure_bytes(figure: Figure, kind: str, dpi: float = 200) -> bytes:
    """A figure as the content of a file: "png", "svg" or "jpeg"."""
    buffer = BytesIO()
    figure.savefig(buffer, format=kind, dpi=dpi)
    return buffer.getvalue()


def download_links(figure: Figure, name: str) -> str:
    """Links, in HTML, that hand a figure to the browser as `<name>.png`, at 200 dpi, and as `<name>.svg`."""
    files = {"PNG": ("png", "image/png"), "SVG": ("svg", "image/svg+xml")}
    return " ".join(
        f'<a download="{escape(name)}.{kind}" href="data:{mime};base64,'
        f'{b64encode(figure_bytes(figure, kind)).decode()}">{label}</a>'
        for label, (kind, mime) in files.items()
    )
