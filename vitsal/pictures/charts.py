"""Curves and distances, with their uncertainty, for slides; learning curves that move."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython import get_ipython
from IPython.display import DisplayHandle, display
from matplotlib.figure import Figure
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torch import Tensor

from vitsal.analysis.cost import PLAIN
from vitsal.analysis.probing import Probe
from vitsal.pictures.overlays import tile_pictures
from vitsal.pictures.sheets import write_titles
from vitsal.pictures.style import COLOURS, SLIDE, curve_style, set_slide_style


def use_slide_style() -> None:
    """Set matplotlib's defaults for this course's figures; pictures inside notebooks are kept small (JPEG, 60 dpi)."""
    if get_ipython() is not None:
        set_matplotlib_formats("jpeg", bbox_inches=None)
    set_slide_style()


def plot_drop_curves(axis: plt.Axes, table: pd.DataFrame, styles: Mapping[str, int]) -> None:
    """Draw accuracy against drop ratio, one curve per guide, with its 95 % band.

    The table is as `vitsal.experiments.summarize` returns it, for one target. Styles are numbers of colours and
    markers, so that a guide looks the same in every figure.
    """
    for guide, rows in table.groupby("guide", sort=False):
        rows = rows.sort_values("keep_ratio")
        dropped = 100 * (1 - rows.keep_ratio)
        axis.plot(dropped, 100 * rows.top1, label=guide, **curve_style(styles[guide]))
        colour = COLOURS[styles[guide]]
        axis.fill_between(dropped, 100 * rows.ci_low, 100 * rows.ci_high, color=colour, alpha=0.2, linewidth=0)
    label_drop_axis(axis)


def plot_published(axis: plt.Axes, curves: pd.DataFrame, styles: Mapping[str, int]) -> None:
    """Draw published curves (columns guide, drop_percent, top1), dashed: they come without intervals."""
    for guide, rows in curves.groupby("guide", sort=False):
        axis.plot(rows.drop_percent, 100 * rows.top1, ls="--", label=guide, **curve_style(styles[guide]))
    label_drop_axis(axis)


def label_drop_axis(
    axis: plt.Axes, ylabel: str = "top-1 accuracy (%)", highest: float | None = 102, legend: str = "lower left"
) -> None:
    """Label a drop curve, and fix its range so that figures can be laid side by side; inner labels are left out."""
    axis.set(xlabel="patches dropped (%)", ylabel=ylabel, xlim=(-3, 94), ylim=(0, highest))
    axis.grid(axis="y", alpha=0.3)
    axis.legend(loc=legend)
    axis.label_outer()


def plot_speedups(axis: plt.Axes, costs: pd.DataFrame, styles: Mapping[str, int]) -> None:
    """Draw speed-up against drop ratio, one curve per guide with the middle half of the rounds as its band.

    What the count of operations allows is dashed, in the same colour; the untouched target is the dotted line at 1.
    Costs are as `vitsal.analysis.pipeline_cost` returns them, styles are numbers of colours and markers.
    """
    for guide, rows in costs[costs.guide != PLAIN].groupby("guide", sort=False):
        rows = rows.sort_values("keep_ratio")
        dropped, colour = 100 * (1 - rows.keep_ratio), COLOURS[styles[guide]]
        axis.plot(dropped, rows.speedup, label=guide, **curve_style(styles[guide]))
        axis.fill_between(dropped, rows.speedup_low, rows.speedup_high, color=colour, alpha=0.2, linewidth=0)
        axis.plot(dropped, rows.limit, color=colour, ls="--", lw=1.5)
    axis.plot([], [], color="black", ls="--", lw=1.5, label="limit by operations")
    axis.axhline(1, color="black", ls=":", lw=1.5)
    label_drop_axis(axis, "speed-up (times)", None, "upper left")


def plot_accuracy_against_throughput(
    axis: plt.Axes, table: pd.DataFrame, costs: pd.DataFrame, styles: Mapping[str, int]
) -> None:
    """Draw accuracy with its 95 % intervals against measured throughput, one curve per guide: up and right is better.

    The untouched target is a black star. The first guide's points tell how many of the patches are dropped, in percent.

    Args:
        axis: where to draw.
        table, styles: as in `plot_drop_curves`.
        costs: as `vitsal.analysis.pipeline_cost` returns it; guides and keep ratios without a row here are left out.
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


