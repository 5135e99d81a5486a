"""The benchmarks by name."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from torch import nn

from vitsal.analysis.cost import dropping_speedup, pipeline_cost, rollout_cost, student_cost
from vitsal.choices import ARCHITECTURES, BENCHMARKS
from vitsal.errors import check_choice
from vitsal.guides.factory import make_guide
from vitsal.models.tokens import grid_size
from vitsal.students.student import load_student, new_student


def run_benchmark(
    what: str,
    target: nn.Module,
    *,
    batch_size: int,
    student: str | None = None,
    keep_ratios: Sequence[float] = (0.5, 0.25),
    precision: str = "float32",
    repeats: int = 9,
) -> pd.DataFrame:
    """Time of rollout or students against a plain forward pass; speed-up of pipeline or target against its limit.

    Args:
        what: one of BENCHMARKS, which tells the options that each takes; the others are passed over.
        target: a timm ViT in eval mode.
        student: a folder or a hub name; None takes new ones of both kinds.
        batch_size, keep_ratios, precision, repeats: see `vitsal.analysis.cost`, whose table is returned.
    """
    check_choice("benchmark", what, BENCHMARKS)
    if what == "rollout":
        return rollout_cost(target, batch_size, repeats=repeats)
    if what == "dropping":
        return dropping_speedup(target, batch_size, keep_ratios, repeats=repeats, precision=precision)
    device = next(target.parameters()).device
    if student is None:
        students = {kind: new_student(kind, grid_size(target)).eval().to(device) for kind in ARCHITECTURES}
    else:
        students = {student: load_student(student, device)}
    if what == "student":
        return student_cost(target, students, batch_size, repeats=repeats)
    guides = {name: make_guide("student", target, student=module) for name, module in students.items()}
    return pipeline_cost(target, guides, keep_ratios, batch_size=batch_size, repeats=repeats, precision=precision)
