"""Benchmarks: what is counted and in which order; the times themselves are not tested."""

import numpy as np
import pytest
import torch
from families import FAMILIES, each_of
from helpers import traces
from torch.utils.flop_counter import FlopCounterMode

from vitsal.analysis import cost as benchmark
from vitsal.analysis.cost import (
    count_operations,
    dropping_speedup,
    pipeline_cost,
    rollout_cost,
    spread_of,
    student_cost,
    time_alternating,
)
from vitsal.errors import UserError
from vitsal.guides import GradientRolloutGuide, RolloutGuide
from vitsal.guides.adapters import StudentGuide
from vitsal.guides.baselines import CenterGuide
from vitsal.reduction.reduction import Reduction
from vitsal.students.student import new_student

TIMES = ["median_s", "fastest_s", "slowest_s", "images_per_s"]
SPEEDUPS = ["speedup", "speedup_low", "speedup_high", "limit", "share_of_limit"]
COLUMNS = [
    "guide",
    "keep_ratio",
    "merge",
    "input_size",
    "soften",
    "rest",
    "batch_size",
    "precision",
    "device",
    *TIMES,
    "gflop_per_image",
    *SPEEDUPS,
]


def test_operations_of_a_linear_layer():
    """5 x 7 inputs, 11 outputs: 5 * 7 * 11 multiplications and as many additions."""
    layer = torch.nn.Linear(7, 11)
    assert count_operations(lambda: layer(torch.zeros(5, 7))) == 2 * 5 * 7 * 11


@pytest.mark.parametrize("family", each_of(FAMILIES, ("ViT tiny", "EVA-02")))
def test_operations_are_those_of_torchs_own_counter(family):
    """Forward, with gradient rollout's way back, and in inference mode, where layers come to the counter whole."""
    model, images = family.load(), torch.randn(2, 3, *family.size)
    tasks = [lambda: model(images), lambda: torch.inference_mode()(model)(images)]
    if model.num_classes:
        tasks.append(lambda: GradientRolloutGuide(model)(images))
    counted = [count_operations(task) for task in tasks]
    model.requires_grad_(False)  # where it does, torch's counter trips over SigLIP's pooling
    for task, operations in zip(tasks, counted, strict=True):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            task()
        assert operations == counter.get_total_flops() > 0


def operations_by_hand(model, num_tokens):
    """One image: patch embedding of all patches, then blocks on `num_tokens`, then the head on one token."""
    width, patches, inside = model.embed_dim, model.patch_embed.num_patches, 3 * 16 * 16
    embedding = patches * inside * width
    linear = num_tokens * width * (3 * width + width + 2 * 4 * width)
    attention = 2 * num_tokens**2 * width
    return 2 * (embedding + len(model.blocks) * (linear + attention) + width * model.num_classes)


def check_against_hand(table, by_hand):
    """Operations per image, and what follows from them; `by_hand`: one number for each row, the first row's first."""
    assert list(table.columns) == COLUMNS
    assert np.allclose(table.gflop_per_image, np.array(by_hand) / 1e9, rtol=1e-6)
    assert np.allclose(table.limit, by_hand[0] / np.array(by_hand), rtol=1e-6)
    assert np.allclose(table.share_of_limit, table.speedup / table.limit)
    assert np.allclose(table.images_per_s, table.batch_size / table.median_s)
    assert (table.speedup_low <= table.speedup).all()
    assert (table.speedup <= table.speedup_high).all()
    assert list(table.iloc[0][["guide", "keep_ratio", "speedup", "share_of_limit"]]) == ["none", 1, 1, 1]


def test_speedup_of_the_target_alone(tiny_vit):
    """8 of 16 patches, chosen by a map that is there already: the limit is the ratio of the target's operations."""
    before = traces(tiny_vit)
    table = dropping_speedup(tiny_vit, 2, [0.5], repeats=2)
    assert list(zip(table.guide, table.keep_ratio, strict=True)) == [("none", 1.0), ("chosen beforehand", 0.5)]
    check_against_hand(table, [operations_by_hand(tiny_vit, num_tokens) for num_tokens in (17, 9)])
    assert traces(tiny_vit) == before


