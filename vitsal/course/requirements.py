"""What the published experiments need: weights, operations, time."""

from __future__ import annotations

import time
from functools import cache, partial
from pathlib import Path

import pandas as pd
import torch

from vitsal.analysis.cost import count_operations
from vitsal.choices import STUDENTS
from vitsal.course import recipes
from vitsal.course.cast import outline_of
from vitsal.course.presets import KEEP_RATIOS
from vitsal.models.loading import find_weights, load_model, megabytes, weights_dir_file
from vitsal.models.tokens import input_size
from vitsal.reduction.drop import forward_kept
from vitsal.reduction.keep import num_kept
from vitsal.students.student import Student, new_student


def needs(recipe: recipes.PublishedExperiment, *, students: str | Path = STUDENTS) -> pd.DataFrame:
    """What must be on this machine before a recipe can run.

    Returns:
        One row per model: model (timm name, or a student's folder), role ("target", "guide", "student"), megabytes
        (10^6 bytes, in single precision), where ("embedded", "weights folder", "hub cache", "students folder", or ""
        where it is not here yet), and source, where to get it from: the hub, a URL or a command.
    """
    rows = [_need_of_target(recipes.TARGETS[label]) for label in recipe.targets]
    rows += [_need_of_guide(curve.guide, Path(students)) for curve in recipe.curves if curve.guide.model]
    table = pd.DataFrame(rows, columns=["model", "role", "megabytes", "where", "source"])
    return table.drop_duplicates("model", ignore_index=True)


def _need_of_target(spec: recipes.ModelSpec) -> tuple[str, str, float, str, str]:
    size = megabytes(outline_of(spec))
    if spec.checkpoint:
        here = "weights folder" if weights_dir_file(spec.checkpoint) else ""
        return spec.checkpoint, "target", size, here, spec.url
    return spec.name, "target", size, find_weights(spec.name), "hub"


def _need_of_guide(spec: recipes.GuideSpec, students: Path) -> tuple[str, str, float, str, str]:
    if spec.student:
        here = "students folder" if recipes.is_student(students / spec.student) else ""
        return spec.student, "student", megabytes(_new_student()), here, recipes.training_command(spec, students)
    return spec.model, "guide", megabytes(outline_of(recipes.ModelSpec(spec.model))), find_weights(spec.model), "hub"


def describe_recipes(*, students: str | Path = STUDENTS, speed: float | None = None) -> pd.DataFrame:
    """What each recipe is and takes.

    Args:
        students: folder that holds the students' folders.
        speed: FLOP/s of this machine, as `measure_speed` tells it; None leaves the time out.

    Returns:
        One row per recipe: name, title, models (with their sizes, and where they are), missing_mb (MB to be downloaded
        or trained), images, pflop (10^15 operations in all) and, with a speed, hours that they take at that speed;
        reading images takes its own time.
    """
    rows = []
    for recipe in recipes.RECIPES.values():
        needed, operations = needs(recipe, students=students), count_recipe(recipe)
        missing = needed.loc[needed["where"] == "", "megabytes"].sum()
        models = [f"{row.model} ({row.megabytes:.1f} MB, {row.where or 'not here'})" for row in needed.itertuples()]
        row = {"name": recipe.name, "title": recipe.title, "models": "; ".join(models), "missing_mb": missing}
        row |= {"images": recipes.NUM_IMAGES, "pflop": operations / 1e15}
        rows.append(row | ({"hours": operations / speed / 3600} if speed else {}))
    return pd.DataFrame(rows)


def count_recipe(recipe: recipes.PublishedExperiment) -> int:
    """Floating-point operations of a whole recipe (a multiplication and an addition are two).

    Each target sees each image whole once, and once for each guide and smaller keep ratio; a guide is one forward pass
    of its model. A run that embeds an image's patches once for all of its passes takes a little less.
    """
    whole = sum(_count_kept(recipes.TARGETS[label], 1.0) for label in recipe.targets)
    reduced = [ratio for ratio in KEEP_RATIOS if ratio < 1]
    curves = sum(
        _count_guide(curve.guide, recipes.TARGETS[curve.target])
        + sum(_count_kept(recipes.TARGETS[curve.target], ratio) for ratio in reduced)
        for curve in recipe.curves
    )
    return recipes.NUM_IMAGES * (whole + curves)


@cache
def _count_guide(spec: recipes.GuideSpec, target: recipes.ModelSpec) -> int:
    """Operations of a guide for one image."""
    if spec.guide == "random":
        return 0
    if spec.student:
        student = _new_student()
        return count_operations(partial(student, torch.empty(1, 3, *student.input_size)))
    return _count_kept(recipes.ModelSpec(spec.model) if spec.model else target, 1.0)


def _count_kept(spec: recipes.ModelSpec, keep_ratio: float) -> int:
    """Operations of a model for one image of which it sees a part.

    They are a polynomial of degree two in the number of patches: attention grows with its square, all else linearly.
    Counting one, two and three patches tells all of it (Newton's differences), without a run for each ratio.
    """
    one, two, three = _count_few(spec)
    more = num_kept(outline_of(spec).patch_embed.num_patches, keep_ratio) - 1
    return one + more * (two - one) + more * (more - 1) // 2 * (three - 2 * two + one)


@cache
def _count_few(spec: recipes.ModelSpec) -> list[int]:
    """Operations of a model for one image of which it sees one, two and three patches."""
    model = outline_of(spec)
    image = torch.empty(1, 3, *input_size(model), device="meta")
    keeps = [torch.zeros(1, kept, dtype=torch.long, device="meta") for kept in (1, 2, 3)]
    return [count_operations(partial(forward_kept, model, image, keep)) for keep in keeps]


@cache
def _new_student() -> Student:
    """A student for 14 x 14 patches, as all published ones are."""
    return new_student(recipes.STUDENT_ARCHITECTURE, (14, 14)).eval()


@torch.inference_mode()
def measure_speed(device: str | torch.device = "cpu", *, seconds: float = 1.0, batch_size: int = 32) -> float:
    """Operations per second, FLOP/s, at which this machine runs a DeiT-tiny with random weights.

    Other models and batches do not reach the same speed, nor does a machine that is busy: it is an estimate.

    Args:
        device, batch_size: of the passes.
        seconds: how long to measure, after one pass that does not count; one pass at least.
    """
    model = load_model(recipes.DEIT_TINY, pretrained=False, device=device)
    images = torch.zeros(batch_size, 3, *input_size(model), device=device)
    model(images).sum().item()  # .item() waits for the device
    passes, start, elapsed = 0, time.perf_counter(), 0.0
    while not passes or elapsed < seconds:
        model(images).sum().item()
        passes, elapsed = passes + 1, time.perf_counter() - start
    return passes * batch_size * _count_kept(recipes.ModelSpec(recipes.DEIT_TINY), 1.0) / elapsed
