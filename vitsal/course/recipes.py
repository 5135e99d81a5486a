"""The published experiments as named recipes.

Each chart of `published_curves.csv` is a recipe, on the data and at the keep ratios of the preset "imagenet". What was
published are curves, not settings: head fusion "max" and discard ratio 0.9 are taken for every rollout unless the chart
says "min", a ResNet-18 for every ResNet student, and the pretrained MAE ViT-B/16 for the teacher that the chart calls
"mae".
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from vitsal.choices import STUDENTS
from vitsal.course.presets import PRESETS
from vitsal.errors import check_choice

STUDENT_ARCHITECTURE = "resnet18"
IMAGENET = PRESETS["imagenet"]
NUM_IMAGES = 50_000  # of its validation split


@dataclass(frozen=True)
class ModelSpec:
    """A timm model with its hub's weights or, where a checkpoint is named, those that MAE's authors fine-tuned.

    The checkpoint is the file that they published, at `url`: 1,000 classes, average pooling.
    """

    name: str
    checkpoint: str = ""

    @property
    def url(self) -> str:
        """Where the checkpoint comes from."""
        return f"https://dl.fbaipublicfiles.com/mae/finetune/{self.checkpoint}"

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
        published: (figure, guide) in `published_curves.csv`.
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
    """One chart, its name, title and curves, ready to be drawn again."""

    name: str
    title: str
    curves: tuple[Curve, ...]

    @property
    def targets(self) -> list[str]:
        """Labels of the targets, in order."""
        return list(dict.fromkeys(curve.target for curve in self.curves))

    def of_target(self, label: str) -> list[Curve]:
        """The curves of one target; raises UserError if the recipe has none of this label."""
        check_choice(f"target of {self.name!r}", label, self.targets)
        return [curve for curve in self.curves if curve.target == label]


TARGETS = {
    "ViT-B/16": ModelSpec(IMAGENET.target),
    "ViT-L/16": ModelSpec(PRESETS["imagenet-large"].target),
    "MAE ViT-B/16": ModelSpec("vit_base_patch16_224.mae", "mae_finetuned_vit_base.pth"),
    "MAE ViT-H/14": ModelSpec("vit_huge_patch14_224.mae", "mae_finetuned_vit_huge.pth"),
}
DEIT_TINY = "deit_tiny_patch16_224.fb_in1k"
GUIDE_SPECS = {
    "random": GuideSpec("random"),
    "own rollout": GuideSpec("rollout"),
    "deit_tiny rollout": GuideSpec("rollout", DEIT_TINY),
    "eva02_tiny rollout": GuideSpec("rollout", "eva02_tiny_patch14_224.mim_in22k"),
    "resnet student of deit_tiny rollout (max)": GuideSpec("student", DEIT_TINY, student="resnet-deit-max"),
    "resnet student of deit_tiny rollout (min)": GuideSpec("student", DEIT_TINY, "min", student="resnet-deit-min"),
    "resnet student of mae rollout": GuideSpec("student", "vit_base_patch16_224.mae", student="resnet-mae-max"),
}


def _curves(target: str, figure: str, *labels: str) -> tuple[Curve, ...]:
    return tuple(Curve(target, label, (figure, label)) for label in labels)


BASE16_DEIT = _curves("ViT-B/16", "base16", "random", "deit_tiny rollout")
LARGE16_DEIT = _curves("ViT-L/16", "large16", "random", "deit_tiny rollout")
MAE_BASE_DEIT = _curves("MAE ViT-B/16", "mae_base", "random", "deit_tiny rollout")
MAE_HUGE_EVA = _curves("MAE ViT-H/14", "mae_huge", "random", "eva02_tiny rollout")
CHARTS = {
    "base16": ("ViT-B/16: random patches, its own rollout", _curves("ViT-B/16", "base16", "random", "own rollout")),
    "base16-deit": ("ViT-B/16: random patches, DeiT-tiny's rollout", BASE16_DEIT),
    "large16": ("ViT-L/16: random patches, DeiT-tiny's rollout", LARGE16_DEIT),
    "mae-base": ("Fine-tuned MAE ViT-B/16: random patches, DeiT-tiny's rollout", MAE_BASE_DEIT),
    "mae-huge": ("Fine-tuned MAE ViT-H/14: random patches, EVA-02 tiny's rollout", MAE_HUGE_EVA),
    "vit-vs-mae": (
        "ViT-B/16 and fine-tuned MAE ViT-B/16: random patches, DeiT-tiny's rollout",
        BASE16_DEIT + MAE_BASE_DEIT,
    ),
    "resnet-students": (
        "ViT-B/16: ResNet students by teacher",
        _curves("ViT-B/16", "resnet_students", *(label for label in GUIDE_SPECS if label.startswith("resnet"))),
    ),
    "final": (
        "ViT-B/16: random patches, its own and DeiT-tiny's rollout, a ResNet student",
        _curves("ViT-B/16", "base16", "random", "own rollout", "deit_tiny rollout")
        + _curves("ViT-B/16", "resnet_students", "resnet student of deit_tiny rollout (max)"),
    ),
}
RECIPES = {name: PublishedExperiment(name, title, curves) for name, (title, curves) in CHARTS.items()}


def choose_recipe(name: str) -> PublishedExperiment:
    """Return a recipe by its name; raise UserError if there is none."""
    return RECIPES[check_choice("recipe", name, RECIPES)]


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
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return shlex.join(["vitsal", "train-student", *words])
