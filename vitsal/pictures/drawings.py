"""The course's two ideas as drawings, all in them computed: from a token to a map, and a student's short way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from vitsal.analysis.cost import gflop_per_image
from vitsal.guides.adapters import StudentGuide
from vitsal.guides.attention import AttentionRecord
from vitsal.guides.explainers import HeadGuide, RolloutGuide
from vitsal.guides.rollout import discard_lowest, fuse_heads, last_attention
from vitsal.models.classes import class_names, top_classes
from vitsal.models.pixels import downsample, to_pixels
from vitsal.models.tokens import grid_size, readout_options
from vitsal.pictures.explorer_figure import add_canvas, place_picture, place_predictions
from vitsal.pictures.overlays import HEAT_MAP, hide_dropped, overlay, scale_map, tile_pictures
from vitsal.pictures.style import COLOURS, SLIDE, shorten
from vitsal.reduction.drop import forward_kept
from vitsal.reduction.keep import top_k_patches
from vitsal.students.student import Student

SIDE, PITCH, TOP = 2.1, 2.65, 2.1  # inches: of a panel, from one panel to the next, above the panels
LEFTS = [(SLIDE[0] - 4 * PITCH - SIDE) / 2 + number * PITCH for number in range(5)]
TITLE, HEADING, CAPTION = 24, 20, 16  # points


def draw_rollout(
    model: nn.Module,
    image: Tensor,
    *,
    block: int = -1,
    head: int = 0,
    head_fusion: str = "max",
    discard_ratio: float = 0.9,
) -> Figure:
    """Draw how a token becomes a map: patches, one head's attention, heads fused, blocks multiplied, rollout.

    Args:
        model: a timm ViT in eval mode.
        image: as `model_transform(model)` makes it, (1, 3, H, W).
        block, head: of which the attention is shown, as in `HeadGuide`.
        head_fusion, discard_ratio: as in `RolloutGuide`, whose map is the last panel.

    Raises:
        UserError: no such block, head or head fusion; a discard ratio outside [0, 1).
    """
    record = AttentionRecord(model, image)
    fuse = partial(fuse_heads, head_fusion=head_fusion)
    rollout = RolloutGuide(model, head_fusion, discard_ratio).explain(record)[0]
    one_head = HeadGuide(model, block, head).explain(record)[0]
    tokens = readout_options(model)
    fused = last_attention(fuse(record.attentions[block]), **tokens)[0].view_as(rollout)
    pixels, blocks = to_pixels(image, model)[0], len(model.blocks)
    heads, reader = record.attentions[block].shape[1], "class token" if tokens["readout"] == "class" else "mean patch"
    prefix = f"{model.num_prefix_tokens} prefix token{'s' * (model.num_prefix_tokens != 1)}"
    discarded = f"; lowest\n{100 * discard_ratio:.0f} % set to 0" if discard_ratio else ""
    captions = {
        "patches": f"{' × '.join(map(str, rollout.shape))} patches:\n{rollout.numel()} tokens and\n{prefix}",
        "one head": f"what the {reader}\nreads from each:\nblock {block % blocks + 1}, head {head % heads + 1}",
        "heads fused": f"the {head_fusion} over\nthe block's\n{heads} heads",
        "blocks multiplied": f"{blocks} blocks, each with\nits residual{discarded}",
        "rollout": f"what the {reader}\nhas of each patch\nin the end",
    }
    pictures = [_cut(pixels, rollout.shape), _heat(one_head), _heat(fused), None, overlay(pixels, rollout)]
    figure, canvas = _draw_row(f"From a token to a map: {model.pretrained_cfg['architecture']}", pictures, captions)
    kept = [
        discard_lowest(fuse(attention), discard_ratio, model.num_prefix_tokens > 0) for attention in record.attentions
    ]
    _draw_stack(canvas, LEFTS[3], [matrices[0] for matrices in kept])
    _draw_scale(canvas)
    return figure


@torch.no_grad()
def draw_short_way(target: nn.Module, student: Student, image: Tensor, keep_ratio: float = 0.3) -> Figure:
    """Draw why a student saves time: image, small copy, its map, the patches kept, the target's answer to those.

    Below each step stands its share of the operations that the target needs for all patches (`gflop_per_image`: matrix
    products and convolutions).

    Args:
        target: a timm ViT in eval mode, with a classifier.
        student: see `StudentGuide`.
        image: as `model_transform(target)` makes it, (1, 3, H, W).
        keep_ratio: fraction of patches kept, in (0, 1].

    Raises:
        UserError: the keep ratio is no number in (0, 1].
    """
    guide, names = StudentGuide(student, target), class_names(target)
    small, saliency = downsample(image, student.input_size), guide(image)
    keep = top_k_patches(saliency, keep_ratio)
    steps = {
        "small copy": partial(downsample, image, student.input_size),
        "student's map": partial(guide, image),  # the copy included
        "patches kept": partial(top_k_patches, saliency, keep_ratio),
        "target's answer": partial(forward_kept, target, image, keep),
    }
    whole = gflop_per_image(partial(target, image), 1)
    shares = {name: gflop_per_image(step, 1) / whole for name, step in steps.items()}
    (full,) = top_classes(target(image)[0], names, 1)
    kept = top_classes(steps["target's answer"]()[0], names, 4)
    said = [_size(small) + " pixels", student.architecture, f"{keep.shape[1]} of {saliency.numel()}", "of those kept"]
    captions = {"image": f"{_size(image)} pixels\n"} | {
        name: f"{what}\n{100 * shares[name]:.1f} % of operations" for name, what in zip(steps, said, strict=True)
    }
    captions["target's answer"] += f"\nof all: {shorten(full.name, 10)} ({100 * full.probability:.0f} %)"
    pixels = to_pixels(image, target)[0]
    hidden = hide_dropped(pixels, keep[0], grid_size(target, image))
    pictures = [pixels, _centred(to_pixels(small, target)[0], pixels.shape), _heat(saliency[0]), hidden, None]
    title = f"A student tells {target.pretrained_cfg['architecture']} where to look"
    figure, canvas = _draw_row(title, pictures, captions)
    place_predictions(canvas, (LEFTS[4], TOP, SIDE), kept, HEADING)
    _draw_shares(canvas, {"student": shares["student's map"], "target": shares["target's answer"]})
    return figure


def _draw_row(title: str, pictures: Sequence[np.ndarray | None], captions: Mapping[str, str]) -> tuple[Figure, Axes]:
    """Pictures in a row with arrows between them, headings above and captions below, which are heading -> caption."""
    figure = plt.figure(figsize=SLIDE, layout="none")
    canvas = add_canvas(figure)
    canvas.text(SLIDE[0] / 2, 1, title, ha="center", fontsize=TITLE, parse_math=False)
    for left, picture, (heading, caption) in zip(LEFTS, pictures, captions.items(), strict=True):
        if picture is not None:
            place_picture(canvas, (left, TOP, SIDE), picture)
        canvas.text(left + SIDE / 2, TOP - 0.15, heading, ha="center", fontsize=HEADING, weight="bold")
        below = {"ha": "center", "va": "top", "fontsize": CAPTION, "parse_math": False}  # a class may hold dollar signs
        canvas.text(left + SIDE / 2, TOP + SIDE + 0.15, caption, **below)
    for left, after in pairwise(LEFTS):
        ends = {"xy": (after - 0.06, TOP + SIDE / 2), "xytext": (left + SIDE + 0.06, TOP + SIDE / 2)}
        canvas.annotate("", **ends, arrowprops={"arrowstyle": "-|>", "lw": 3, "mutation_scale": 25, "color": "black"})
    return figure, canvas


def _draw_stack(canvas: Axes, left: float, matrices: Sequence[Tensor]) -> None:
    """One matrix behind the other, the last block's in front; square roots, as most entries are next to nothing."""
    side = 0.6 * SIDE
    for number, matrix in enumerate(matrices):
        shift = number / max(len(matrices) - 1, 1) * (SIDE - side)
        place_picture(canvas, (left + shift, TOP + shift, side), _heat(matrix.sqrt()))
        frame = Rectangle((left + shift, TOP + shift), side, side, fill=False, color="white", lw=1.5, zorder=0)
        canvas.add_patch(frame)  # as low as pictures are, so that the next one hides it


