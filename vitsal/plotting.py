"""Static figures for slides: 16:9, large type, colour-blind safe, saved as PNG at 200 dpi and as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython import get_ipython
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torch import Tensor, nn
from torch.nn import functional as F

from vitsal.benchmark import PLAIN
from vitsal.errors import printable
from vitsal.models import denormalize
from vitsal.sheets import SLIDE, fit_text, picture_size, show_picture, write_titles

# Okabe & Ito's palette, told apart with any colour vision; markers and line styles tell the curves apart in grey too
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HEAT_MAP = "inferno"


def use_slide_style() -> None:
    """Set matplotlib's defaults for this course's figures; pictures inside notebooks are kept small (JPEG, 60 dpi)."""
    if get_ipython() is not None:
        set_matplotlib_formats("jpeg", bbox_inches=None)
    plt.rcParams.update(
        {
            "figure.figsize": SLIDE,
            "figure.dpi": 60,
            "figure.constrained_layout.use": True,
            "font.size": 20,
            "text.parse_math": False,  # names of files and models may hold dollar signs
            "axes.titlesize": 20,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": plt.cycler(color=COLOURS),
            "lines.linewidth": 3,
            "lines.markersize": 9,
            "legend.frameon": False,
            "legend.fontsize": 17,
            "svg.fonttype": "none",
            "savefig.dpi": 200,
        }
    )


def save_figure(figure: Figure, folder: str | Path, name: str) -> Path:
    """Save a figure as `<folder>/<name>.png`, 200 dpi, and `.svg`; returns the PNG's path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("svg", "png"):
        figure.savefig(folder / f"{name}.{kind}", metadata={"Date": None} if kind == "svg" else None)
    return folder / f"{name}.png"


def to_pixels(images: Tensor, model: nn.Module) -> np.ndarray:
    """Undo a model's normalisation for drawing: (B, 3, H, W) -> (B, H, W, 3) in [0, 1]."""
    return denormalize(images, model).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()


def scale_map(saliency: Tensor | np.ndarray) -> np.ndarray:
    """Scale one map (gh, gw) to [0, 1] by its own minimum and maximum: for looking at, not for comparing images."""
    values = np.asarray(torch.as_tensor(saliency).float().cpu())
    span = values.max() - values.min()
    return (values - values.min()) / span if span > 0 else np.zeros_like(values)


def overlay(pixels: np.ndarray, saliency: Tensor | np.ndarray, strength: float = 0.6) -> np.ndarray:
    """Lay a saliency map, scaled and enlarged, over its image: (H, W, 3) and (gh, gw) -> (H, W, 3) in [0, 1]."""
    scaled = torch.from_numpy(scale_map(saliency))[None, None]
    large = F.interpolate(scaled, pixels.shape[:2], mode="bilinear", align_corners=False)[0, 0].numpy()
    return (1 - strength) * pixels + strength * plt.get_cmap(HEAT_MAP)(large)[..., :3]


def hide_dropped(pixels: np.ndarray, keep: Tensor, grid_size: tuple[int, int], shade: float = 0.85) -> np.ndarray:
    """Grey out the patches that are not kept: (H, W, 3) and (K,) -> (H, W, 3)."""
    kept = torch.zeros(grid_size[0] * grid_size[1])
    kept[keep.cpu()] = 1
    mask = F.interpolate(kept.view(1, 1, *grid_size), pixels.shape[:2], mode="nearest")[0, 0].numpy()[..., None]
    return pixels * mask + shade * (1 - mask)


def show_pictures(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], row_names: Sequence[str] = ()) -> Figure:
    """Rows of pictures (H, W, 3), as large as a slide allows, a title over each column, a name beside each row."""
    height, width = picture_size(rows[0][0], [titles, *[[]] * (len(rows) - 1)], len(rows[0]))
    figure, axes = plt.subplots(len(rows), len(rows[0]), squeeze=False, figsize=SLIDE, layout="compressed")
    for axis, picture in zip(axes.flat, chain(*rows), strict=True):
        show_picture(axis, picture)
    write_titles(axes[0], titles, width)
    for axis, name in zip(axes[:, 0], row_names, strict=False):
        text, size = fit_text(name, height)
        axis.set_ylabel(text, fontsize=size, parse_math=False)
    return figure


