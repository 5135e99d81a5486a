"""Operating points: counted right, chosen by the target's own answers, told in a card."""

import statistics

import pandas as pd
import pytest
import torch
from families import FAMILIES
from helpers import randomise

from vitsal.analysis.cost import count_operations
from vitsal.data.images import Batch
from vitsal.errors import UserError
from vitsal.experiments import acceleration
from vitsal.experiments.acceleration import (
    accelerate,
    all_reductions,
    choose_reduction,
    count_reductions,
    model_card,
    near_speed,
    operating_points,
)
from vitsal.guides.accelerated import AcceleratedViT
from vitsal.guides.adapters import StudentGuide
from vitsal.guides.baselines import CenterGuide
from vitsal.models.loading import load_model
from vitsal.reduction.reduction import Reduction
from vitsal.students.student import Student
from vitsal.tuning.answers import divergence


def test_all_that_is_tried_of_deit_tiny():
    model = load_model("deit_tiny_patch16_224", pretrained=False)
    tried = all_reductions(model, guided=True)
    counts = (*range(2, 23), *range(24, 37, 2))
    alone = {f"{count}{start}c" for count in counts for start in ("", "@3", "@6")}
    late = {f"{count}@{start}c" for count in (5, 7, 8, 10, 12, 14, 16, 18) for start in (3, 6)}
    assert {reduction.merge for reduction in tried if not reduction.guided} == {"0", *alone}
    assert {one.merge for one in tried if one.guided and not one.coarse} == {"0", *late}
    sides = {reduction.input_size and reduction.input_size[0] for reduction in tried}
    assert sides == {None, 192, 176, 160, 144, 128}
    whole, dropped, coarse = 1 + 3 * 28, 11 * 17 * 6, 5 * 17 * 4
    softened = 5 * whole + dropped + coarse  # where there are fewer patches
    assert len(set(tried)) == len(tried) == whole + 3 * softened
    assert {reduction.soften for reduction in tried} == {"0", "1", "1-"}
    assert {one.input_size and one.input_size[0] for one in tried if one.coarse} == {None, 192, 160, 128}
    assert {one.merge for one in tried if one.coarse} == {"0", *late}
    assert {reduction.keep_ratio for reduction in all_reductions(model, guided=False)} == {1.0}
    decreasing = all_reductions(model, guided=True, softenings=["1-"])
    assert len(decreasing) == whole + softened
    assert all(one.softens == (one.guided or one.input_size is not None) for one in decreasing)


def test_a_target_that_can_neither_merge_nor_mix_sizes_has_its_other_levers():
    tried = all_reductions(FAMILIES["EVA-02"].load(), guided=True)
    assert {(reduction.merge, reduction.rest) for reduction in tried} == {("0", "dropped")}
    assert len({reduction.input_size for reduction in tried}) > 1


def test_where_no_class_token_is_read_none_is_asked_what_to_spare():
    merges = {reduction.merge for reduction in all_reductions(FAMILIES["MAE fine-tuned"].load(), guided=True)}
    assert len(merges) > 2
    assert not any(merge.endswith("c") for merge in merges)


@pytest.fixture
def few(monkeypatch):
    """Fewer ways to try, which takes a tenth of the time."""
    fewer = {"RATIOS": (0.7, 0.5), "FINE": (0.5, 0.2), "SIDES": (10 / 14,), "LATE": (0.8,), "ALONE": (0.3, 0.8)}
    for name, values in fewer.items():
        monkeypatch.setattr(acceleration, name, values)


@pytest.mark.parametrize(
    ("speed", "near"),
    [
        (1.0, [1.1]),  # none is within 4 %: the nearest
        (2.0, [2.0, 2.08]),
        (2.05, [2.08, 2.09]),
        (2.5, [3.0, 3.0]),  # two that are as near
        (3.0, [3.0, 3.0]),
        (3.2, []),
    ],
)
def test_near_a_speed_by_hand(speed, near):
    times = (3.0, 1.1, 2.08, 2.0, 2.09, 3.0)
    found = {Reduction(merge=str(count)): value for count, value in enumerate(times, 1)}
    assert sorted(near_speed(found, speed).values()) == near
    assert near_speed(found, speed).items() <= found.items()


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_points_are_counted_with_their_guide(tiny_vit, monkeypatch):
    guide = StudentGuide(randomise(Student(grid_size=(4, 4), width=8).eval()), tiny_vit)
    image = torch.zeros(1, 3, 64, 64)
    whole = count_operations(lambda: tiny_vit(image))
    monkeypatch.setattr(acceleration, "SLACK", 0.3)
    points = operating_points(tiny_vit, guide, 1.5, progress=False)
    assert {True, False} == {reduction.guided for reduction in points}
    for reduction, times in points.items():
        fast = AcceleratedViT(tiny_vit, guide, reduction)
        assert times == pytest.approx(whole / count_operations(lambda fast=fast: fast(image)))
    assert min(points.values()) >= 1.5
    assert max(points.values()) <= 1.3 * 1.5
    monkeypatch.setattr(acceleration, "SLACK", 10.0)
    assert points.keys() < operating_points(tiny_vit, guide, 1.5, progress=False).keys()


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_what_is_past_every_speed_is_not_counted(tiny_vit):
    tried = all_reductions(tiny_vit, guided=True, softenings=["0", "1-"])
    counted = count_reductions(tiny_vit, tried, progress=False)
    for least in (statistics.median_low(counted.values()), max(counted.values())):
        found = count_reductions(tiny_vit, tried, least=least, progress=False)
        assert found.items() < counted.items()
        assert all(counted[reduction] < least for reduction in counted.keys() - found)


