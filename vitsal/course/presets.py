"""Presets bundle models, data and rollout parameters, so that one name moves a notebook from toy data to ImageNet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import NoneType, UnionType
from typing import Any, get_args, get_type_hints

from vitsal.errors import LARGEST_COUNT, LARGEST_SEED, UserError, check_choice, check_whole, quoted, suggestion

KEEP_RATIOS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


@dataclass(frozen=True)
class Preset:
    """What one experiment is made of; every part can be replaced singly (`choose_preset`).

    Args:
        target: the ViT that is made cheaper.
        drop_target: the same, trained with patches dropped, to compare with; "" for none.
        students: what `vitsal.students.load_students` takes; "" for none that are there already.
        guide_model: the small ViT whose rollout chooses the patches.
        data, split: what `vitsal.data.open_data` takes.
        train_data, train_split: the same for the images that students learn from; "" is the same data.
        train_limit: number of images that students learn from.
        epochs: passes over them.
        student_width: how wide students are (`vitsal.students.Student`).
        head_fusion, discard_ratio: of all rollouts.
        keep_ratios: fractions of patches kept.
        compare_at: the one at which guides are compared, where they differ.
        limit: number of images, spread evenly over the data; None takes all.
    """

    target: str
    guide_model: str
    data: str
    split: str = "validation"
    train_data: str = ""
    train_split: str = "train"
    train_limit: int | None = None
    epochs: int = 40
    student_width: int = 32
    drop_target: str = ""
    students: str = ""
    head_fusion: str = "max"
    discard_ratio: float = 0.9
    keep_ratios: tuple[float, ...] = KEEP_RATIOS
    compare_at: float = 0.2
    limit: int | None = None


PLAIN_KINDS = {float: (float, int), tuple[float, ...]: (list, tuple)}  # that are written without thought of the type
COUNTS = ("limit", "train_limit", "epochs", "student_width", "batch_size", "repeats")
RANGES = {name: (1, LARGEST_COUNT) for name in COUNTS} | {"seed": (0, LARGEST_SEED)}  # of every notebook's
PRESETS: dict[str, Preset] = {
    "digits": Preset(
        target="vitsal_digits_target",
        drop_target="vitsal_digits_target_drop",
        students="digits-convnet-rollout, digits-transformer-rollout, "
        "digits-convnet-grad-rollout, digits-transformer-grad-rollout",
        guide_model="vitsal_digits_guide",
        data="digits",
        split="test",
        discard_ratio=0.5,  # 0.9 leaves two thirds of the guide's patches at exactly 0
        keep_ratios=(1.0, 0.5, 0.3, 0.2, 0.15, 0.1, 0.05),
        compare_at=0.1,
        train_limit=400,
        epochs=5,
        student_width=16,
    ),
    "imagenette": Preset(
        target="deit_tiny_patch16_224", guide_model="deit_tiny_patch16_224", data="imagenette", compare_at=0.3
    ),
    "imagenet": Preset(
        target="vit_base_patch16_224.augreg2_in21k_ft_in1k",
        guide_model="deit_tiny_patch16_224.fb_in1k",
        data="hfids/ILSVRC/imagenet-1k",
        train_limit=100_000,
    ),
}
PRESETS["imagenet-large"] = replace(PRESETS["imagenet"], target="vit_large_patch16_224.augreg_in21k_ft_in1k")


def choose_preset(name: str, changes: Mapping[str, object] | None = None) -> Preset:
    """Return a preset, with the parts in `changes` that are not None replaced.

    Raises UserError for an unknown preset, a part that presets do not have, or a `compare_at` that is no keep ratio.

    Example:
        >>> choose_preset("digits", {"limit": 100, "target": None}).limit
        100
    """
    preset = PRESETS[check_choice("preset", name, PRESETS)]
    changes = {part: value for part, value in (changes or {}).items() if value is not None}
    known = [part.name for part in fields(Preset)]
    for part in changes:
        if part not in known:
            raise UserError(f"A preset has no {part!r}.{suggestion(part, known)} It has {', '.join(known)}.")
    chosen = replace(preset, **changes)
    if chosen.compare_at not in chosen.keep_ratios:
        known = ", ".join(f"{ratio:g}" for ratio in chosen.keep_ratios)
        raise UserError(
            f"Guides are compared at a keep ratio, compare_at, of {chosen.compare_at:g}, which is none of the "
            f"keep_ratios {known}. Add it there, or give a compare_at that is one of them."
        )
    return chosen


def read_parameters(namespace: Mapping[str, object], **others: type) -> Preset:
    """Check a notebook's parameters and make its preset of them: `read_parameters(globals(), seed=int)`.

    Args:
        namespace: the notebook's `globals()`, after the cell tagged parameters: `preset`, parts of it (None leaves the
            preset's own), and the notebook's own parameters.
        others: the notebook's own parameters and their types.

    Raises:
        UserError: see `check_parameters`; an unknown preset.

    Example:
        >>> read_parameters({"preset": "digits", "limit": 100, "seed": 0}, seed=int).limit
        100
    """
    parts = {name: _kinds(hint) for name, hint in get_type_hints(Preset).items()}
    given = check_parameters(namespace, preset=str, **parts, **others)
    return choose_preset(given["preset"], {name: given.get(name) for name in parts})


def _kinds(hint: Any) -> tuple[type, ...]:
    """What a notebook may give for a part of this type; None leaves the preset's own."""
    kind = get_args(hint)[0] if isinstance(hint, UnionType) else hint
    return (*PLAIN_KINDS.get(kind, (kind,)), NoneType)


def check_parameters(namespace: Mapping[str, object], **types: type | tuple[type, ...]) -> dict[str, object]:
    """Return a notebook's parameters, all plain values in its `globals()`, if they are known and of the right types.

    papermill defines every name it is given, so that a mistyped one would go unnoticed. `namespace` is the notebook's
    `globals()` after the cell tagged parameters, `types` are those of all parameters that there are.

    Raises:
        UserError: an unknown parameter, with the known ones; a value of a wrong type, or out of its range.
    """
    given = {name: value for name, value in namespace.items() if _is_parameter(name, value)}
    for name, value in given.items():
        check_choice("parameter", name, types)
        kinds = types[name] if isinstance(types[name], tuple) else (types[name],)
        if type(value) not in kinds:
            said = " or ".join("None" if kind is NoneType else kind.__name__ for kind in kinds)
            raise UserError(f"Parameter {name!r} cannot be {quoted(value)}: it takes {said}.")
        if name in RANGES and value is not None:
            check_whole(f"parameter {name!r}", value, *RANGES[name])
    return given


def _is_parameter(name: str, value: object) -> bool:
    plain = (bool, int, float, str, list, tuple, dict, NoneType)
    imported = name.isupper()  # constants of the package
    return type(value) in plain and not (imported or name.startswith("_") or name in ("In", "Out"))
