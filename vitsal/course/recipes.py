"""The published experiments as named recipes, what they need, and how our numbers compare with the published ones.

Each chart of `data/reference/seed_curves.csv` is a recipe. What was published are curves, not settings: head fusion
"max" and discard ratio 0.9 are taken for every rollout unless the chart says "min", a ResNet-18 for every ResNet
student, and the pretrained MAE ViT-B/16 for the teacher that the chart calls "mae".
"""

from __future__ import annotations

import os
import shlex
from collections.abc import MutableMapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import nn

from vitsal.choices import STUDENTS
from vitsal.course.presets import KEEP_RATIOS, PRESETS
from vitsal.errors import UserError, check_choice
from vitsal.guides.factory import Guide, make_guide
from vitsal.models.loading import WEIGHTS_DIR_VARIABLE, load_model, megabytes, outline, weights_dir_file
from vitsal.models.tokens import grid_size
from vitsal.students.student import Student, load_student, new_student

STUDENT_ARCHITECTURE = "resnet18"
MAE_URL = "https://dl.fbaipublicfiles.com/mae/finetune/"
IMAGENET, DIGITS = PRESETS["imagenet"], PRESETS["digits"]


@dataclass(frozen=True)
class ModelSpec:
    """A timm model with its hub's weights or, where a checkpoint is named, those that MAE's authors fine-tuned.

    Args:
        name: the timm model.
        checkpoint: the file that MAE's authors published, at `url`: 1,000 classes, average pooling.
    """

    name: str
    checkpoint: str = ""

    @property
    def url(self) -> str:
        """Where the checkpoint comes from."""
        return MAE_URL + self.checkpoint

    @property
    def options(self) -> dict[str, object]:
        """What the checkpoint makes of the architecture, for `timm.create_model`."""
        return {"num_classes": 1000, "global_pool": "avg"} if self.checkpoint else {}


@dataclass(frozen=True)
class GuideSpec:
    """How a guide is made.

    Args:
        guide: "random", "rollout" or "student", as `make_guide` takes them.
        model: the timm model inside a rollout, the target itself by default; a student's teacher.
        head_fusion, discard_ratio: of the rollout, or of the rollouts that the student learnt.
        student: folder of the student among the others, such as "resnet-deit-max".
    """

    guide: str
    model: str = ""
    head_fusion: str = "max"
    discard_ratio: float = 0.9
    student: str = ""


@dataclass(frozen=True)
class Curve:
    """One curve of a chart: a target under a guide, by their labels, and the published curve that it belongs to.

    Args:
        target: a key of TARGETS.
        label: a key of GUIDE_SPECS.
        published: (figure, guide) in `seed_curves.csv`.
    """

    target: str
    label: str
    published: tuple[str, str]

    @property
    def guide(self) -> GuideSpec:
        """How the guide is made."""
        return GUIDE_SPECS[self.label]


@dataclass(frozen=True)
class PublishedExperiment:
    """One chart, ready to be drawn again.

    Args:
        name, title: what it is called.
        curves: its curves.
        data, split: what `vitsal.data.open_data` takes; `dataclasses.replace(recipe, data=folder)` names your own copy.
        num_images: how many images that is.
        keep_ratios: fractions of patches kept.
    """

    name: str
    title: str
    curves: tuple[Curve, ...]
    data: str = IMAGENET.data
    split: str = "validation"
    num_images: int = 50_000
    keep_ratios: tuple[float, ...] = KEEP_RATIOS

    @property
    def targets(self) -> list[str]:
        """Labels of the targets, in order."""
        return list(dict.fromkeys(curve.target for curve in self.curves))

    def of_target(self, label: str) -> list[Curve]:
        """The curves of one target.

        Raises:
            UserError: the recipe has no target of this label.
        """
        check_choice(f"target of {self.name!r}", label, self.targets)
        return [curve for curve in self.curves if curve.target == label]


