"""Figures: right pixels, right size, right numbers on the axes."""

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from vitsal.experiments.outcomes import NOT_USED, SUMMARY_COLUMNS
from vitsal.models.pixels import to_pixels
from vitsal.pictures.charts import (
    draw_frontier,
    draw_fronts,
    plot_accuracy_against_throughput,
    plot_attention_distances,
    plot_drop_curves,
    plot_intervals,
    plot_learning_curves,
    plot_published,
    plot_speedups,
    share_legend,
    use_slide_style,
)
from vitsal.pictures.overlays import hide_dropped, overlay, paint_coarse, paint_groups, scale_map, tile_pictures
from vitsal.pictures.sheets import (
    add_colour_bar,
    columns_that_fill,
    contact_sheet,
    draw_filters,
    draw_positions,
    fit_text,
    show_pictures,
)
from vitsal.pictures.style import COLOURS, SLIDE, curve_style, save_figure, shorten


@pytest.fixture(autouse=True)
def _own_style():
    with plt.rc_context():
        use_slide_style()
        yield
    plt.close("all")


def test_figure_is_saved_for_slides(tmp_path):
    figure, axis = plt.subplots()
    axis.set_title("a title to find")
    path = save_figure(figure, tmp_path / "new" / "figures", "one")
    assert path == tmp_path / "new" / "figures" / "one.png"
    with Image.open(path) as image:
        width, height = image.size
        assert width / height == pytest.approx(16 / 9, rel=1e-3)
        assert (width, height) == pytest.approx((2667, 1500), abs=1)  # 13.333 x 7.5 inches at 200 dpi
        assert image.info["dpi"] == pytest.approx((200, 200), rel=1e-3)
        assert np.asarray(image.convert("L")).std() > 1  # not empty
    svg = path.with_suffix(".svg").read_text()
    assert "<svg" in svg
    assert "a title to find" in svg  # text stays text
    assert "dc:date" not in svg