@pytest.mark.usefixtures("few")
def test_a_speed_up_that_nothing_reaches(tiny_vit):
    with pytest.raises(
        UserError, match=r"Nothing that is tried makes vit_tiny\w+ 100 times cheaper: .*, \d+\.\d times is the most"
    ):
        operating_points(tiny_vit, None, 100, progress=False)


@torch.no_grad()
def test_the_one_that_changes_answers_least_comes_first(tiny_vit):
    images, guide = torch.randn(5, 3, 64, 64), CenterGuide((4, 4))
    points = {
        Reduction(0.25): 3.0,
        Reduction(0.25, soften="1-"): 3.0,
        Reduction(0.25, rest="coarse"): 1.9,
        Reduction(0.9): 1.1,
        Reduction(merge="2"): 1.5,
        Reduction(input_size=(48, 48)): 1.7,
    }
    batches = [Batch(part, torch.zeros(len(part)), ["name"] * len(part)) for part in (images[:3], images[3:])]
    table = choose_reduction(tiny_vit, guide, points, batches)
    assert list(table) == [*Reduction().columns, "operations", "n", "same", "kl"]
    assert table.kl.is_monotonic_increasing
    for row in table.itertuples():
        reduction = Reduction.from_columns(row.keep_ratio, row.merge, row.input_size, row.soften, row.rest)
        fast = AcceleratedViT(tiny_vit, guide, reduction)
        assert row.kl == pytest.approx(divergence(fast(images), tiny_vit(images)).mean().item(), rel=1e-4)
        assert row.same == pytest.approx((fast(images).argmax(1) == tiny_vit(images).argmax(1)).float().mean().item())
        assert (row.n, row.operations) == (5, points[reduction])


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_accelerate_takes_the_first_of_all_points(tiny_vit):
    student = randomise(Student(grid_size=(4, 4), width=4).eval())
    images = torch.randn(3, 3, 64, 64)
    fast, table = accelerate(tiny_vit, student, [Batch(images, torch.zeros(3), ["a", "b", "c"])], 1.5)
    points = operating_points(tiny_vit, StudentGuide(student, tiny_vit), 1.5, progress=False)
    assert len(table) == len(points)
    assert fast.reduction in points
    assert table.operations[0] == pytest.approx(points[fast.reduction])
    assert table.kl[0] == table.kl.min()


def test_card_tells_all():
    chosen = {
        "keep_ratio": 0.7,
        "merge": "8",
        "input_size": "own",
        "soften": "1",
        "rest": "coarse",
        "operations": 2.345,
        "n": 30,
        "same": 0.9,
        "kl": 0.1,
    }
    levers = {key: [chosen[key]] for key in ("keep_ratio", "merge", "input_size", "soften", "rest")}
    measured = {"guide": ["student"], "median_s": [0.25], "images_per_s": [128.0], "speedup": [1.9], "limit": [2.3]}
    cost = pd.DataFrame({**levers, **measured, "batch_size": [32], "device": ["cpu"]})
    accuracy = pd.DataFrame(
        {**levers, "n": [500], "correct": [390], "top1": [0.78], "ci_low": [0.74], "ci_high": [0.81]}
    )
    card = model_card("some_vit", chosen, cost, accuracy, "vitsal accelerate --speed-up 2.3")
    for told in ("# some_vit, 2.35 times fewer", "keep ratio 0.7; merge 8; input size own; soften 1; rest coarse",
                 "on 30 images", "90.0%",
                 "| 0.7 | 8 | own | 1 | coarse | 500 | 390 | 0.78 | 0.74 | 0.81 |",
                 "`vitsal accelerate --speed-up 2.3`",
                 "| 32 | student | 0.7 | 8 | own | 1 | coarse | 0.25 | 128 | 1.9 | 2.3 | cpu |"):  # fmt: skip
        assert told in card
    assert "not tried on labelled images" in model_card("some_vit", chosen, cost, None, "")
