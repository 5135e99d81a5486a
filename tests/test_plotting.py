"""Figures: right pixels, right size, right numbers on the axes."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from vitsal.outcomes import COLUMNS
from vitsal.plotting import (
    COLOURS,
    hide_dropped,
    overlay,
    plot_accuracy_against_throughput,
    plot_attention_distances,
    plot_drop_curves,
    plot_learning_curves,
    plot_published,
    plot_speedups,
    save_figure,
    scale_map,
    shorten,
    show_pictures,
    tile_pictures,
    to_pixels,
    use_slide_style,
)


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


def test_drop_curves_draw_the_table():
    rows = [
        ["t", "random", 1.0, 10, 9, 0.9, 0.8, 0.95],
        ["t", "random", 0.5, 10, 4, 0.4, 0.3, 0.5],
        ["t", "rollout", 0.5, 10, 7, 0.7, 0.6, 0.8],
        ["t", "rollout", 1.0, 10, 9, 0.9, 0.8, 0.95],
    ]
    _, axis = plt.subplots()
    plot_drop_curves(axis, pd.DataFrame(rows, columns=COLUMNS), {"random": 0, "rollout": 1})
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
    plot_accuracy_against_throughput(axis, pd.DataFrame(rows, columns=COLUMNS), costs, styles)
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
    table = pd.DataFrame([["t", "student", 0.25, 10, 7, 0.7, 0.55, 0.8]], columns=COLUMNS)
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
    _, axis = plt.subplots()
    plot_attention_distances(axis, torch.tensor([[10.0, 20.0], [30.0, 40.0], [50.0, 60.0]]), uniform=55)
    points = axis.collections[0].get_offsets()
    assert np.allclose(points, [(1, 10), (1, 20), (2, 30), (2, 40), (3, 50), (3, 60)])
    (line,) = axis.get_lines()
    assert set(line.get_ydata()) == {55}
    assert line.get_linestyle() == "--"
    assert list(axis.get_xticks()) == [1, 2, 3]
    assert axis.get_ylim()[0] == 0
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["one head", "uniform attention"]
