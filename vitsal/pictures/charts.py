"""Curves and distances, with their uncertainty, for slides; learning curves that move."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from textwrap import wrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython import get_ipython
from IPython.display import DisplayHandle, display
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torch import Tensor

from vitsal.analysis.cost import PLAIN
from vitsal.analysis.probing import Probe
from vitsal.pictures.overlays import tile_pictures
from vitsal.pictures.sheets import columns_that_fill, fit_text, write_titles
from vitsal.pictures.style import COLOURS, SLIDE, curve_style, set_slide_style
from vitsal.reduction.reduction import Reduction

MOST_BANDS = 4  # of as many curves bands can be told apart


def use_slide_style() -> None:
    """Set matplotlib's defaults for this course's figures; pictures inside notebooks are kept small (JPEG, 60 dpi)."""
    if get_ipython() is not None:
        set_matplotlib_formats("jpeg", bbox_inches=None, pil_kwargs={"quality": 45})
    set_slide_style()


def plot_drop_curves(axis: plt.Axes, table: pd.DataFrame, styles: Mapping[str, int]) -> None:
    """Draw accuracy against drop ratio, one curve per guide, with its 95 % band; the legend names the target.

    The table is as `vitsal.experiments.summarize` returns it, for one target. Styles are numbers of colours and
    markers, so that a guide looks the same in every figure; a curve of smaller images, or with tokens merged, is named
    by the guide and that, such as "random, merge 8, 160 x 160 px".
    """
    for name, rows in table.groupby(_curve_names(table), sort=False):
        rows = rows.sort_values("keep_ratio")
        dropped = 100 * (1 - rows.keep_ratio)
        axis.plot(dropped, 100 * rows.top1, label=name, **curve_style(styles[name]))
        colour = curve_style(styles[name])["color"]
        axis.fill_between(dropped, 100 * rows.ci_low, 100 * rows.ci_high, color=colour, alpha=0.2, linewidth=0)
    label_drop_axis(axis, title=_target_of(table, axis))


def _curve_names(table: pd.DataFrame) -> pd.Series:
    """Of each row of a drop curve the name of its curve: the guide, and what is done besides dropping patches."""
    rows = table[["guide", *Reduction().columns]].itertuples(index=False)
    names = [", ".join(filter(None, [guide, Reduction.from_columns(*levers).others])) for guide, *levers in rows]
    return pd.Series(names, table.index)


def _target_of(table: pd.DataFrame, axis: plt.Axes) -> str:
    """Title of a legend: the target, and the number of images, in lines that these axes have room for."""
    (target,) = table.target.unique()
    width = axis.get_position().width * axis.figure.get_figwidth()
    return fit_text(f"target: {target}\nn = {table.n.max():,}", width)[0]


def plot_published(axis: plt.Axes, curves: pd.DataFrame, styles: Mapping[str, int]) -> None:
    """Draw published curves (columns guide, drop_percent, top1), dashed: they come without intervals."""
    for guide, rows in curves.groupby("guide", sort=False):
        axis.plot(rows.drop_percent, 100 * rows.top1, ls="--", label=guide, **curve_style(styles[guide]))
    label_drop_axis(axis)


def label_drop_axis(
    axis: plt.Axes,
    ylabel: str = "top-1 accuracy (%)",
    highest: float | None = 102,
    legend: str = "lower left",
    title: str | None = None,
) -> None:
    """Label a drop curve, and fix its range so that figures can be laid side by side; inner labels are left out.

    `legend` is the legend's place, `title` its title.
    """
    axis.set(xlabel="patches dropped (%)", ylabel=ylabel, xlim=(-3, 98), ylim=(0, highest))
    axis.grid(axis="y", alpha=0.3)
    axis.legend(loc=legend, title=title, alignment="left")
    axis.label_outer()


def plot_speedups(axis: plt.Axes, costs: pd.DataFrame, styles: Mapping[str, int]) -> None:
    """Draw speed-up against drop ratio, one curve per guide with the middle half of the rounds as its band.

    What the count of operations allows is dashed, in the same colour; a dotted line at 1 is the untouched target.
    Costs are as `vitsal.analysis.pipeline_cost` returns them, styles are numbers of colours and markers.
    """
    for guide, rows in costs[costs.guide != PLAIN].groupby("guide", sort=False):
        rows = rows.sort_values("keep_ratio")
        dropped, colour = 100 * (1 - rows.keep_ratio), curve_style(styles[guide])["color"]
        axis.plot(dropped, rows.speedup, label=guide, **curve_style(styles[guide]))
        axis.fill_between(dropped, rows.speedup_low, rows.speedup_high, color=colour, alpha=0.2, linewidth=0)
        axis.plot(dropped, rows.limit, color=colour, ls="--", lw=1.5)
    axis.plot([], [], color="black", ls="--", lw=1.5, label="limit by operations")
    axis.axhline(1, color="black", ls=":", lw=1.5, label="untouched target")
    label_drop_axis(axis, "speed-up (times)", None, "upper left")


def plot_accuracy_against_throughput(
    axis: plt.Axes, table: pd.DataFrame, costs: pd.DataFrame, styles: Mapping[str, int], *, legend: bool = True
) -> None:
    """Draw accuracy with its 95 % intervals against measured throughput, one curve per guide: up and right is better.

    The untouched target is a black star. The best curve (`_best_curve`) tells what share of the patches is dropped.

    Args:
        axis: where to draw.
        table, styles: as in `plot_drop_curves`.
        costs: as `vitsal.analysis.pipeline_cost` returns it; guides and keep ratios without a row here are left out.
        legend: False is for narrow axes, where it would cover curves: put it beside them.
    """
    joined = _join_costs(table, costs)
    star = {"color": "black", "marker": "*", "markersize": 22, "ls": "none", "zorder": 3}
    for guide, rows in joined.groupby("guide", sort=False):
        style, label = (star, "untouched target") if guide == PLAIN else (curve_style(styles[guide]), guide)
        reach = 100 * np.array([rows.top1 - rows.ci_low, rows.ci_high - rows.top1])
        axis.errorbar(rows.images_per_s, 100 * rows.top1, reach, label=label, elinewidth=1.5, capsize=4, **style)
    axis.margins(x=0.08)  # room for the last label
    axis.set(xlabel="throughput (images/s)", ylabel="top-1 accuracy (%)", xlim=(0, None), ylim=(0, 104))
    axis.grid(alpha=0.3)
    if legend:
        title = f"{_target_of(table, axis)}\nbeside points: patches dropped"
        axis.legend(loc="upper right", title=title, alignment="left", fontsize=15, title_fontsize=15, labelspacing=0.3)
    best = _best_curve(joined)
    if best is not None:
        _write_drops(axis, joined[joined.guide == best], curve_style(styles[best])["color"])


def _write_drops(axis: plt.Axes, curve: pd.DataFrame, colour: str) -> None:
    """What share of the patches is dropped, beside the points of a curve; not where it would cover another label."""
    text = {"color": colour, "fontsize": 17, "path_effects": [withStroke(linewidth=4, foreground="white")]}
    before = np.array([-np.inf, -np.inf])
    for row in curve.itertuples():
        place = (row.images_per_s, 100 * row.top1)
        here = axis.transData.transform(place) / axis.figure.dpi  # inches
        if (np.abs(here - before) > (0.65, 0.3)).any():
            axis.annotate(f"{row.dropped} %", place, (8, 8), textcoords="offset points", **text)
            before = here


def _best_curve(joined: pd.DataFrame) -> str | None:
    """The guide with most points that nothing else, the untouched target included, beats in both; None without any."""
    beaten = [
        ((joined.guide != row.guide) & (joined.top1 > row.top1) & (joined.images_per_s > row.images_per_s)).any()
        for row in joined.itertuples()
    ]
    unbeaten = joined.guide[~np.array(beaten, dtype=bool) & (joined.guide != PLAIN)]
    return unbeaten.value_counts().idxmax() if len(unbeaten) else None


def draw_frontier(table: pd.DataFrame, whole: float, title: str) -> plt.Figure:
    """The slide: `plot_frontier` alone."""
    set_slide_style()
    figure, axis = plt.subplots()
    plot_frontier(axis, table, whole, title)
    return figure


def plot_frontier(axis: plt.Axes, table: pd.DataFrame, whole: float, title: str) -> None:
    """Draw accuracy against by how many times fewer operations; what was best on the images of the choice has a ring.

    Args:
        axis: where to draw.
        table: `vitsal.experiments.Frontier.table`.
        whole: accuracy of whole images, a fraction: a star at 1.
        title: of the legend: target, data, weights.
    """
    axis.plot(1, 100 * whole, color="black", marker="*", markersize=22, ls="none", label="whole image")
    for number, (way, rows) in enumerate(table.groupby("way", sort=False)):
        rows, style = rows.sort_values("operations"), curve_style(number)
        reach = 100 * np.array([rows.top1 - rows.ci_low, rows.ci_high - rows.top1])
        axis.errorbar(rows.operations, 100 * rows.top1, reach, label=way, elinewidth=1.5, capsize=4, **style)
    best = table[table.best]
    ring = {"facecolors": "none", "edgecolors": COLOURS[6], "linewidths": 2, "zorder": 3}
    axis.scatter(best.operations, 100 * best.top1, s=420, label="chosen for its speed", **ring)
    axis.set(xlabel="times fewer operations, the guide's among them", ylabel="top-1 accuracy (%)")
    axis.grid(alpha=0.3)
    beside = {
        "loc": "center left",
        "bbox_to_anchor": (1, 0.5),
        "alignment": "left",
        "fontsize": 17,
        "title_fontsize": 17,
    }
    axis.legend(title=f"{title}\nn = {table.n.max():,}", **beside)


def draw_fronts(fronts: Mapping[str, pd.DataFrame], ways: Sequence[str], title: str, note: str) -> plt.Figure:
    """The slide of what guides are worth: accuracy against speed, names at the curves, one panel for each target.

    Args:
        fronts: heading -> table (`vitsal.experiments.Frontier.table`).
        ways: which of its ways to draw; the first, which the others must beat, is drawn bold.
        title: the finding, in one sentence.
        note: what was measured, on what.
    """
    set_slide_style()
    styles = {way: number for number, way in enumerate(ways)}
    figure, axes = plt.subplots(1, len(fronts), sharey=True, squeeze=False)
    for axis, (heading, table) in zip(axes[0], fronts.items(), strict=True):
        _plot_front(axis, table[table.way.isin(ways)], styles)
        axis.set(title=heading, xlabel="times fewer operations")
    axes[0, 0].set_ylabel("top-1 accuracy (%)")
    _name_curves(axes[0, -1], table[table.way.isin(ways)], styles)
    lines = wrap(title, 75)
    figure.suptitle("\n".join(lines), fontsize=min(30, 1_350 / max(map(len, lines))), weight="bold")
    figure.supxlabel(note, fontsize=16)
    return figure


def _plot_front(axis: plt.Axes, table: pd.DataFrame, styles: Mapping[str, int]) -> None:
    """Curves with their 95 % bands, of many the first alone, dotted from the whole image on, which is a star."""
    whole = 100 * (table.top1 + table.lost).iloc[0]
    for way, number in styles.items():
        rows, style = table[table.way == way].sort_values("operations"), curve_style(number)
        if rows.empty:
            continue
        bold = {"lw": 3, "markersize": 9, "zorder": 2} if number else {"lw": 6, "markersize": 13, "zorder": 3}
        ends, top1 = rows.operations, 100 * rows.top1
        axis.plot(ends, top1, **style, **bold)
        axis.plot([1, ends.iloc[0]], [whole, top1.iloc[0]], color=style["color"], lw=1.5, ls=":")
        if len(styles) <= MOST_BANDS or not number:
            ci = 100 * rows.ci_low, 100 * rows.ci_high
            axis.fill_between(ends, *ci, color=style["color"], alpha=0.15, linewidth=0)
    axis.plot(1, whole, color="black", marker="*", markersize=24, ls="none", zorder=4)
    beside = {"xytext": (16, 8), "textcoords": "offset points", "fontsize": 18}
    axis.annotate(f"whole image: {whole:.1f} %", (1, whole), **beside)
    axis.margins(y=0.12)  # room for the star's words
    axis.grid(axis="y", alpha=0.3)


def _name_curves(axis: plt.Axes, table: pd.DataFrame, styles: Mapping[str, int]) -> None:
    """The names of curves right of their last points, in their colours, moved up where they would touch."""
    last = table.sort_values("operations").groupby("way").top1.last().sort_values()
    low, high = axis.get_ylim()
    place = -np.inf
    for way, top1 in last.items():
        place = max(100 * top1, place + 0.06 * (high - low))
        colour, weight = curve_style(styles[way])["color"], "normal" if styles[way] else "bold"
        axis.text(1.02, place, way, transform=axis.get_yaxis_transform(), color=colour, va="center", weight=weight)


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
    """Draw students' divergence from their teachers over the epochs: solid on held-out images, dotted in training.

    Histories, by name, are as `vitsal.students.distill` returns them.
    """
    for number, (name, history) in enumerate(histories.items()):
        axis.plot(history.epoch, history.kl, label=name, **curve_style(number))
        axis.plot(history.epoch, history.loss, color=curve_style(number)["color"], lw=2, ls=":")
    for name, line in {"held-out images": "-", "training": ":"}.items():
        axis.plot([], [], color="black", ls=line, lw=2, label=name)
    axis.set(xlabel="epoch", ylabel="divergence (nats)", ylim=(0, None))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(axis="y", alpha=0.3)
    axis.legend()


def plot_intervals(axis: plt.Axes, table: pd.DataFrame, styles: Mapping[str, int] | None = None) -> None:
    """Draw values as dots with their intervals, on an axis as narrow as they are, the first row on top.

    Args:
        axis: where to draw; its x axis is to be labelled.
        table: a row for each value, named by the index; columns: value, low and high end of the interval, in this
            order, under any names.
        styles: name -> number of colour and marker, as in the other charts; all alike without.
    """
    for place, (name, (value, low, high)) in enumerate(zip(table.index, table.to_numpy(), strict=True)):
        style = curve_style((styles or {}).get(name, 0))
        axis.errorbar(value, place, xerr=[[value - low], [high - value]], capsize=6, markersize=13, **style)
    axis.set_yticks(range(len(table)), table.index)
    axis.set_ylim(len(table) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.3)
    axis.tick_params(axis="y", length=0)


def plot_attention_distances(axis: plt.Axes, distances: Tensor, uniform: float) -> None:
    """Draw each head's mean attention distance over the blocks, one dot per head; `share_legend` tells what is what.

    Distances are (L, H) in pixels, as `vitsal.analysis.mean_attention_distance` returns its means; that of attention to
    all patches alike, `uniform`, is dashed. The axis is as high as both need; axes that share it share that.
    """
    num_blocks, num_heads = distances.shape
    blocks = np.repeat(range(1, num_blocks + 1), num_heads)
    axis.scatter(blocks, distances.flatten(), s=110, color=COLOURS[0], alpha=0.7, label="one head")
    axis.axhline(uniform, color="black", ls="--", lw=1.5, label="uniform attention")
    axis.margins(y=0.08)
    axis.set(xlabel="block", ylabel="mean attention\ndistance (pixels)")
    axis.set_xticks(range(1, num_blocks + 1, -(-num_blocks // 8)))
    axis.grid(axis="y", alpha=0.3)


def plot_probes(probes: Mapping[str, Probe]) -> plt.Figure:
    """Draw how far each head of models looks, name -> probe, side by side, and their filters below."""
    figure, axes = plt.subplots(2, len(probes), squeeze=False, sharey="row")
    for (upper, lower), probe in zip(axes.T, probes.values(), strict=True):
        plot_attention_distances(upper, probe.distances, probe.uniform)
        columns = columns_that_fill(len(probe.filters), SLIDE[0] / len(probes), SLIDE[1] / 2)
        lower.imshow(tile_pictures(probe.filters, columns))
        lower.axis("off")
    for axis in axes[0, 1:]:
        axis.set_ylabel("")
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