def test_saved_twice_the_same_bytes(tmp_path):
    figure, axis = plt.subplots()
    axis.plot([0, 1], [1, 0])
    paths = [save_figure(figure, tmp_path / name, "one") for name in ("a", "b")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_to_pixels_undoes_the_normalisation(tiny_vit):
    pixels = torch.rand(2, 3, 64, 64)
    assert np.allclose(to_pixels(pixels * 2 - 1, tiny_vit), pixels.permute(0, 2, 3, 1).numpy(), atol=1e-6)
    assert to_pixels(torch.full((1, 3, 64, 64), 9.0), tiny_vit).max() == 1


def test_scale_map_by_hand():
    assert np.allclose(scale_map(torch.tensor([[-1.0, 0.0], [1.0, 3.0]])), [[0, 0.25], [0.5, 1]])
    assert (scale_map(torch.full((2, 2), 7.0)) == 0).all()  # a flat map has no highest point


def test_overlay_by_hand():
    """A 4 x 4 grid over 32 x 32 pixels: grey where nothing matters, opaque where all does, lines between patches."""
    red, saliency = np.zeros((32, 32, 3), dtype=np.float32), torch.zeros(4, 4)
    red[..., 0] = 1
    saliency[1, 2], saliency[3, 3] = 8, 4
    picture = overlay(red, saliency, strength=0.6)
    grey = 0.85 * 0.299 + 0.15  # its luma, a little lighter
    heat = np.array(plt.get_cmap("plasma")([0.5, 1.0]))[:, :3]
    assert np.allclose(picture[1:8, 1:8], grey)
    assert np.allclose(picture[9:16, 17:24], 0.4 * grey + 0.6 * heat[1], atol=1e-6)
    assert np.allclose(picture[25:, 25:], 0.7 * grey + 0.3 * heat[0], atol=1e-6)
    assert np.allclose(picture[24, 1:8], 0.88 * grey)  # a line above this patch, and none at the picture's border
    assert np.allclose(picture[1:8, 16], 0.88 * grey)
    assert np.allclose(picture[0, 1:8], grey)
    assert np.allclose(overlay(red, 100 * saliency + 3, 0.6), picture, atol=1e-6)  # scaled by its own range


def test_overlay_in_whole_numbers():
    pixels = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
    saliency = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    drawn = overlay(pixels, saliency)
    assert drawn.dtype == np.uint8
    assert np.abs(drawn - 255 * overlay(pixels / 255, saliency)).max() <= 0.51
    without = overlay(pixels, saliency, strength=0)
    assert (without == without[..., :1]).all()
    assert np.corrcoef(without[..., 0].flatten(), (pixels @ [0.299, 0.587, 0.114]).flatten())[0, 1] > 0.98


def test_hide_dropped_exact_pixels():
    pixels = np.random.default_rng(0).random((8, 12, 3)).astype(np.float32)
    hidden = hide_dropped(pixels, torch.tensor([1, 3]), (2, 3), shade=0.85)
    for patch in range(6):
        rows, columns = slice(patch // 3 * 4, patch // 3 * 4 + 4), slice(patch % 3 * 4, patch % 3 * 4 + 4)
        if patch in (1, 3):
            assert (hidden[rows, columns] == pixels[rows, columns]).all()
        else:
            assert np.allclose(hidden[rows, columns], 0.85)


def test_groups_by_hand():
    """2 x 2 patches of 4 x 4 pixels: two merged across a corner, one alone, one dropped; lines where tokens meet."""
    pixels = np.random.default_rng(0).random((8, 8, 3)).astype(np.float32)
    painted = paint_groups(pixels, torch.tensor([[7, 3], [-1, 7]]), shade=0.5)
    mean = (pixels[:4, :4].mean((0, 1)) + pixels[4:, 4:].mean((0, 1))) / 2
    assert np.allclose(painted[:4, :4], mean, atol=1e-6)
    assert np.allclose(painted[5:, 5:], mean, atol=1e-6)
    assert (painted[:4, 5:] == pixels[:4, 5:]).all()
    assert (painted[5:, :4] == 0.5).all()
    assert (painted[4] == 1).all()
    assert (painted[:, 4] == 1).all()


def test_where_nothing_merges_patches_are_as_they_were_between_lines():
    pixels = np.random.default_rng(0).random((6, 6, 3)).astype(np.float32)
    painted = paint_groups(pixels, 1 + torch.arange(4).view(2, 2))
    inside = np.ix_([0, 1, 2, 4, 5], [0, 1, 2, 4, 5])
    assert (painted[inside] == pixels[inside]).all()
    whole = paint_groups(pixels, torch.full((2, 2), 5))
    assert np.allclose(whole, pixels.mean((0, 1)), atol=1e-6)  # all in one token, and no line


def test_what_is_seen_coarsely_is_shown_at_half_the_resolution():
    """Patches of 2 x 2 pixels; the four on the left are one token, those on the right are on their own."""
    pixels = np.arange(4 * 8, dtype=np.float32).reshape(4, 8, 1).repeat(3, axis=2)
    painted = paint_coarse(pixels, torch.tensor([[9, 9, 1, 2], [9, 9, 3, 4]]))
    assert np.array_equal(painted[:, 4:], pixels[:, 4:])
    assert painted[:, :4, 0].tolist() == [[4.5, 4.5, 6.5, 6.5]] * 2 + [[20.5, 20.5, 22.5, 22.5]] * 2


def test_contact_sheet():
    pictures = [[np.zeros((4, 4, 3))] * 3] * 2
    figure = show_pictures(pictures, ["a", "b", "c"], ["first", "second"])
    assert [axis.get_title() for axis in figure.axes] == ["a", "b", "c", "", "", ""]
    assert [axis.get_ylabel() for axis in figure.axes] == ["first", "", "", "second", "", ""]


@pytest.mark.parametrize(
    ("rows", "columns", "shape"), [(1, 4, (8, 8)), (3, 3, (8, 8)), (3, 6, (8, 8)), (2, 5, (9, 16))]
)
def test_pictures_fill_the_sheet(rows, columns, shape):
    """They end within a tenth of its width or of its height, lie close together, and keep their shape."""
    figure = show_pictures([[np.zeros((*shape, 3))] * columns] * rows, ["title"] * columns, ["name"] * rows)
    figure.draw_without_rendering()
    width, height = figure.get_size_inches()
    places = [axis.get_position() for axis in figure.axes]
    block = (places[-1].x1 - places[0].x0, places[0].y1 - places[-1].y0)
    assert max(block) > 0.9
    assert columns * places[0].width > 0.93 * block[0]
    assert rows * places[0].height > 0.93 * block[1]
    assert places[0].width * width / (places[0].height * height) == pytest.approx(shape[1] / shape[0], rel=0.01)


def test_names_of_rows_lie_flat_where_there_is_room():
    name = "true 3\nwithout dropping 3 (93 %)\nafter dropping 8 (5 %)"
    figure = show_pictures([[np.zeros((8, 8, 3))] * 3] * 3, ["a", "b", "c"], [name] * 3)
    figure.draw_without_rendering()
    labels = [axis.yaxis.label for axis in figure.axes[::3]]
    assert [label.get_text() for label in labels] == 3 * [name.replace(" %", "\u00a0%")]
    boxes = [label.get_window_extent() for label in labels]
    assert all(box.width > box.height > 0 for box in boxes)
    assert all(figure.bbox.x0 <= box.x0 and box.x1 < figure.axes[0].bbox.x0 for box in boxes)
    upright = show_pictures([[np.zeros((8, 8, 3))] * 6] * 2, list("abcdef"), [name] * 2).axes[0].yaxis.label
    assert upright.get_rotation() == 90


@pytest.mark.parametrize(("rows", "columns", "side"), [(3, 3, "right"), (1, 4, "bottom"), (3, 6, "bottom")])
def test_colour_bar_says_what_overlays_show(rows, columns, side):
    """Its ends are an overlay's least and most salient patch, over grey; it covers no picture."""
    figure = show_pictures([[np.zeros((8, 8, 3))] * columns] * rows, ["title"] * columns)
    add_colour_bar(figure)
    figure.draw_without_rendering()
    *pictures, bar = figure.axes
    ramp = bar.collections[-1].cmap(np.array([0.0, 1.0]))[:, :3] if bar.collections else bar.images[-1].cmap([0.0, 1.0])
    expected = overlay(np.full((8, 8, 3), 0.5, dtype=np.float32), np.array([[0.0, 1.0]]))[0, [0, -1]]
    assert np.allclose(ramp, expected, atol=1e-3)
    shown = bar.get_yticklabels() if side == "right" else bar.get_xticklabels()
    texts = [text.get_text().replace("\n", " ") for text in shown]
    assert texts == ["least salient patch of each map", "most salient patch of each map"]
    assert not shown[0].get_window_extent().overlaps(shown[1].get_window_extent())
    assert not any(bar.get_tightbbox().overlaps(picture.bbox) for picture in pictures)
    assert all(
        figure.bbox.x0 <= text.get_window_extent().x0 <= text.get_window_extent().x1 <= figure.bbox.x1 for text in shown
    )


def test_text_that_fits_by_hand():
    """16 letters in sizes of 0.6: 2 inches take 144 / 9.6 = 15 points; 8 inches take 20, and 576 / 12 = 48 letters."""
    assert fit_text("vit_base_patch16_224.dino", 2) == ("vit base patch16\n224.dino", 15)
    assert fit_text("vit_base_patch16_224.dino", 8) == ("vit_base_patch16_224.dino", 20)
    assert fit_text("my_cat.old\ngiant panda (89 %)", 2) == ("my_cat.old\ngiant panda\n(89\u00a0%)", 15)


def is_bar(axis):
    return axis.get_label() == "<colorbar>"


def sheet(figure):
    """Headings in the places where they stand; None where there is no picture."""
    columns, axes = figure.axes[0].get_gridspec().ncols, [axis for axis in figure.axes if not is_bar(axis)]
    cells = [axis.get_title() if axis.images else None for axis in axes]
    return [cells[first : first + columns] for first in range(0, len(cells), columns)]


def sample(name, *maps):
    return {name: np.zeros((8, 8, 3))} | {name: np.ones((8, 8, 3)) for name in maps}


def test_maps_lie_beside_their_picture():
    figure = contact_sheet([sample("cat", *map(str, range(1, 13)))])
    assert sheet(figure) == [
        ["cat", "1", "2", "3", "4"],
        [None, "5", "6", "7", "8"],
        [None, "9", "10", "11", "12"],
    ]
    shown = [axis.images[0].get_array().max() for axis in figure.axes if axis.images and not is_bar(axis)]
    assert shown == [0] + 12 * [1]
    assert figure.get_size_inches() == pytest.approx(SLIDE)


def test_samples_lie_side_by_side():
    """Which gives larger pictures than six rows of two; a heading is not said again below."""
    figure = contact_sheet([sample(name, "rollout") for name in "abcdef"])
    assert sheet(figure) == [["a", "rollout", "b", "rollout", "c", "rollout"], ["d", "", "e", "", "f", ""]]
    columns = ["image", "one", "two", "three"]
    rows = sheet(contact_sheet([sample(*columns)] * 3))
    assert rows == [columns, 4 * [""], 4 * [""]]
    assert sheet(contact_sheet([sample("a", "rollout")] * 3)) == [2 * ["a", "rollout"], ["", "", None, None]]


def test_headings_of_a_crowded_sheet_are_no_wider_than_pictures():
    said = [f"class {n} (85 %)" for n in range(100, 112)]  # 15 letters
    figure = contact_sheet([sample(f"photographer\n{text}", "rollout", f"grad-rollout:\n{text}") for text in said])
    figure.draw_without_rendering()
    pictures = [axis for axis in figure.axes if axis.images and not is_bar(axis)]
    for axis in pictures:
        assert axis.title.get_window_extent().width < 1.05 * axis.get_window_extent().width


def test_of_equal_layouts_that_with_the_fewest_gaps():
    """Six pictures of five maps, 12 pictures across: maps in a row, not below each other beside every picture."""
    rows = sheet(contact_sheet([sample(f"{name}\nclass {name}", *"12345") for name in "abcdef"]))
    assert rows[0] == ["a\nclass a", *"12345", "b\nclass b", *"12345"]
    assert (len(rows), {len(row) for row in rows}) == (3, {12})


def test_headings_do_not_run_into_each_other():
    names = [f"deit_base_distilled_patch16_224.fb_in{number}k" for number in range(5)]
    figure = contact_sheet([sample("image", *names) for _ in range(3)])
    figure.draw_without_rendering()
    boxes = [axis.title.get_window_extent() for axis in figure.axes[:6]]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    assert all(box.y1 <= figure.bbox.y1 for box in boxes)


def summary(rows):
    """A table as `summarize` gives it, of patches dropped alone."""
    names = [name for name in SUMMARY_COLUMNS if name not in NOT_USED]
    return pd.DataFrame(rows, columns=names).assign(**NOT_USED)[SUMMARY_COLUMNS]


def test_drop_curves_draw_the_table():
    rows = [
        ["t", "random", 1.0, 10, 9, 0.9, 0.8, 0.95],
        ["t", "random", 0.5, 10, 4, 0.4, 0.3, 0.5],
        ["t", "rollout", 0.5, 10, 7, 0.7, 0.6, 0.8],
        ["t", "rollout", 1.0, 10, 9, 0.9, 0.8, 0.95],
    ]
    _, axis = plt.subplots()
    plot_drop_curves(axis, summary(rows), {"random": 0, "rollout": 1})
    random, rollout = axis.get_lines()
    assert (random.get_label(), rollout.get_label()) == ("random", "rollout")
    for line, points in [(random, [(50, 40), (0, 90)]), (rollout, [(50, 70), (0, 90)])]:
        assert np.allclose(line.get_xydata(), points)  # by keep ratio, whatever the order of the rows
    assert random.get_color() != rollout.get_color()
    band = axis.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((30, 95))
    assert axis.get_legend().get_title().get_text() == "target: t\nn = 10"


def test_shorten():
    assert [shorten("n01440764_tench.JPEG", most) for most in (20, 19, 8)] == [
        "n01440764_tench.JPEG",
        "n01440764…ench.JPEG",
        "n01…PEG",
    ]


def test_published_curves():
    _, axis = plt.subplots()
    plot_published(axis, pd.DataFrame({"guide": ["a", "a"], "drop_percent": [0, 50], "top1": [0.8, 0.5]}), {"a": 2})
    assert np.allclose(axis.get_lines()[0].get_xydata(), [(0, 80), (50, 50)])


@pytest.fixture
def costs():
    """Two guides at three keep ratios, in no order, as `pipeline_cost` gives them (the columns that are drawn)."""
    rows = [
        ["none", 1.0, 100, 1.0, 1.0, 1.0, 1.0],
        ["student", 0.25, 300, 3.0, 2.5, 3.2, 3.9],
        ["student", 0.7, 140, 1.4, 1.3, 1.6, 1.5],
        ["rollout", 0.7, 60, 0.6, 0.5, 0.7, 0.61],
        ["rollout", 0.25, 80, 0.8, 0.7, 0.9, 0.81],
    ]
    columns = ["guide", "keep_ratio", "images_per_s", "speedup", "speedup_low", "speedup_high", "limit"]
    return pd.DataFrame(rows, columns=columns)


def test_speedups_draw_the_costs(costs):
    _, axis = plt.subplots()
    plot_speedups(axis, costs, {"rollout": 0, "student": 2})
    student, limit, rollout, other_limit, *_ = axis.get_lines()
    assert np.allclose(student.get_xydata(), [(75, 3), (30, 1.4)])
    assert np.allclose(limit.get_xydata(), [(75, 3.9), (30, 1.5)])
    assert np.allclose(rollout.get_xydata(), [(75, 0.8), (30, 0.6)])
    assert (student.get_linestyle(), limit.get_linestyle()) == ("-", "--")
    assert student.get_color() == limit.get_color() == COLOURS[2]
    assert rollout.get_color() == other_limit.get_color() == COLOURS[0]
    band = axis.collections[0].get_paths()[0].vertices
    assert {tuple(point) for point in band.round(6)} == {(75, 2.5), (75, 3.2), (30, 1.3), (30, 1.6)}
    shown = [text.get_text() for text in axis.get_legend().get_texts()]
    assert shown == ["student", "rollout", "limit by operations", "untouched target"]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("patches dropped (%)", "speed-up (times)")


def points_and_reach(container):
    """A curve with error bars: its points, and the ends of each bar, [[x, low, high], ...]."""
    line, _, (bars,) = container
    return line.get_xydata(), [(bar[0, 0], *bar[:, 1]) for bar in bars.get_segments()]


def test_accuracy_against_throughput(costs):
    """Matched to a whole percent; the untouched target has any guide's accuracy at keep ratio 1."""
    rows = [
        ["t", "random", 1.0, 10, 9, 0.9, 0.8, 0.95],  # costs nothing that was measured: left out
        ["t", "random", 0.25, 10, 1, 0.1, 0.0, 0.3],
        ["t", "rollout", 0.25, 10, 5, 0.5, 0.4, 0.6],
        ["t", "student", 0.25, 10, 7, 0.7, 0.55, 0.8],
        ["t", "student", 0.1, 10, 2, 0.2, 0.1, 0.4],  # nor this
        ["t", "student", 0.7 + 1e-9, 10, 8, 0.8, 0.6, 0.9],
        ["t", "student", 1.0, 10, 9, 0.9, 0.8, 0.95],
    ]
    _, axis = plt.subplots()
    styles = {"random": 0, "student": 1, "rollout": 2}
    plot_accuracy_against_throughput(axis, summary(rows), costs, styles)
    drawn = {container.get_label(): container for container in axis.containers}
    assert set(drawn) == {"untouched target", "student", "rollout"}
    for name, points, reach in [
        ("untouched target", [(100, 90)], [(100, 80, 95)]),
        ("student", [(140, 80), (300, 70)], [(140, 60, 90), (300, 55, 80)]),
        ("rollout", [(80, 50)], [(80, 40, 60)]),
    ]:
        assert np.allclose(points_and_reach(drawn[name])[0], points)
        assert np.allclose(points_and_reach(drawn[name])[1], reach)
    star = drawn["untouched target"][0]
    assert (star.get_marker(), star.get_color()) == ("*", "black")
    assert [drawn[name][0].get_color() for name in ("student", "rollout")] == list(COLOURS[1:3])
    assert [(text.get_text(), *text.xy) for text in axis.texts] == [("30 %", 140, 80), ("75 %", 300, 70)]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("throughput (images/s)", "top-1 accuracy (%)")


def test_drops_are_written_at_the_best_curve():
    """Which most seldom loses in both; the slow guide loses to the untouched target. No label touches another."""
    rows, costs = [], [["none", 1.0, 100]]
    for guide, points in {
        "slow": {1.0: (0.95, 0), 0.7: (0.94, 50), 0.6: (0.93, 55), 0.5: (0.92, 60), 0.2: (0.91, 65), 0.1: (0.9, 70)},
        "centre": {0.5: (0.6, 300), 0.2: (0.4, 590)},
        "student": {0.7: (0.85, 110), 0.6: (0.845, 112), 0.5: (0.84, 250), 0.2: (0.7, 400)},
        "worse": {0.5: (0.8, 200), 0.2: (0.6, 350)},
    }.items():
        rows += [["t", guide, ratio, 10, 5, top1, top1 - 0.1, top1 + 0.1] for ratio, (top1, _) in points.items()]
        costs += [[guide, ratio, speed] for ratio, (_, speed) in points.items() if speed]
    table = summary(rows)
    costs = pd.DataFrame(costs, columns=["guide", "keep_ratio", "images_per_s"])
    styles = {"slow": 0, "centre": 1, "student": 2, "worse": 3}
    _, axis = plt.subplots()
    plot_accuracy_against_throughput(axis, table, costs, styles)
    assert [text.get_text() for text in axis.texts] == ["30 %", "50 %", "80 %"]
    assert {text.get_color() for text in axis.texts} == {COLOURS[2]}
    drawn = {container.get_label(): container[0].get_xydata() for container in axis.containers}
    assert np.allclose(drawn["centre"], [(300, 60), (590, 40)])
    assert axis.get_legend() is not None
    _, axis = plt.subplots()
    plot_accuracy_against_throughput(axis, table, costs, styles, legend=False)
    assert axis.get_legend() is None


def test_two_costs_of_one_point_are_refused(costs):
    """Of two batch sizes, say: the curve would go back and forth."""
    table = summary([["t", "student", 0.25, 10, 7, 0.7, 0.55, 0.8]])
    _, axis = plt.subplots()
    with pytest.raises(ValueError, match="not unique"):
        plot_accuracy_against_throughput(axis, table, pd.concat([costs, costs]), {"student": 0})


def test_learning_curves():
    history = pd.DataFrame({"epoch": [1, 2], "kl": [0.5, 0.3], "loss": [0.6, 0.4]})
    _, axis = plt.subplots()
    plot_learning_curves(axis, {"one": history, "two": history + 1})
    held_out, training, other, *_ = axis.get_lines()
    assert np.allclose(held_out.get_xydata(), [(1, 0.5), (2, 0.3)])
    assert np.allclose(training.get_xydata(), [(1, 0.6), (2, 0.4)])
    assert held_out.get_color() == training.get_color() != other.get_color()
    legend = axis.get_legend()
    lines = [line.get_linestyle() for line in legend.get_lines()]
    shown = dict(zip([text.get_text() for text in legend.get_texts()], lines, strict=True))
    assert shown == {"one": "-", "two": "-", "held-out images": "-", "training": ":"}
    assert training.get_linestyle() == ":"
    assert all(tick == round(tick) for tick in axis.get_xticks())


def test_intervals_as_dots():
    """The first on top, with both ends of its interval; the axis ends near the values, not at 0."""
    table = pd.DataFrame({"share": [0.98, 0.9], "low": [0.94, 0.87], "high": [1.0, 0.95]}, index=["one", "two"])
    _, axis = plt.subplots()
    plot_intervals(axis, table, {"two": 3})
    drawn = [(line.get_xydata().tolist(), bars.get_segments()) for line, _, (bars,) in axis.containers]
    assert drawn[0][0] == [[0.98, 0]]
    assert np.allclose(drawn[0][1], [[(0.94, 0), (1.0, 0)]])
    assert drawn[1][0] == [[0.9, 1]]
    assert np.allclose(drawn[1][1], [[(0.87, 1), (0.95, 1)]])
    assert axis.containers[1][0].get_color() == COLOURS[3]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["one", "two"]
    assert axis.yaxis_inverted()
    assert 0.8 < axis.get_xlim()[0] < 0.87


def test_tiles_by_hand():
    pictures = torch.arange(3.0).view(3, 1, 1).expand(3, 1, 2)
    gap = float("nan")
    expected = [[0, 0, gap, 1, 1], [gap] * 5, [2, 2, gap, gap, gap]]
    assert np.array_equal(tile_pictures(pictures, columns=2), expected, equal_nan=True)
    colours = torch.rand(4, 2, 3, 3)
    sheet = tile_pictures(colours, columns=2, gap=2)
    assert sheet.shape == (6, 8, 3)
    assert np.array_equal(sheet[4:, 5:], colours[3].numpy())


def test_columns_that_fill_by_hand():
    """28 squares in 4.4 x 7 inches: 4 columns of 7 rows leave 1 inch for each, 5 columns 0.88."""
    assert columns_that_fill(28, 4.4, 7.0) == 4
    assert columns_that_fill(28, 13.3, 7.0) == 7  # 4 rows of 1.75 inches; 8 columns: 1.66
    assert columns_that_fill(3, 10.0, 1.0) == 3


def test_filters_fill_the_slide():
    filters = torch.rand(28, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    figure = draw_filters({name: filters for name in ("a", "b", "c")})
    assert [axis.get_title() for axis in figure.axes] == ["a", "b", "c"]
    drawn = figure.axes[1].images[0].get_array()
    assert drawn.shape == (7 * 9 - 1, 4 * 9 - 1, 3)
    assert np.allclose(drawn[9:17, 18:26], filters[4 + 2])
    figure.draw_without_rendering()
    places = [axis.get_position() for axis in figure.axes]
    assert places[0].height > 0.85
    assert places[-1].x1 - places[0].x0 > 0.85


def test_positions_in_their_places():
    """Of three models' 14 x 14 patches, 6 x 4 that reach from edge to edge; one scale for all."""
    similarity = torch.rand(14, 14, 14, 14, generator=torch.Generator().manual_seed(0))
    figure = draw_positions({"a": similarity, "b": similarity - 1, "c": similarity})
    first = figure.axes[0].images[0]
    sheet = first.get_array()
    assert sheet.shape == (6 * 16 - 2, 4 * 16 - 2)
    assert np.allclose(sheet[:14, :14], similarity[0, 0])
    assert np.allclose(sheet[-14:, -14:], similarity[13, 13])
    assert np.allclose(sheet[16:30, 16:30], similarity[3, 4])  # rows 0, 3, 5, 8, ...; columns 0, 4, 9, 13
    assert first.get_clim() == (pytest.approx(similarity.min().item() - 1), 1)
    assert figure.axes[-1].get_ylabel() == "cosine similarity"


def test_attention_distances_of_each_head():
    figure, axis = plt.subplots()
    plot_attention_distances(axis, torch.tensor([[10.0, 20.0], [30.0, 40.0], [50.0, 60.0]]), uniform=55)
    points = axis.collections[0].get_offsets()
    assert np.allclose(points, [(1, 10), (1, 20), (2, 30), (2, 40), (3, 50), (3, 60)])
    (line,) = axis.get_lines()
    assert set(line.get_ydata()) == {55}
    assert line.get_linestyle() == "--"
    assert list(axis.get_xticks()) == [1, 2, 3]
    assert axis.get_ylim() == pytest.approx((10 - 0.08 * 50, 60 + 0.08 * 50))  # no room is left for what is not there
    share_legend(figure, axis)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one head", "uniform attention"]


def test_attention_distances_side_by_side():
    """All dots of all panels are seen, whichever has the highest, and with filters below no label is cut off."""
    figure, axes = plt.subplots(2, 2, sharey="row")
    plot_attention_distances(axes[0, 0], torch.tensor([[200.0]]), uniform=100)
    plot_attention_distances(axes[0, 1], torch.tensor([[30.0]]), uniform=50)
    assert [axis.get_ylim() for axis in axes[0]] == 2 * [pytest.approx((30 - 0.08 * 170, 200 + 0.08 * 170))]
    share_legend(figure, axes[0, 0])
    figure.draw_without_rendering()
    label, panel = axes[0, 0].yaxis.label.get_window_extent(), axes[0, 0].get_tightbbox()
    assert 0 <= label.y0 < label.y1 <= figure.bbox.y1
    assert label.y1 - label.y0 < 1.1 * (panel.y1 - panel.y0)
    assert figure.legends[0].get_window_extent().y0 > panel.y1


def test_names_are_no_mathematics():
    """Typeset as mathematics this is an error; the style switches it off in legends, and titles need no style."""
    plt.rcParams["text.parse_math"] = True
    picture = np.zeros((8, 8, 3))
    figure = contact_sheet([{"$\\frac$": picture, "a$b$c": picture}])
    assert [axis.get_title() for axis in figure.axes[:2]] == ["$\\frac$", "a$b$c"]
    figure.canvas.draw()
    show_pictures([[picture]], ["$x_{"], ["$\\frac$"]).canvas.draw()
    use_slide_style()
    table = summary([["$y_{", "$x_{", ratio, 10, 5, 0.5, 0.4, 0.6] for ratio in (1, 0.5)])
    figure, axis = plt.subplots()
    plot_drop_curves(axis, table, {"$x_{": 0})
    axis.set_title("$\\frac$")
    figure.canvas.draw()


def test_shortened_names_can_be_shown():
    assert shorten("a\nb\udcff\x1b.png", 20) == r"a\nb\udcff\x1b.png"
    assert shorten("x" * 30, 7) == "xxx…xxx"


def test_a_curve_of_other_levers_is_named_by_them():
    rows = [["t", "random", ratio, 10, 5, 0.5, 0.4, 0.6] for ratio in (1.0, 0.5)]
    table = pd.concat([summary(rows), summary(rows).assign(merge="8@6", input_size="160 x 192", top1=0.4)])
    _, axis = plt.subplots()
    plot_drop_curves(axis, table, {"random": 0, "random, merge 8@6, 160 x 192 px": 1})
    plain, other = axis.get_lines()
    assert (plain.get_label(), other.get_label()) == ("random", "random, merge 8@6, 160 x 192 px")
    assert np.allclose(other.get_xydata(), [(50, 40), (0, 40)])


def test_frontier_shows_each_way_the_whole_image_and_what_was_chosen():
    table = pd.DataFrame(
        {
            "way": ["student", "no guide", "student"],
            "speed": [2.0, 2.0, 3.0],
            "operations": [2.1, 2.0, 3.1],
            "top1": [0.8, 0.75, 0.7],
            "ci_low": [0.76, 0.71, 0.66],
            "ci_high": [0.83, 0.79, 0.74],
            "best": [True, False, True],
            "n": [500, 500, 500],
        }
    )
    (axis,) = draw_frontier(table, 0.87, "some_vit\nphotographs").axes
    star, *curves = (line for line in axis.lines if line.get_marker() not in ("_", "|"))
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (1, 87)
    assert curves[0].get_xdata().tolist() == [2.1, 3.1]
    assert curves[0].get_ydata().tolist() == pytest.approx([80, 70])
    assert curves[1].get_xdata().tolist() == [2.0]
    (rings,) = (part for part in axis.collections if part.get_label() == "chosen for its speed")
    assert np.allclose(rings.get_offsets(), [[2.1, 80], [3.1, 70]])
    assert "some_vit\nphotographs\nn = 500" in axis.get_legend().get_title().get_text()


def test_more_ways_than_colours():
    """Ten and more: nothing is left out, and no two look alike."""
    assert len({tuple(curve_style(number).values()) for number in range(60)}) == 60
    rows = [(f"way {k}", 2.0, 2.0, 0.5, 0.4, 0.6, k == 0, 9) for k in range(12)]
    columns = ["way", "speed", "operations", "top1", "ci_low", "ci_high", "best", "n"]
    figure = draw_frontier(pd.DataFrame(rows, columns=columns), 0.9, "some_vit")
    told = [text.get_text() for text in figure.axes[0].get_legend().texts]
    assert {f"way {k}" for k in range(12)} < set(told)
    many = {f"way{k}": (0.8, 0.7) for k in range(6)}
    (axis,) = draw_fronts({"target": front_of(**many)}, list(many), "One sentence", "said below").axes
    assert len(axis.collections) == 1  # the band of the first


def front_of(**top1):
    """Way -> accuracy at 2 and at 3 times fewer operations, on 500 images, of which 90 % are right when whole."""
    rows = [(way, speed, share) for way, shares in top1.items() for speed, share in zip((2, 3), shares, strict=True)]
    table = pd.DataFrame(rows, columns=["way", "operations", "top1"])
    return table.assign(lost=0.9 - table.top1, ci_low=table.top1 - 0.03, ci_high=table.top1 + 0.02)


def test_fronts_side_by_side():
    """Each way's curve and band in each panel, dotted from the whole image; what was not asked for is left out."""
    fronts = {"untouched": front_of(none=(0.8, 0.7), student=(0.7, 0.71)), "tolerant": front_of(none=(0.85, 0.8))}
    fronts["untouched"] = pd.concat([fronts["untouched"], front_of(other=(0.1, 0.1))])
    figure = draw_fronts(fronts, ["none", "student"], "One sentence", "said below")
    first, second = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["untouched", "tolerant"]
    curve, dotted, students, _, star = first.lines
    assert (curve.get_xdata().tolist(), curve.get_ydata().tolist()) == ([2, 3], pytest.approx([80, 70]))
    assert (dotted.get_xdata()[0], dotted.get_ydata()[0]) == (1, pytest.approx(90))
    assert students.get_ydata().tolist() == pytest.approx([70, 71])
    assert curve.get_linewidth() > students.get_linewidth()
    assert (star.get_marker(), star.get_ydata()[0]) == ("*", pytest.approx(90))
    band = first.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (pytest.approx(67), pytest.approx(82))
    assert len(second.lines) == 3  # no student there
    assert "whole image: 90.0 %" in [text.get_text() for text in second.texts]
    assert (figure.get_suptitle(), figure.get_supxlabel()) == ("One sentence", "said below")


def test_a_long_finding_has_two_lines_in_type_that_can_be_read():
    finding = "Ahead of no guide and chance: " + "; ".join(f"student number {way} at 2.5 times fewer" for way in "ab")
    figure = draw_fronts({"target": front_of(none=(0.8, 0.7))}, ["none"], finding, "said below")
    figure.draw_without_rendering()
    box = figure._suptitle.get_window_extent()
    assert figure.get_suptitle().count("\n") == 1
    assert figure.get_suptitle().replace("\n", " ") == finding
    assert figure._suptitle.get_fontsize() >= 18
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1


def test_names_of_curves_do_not_touch():
    top1 = {"none": (0.8, 0.700), "student": (0.8, 0.701), "random": (0.8, 0.702), "last": (0.8, 0.6)}
    figure = draw_fronts({"target": front_of(**top1)}, list(top1), "One sentence", "said below")
    figure.draw_without_rendering()
    names = {text.get_text(): text for text in figure.axes[0].texts if text.get_text() in top1}
    boxes = [names[name].get_window_extent() for name in ("last", "none", "student", "random")]
    assert all(low.y1 <= high.y0 for low, high in pairwise(boxes))  # in the order of the curves
    assert all(figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1 for box in boxes)
    assert names["none"].get_weight() == "bold"
    assert names["student"].get_color() == COLOURS[1]