def plot_learning_curves(axis: plt.Axes, histories: Mapping[str, pd.DataFrame]) -> None:
    """Draw students' divergence from their teachers over the epochs: on held-out images, and, thin, in training.

    Histories, by name, are as `vitsal.students.distill` returns them.
    """
    for number, (name, history) in enumerate(histories.items()):
        axis.plot(history.epoch, history.kl, label=name, **curve_style(number))
        axis.plot(history.epoch, history.loss, color=COLOURS[number], lw=1, ls=":")
    axis.set(xlabel="epoch", ylabel="divergence (nats)", ylim=(0, None))
    axis.grid(axis="y", alpha=0.3)
    axis.legend()


def plot_attention_distances(axis: plt.Axes, distances: Tensor, uniform: float) -> None:
    """Draw each head's mean attention distance over the blocks, one dot per head; `share_legend` tells what is what.

    Distances are (L, H) in pixels, as `vitsal.analysis.mean_attention_distance` returns its means; that of attention to
    all patches alike, `uniform`, is dashed. Of several axes that share their height the highest value decides.
    """
    num_blocks, num_heads = distances.shape
    blocks = np.repeat(range(1, num_blocks + 1), num_heads)
    highest = max(axis.get_ylim()[1], 1.08 * max(uniform, distances.max().item()))
    axis.scatter(blocks, distances.flatten(), s=90, color=COLOURS[0], alpha=0.8, label="one head")
    axis.axhline(uniform, color="black", ls="--", lw=1.5, label="uniform attention")
    axis.set(xlabel="block", ylabel="mean attention\ndistance (pixels)", ylim=(0, highest))
    axis.set_xticks(range(1, num_blocks + 1, -(-num_blocks // 8)))
    axis.grid(axis="y", alpha=0.3)


def plot_probes(probes: Mapping[str, Probe]) -> plt.Figure:
    """Draw how far each head of models looks, name -> probe, side by side, and their filters below."""
    figure, axes = plt.subplots(2, len(probes), squeeze=False)
    for (upper, lower), probe in zip(axes.T, probes.values(), strict=True):
        plot_attention_distances(upper, probe.distances, probe.uniform)
        lower.imshow(tile_pictures(probe.filters, columns=7))
        lower.axis("off")
    write_titles(axes[0], probes, SLIDE[0] / len(probes))
    share_legend(figure, axes[0, 0])
    return figure


def share_legend(figure: plt.Figure, axis: plt.Axes) -> None:
    """One legend for all panels, above them: that of `axis`."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=2)


class LiveCurve:
    """Learning curves that are drawn anew after every epoch; the last drawing stays in the notebook.

    Example:
        >>> curve = LiveCurve()
        >>> distill(student, maps, output, recipe, on_epoch=curve.of("convnet"))  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self.histories: dict[str, pd.DataFrame] = {}
        self.handle: DisplayHandle | None = None

    def of(self, name: str) -> Callable[[pd.DataFrame], None]:
        """What to call with one student's history after each epoch."""

        def update(history: pd.DataFrame) -> None:
            self.histories[name] = history
            figure = self.draw()
            if self.handle is None:
                self.handle = display(figure, display_id=True)
            else:
                self.handle.update(figure)
            plt.close(figure)

        return update

    def draw(self) -> Figure:
        """The curves so far."""
        figure, axis = plt.subplots()
        plot_learning_curves(axis, self.histories)
        return figure
