"""Figures: right pixels, right size, right numbers on the axes."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from vitsal.outcomes import COLUMNS
from vitsal.plotting import (
    hide_dropped,
    overlay,
    plot_drop_curves,
    plot_learning_curves,
    plot_published,
    save_figure,
    scale_map,
    show_pictures,
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


def test_published_curves():
    _, axis = plt.subplots()
    plot_published(axis, pd.DataFrame({"guide": ["a", "a"], "drop_percent": [0, 50], "top1": [0.8, 0.5]}), {"a": 2})
    assert np.allclose(axis.get_lines()[0].get_xydata(), [(0, 80), (50, 50)])


def test_learning_curves():
    history = pd.DataFrame({"epoch": [1, 2], "kl": [0.5, 0.3], "loss": [0.6, 0.4]})
    _, axis = plt.subplots()
    plot_learning_curves(axis, {"one": history, "two": history + 1})
    held_out, training, other, _ = axis.get_lines()
    assert np.allclose(held_out.get_xydata(), [(1, 0.5), (2, 0.3)])
    assert np.allclose(training.get_xydata(), [(1, 0.6), (2, 0.4)])
    assert held_out.get_color() == training.get_color() != other.get_color()
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["one", "two"]