TARGETS = {
    "ViT-B/16": ModelSpec(IMAGENET.target),
    "ViT-L/16": ModelSpec(PRESETS["imagenet-large"].target),
    "MAE ViT-B/16": ModelSpec("vit_base_patch16_224.mae", "mae_finetuned_vit_base.pth"),
    "MAE ViT-H/14": ModelSpec("vit_huge_patch14_224.mae", "mae_finetuned_vit_huge.pth"),
    "digits target": ModelSpec(DIGITS.target),
}
DEIT_TINY = "deit_tiny_patch16_224.fb_in1k"
GUIDE_SPECS = {
    "random": GuideSpec("random"),
    "own rollout": GuideSpec("rollout"),
    "deit_tiny rollout": GuideSpec("rollout", DEIT_TINY),
    "eva02_tiny rollout": GuideSpec("rollout", "eva02_tiny_patch14_224.mim_in22k"),
    "digits_guide rollout": GuideSpec("rollout", DIGITS.guide_model),
    "resnet student of deit_tiny rollout (max)": GuideSpec("student", DEIT_TINY, student="resnet-deit-max"),
    "resnet student of deit_tiny rollout (min)": GuideSpec("student", DEIT_TINY, "min", student="resnet-deit-min"),
    "resnet student of mae rollout": GuideSpec("student", "vit_base_patch16_224.mae", student="resnet-mae-max"),
}


def _curves(target: str, figure: str, *labels: str) -> tuple[Curve, ...]:
    return tuple(Curve(target, label, (figure, label)) for label in labels)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        PublishedExperiment(
            "base16",
            "ViT-B/16: random patches, its own rollout",
            _curves("ViT-B/16", "base16", "random", "own rollout"),
        ),
        PublishedExperiment(
            "base16-deit",
            "ViT-B/16: random patches, DeiT-tiny's rollout",
            _curves("ViT-B/16", "base16", "random", "deit_tiny rollout"),
        ),
        PublishedExperiment(
            "large16",
            "ViT-L/16: random patches, DeiT-tiny's rollout",
            _curves("ViT-L/16", "large16", "random", "deit_tiny rollout"),
        ),
        PublishedExperiment(
            "mae-base",
            "Fine-tuned MAE ViT-B/16: random patches, DeiT-tiny's rollout",
            _curves("MAE ViT-B/16", "mae_base", "random", "deit_tiny rollout"),
        ),
        PublishedExperiment(
            "mae-huge",
            "Fine-tuned MAE ViT-H/14: random patches, EVA-02 tiny's rollout",
            _curves("MAE ViT-H/14", "mae_huge", "random", "eva02_tiny rollout"),
        ),
        PublishedExperiment(
            "vit-vs-mae",
            "ViT-B/16 and fine-tuned MAE ViT-B/16: random patches, DeiT-tiny's rollout",
            _curves("ViT-B/16", "base16", "random", "deit_tiny rollout")
            + _curves("MAE ViT-B/16", "mae_base", "random", "deit_tiny rollout"),
        ),
        PublishedExperiment(
            "resnet-students",
            "ViT-B/16: ResNet students by teacher",
            _curves("ViT-B/16", "resnet_students", *(label for label in GUIDE_SPECS if label.startswith("resnet"))),
        ),
        PublishedExperiment(
            "final",
            "ViT-B/16: random patches, its own and DeiT-tiny's rollout, a ResNet student",
            _curves("ViT-B/16", "base16", "random", "own rollout", "deit_tiny rollout")
            + _curves("ViT-B/16", "resnet_students", "resnet student of deit_tiny rollout (max)"),
        ),
        PublishedExperiment(
            "embedded",
            "Offline stand-in: a small ViT on digit scenes; model and data are others than the published ViT-B/16's",
            (
                *_curves("digits target", "base16", "random", "own rollout"),
                Curve("digits target", "digits_guide rollout", ("base16", "deit_tiny rollout")),
            ),
            data=DIGITS.data,
            split=DIGITS.split,
            num_images=400,
        ),
    )
}


def choose_recipe(name: str) -> PublishedExperiment:
    """Return a recipe by its name.

    Raises:
        UserError: there is none of this name.
    """
    return RECIPES[check_choice("recipe", name, RECIPES)]


