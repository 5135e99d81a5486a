"""What rollout costs, and what dropping patches saves: alternating runs in one process, medians."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from vitsal.attention import attention_of, fused_attention
from vitsal.dropping import forward_kept, top_k_patches
from vitsal.guides import GradientRolloutGuide, RandomGuide, RolloutGuide, StudentGuide
from vitsal.models import grid_size
from vitsal.students import Student


def time_alternating(
    functions: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, np.ndarray]:
    """Time functions in turn, round after round, so that a machine's drift meets all alike: name -> (repeats,) seconds.

    One round of warm-up is not counted. The device is waited for before and after each call.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
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


def rollout_cost(
    model: nn.Module,
    batch_size: int = 32,
    *,
    head_fusion: str = "max",
    discard_ratio: float = 0.9,
    repeats: int = 9,
) -> pd.DataFrame:
    """Time of rollout and gradient rollout against the plain forward pass of the same batch.

    Returns:
        One row per task: median seconds, fastest and slowest, and the median ratio to the faster of the plain passes,
        with fused attention (as timm runs) and without.
    """
    images = example_images(model, batch_size)
    rollout = RolloutGuide(model, head_fusion, discard_ratio)
    gradient = GradientRolloutGuide(model, None, discard_ratio)

    modules = [attention_of(model, index) for index in range(len(model.blocks))]

    def forward(fused: bool) -> Tensor:
        with fused_attention(modules, fused):
            return model(images)

    seconds = time_alternating(
        {
            "forward, fused attention": lambda: forward(fused=True),
            "forward, unfused attention": lambda: forward(fused=False),
            "rollout": lambda: rollout(images),
            "gradient rollout": lambda: gradient(images),
        },
        repeats,
        images.device,
    )
    plain = min(list(seconds)[:2], key=lambda task: np.median(seconds[task]))
    rows = [
        {"task": task, **spread_of(values), "ratio_to_forward": np.median(values / seconds[plain])}
        for task, values in seconds.items()
    ]
    return pd.DataFrame(rows)


def dropping_speedup(
    model: nn.Module, batch_size: int = 8, keep_ratios: Sequence[float] = (0.5, 0.25), *, repeats: int = 9
) -> pd.DataFrame:
    """Speed-up of a target that sees a part of its patches, beside the ratio of floating-point operations.

    The patches are chosen beforehand: this is the target's cost alone, without a guide's.

    Returns:
        One row per keep ratio: median seconds, fastest and slowest; operations per image; speed-up (median over rounds)
        and its limit, both against the untouched model with fused attention; and the share of the limit reached.
    """
    images = example_images(model, batch_size)
    saliency = RandomGuide(grid_size(model))(images)
    keeps = {ratio: top_k_patches(saliency, ratio) for ratio in keep_ratios}
    tasks = {1.0: lambda: model(images)} | {
        ratio: partial(forward_kept, model, images, keep) for ratio, keep in keeps.items()
    }
    seconds = time_alternating(tasks, repeats, images.device)
    operations = {ratio: count_operations(task) / batch_size for ratio, task in tasks.items()}
    rows = []
    for ratio, values in seconds.items():
        speedup, limit = np.median(seconds[1.0] / values), operations[1.0] / operations[ratio]
        rows.append(
            {"keep_ratio": ratio, **spread_of(values), "gflop_per_image": operations[ratio] / 1e9}
            | {"speedup": speedup, "limit": limit, "share_of_limit": speedup / limit}
        )
    return pd.DataFrame(rows)


def student_cost(
    target: nn.Module, students: Mapping[str, Student], batch_size: int = 32, *, repeats: int = 9
) -> pd.DataFrame:
    """Time of students, the downsampling of the target's images included, against the target's plain forward pass.

    Returns:
        One row per task: median seconds, fastest and slowest; operations per image; and the median share of the
        target's time.
    """
    images = example_images(target, batch_size)
    tasks = {"target": lambda: target(images)} | {
        name: partial(StudentGuide(student, target), images) for name, student in students.items()
    }
    seconds = time_alternating(tasks, repeats, images.device)
    rows = [
        {"task": task, **spread_of(seconds[task]), "gflop_per_image": count_operations(function) / batch_size / 1e9}
        | {"share_of_target": np.median(seconds[task] / seconds["target"])}
        for task, function in tasks.items()
    ]
    return pd.DataFrame(rows)


@torch.inference_mode()
def count_operations(function: Callable[[], object]) -> int:
    """Floating-point operations that torch counts in one call (a multiplication and an addition are two)."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def spread_of(seconds: np.ndarray) -> dict[str, float]:
    """Median, fastest and slowest of the runs, in seconds."""
    return {"median_s": np.median(seconds), "fastest_s": seconds.min(), "slowest_s": seconds.max()}


def example_images(model: nn.Module, batch_size: int) -> Tensor:
    """Random images of the model's input size, on its device, (B, 3, H, W)."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 3, *model.patch_embed.img_size, generator=generator)
    return images.to(next(model.parameters()).device)