def test_merging_and_smaller_images_need_no_guide_and_run_once(tiny_vit):
    """Merging 2 of 17 tokens in each block, after its attention; and 3 x 3 of 4 x 4 patches."""
    guides = {name: lambda images: pytest.fail("asked") for name in ("a", "b")}
    table = pipeline_cost(
        tiny_vit, guides, [Reduction(1.0, "2"), Reduction(1.0, "0", (48, 48))], batch_size=2, repeats=1
    )
    named = [("none", "none", "own"), ("none", "2", "own"), ("none", "none", "48 x 48")]
    assert list(zip(table.guide, table["merge"], table.input_size, strict=True)) == named
    width = tiny_vit.embed_dim
    outside = 16 * 3 * 16 * 16 * width + width * 10  # patch embedding and head
    blocks = sum(width**2 * (4 * n + 8 * (n - 2)) + 2 * n**2 * width for n in (17, 15, 13))
    matching = sum((n // 2) ** 2 * 64 for n in (17, 15, 13))  # keys of 64 numbers, half of the patches with half
    small = 9 * 3 * 16 * 16 * width + width * 10 + 3 * (12 * 10 * width**2 + 2 * 10**2 * width)
    by_hand = [operations_by_hand(tiny_vit, 17), 2 * (outside + blocks + matching), 2 * small]
    assert np.allclose(table.gflop_per_image, np.array(by_hand) / 1e9, rtol=1e-6)


def test_operations_of_a_pipeline(tiny_vit):
    """A guide's operations are a part of its pipeline: a student's beside the target's on 9 or 5 tokens.

    A rollout's are a whole pass of the target, and L vector-matrix products.
    """
    before, student = traces(tiny_vit), new_student("convnet", (4, 4), width=4).eval()
    guides = {"student": StudentGuide(student, tiny_vit), "rollout": RolloutGuide(tiny_vit)}
    table = pipeline_cost(tiny_vit, guides, [0.5, 0.25], batch_size=2, repeats=1)
    rows = [("none", 1.0), ("student", 0.5), ("student", 0.25), ("rollout", 0.5), ("rollout", 0.25)]
    assert list(zip(table.guide, table.keep_ratio, strict=True)) == rows
    assert set(table.batch_size) == {2}
    assert set(table.device) == {"cpu"}
    plain, half, quarter = (operations_by_hand(tiny_vit, num_tokens) for num_tokens in (17, 9, 5))
    of_student = count_operations(lambda: student(torch.zeros(1, 3, 16, 16)))
    of_rollout = plain + 3 * 2 * 17 * 17
    by_hand = [plain] + [guide + target for guide in (of_student, of_rollout) for target in (half, quarter)]
    check_against_hand(table, by_hand)
    assert traces(tiny_vit) == before


def test_speedup_is_that_of_the_same_round(tiny_vit, monkeypatch):
    """Plain over pipeline, round by round, is 2, 1, 3, 2, 10: median 2, half of the rounds from 2 to 3."""
    seconds = [np.array([2.0, 4, 6, 8, 100]), np.array([1.0, 4, 2, 4, 10])]
    monkeypatch.setattr(benchmark, "time_alternating", lambda tasks, *_: dict(zip(tasks, seconds, strict=True)))
    row = pipeline_cost(tiny_vit, {"center": CenterGuide((4, 4))}, [0.5], batch_size=2).iloc[1]
    assert (row.speedup, row.speedup_low, row.speedup_high) == pytest.approx((2, 2, 3))
    assert (row.median_s, row.fastest_s, row.slowest_s, row.images_per_s) == (4, 1, 10, 0.5)


def test_pipelines_take_turns_with_the_plain_target(tiny_vit):
    """Each round: the target on 17 tokens, then each guide and the target on what it keeps; then one call to count."""
    calls, seen = [], []

    def guide(images):
        calls.append("guide")
        seen.append(images)
        return torch.arange(16.0).view(1, 4, 4).expand(len(images), -1, -1)

    tiny_vit.blocks[0].register_forward_hook(lambda block, args, tokens: calls.append(tokens.shape[1]))
    tiny_vit.patch_embed.register_forward_hook(lambda embedding, args, tokens: seen.append(args[0]))
    pipeline_cost(tiny_vit, {"guide": guide}, [0.5, 0.25], batch_size=3, repeats=2)
    assert calls == [17, "guide", 9, "guide", 5] * (1 + 2 + 1)
    assert seen[0].shape == (3, 3, 64, 64)
    assert all(images is seen[0] for images in seen)


def test_nothing_to_choose_at_keep_ratio_1(tiny_vit):
    """The untouched target stands there once, and no guide runs."""

    def guide(images):
        raise AssertionError("not to be called")

    table = pipeline_cost(tiny_vit, {"a": guide, "b": guide}, [1.0, 1], batch_size=1, repeats=1)
    assert list(zip(table.guide, table.keep_ratio, strict=True)) == [("none", 1.0)]


def test_bfloat16_counts_the_same_operations(tiny_vit):
    """Also where a guide leaves inference mode; the untouched target computes in 16 bits too."""
    before, dtypes = traces(tiny_vit), set()
    guides = {
        "student": StudentGuide(new_student("transformer", (4, 4), width=4).eval(), tiny_vit),
        "rollout": RolloutGuide(tiny_vit, "max", 0.9),
        "gradient": GradientRolloutGuide(tiny_vit),
    }
    full = pipeline_cost(tiny_vit, guides, [0.5], batch_size=2, repeats=1)
    handle = tiny_vit.head.register_forward_hook(lambda head, args, logits: dtypes.add(logits.dtype))
    half = pipeline_cost(tiny_vit, guides, [0.5], batch_size=2, repeats=1, precision="bfloat16")
    handle.remove()
    assert dtypes == {torch.bfloat16}
    assert np.array_equal(half.gflop_per_image, full.gflop_per_image)
    assert (set(full.precision), set(half.precision)) == ({"float32"}, {"bfloat16"})
    assert traces(tiny_vit) == before


@pytest.mark.parametrize(
    ("name", "keep_ratio", "precision", "said"),
    [
        ("center", 0.5, "bfloat", "Unknown precision 'bfloat'. Did you mean 'bfloat16'?"),
        ("none", 0.5, "float32", "'none' stands for the untouched target"),
        ("center", 1.5, "float32", r"keep ratio must lie in \(0, 1\]; got 1.5"),
    ],
)
def test_bad_pipelines(tiny_vit, name, keep_ratio, precision, said):
    with pytest.raises(UserError, match=said):
        pipeline_cost(tiny_vit, {name: CenterGuide((4, 4))}, [keep_ratio], batch_size=1, precision=precision)


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
    assert list(table.index) == [*plain, "rollout", "gradient rollout", "attention distance"]
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