def load_targets(
    recipe: PublishedExperiment, *, pretrained: bool = True, device: str | torch.device = "cpu"
) -> dict[str, nn.Module]:
    """Load a recipe's targets in eval mode: label -> model.

    Args:
        recipe: whose targets.
        pretrained: False gives random weights, for a dry run.
        device: where to put them.

    Raises:
        UserError: the weights are not here and cannot be had, or a file of the authors' is missing.
    """
    return {label: _load_target(label, pretrained, device) for label in recipe.targets}


def _load_target(label: str, pretrained: bool, device: str | torch.device) -> nn.Module:
    spec = TARGETS[label]
    if pretrained and spec.checkpoint:
        return load_model(spec.name, _authors_file(label, spec), device=device)
    return load_model(spec.name, pretrained=pretrained, device=device, **spec.options)


def _authors_file(label: str, spec: ModelSpec) -> Path:
    path = weights_dir_file(spec.checkpoint)
    if path is None:
        raise UserError(
            f"{label} needs the weights that MAE's authors fine-tuned: download {spec.url} "
            f"({megabytes(outline_of(spec)):.0f} MB) into a folder, and name the folder in the environment variable "
            f"{WEIGHTS_DIR_VARIABLE}, which is {os.environ.get(WEIGHTS_DIR_VARIABLE) or 'not set'}."
        )
    return path


def make_guides(
    recipe: PublishedExperiment,
    label: str,
    target: nn.Module,
    *,
    students: str | Path = STUDENTS,
    seed: int = 0,
    pretrained: bool = True,
    models: MutableMapping[str, nn.Module] | None = None,
) -> dict[str, Guide]:
    """Make the guides of one of a recipe's targets, on its device: label -> guide.

    Args:
        recipe: whose guides.
        label: the target's.
        target: the target itself, as `load_targets` gives it.
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
    return {
        curve.label: make_guide(
            curve.guide.guide,
            target,
            model=_inner_model(curve.guide, models, pretrained, device),
            student=_student(curve.guide, Path(students), grid_size(target), pretrained, device),
            head_fusion=curve.guide.head_fusion,
            discard_ratio=curve.guide.discard_ratio,
            seed=seed,
        )
        for curve in recipe.of_target(label)
    }


def _inner_model(
    spec: GuideSpec, models: MutableMapping[str, nn.Module], pretrained: bool, device: torch.device
) -> nn.Module | None:
    """The ViT inside a rollout; None where that is the target, or where there is none."""
    if spec.guide != "rollout" or not spec.model:
        return None
    if spec.model not in models:
        models[spec.model] = load_model(spec.model, pretrained=pretrained, device=device)
    return models[spec.model]


def _student(
    spec: GuideSpec, students: Path, grid: tuple[int, int], pretrained: bool, device: torch.device
) -> Student | None:
    if not spec.student:
        return None
    if not pretrained:
        return new_student(STUDENT_ARCHITECTURE, grid).eval().to(device)
    folder = students / spec.student
    if not is_student(folder):
        raise UserError(f"There is no student at {folder}. This trains it: {training_command(spec, students)}")
    return load_student(folder, device)


def is_student(folder: Path) -> bool:
    """Whether a student is there, and not only the checkpoints of one in training."""
    return (folder / "config.json").is_file()


def training_command(spec: GuideSpec, students: str | Path = STUDENTS) -> str:
    """The command that trains a recipe's student into its folder among `students`."""
    options = {
        "teacher": spec.model,
        "head-fusion": spec.head_fusion,
        "discard-ratio": spec.discard_ratio,
        "architecture": STUDENT_ARCHITECTURE,
        "data": IMAGENET.data,
        "limit": IMAGENET.train_limit,
        "output": Path(students, spec.student),
    }
    return shlex.join(
        ["vitsal", "train-student", *(word for name in options for word in (f"--{name}", str(options[name])))]
    )


@cache
def outline_of(spec: ModelSpec) -> nn.Module:
    """The model without memory for its weights, for sizes, shapes and operation counts."""
    return outline(spec.name, **spec.options)
