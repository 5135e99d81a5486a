"""Drawings made by code: what they show is what the guides, the choice of patches and the counts of operations say."""

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from helpers import randomise

from vitsal.analysis.cost import count_operations
from vitsal.errors import UserError
from vitsal.guides.accelerated import AcceleratedViT
from vitsal.guides.adapters import StudentGuide
from vitsal.guides.attention import record_attention
from vitsal.guides.explainers import RolloutGuide
from vitsal.models.pixels import downsample, to_pixels
from vitsal.pictures.drawings import draw_rollout, draw_short_way
from vitsal.pictures.overlays import hide_dropped, overlay, scale_map
from vitsal.pictures.style import SLIDE, save_figure, set_slide_style
from vitsal.reduction.drop import forward_kept
from vitsal.reduction.keep import top_k_patches
from vitsal.students.student import Student


@pytest.fixture(autouse=True)
def _own_style():
    with plt.rc_context():
        set_slide_style()
        yield
    plt.close("all")


@pytest.fixture
def image():
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def pictures(figure):
    return [np.asarray(image.get_array()) for image in figure.axes[0].images]


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts if text.get_text()]


def heat(values):
    return plt.get_cmap("plasma")(scale_map(values))[..., :3]


def test_rollout_step_by_step(tiny_vit, image, tmp_path):
    """One head's row, the fused row, each block's matrix and the rollout, by other means."""
    model = randomise(tiny_vit)
    with record_attention(model) as maps, torch.no_grad():
        model(image)
    grid = model.patch_embed.grid_size
    figure = draw_rollout(model, image, block=1, head=2, head_fusion="mean", discard_ratio=0.0)
    cut, one_head, fused, *matrices, rollout = order(pictures(figure), len(maps))
    assert np.allclose(one_head, heat(maps[1][0, 2, 0, 1:].view(grid)))
    assert np.allclose(fused, heat(maps[1][0].mean(dim=0)[0, 1:].view(grid)), atol=0.02)
    pixels = to_pixels(image, model)[0]
    saliency = RolloutGuide(model, "mean", 0.0)(image)[0]
    assert np.allclose(rollout, overlay(pixels, saliency), atol=1e-5)
    assert len(matrices) == len(maps)
    for drawn, attention in zip(matrices, maps, strict=True):
        assert np.allclose(drawn, heat(attention[0].mean(dim=0).sqrt()), atol=0.02)
    side = 64 // grid[0]
    gap = max(1, side // 6)
    assert np.allclose(cut[:side, side + gap : 2 * side + gap], pixels[:side, side : 2 * side])
    assert np.isnan(cut[:, side : side + gap]).all()
    said = " ".join(texts(figure)).replace("\n", " ")
    assert "block 2, head 3 heads fused the mean over the block's 3 heads" in said
    assert "set to 0" not in said
    assert f"{grid[0]} × {grid[1]} patches: {grid[0] * grid[1]} tokens and 1 prefix token" in said
    assert save_figure(figure, tmp_path, "one").exists()


def order(drawn, blocks):
    """Cut image, one head, heads fused, the matrices, and the rollout; the last picture is the colours' scale."""
    return [*drawn[:3], *drawn[4 : 4 + blocks], drawn[3]]


def test_discarded_attention_is_not_in_the_matrices(tiny_vit, image):
    model = randomise(tiny_vit)
    figure = draw_rollout(model, image, discard_ratio=0.9)
    matrix = order(pictures(figure), len(model.blocks))[3]
    zero = np.isclose(matrix, plt.get_cmap("plasma")(0.0)[:3]).all(axis=-1)
    assert zero.mean() == pytest.approx(0.9, abs=0.01)
    assert any("90 % set to 0" in text for text in texts(figure))


def test_a_block_that_is_not_there_is_refused(tiny_vit, image):
    with pytest.raises(UserError, match="no block 99"):
        draw_rollout(tiny_vit, image, block=99)


def test_a_students_short_way(tiny_vit, image):
    """Its map, the patches chosen by it, the answer to those alone, and every share of operations."""
    model = randomise(tiny_vit)
    grid = model.patch_embed.grid_size
    student = Student("convnet", grid_size=grid, input_size=(32, 32), width=8).eval()
    figure = draw_short_way(model, student, image, keep_ratio=0.25)
    whole, small, student_map, kept = pictures(figure)
    pixels, guide = to_pixels(image, model)[0], StudentGuide(student, model)
    assert np.allclose(whole, pixels)
    copy = to_pixels(downsample(image, (32, 32)), model)[0]
    assert small.shape == pixels.shape  # so that the copy has its true size beside the image
    assert np.allclose(small[16:48, 16:48], copy)
    assert (small[:16] == 1).all()
    assert (small[:, 48:] == 1).all()
    assert np.allclose(student_map, heat(guide(image)[0]))
    keep = top_k_patches(guide(image), 0.25)
    assert np.allclose(kept, hide_dropped(pixels, keep[0], grid))
    full = count_operations(partial(model, image))
    steps = partial(guide, image), partial(forward_kept, model, image, keep)
    shares = [100 * count_operations(step) / full for step in steps]
    both = 100 * count_operations(partial(AcceleratedViT(model, guide, 0.25), image)) / full
    said = texts(figure)
    assert [text for text in said if text.endswith("%") and "\n" not in text] == ["100.0 %", f"{both:.1f} %"]
    percent = [text.split("\n")[1] for text in said if "% of operations" in text]
    assert percent == [f"{share:.1f} % of operations" for share in (0, shares[0], 0, shares[1])]
    bars = [patch for patch in figure.axes[0].patches if patch.get_height() == pytest.approx(0.45)]
    widths = np.array([bar.get_width() for bar in bars])
    assert np.allclose(100 * widths[1:] / widths[0], shares)


def test_the_answer_is_that_to_the_patches_kept(tiny_vit, image):
    model = randomise(tiny_vit)
    grid = model.patch_embed.grid_size
    student = Student("convnet", grid_size=grid, width=8).eval()
    figure = draw_short_way(model, student, image, keep_ratio=0.25)
    with torch.no_grad():
        keep = top_k_patches(StudentGuide(student, model)(image), 0.25)
        kept, full = (logits[0].softmax(dim=0) for logits in (forward_kept(model, image, keep), model(image)))
    said = texts(figure)
    assert any(text.endswith(f"of all: {full.argmax()} ({100 * full.max():.0f} %)") for text in said)
    bars = [patch for patch in figure.axes[0].patches if patch.get_height() != pytest.approx(0.45)]
    shown = [bar.get_width() for bar in bars if bar.get_height() < 0.45]
    top = kept.sort(descending=True)
    assert np.allclose(np.array(shown) / shown[0], (top.values[:4] / top.values[0]).numpy(), atol=1e-5)
    names = [str(index) for index in top.indices[:4].tolist()]
    start = said.index(names[0])
    assert said[start : start + 4] == names


@pytest.mark.parametrize("draw", [draw_rollout, partial(draw_short_way, keep_ratio=0.5)])
def test_captions_neither_collide_nor_leave_the_slide(tiny_vit, image, draw):
    grid = tiny_vit.patch_embed.grid_size
    more = [] if draw is draw_rollout else [Student("transformer", grid_size=grid, width=8).eval()]
    figure = draw(tiny_vit, *more, image)
    assert tuple(figure.get_size_inches()) == pytest.approx(SLIDE)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text()]
    assert all(figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1 for box in boxes)
    assert all(figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1 for box in boxes)
    assert not any(one.overlaps(other) for number, one in enumerate(boxes) for other in boxes[:number])
