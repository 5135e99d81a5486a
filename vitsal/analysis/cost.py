"""What guides cost, and what dropping patches saves: alternating runs in one process, medians."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from tqdm import tqdm

from vitsal.analysis.probing import attention_distances
from vitsal.choices import ARCHITECTURES, PRECISIONS
from vitsal.errors import UserError, check_choice
from vitsal.guides.accelerated import AcceleratedViT
from vitsal.guides.adapters import StudentGuide
from vitsal.guides.attention import attention_of, fused_attention
from vitsal.guides.baselines import RandomGuide
from vitsal.guides.explainers import GradientRolloutGuide, RolloutGuide
from vitsal.guides.factory import Guide, make_guide
from vitsal.jobs.devices import device_name
from vitsal.models.tokens import grid_size, input_size
from vitsal.reduction.reduction import Reduction, as_reduction
from vitsal.students.student import Student, load_student, new_student

PLAIN = "none"  # in the place of a guide: the untouched target
Name = TypeVar("Name", bound=Hashable)


def time_alternating(
    functions: Mapping[Name, Callable[[], object]], repeats: int, device: torch.device
) -> dict[Name, np.ndarray]:
    """Time functions in turn, round after round, so that a machine's drift meets all alike: name -> (repeats,) seconds.

    One round of warm-up is not counted. The device is waited for before and after each call.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in functions}
    for number in tqdm(range(repeats + 1), desc="rounds", mininterval=1):
        for name, function in functions.items():
            _wait_for(device)
            start = time.perf_counter()
            with torch.inference_mode():  # gradient rollout leaves it by itself
                function()
            _wait_for(device)
            if number > 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rollout_cost(model: nn.Module, batch_size: int = 32, *, repeats: int = 9) -> pd.DataFrame:
    """Time of rollout, gradient rollout and mean attention distance against the plain forward pass of the same batch.

    One row per task: median seconds, fastest and slowest, and the median ratio to the faster of the plain passes, with
    fused attention (as timm runs) and without.
    """
    images = example_images(model, batch_size)
    rollout, gradient = RolloutGuide(model, "max", 0.9), GradientRolloutGuide(model, None, 0.9)
    modules = [attention_of(model, index) for index in range(len(model.blocks))]

    def forward(fused: bool) -> Tensor:
        with fused_attention(modules, fused):
            return model(images)

    tasks = {
        "forward, fused attention": partial(forward, fused=True),
        "forward, unfused attention": partial(forward, fused=False),
        "rollout": partial(rollout, images),
        "gradient rollout": partial(gradient, images),
        "attention distance": partial(attention_distances, model, images),
    }
    seconds = time_alternating(tasks, repeats, images.device)
    plain = min(list(seconds)[:2], key=lambda task: np.median(seconds[task]))
    return pd.DataFrame(
        {"task": task, **spread_of(values), "ratio_to_forward": np.median(values / seconds[plain])}
        for task, values in seconds.items()
    )


def pipeline_cost(
    target: nn.Module,
    guides: Mapping[str, Guide],
    reductions: Sequence[float | Reduction],
    *,
    batch_size: int = 8,
    repeats: int = 9,
    precision: str = "float32",
) -> pd.DataFrame:
    """Time of the whole pipeline (guide, choice of patches, reduced target) against the untouched target.

    All see the same images, in turn (`time_alternating`), and each round's times are compared with each other only.

    Args:
        target: a timm ViT in eval mode; the untouched one keeps its fused attention, as timm runs it.
        guides: name -> guide for images prepared for `target`; a student's downsampling is a part of it.
        reductions: fractions of patches kept, each in (0, 1], or `vitsal.Reduction`s. Where all patches are kept there
            is nothing to choose: no guide runs (guide "none"). The untouched target is always there.
        batch_size, repeats: images per call, and rounds.
        precision: "float32", or "bfloat16" by autocast around everything, the untouched target included.

    Returns:
        One row per guide and reduction after the untouched target's (guide "none", keep ratio 1). Columns: guide,
        keep_ratio, merge, input_size, soften, rest, batch_size, precision, device; median_s, fastest_s, slowest_s, per
        batch; images_per_s, from the median; gflop_per_image, guide included; speedup, the untouched target's time over
        this one's in the same round, median over rounds, with its 25 % and 75 % quantiles speedup_low and speedup_high;
        limit, the speed-up if time went as operations do; share_of_limit, speedup / limit.

    Raises:
        UserError: unknown precision, a guide named "none", a keep ratio outside (0, 1], or a reduction that the target
            does not allow.
    """
    check_choice("precision", precision, PRECISIONS)
    if PLAIN in guides:
        raise UserError(f"{PLAIN!r} stands for the untouched target in the table; name the guide otherwise.")
    images = example_images(target, batch_size)
    tasks = {(PLAIN, Reduction()): partial(target, images)}
    for (name, guide), reduction in product(guides.items(), map(as_reduction, reductions)):
        key = (name if reduction.guided else PLAIN, reduction)
        if key not in tasks:
            tasks[key] = partial(AcceleratedViT(target, guide, reduction), images)
    autocast = torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16")
    tasks = {key: autocast(task) for key, task in tasks.items()}
    setting = {"batch_size": batch_size, "precision": precision, "device": device_name(images.device)}
    return _cost_table(tasks, time_alternating(tasks, repeats, images.device), setting)