def _draw_scale(canvas: Axes) -> None:
    """What the colours of maps mean."""
    left, width, top = SLIDE[0] / 2 - 2, 4, 6.1
    canvas.imshow(_heat(torch.arange(256.0)[None]), extent=(left, left + width, top + 0.3, top), aspect="auto")
    for place, end, side in ((left - 0.15, "least", "right"), (left + width + 0.15, "most", "left")):
        canvas.text(place, top + 0.15, end, ha=side, va="center", fontsize=HEADING)
    canvas.text(SLIDE[0] / 2, top + 0.7, "of each panel, on its own scale", ha="center", fontsize=CAPTION)


def _draw_shares(canvas: Axes, shares: Mapping[str, float]) -> None:
    """Bars of operations: what the target spends on all patches, below that what student and target spend."""
    left, width = 4.2, SLIDE[0] - 5.9
    rows = {"target on all patches": {"target": 1.0}, "student, then target": shares}
    for top, (name, parts) in zip((5.6, 6.2), rows.items(), strict=True):
        ends = width * np.cumsum([0, *parts.values()])
        colours = [{"student": COLOURS[1], "target": COLOURS[5]}[part] for part in parts]
        canvas.barh(top, np.diff(ends), 0.45, left + ends[:-1], color=colours)
        canvas.text(left - 0.15, top, name, ha="right", va="center", fontsize=HEADING)
        total = f"{100 * sum(parts.values()):.1f} %"
        canvas.text(left + ends[-1] + 0.1, top, total, va="center", fontsize=HEADING)
    note = "operations in matrix products and convolutions, of the target's on all patches"
    canvas.text(left, 6.85, note, fontsize=CAPTION)


def _cut(pixels: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """A picture (H, W, 3) cut into the patches of a grid, with gaps between them."""
    rows, columns = (size // cells for size, cells in zip(pixels.shape, grid, strict=False))
    patches = pixels.reshape(grid[0], rows, grid[1], columns, 3).swapaxes(1, 2).reshape(-1, rows, columns, 3)
    return tile_pictures(patches, grid[1], gap=max(1, rows // 6))


def _heat(values: Tensor) -> np.ndarray:
    """A map or matrix (h, w), scaled by its own range, in the colours of overlays: (h, w, 3)."""
    return plt.get_cmap(HEAT_MAP)(scale_map(values))[..., :3]


def _centred(small: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A picture in the middle of a white one of this shape, so that it shows at its true size beside such ones."""
    sheet = np.ones(shape, dtype=small.dtype)
    top, left = ((whole - part) // 2 for whole, part in zip(shape[:2], small.shape[:2], strict=True))
    sheet[top : top + small.shape[0], left : left + small.shape[1]] = small
    return sheet


def _size(images: Tensor) -> str:
    return " × ".join(map(str, images.shape[-2:]))
