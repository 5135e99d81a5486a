"""The models and guides of a recipe, loaded and made."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from functools import cache
from pathlib import Path

import torch
from torch import nn

from vitsal.choices import STUDENTS
from vitsal.course import recipes
from vitsal.errors import UserError
from vitsal.guides.factory import Guide, make_guide
from vitsal.models.loading import WEIGHTS_DIR_VARIABLE, load_model, megabytes, outline, weights_dir_file
from vitsal.models.tokens import grid_size
from vitsal.students.student import Student, load_student, new_student


def load_targets(
    recipe: recipes.PublishedExperiment, *, pretrained: bool = True, device: str | torch.device = "cpu"
) -> dict[str, nn.Module]:
    """Load a recipe's targets in eval mode: label -> model; not `pretrained`, with random weights, for a dry run.

    Raises:
        UserError: the weights are not here and cannot be had, or a file of the authors' is missing.
    """
    return {label: _load_target(label, pretrained, device) for label in recipe.targets}


def _load_target(label: str, pretrained: bool, device: str | torch.device) -> nn.Module:
    spec = recipes.TARGETS[label]
    if not (pretrained and spec.checkpoint):
        return load_model(spec.name, pretrained=pretrained, device=device, **spec.options)
    path = weights_dir_file(spec.checkpoint)
    if path is None:
        raise UserError(
            f"{label} needs the weights that MAE's authors fine-tuned: download {spec.url} "
            f"({megabytes(outline_of(spec)):.0f} MB) into a folder, and name the folder in the environment variable "
            f"{WEIGHTS_DIR_VARIABLE}, which is {os.environ.get(WEIGHTS_DIR_VARIABLE) or 'not set'}."
        )
    return load_model(spec.name, path, device=device)


def make_guides(
    recipe: recipes.PublishedExperiment,
    label: str,
    target: nn.Module,
    *,
    students: str | Path = STUDENTS,
    seed: int = 0,
    pretrained: bool = True,
    models: MutableMapping[str, nn.Module] | None = None,
) -> dict[str, Guide]:
    """Make the guides of one of a recipe's targets, as `load_targets` gives it, on its device: label -> guide.

    Args:
        students: folder that holds the students' folders.
        seed: of random patches.
        pretrained: False gives random weights and new students, for a dry run.
        models: timm models loaded before, by name; those loaded now are added. Pass the same for each target.

    Raises:
        UserError: the recipe has no such target; weights that cannot be had; a student that is not there, with the
            command that trains it.
    """
    models = {} if models is None else models
    device = next(target.parameters()).device
    guides = {}
    for curve in recipe.of_target(label):
        spec = curve.guide
        inner = _inner_model(spec, models, pretrained, device)
        student = _student(spec, Path(students), grid_size(target), pretrained, device)
        options = {"head_fusion": spec.head_fusion, "discard_ratio": spec.discard_ratio, "seed": seed}
        guides[curve.label] = make_guide(spec.guide, target, model=inner, student=student, **options)
    return guides


def _inner_model(
    spec: recipes.GuideSpec, models: MutableMapping[str, nn.Module], pretrained: bool, device: torch.device
) -> nn.Module | None:
    """The ViT inside a rollout; None where that is the target, or where there is none."""
    if spec.guide != "rollout" or not spec.model:
        return None
    if spec.model not in models:
        models[spec.model] = load_model(spec.model, pretrained=pretrained, device=device)
    return models[spec.model]


def _student(
    spec: recipes.GuideSpec, students: Path, grid: tuple[int, int], pretrained: bool, device: torch.device
) -> Student | None:
    if not spec.student:
        return None
    if not pretrained:
        return new_student(recipes.STUDENT_ARCHITECTURE, grid).eval().to(device)
    folder = students / spec.student
    if not recipes.is_student(folder):
        raise UserError(f"There is no student at {folder}. This trains it: {recipes.training_command(spec, students)}")
    return load_student(folder, device)


@cache
def outline_of(spec: recipes.ModelSpec) -> nn.Module:
    """The model without memory for its weights, for sizes, shapes and operation counts."""
    return outline(spec.name, **spec.options)