def _cost_table(
    tasks: Mapping[tuple, Callable[[], object]], seconds: Mapping[tuple, np.ndarray], setting: Mapping[str, object]
) -> pd.DataFrame:
    """The table of `pipeline_cost` from (guide, reduction) -> task; all are measured by the first of the tasks."""
    gflop = {key: gflop_per_image(task, setting["batch_size"]) for key, task in tasks.items()}
    plain = next(iter(tasks))
    rows = []
    for key, values in seconds.items():
        low, speedup, high = np.quantile(seconds[plain] / values, [0.25, 0.5, 0.75])
        limit = gflop[plain] / gflop[key]
        rows.append(
            {"guide": key[0], **key[1].columns, **setting, **spread_of(values)}
            | {"images_per_s": setting["batch_size"] / np.median(values), "gflop_per_image": gflop[key]}
            | {"speedup": speedup, "speedup_low": low, "speedup_high": high}
            | {"limit": limit, "share_of_limit": speedup / limit}
        )
    return pd.DataFrame(rows)


def dropping_speedup(
    target: nn.Module, batch_size: int = 8, reductions: Sequence[float | Reduction] = (0.5, 0.25), **options: int | str
) -> pd.DataFrame:
    """Speed-up of the target alone: `pipeline_cost` of a guide whose map is there beforehand, and so costs nothing."""
    saliency = RandomGuide(grid_size(target))(example_images(target, batch_size))
    guides = {"chosen beforehand": lambda images: saliency}
    return pipeline_cost(target, guides, reductions, batch_size=batch_size, **options)


def student_cost(
    target: nn.Module, students: Mapping[str, Student], batch_size: int = 32, *, repeats: int = 9
) -> pd.DataFrame:
    """Time of students, the downsampling of the target's images included, against the target's plain forward pass.

    One row per task: median seconds, fastest and slowest; operations per image; the median share of the target's time.
    """
    images = example_images(target, batch_size)
    guides = {name: StudentGuide(student, target) for name, student in students.items()}
    tasks = {name: partial(function, images) for name, function in {"target": target, **guides}.items()}
    seconds = time_alternating(tasks, repeats, images.device)
    return pd.DataFrame(
        {"task": task, **spread_of(seconds[task]), "gflop_per_image": gflop_per_image(function, batch_size)}
        | {"share_of_target": np.median(seconds[task] / seconds["target"])}
        for task, function in tasks.items()
    )


def count_operations(function: Callable[[], object]) -> int:
    """Floating-point operations that torch counts in one call (a multiplication and an addition are two)."""
    with torch.no_grad(), _Operations() as counted:  # gradients would be followed, for nothing
        function()
    return counted.total


class _Operations(TorchDispatchMode):
    """Adds up operations by torch's own formulas. (Its FlopCounterMode also tells modules apart, in twice the time.)"""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, operator: OpOverload, types: tuple[type, ...], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        kwargs = kwargs or {}
        if not (formula := flop_registry.get(operator.overloadpacket)) and operator._can_decompose():
            with self:  # in inference mode whole layers come here
                return operator.decompose(*args, **kwargs)
        result = operator(*args, **kwargs)
        if formula:
            self.total += formula(*args, **kwargs, out_val=result)
        return result


def gflop_per_image(function: Callable[[], object], batch_size: int) -> float:
    """Thousand million operations (`count_operations`) for each image of the batch that one call works on."""
    return count_operations(function) / batch_size / 1e9


def spread_of(seconds: np.ndarray) -> dict[str, float]:
    """Median, fastest and slowest of the runs, in seconds."""
    return {"median_s": np.median(seconds), "fastest_s": seconds.min(), "slowest_s": seconds.max()}


def example_images(model: nn.Module, batch_size: int) -> Tensor:
    """Random images of the model's input size, on its device, (B, 3, H, W)."""
    images = torch.randn(batch_size, 3, *input_size(model), generator=torch.Generator().manual_seed(0))
    return images.to(next(model.parameters()).device)


def run_benchmark(
    what: str,
    target: nn.Module,
    *,
    batch_size: int,
    student: str | None,
    reductions: Sequence[float | Reduction],
    precision: str,
    repeats: int,
) -> pd.DataFrame:
    """Time of rollout or students against a plain forward pass; speed-up of pipeline or target against its limit.

    Args:
        what: one of BENCHMARKS, which tells the options that each takes; the others are passed over.
        target: a timm ViT in eval mode.
        student: a folder or a hub name; None takes new ones of both kinds.
        batch_size, reductions, precision, repeats: as in the function of this module whose table is returned.
    """
    if what == "rollout":
        return rollout_cost(target, batch_size, repeats=repeats)
    if what == "dropping":
        return dropping_speedup(target, batch_size, reductions, repeats=repeats, precision=precision)
    device = next(target.parameters()).device
    if student is None:
        students = {kind: new_student(kind, grid_size(target)).eval().to(device) for kind in ARCHITECTURES}
    else:
        students = {student: load_student(student, device)}
    if what == "student":
        return student_cost(target, students, batch_size, repeats=repeats)
    guides = {name: make_guide("student", target, student=module) for name, module in students.items()}
    return pipeline_cost(target, guides, reductions, batch_size=batch_size, repeats=repeats, precision=precision)