def shorten(name: str, most: int) -> str:
    """A name that fits beside a picture: its middle left out where it is longer than `most` characters."""
    name, half = printable(name), (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


def plot_drop_curves(axis: Axes, table: pd.DataFrame, styles: Mapping[str, int]) -> None:
    """Draw accuracy against drop ratio, one curve per guide, with its 95 % band.

    Args:
        axis: where to draw.
        table: as `vitsal.outcomes.summarize` returns it, for one target.
        styles: guide -> number of its colour and marker, so that a guide looks the same in every figure.
    """
    for guide, rows in table.groupby("guide", sort=False):
        rows = rows.sort_values("keep_ratio")
        dropped = 100 * (1 - rows.keep_ratio)
        axis.plot(dropped, 100 * rows.top1, label=guide, **curve_style(styles[guide]))
        colour = COLOURS[styles[guide]]
        axis.fill_between(dropped, 100 * rows.ci_low, 100 * rows.ci_high, color=colour, alpha=0.2, linewidth=0)
    label_drop_axis(axis)


def plot_published(axis: Axes, curves: pd.DataFrame, styles: Mapping[str, int]) -> None:
    """Draw published curves (columns guide, drop_percent, top1), dashed: they come without intervals."""
    for guide, rows in curves.groupby("guide", sort=False):
        axis.plot(rows.drop_percent, 100 * rows.top1, ls="--", label=guide, **curve_style(styles[guide]))
    label_drop_axis(axis)


def curve_style(number: int) -> dict[str, str]:
    """Colour and marker number `number` of the colour-blind safe palette."""
    return {"color": COLOURS[number], "marker": MARKERS[number]}


def label_drop_axis(axis: Axes) -> None:
    """Label a drop curve, and fix its range so that figures can be laid side by side; inner labels are left out."""
    axis.set(xlabel="patches dropped (%)", ylabel="top-1 accuracy (%)", xlim=(-3, 94), ylim=(0, 102))
    axis.grid(axis="y", alpha=0.3)
    axis.legend(loc="lower left")
    axis.label_outer()


def plot_speedups(axis: Axes, costs: pd.DataFrame, styles: Mapping[str, int]) -> None:
    """Draw speed-up against drop ratio, one curve per guide with the middle half of the rounds as its band.

    What the count of operations allows is dashed, in the same colour; the untouched target is the dotted line at 1.

    Args:
        axis: where to draw.
        costs: as `vitsal.benchmark.pipeline_cost` returns it.
        styles: guide -> number of its colour and marker.
    """
    for guide, rows in costs[costs.guide != PLAIN].groupby("guide", sort=False):
        rows = rows.sort_values("keep_ratio")
        dropped, colour = 100 * (1 - rows.keep_ratio), COLOURS[styles[guide]]
        axis.plot(dropped, rows.speedup, label=guide, **curve_style(styles[guide]))
        axis.fill_between(dropped, rows.speedup_low, rows.speedup_high, color=colour, alpha=0.2, linewidth=0)
        axis.plot(dropped, rows.limit, color=colour, ls="--", lw=1.5)
    axis.plot([], [], color="black", ls="--", lw=1.5, label="limit by operations")
    axis.axhline(1, color="black", ls=":", lw=1.5)
    axis.set(xlabel="patches dropped (%)", ylabel="speed-up (times)", xlim=(-3, 94), ylim=(0, None))
    axis.grid(axis="y", alpha=0.3)
    axis.legend(loc="upper left")
    axis.label_outer()


def plot_accuracy_against_throughput(
    axis: Axes, table: pd.DataFrame, costs: pd.DataFrame, styles: Mapping[str, int]
) -> None:
    """Draw accuracy with its 95 % intervals against measured throughput, one curve per guide: up and right is better.

    The untouched target is a black star. The first guide's points tell how many of the patches are dropped, in percent.

    Args:
        axis: where to draw.
        table: as `vitsal.outcomes.summarize` returns it, for one target.
        costs: as `vitsal.benchmark.pipeline_cost` returns it; guides and keep ratios without a row here are left out.
        styles: guide -> number of its colour and marker; those of the first guide that is drawn bear their percentages.
    """
    joined = _join_costs(table, costs)
    star = {"color": "black", "marker": "*", "markersize": 22, "ls": "none", "zorder": 3}
    for guide, rows in joined.groupby("guide", sort=False):
        style, label = (star, "untouched target") if guide == PLAIN else (curve_style(styles[guide]), guide)
        reach = 100 * np.array([rows.top1 - rows.ci_low, rows.ci_high - rows.top1])
        axis.errorbar(rows.images_per_s, 100 * rows.top1, reach, label=label, elinewidth=1.5, capsize=4, **style)
    first = next((guide for guide in styles if guide in set(joined.guide)), None)
    for row in joined[joined.guide == first].itertuples():
        place = (row.images_per_s, 100 * row.top1)
        axis.annotate(f"{row.dropped} %", place, (8, 8), textcoords="offset points", fontsize=13)
    axis.set(xlabel="throughput (images/s)", ylabel="top-1 accuracy (%)")
    axis.grid(alpha=0.3)
    axis.legend(loc="best")


def _join_costs(table: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """Accuracy beside throughput, matched by guide and whole percent of patches dropped, few dropped first.

    With all patches kept no guide matters: any one's accuracy is the untouched target's.
    """
    table, costs = (t.assign(dropped=(100 - 100 * t.keep_ratio).round().astype(int)) for t in (table, costs))
    plain = table[table.dropped == 0].head(1).assign(guide=PLAIN)
    keys = ["guide", "dropped"]
    joined = pd.concat([table, plain]).merge(costs[[*keys, "images_per_s"]], on=keys, validate="one_to_one")
    return joined.sort_values("dropped", kind="stable")


def plot_learning_curves(axis: Axes, histories: Mapping[str, pd.DataFrame]) -> None:
    """Draw students' divergence from their teachers over the epochs: on held-out images, and, thin, in training.

    Args:
        axis: where to draw.
        histories: name -> history, as `vitsal.distillation.distill` returns it.
    """
    for number, (name, history) in enumerate(histories.items()):
        style = curve_style(number)
        axis.plot(history.epoch, history.kl, label=name, **style)
        axis.plot(history.epoch, history.loss, color=style["color"], lw=1, ls=":")
    axis.set(xlabel="epoch", ylabel="divergence (nats)", ylim=(0, None))
    axis.grid(axis="y", alpha=0.3)
    axis.legend()


def tile_pictures(pictures: np.ndarray | Tensor, columns: int, gap: int = 1) -> np.ndarray:
    """Lay small pictures side by side, row by row: (n, h, w) or (n, h, w, 3) -> one picture with gaps between them.

    Gaps, and places without a picture, are not a number, which matplotlib leaves blank.
    """
    pictures = np.asarray(torch.as_tensor(pictures).cpu(), dtype=np.float32)
    count, height, width, *channels = pictures.shape
    rows = -(-count // columns)
    size = (rows * (height + gap) - gap, columns * (width + gap) - gap, *channels)
    sheet = np.full(size, np.nan, dtype=np.float32)
    for number, picture in enumerate(pictures):
        top, left = (number // columns) * (height + gap), (number % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def plot_attention_distances(axis: Axes, distances: Tensor, uniform: float) -> None:
    """Draw each head's mean attention distance over the blocks, one dot per head; `share_legend` tells what is what.

    Args:
        axis: where to draw; of several that share their height the highest value decides.
        distances: (L, H) in pixels, as `vitsal.probing.mean_attention_distance` returns its means.
        uniform: the distance of attention to all patches alike, dashed.
    """
    num_blocks, num_heads = distances.shape
    blocks = torch.arange(1, num_blocks + 1).repeat_interleave(num_heads)
    highest = max(axis.get_ylim()[1], 1.08 * max(uniform, distances.max().item()))
    axis.scatter(blocks, distances.flatten(), s=90, color=COLOURS[0], alpha=0.8, label="one head")
    axis.axhline(uniform, color="black", ls="--", lw=1.5, label="uniform attention")
    axis.set(xlabel="block", ylabel="mean attention\ndistance (pixels)", ylim=(0, highest))
    axis.set_xticks(range(1, num_blocks + 1, -(-num_blocks // 8)))
    axis.grid(axis="y", alpha=0.3)


def share_legend(figure: Figure, axis: Axes) -> None:
    """One legend for all panels, above them: that of `axis`."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=2)
