"""Benchmarks: what is counted and in which order; the times themselves are not tested."""

import numpy as np
import pytest
import torch
from helpers import traces

from vitsal.benchmark import (
    count_operations,
    dropping_speedup,
    rollout_cost,
    spread_of,
    student_cost,
    time_alternating,
)
from vitsal.students import new_student


def test_operations_of_a_linear_layer():
    """5 x 7 inputs, 11 outputs: 5 * 7 * 11 multiplications and as many additions."""
    layer = torch.nn.Linear(7, 11)
    assert count_operations(lambda: layer(torch.zeros(5, 7))) == 2 * 5 * 7 * 11


def operations_by_hand(model, num_tokens):
    """One image: patch embedding of all patches, then blocks on `num_tokens`, then the head on one token."""
    width, patches, inside = model.embed_dim, model.patch_embed.num_patches, 3 * 16 * 16
    embedding = patches * inside * width
    linear = num_tokens * width * (3 * width + width + 2 * 4 * width)
    attention = 2 * num_tokens**2 * width
    return 2 * (embedding + len(model.blocks) * (linear + attention) + width * model.num_classes)


def test_speedup_table(tiny_vit):
    """8 of 16 patches: the limit is the ratio of operations, all of them counted by hand too."""
    before = traces(tiny_vit)
    table = dropping_speedup(tiny_vit, batch_size=2, keep_ratios=[0.5], repeats=2).set_index("keep_ratio")
    assert list(table.index) == [1.0, 0.5]
    for ratio, num_tokens in [(1.0, 17), (0.5, 9)]:
        by_hand = operations_by_hand(tiny_vit, num_tokens) / 1e9
        assert table.gflop_per_image[ratio] == pytest.approx(by_hand, rel=0.01)
    assert table.limit[0.5] == pytest.approx(table.gflop_per_image[1.0] / table.gflop_per_image[0.5])
    assert table.share_of_limit[0.5] == pytest.approx(table.speedup[0.5] / table.limit[0.5])
    assert table.speedup[1.0] == 1
    assert traces(tiny_vit) == before


def test_order_alternates():
    """So that a machine that warms up or is busy for a while meets all alike; the first round does not count."""
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in ("a", "b", "c")}
    seconds = time_alternating(functions, 3, torch.device("cpu"))
    assert "".join(calls) == "abc" * 4
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert all((values > 0).all() for values in seconds.values())


def test_times_are_those_of_the_calls():
    import time

    seconds = time_alternating({"nap": lambda: time.sleep(0.05), "none": lambda: None}, 3, torch.device("cpu"))
    assert seconds["nap"].min() >= 0.05
    assert np.median(seconds["none"]) < 0.02


def test_spread():
    assert spread_of(np.array([3.0, 1.0, 2.0, 9.0, 2.5])) == {"median_s": 2.5, "fastest_s": 1, "slowest_s": 9}


def test_rollout_table(tiny_vit):
    before = traces(tiny_vit)
    table = rollout_cost(tiny_vit, batch_size=2, repeats=2).set_index("task")
    plain = ["forward, fused attention", "forward, unfused attention"]
    assert list(table.index) == [*plain, "rollout", "gradient rollout"]
    assert table.ratio_to_forward[table.median_s[plain].idxmin()] == 1
    assert table.ratio_to_forward.min() > 0
    assert traces(tiny_vit) == before


def test_student_table(tiny_vit):
    """The student's operations are those of its network alone: downsampling has none that torch counts."""
    before, student = traces(tiny_vit), new_student("convnet", (4, 4), width=4).eval()
    table = student_cost(tiny_vit, {"convnet": student}, batch_size=2, repeats=2).set_index("task")
    assert list(table.index) == ["target", "convnet"]
    alone = count_operations(lambda: student(torch.zeros(1, 3, 16, 16))) / 1e9
    assert table.gflop_per_image["convnet"] == pytest.approx(alone)
    assert table.gflop_per_image["target"] == pytest.approx(operations_by_hand(tiny_vit, 17) / 1e9, rel=0.01)
    assert table.share_of_target["target"] == 1
    assert traces(tiny_vit) == before
