"""Guides by name: callables that map images (B, 3, H, W) to a saliency map (B, gh, gw), whatever is behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from vitsal.choices import GUIDES
from vitsal.errors import UserError, check_choice
from vitsal.guides import baselines, explainers
from vitsal.guides.adapters import AdaptedGuide, StudentGuide
from vitsal.models.loading import load_network
from vitsal.models.tokens import grid_size
from vitsal.students.student import Student, load_students

Guide = Callable[[Tensor], Tensor]


def make_guide(
    name: str,
    target: nn.Module,
    *,
    model: nn.Module | None = None,
    student: Student | None = None,
    network: nn.Module | None = None,
    head_fusion: str = "mean",
    discard_ratio: float = 0.0,
    category_index: int | None = None,
    block: int = 3,
    seed: int = 0,
) -> Guide:
    """Make a guide for images prepared for `target`.

    Args:
        name: one of GUIDES; GUIDE_OPTIONS tells which of the options below it takes, and the others are passed over.
        target: the ViT whose patches will be dropped.
        model: the ViT inside the guide; the target itself by default.
        student: the student, as `vitsal.students.load_student` gives it.
        network: the convnet inside "activation", as `vitsal.models.load_network` gives it.
        head_fusion, discard_ratio, category_index, block, seed: what that guide takes; see its class.

    Raises:
        UserError: unknown guide, no student or network for the guide that needs one, or a value that cannot be used.
    """
    if name == "student" and student is None:
        raise UserError("The guide 'student' needs a student: a folder or a hub name that holds one (--student).")
    if name == "activation" and network is None:
        raise UserError("The guide 'activation' needs a network: any timm convnet, such as mobileone_s0 (--network).")
    inner = target if model is None else model
    makers: dict[str, Callable[[], Guide]] = {
        "rollout": lambda: explainers.RolloutGuide(inner, head_fusion, discard_ratio),
        "grad-rollout": lambda: explainers.GradientRolloutGuide(inner, category_index, discard_ratio),
        "last-attention": lambda: explainers.LastAttentionGuide(inner),
        "grad-attention": lambda: explainers.GradientAttentionGuide(inner, category_index),
        "flow": lambda: explainers.FlowGuide(inner, head_fusion, discard_ratio),
        "class-attention": lambda: baselines.ClassAttentionGuide(inner, block),
        "norm-change": lambda: baselines.NormChangeGuide(inner, block),
        "activation": lambda: baselines.ActivationGuide(network, target),
        "student": lambda: StudentGuide(student, target),
        "random": lambda: baselines.RandomGuide(grid_size(target), seed),
        "center": lambda: baselines.CenterGuide(grid_size(target)),
    }
    guide = makers[check_choice("guide", name, GUIDES)]()
    needs_adapting = isinstance(guide, explainers.ModelGuide | baselines.EarlyGuide) and inner is not target
    return AdaptedGuide(guide, target) if needs_adapting else guide


def make_choosers(
    names: Sequence[str], target: nn.Module, students: Mapping[str, Student] | None = None, **options: Any
) -> dict[str, Guide]:
    """Make several guides for one target, each as `make_guide` does, with the same options: name -> guide.

    For the guide "student" there may be several `students`, name -> student: "student <name>" -> guide.
    """
    choosers = {name: make_guide(name, target, **options) for name in names if name != "student"}
    pupils = (students or {"": None}) if "student" in names else {}
    return choosers | {f"student {name}": make_guide("student", target, student=pupils[name]) for name in pupils}


def load_choosers(
    names: Sequence[str], target: nn.Module, students: str | None, network: str | None, **options: Any
) -> dict[str, Guide]:
    """`make_choosers` with students (`load_students`) and a network (`load_network`) by their names, None for none.

    What is loaded goes where the target is.

    Raises:
        UserError: see `make_guide`, and what cannot be loaded.
    """
    device = next(target.parameters()).device
    pupils = load_students(students, device) if students else None
    convnet = None if network is None else load_network(network, device=device)
    return make_choosers(names, target, pupils, network=convnet, **options)


def picture_guide(method: str, model: nn.Module, **options: Any) -> Guide:
    """A guide to look at: one that explains a model, with its options (`make_guide`), or "heads", one map per head."""
    return explainers.HeadGuide(model) if method == "heads" else make_guide(method, model, **options)


def models_in(value: Any) -> list[nn.Module]:
    """The models in a guide, or the model that this is."""
    if isinstance(value, nn.Module):
        return [value]
    parts = fields(value) if is_dataclass(value) else ()
    return [model for part in parts for model in models_in(getattr(value, part.name))]
