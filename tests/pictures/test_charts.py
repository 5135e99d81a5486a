"""Figures: right pixels, right size, right numbers on the axes."""

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from vitsal.experiments.outcomes import SUMMARY_COLUMNS
from vitsal.models.pixels import to_pixels
from vitsal.pictures.charts import (
    plot_accuracy_against_throughput,
    plot_attention_distances,
    plot_drop_curves,
    plot_learning_curves,
    plot_published,
    plot_speedups,
    share_legend,
    use_slide_style,
)
from vitsal.pictures.overlays import hide_dropped, overlay, scale_map, tile_pictures
from vitsal.pictures.sheets import contact_sheet, fit_text, show_pictures
from vitsal.pictures.style import COLOURS, SLIDE, save_figure, shorten


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


def test_overlay():
    """In [0, 1] everywhere; strength 0 is the image; brightest where the saliency is highest."""
    grey, saliency = np.full((32, 32, 3), 0.5), torch.zeros(4, 4)
    saliency[1, 2] = 5
    picture = overlay(grey, saliency)
    assert picture.shape == (32, 32, 3)
    assert picture.min() >= 0
    assert picture.max() <= 1
    row, column = np.unravel_index(picture.sum(axis=2).argmax(), (32, 32))
    assert (row // 8, column // 8) == (1, 2)
    assert np.allclose(overlay(grey, saliency, strength=0), grey)
    assert np.allclose(overlay(grey, 100 * saliency + 3), picture, atol=1e-6)  # scaled by its own range


def test_hide_dropped_exact_pixels():
    pixels = np.random.default_rng(0).random((8, 12, 3)).astype(np.float32)
    hidden = hide_dropped(pixels, torch.tensor([1, 3]), (2, 3), shade=0.85)
    for patch in range(6):
        rows, columns = slice(patch // 3 * 4, patch // 3 * 4 + 4), slice(patch % 3 * 4, patch % 3 * 4 + 4)
        if patch in (1, 3):
            assert (hidden[rows, columns] == pixels[rows, columns]).all()
        else:
            assert np.allclose(hidden[rows, columns], 0.85)


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


def test_text_that_fits_by_hand():
    """16 letters in sizes of 0.6: 2 inches take 144 / 9.6 = 15 points; 8 inches take 20, and 576 / 12 = 48 letters."""
    assert fit_text("vit_base_patch16_224.dino", 2) == ("vit base patch16\n224.dino", 15)
    assert fit_text("vit_base_patch16_224.dino", 8) == ("vit_base_patch16_224.dino", 20)
    assert fit_text("my_cat.old\ngiant panda (89 %)", 2) == ("my_cat.old\ngiant panda\n(89\u00a0%)", 15)


def sheet(figure):
    """Headings in the places where they stand; None where there is no picture."""
    columns = figure.axes[0].get_gridspec().ncols
    cells = [axis.get_title() if axis.images else None for axis in figure.axes]
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
    shown = [axis.images[0].get_array().max() for axis in figure.axes if axis.images]
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


def test_drop_curves_draw_the_table():
    rows = [
        ["t", "random", 1.0, 10, 9, 0.9, 0.8, 0.95],
        ["t", "random", 0.5, 10, 4, 0.4, 0.3, 0.5],
        ["t", "rollout", 0.5, 10, 7, 0.7, 0.6, 0.8],
        ["t", "rollout", 1.0, 10, 9, 0.9, 0.8, 0.95],
    ]
    _, axis = plt.subplots()
    plot_drop_curves(axis, pd.DataFrame(rows, columns=SUMMARY_COLUMNS), {"random": 0, "rollout": 1})
    random, rollout = axis.get_lines()
    assert (random.get_label(), rollout.get_label()) == ("random", "rollout")
    for line, points in [(random, [(50, 40), (0, 90)]), (rollout, [(50, 70), (0, 90)])]:
        assert np.allclose(line.get_xydata(), points)  # by keep ratio, whatever the order of the rows
    assert random.get_color() != rollout.get_color()
    band = axis.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((30, 95))


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
    assert shown == ["student", "rollout", "limit by operations"]
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
    plot_accuracy_against_throughput(axis, pd.DataFrame(rows, columns=SUMMARY_COLUMNS), costs, styles)
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


def test_two_costs_of_one_point_are_refused(costs):
    """Of two batch sizes, say: the curve would go back and forth."""
    table = pd.DataFrame([["t", "student", 0.25, 10, 7, 0.7, 0.55, 0.8]], columns=SUMMARY_COLUMNS)
    _, axis = plt.subplots()
    with pytest.raises(ValueError, match="not unique"):
        plot_accuracy_against_throughput(axis, table, pd.concat([costs, costs]), {"student": 0})


def test_learning_curves():
    history = pd.DataFrame({"epoch": [1, 2], "kl": [0.5, 0.3], "loss": [0.6, 0.4]})
    _, axis = plt.subplots()
    plot_learning_curves(axis, {"one": history, "two": history + 1})
    held_out, training, other, _ = axis.get_lines()
    assert np.allclose(held_out.get_xydata(), [(1, 0.5), (2, 0.3)])
    assert np.allclose(training.get_xydata(), [(1, 0.6), (2, 0.4)])
    assert held_out.get_color() == training.get_color() != other.get_color()
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["one", "two"]


def test_tiles_by_hand():
    pictures = torch.arange(3.0).view(3, 1, 1).expand(3, 1, 2)
    gap = float("nan")
    expected = [[0, 0, gap, 1, 1], [gap] * 5, [2, 2, gap, gap, gap]]
    assert np.array_equal(tile_pictures(pictures, columns=2), expected, equal_nan=True)
    colours = torch.rand(4, 2, 3, 3)
    sheet = tile_pictures(colours, columns=2, gap=2)
    assert sheet.shape == (6, 8, 3)
    assert np.array_equal(sheet[4:, 5:], colours[3].numpy())


def test_attention_distances_of_each_head():
    figure, axis = plt.subplots()
    plot_attention_distances(axis, torch.tensor([[10.0, 20.0], [30.0, 40.0], [50.0, 60.0]]), uniform=55)
    points = axis.collections[0].get_offsets()
    assert np.allclose(points, [(1, 10), (1, 20), (2, 30), (2, 40), (3, 50), (3, 60)])
    (line,) = axis.get_lines()
    assert set(line.get_ydata()) == {55}
    assert line.get_linestyle() == "--"
    assert list(axis.get_xticks()) == [1, 2, 3]
    assert axis.get_ylim() == pytest.approx((0, 1.08 * 60))
    share_legend(figure, axis)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one head", "uniform attention"]


def test_attention_distances_side_by_side():
    """All dots of all panels are seen, whichever has the highest, and with filters below no label is cut off."""
    figure, axes = plt.subplots(2, 2, sharey="row")
    plot_attention_distances(axes[0, 0], torch.tensor([[200.0]]), uniform=100)
    plot_attention_distances(axes[0, 1], torch.tensor([[30.0]]), uniform=50)
    assert [axis.get_ylim() for axis in axes[0]] == 2 * [pytest.approx((0, 216))]
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
    assert [axis.get_title() for axis in figure.axes] == ["$\\frac$", "a$b$c"]
    figure.canvas.draw()
    show_pictures([[picture]], ["$x_{"], ["$\\frac$"]).canvas.draw()
    use_slide_style()
    table = pd.DataFrame({"guide": "$x_{", "keep_ratio": [1.0, 0.5], "top1": 0.5, "ci_low": 0.4, "ci_high": 0.6})
    figure, axis = plt.subplots()
    plot_drop_curves(axis, table, {"$x_{": 0})
    axis.set_title("$\\frac$")
    figure.canvas.draw()


def test_shortened_names_can_be_shown():
    assert shorten("a\nb\udcff\x1b.png", 20) == r"a\nb\udcff\x1b.png"
    assert shorten("x" * 30, 7) == "xxx…xxx"
