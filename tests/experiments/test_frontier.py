"""The frontier: every way at every speed, chosen on some images, reported on others."""

import math

import numpy as np
import pytest
import torch
from helpers import noise_image, randomise

from vitsal.analysis.cost import count_operations, example_images
from vitsal.data.opening import open_data
from vitsal.errors import UserError
from vitsal.experiments import acceleration, frontier
from vitsal.experiments.acceleration import all_reductions
from vitsal.experiments.frontier import (
    MERGING,
    RIVALS,
    SMALLER,
    UNGUIDED,
    Frontier,
    Point,
    candidate_points,
    frontier_points,
    kept_points,
    measure_frontier,
    measured_speedups,
    ways_of,
)
from vitsal.guides.accelerated import AcceleratedViT
from vitsal.guides.adapters import StudentGuide
from vitsal.guides.baselines import RandomGuide
from vitsal.models.tokens import model_transform
from vitsal.reduction.reduction import Reduction
from vitsal.students.student import Student
from vitsal.tuning.mixture import MixedImages

SPEEDS = (1.5, 2.0)


@pytest.fixture
def few(monkeypatch):
    """Fewer ways to try, which takes a tenth of the time."""
    fewer = {"RATIOS": (0.7, 0.5), "FINE": (0.5, 0.2), "SIDES": (12 / 14, 10 / 14)}
    fewer["LATE"] = fewer["ALONE"] = (0.3, 0.8)
    for name, values in fewer.items():
        monkeypatch.setattr(acceleration, name, values)
    set_slack(monkeypatch, 0.3)


def set_slack(monkeypatch, slack):
    for module in (acceleration, frontier):
        monkeypatch.setattr(module, "SLACK", slack)


@pytest.fixture
def guides(tiny_vit):
    student = randomise(Student(grid_size=(4, 4), width=4).eval())
    return {"student": StudentGuide(student, tiny_vit), "random": RandomGuide((4, 4))}


@pytest.fixture
def photos(tmp_path):
    """12 images of 10 classes."""
    for index in range(12):
        noise_image(tmp_path / "photos" / str(index % 10) / f"{index}.png", seed=index)
    return str(tmp_path / "photos")


@pytest.mark.parametrize(
    ("reduction", "ways"),
    [
        (Reduction(0.5, "8", (32, 32)), ["a", "b"]),
        (Reduction(merge="8"), [MERGING, UNGUIDED]),
        (Reduction(input_size=(32, 32)), [SMALLER, UNGUIDED]),
        (Reduction(merge="8", input_size=(32, 32), soften="1-"), [UNGUIDED]),
    ],
)
def test_ways(reduction, ways):
    assert ways_of(reduction, ["a", "b"]) == ways


def test_points_come_back_from_their_columns():
    for rest in ("dropped", "coarse"):
        point = Point("student", 2.5, Reduction(0.5, "8@6", (32, 48), "1-", rest), 2.53, 0.25)
        assert Point.from_columns(**point.columns) == point


def test_points_of_before_there_were_coarse_patches_come_back():
    point = Point("student", 2.5, Reduction(0.5, "8@6", (32, 48), "1-"), 2.53, 0.25)
    assert Point.from_columns(**{name: value for name, value in point.columns.items() if name != "rest"}) == point


@pytest.mark.usefixtures("few")
def test_candidates_cost_what_they_say_guide_included(tiny_vit, guides):
    image, found = torch.zeros(1, 3, 64, 64), candidate_points(tiny_vit, guides, SPEEDS)
    whole = count_operations(lambda: tiny_vit(image))
    assert {point.way for point in found} == {*RIVALS, *guides}
    assert {point.way for point in found if point.reduction.coarse} == {*guides}
    for point in [*found[::5], *(point for point in found if point.reduction.coarse)]:
        fast = AcceleratedViT(tiny_vit, guides.get(point.way), point.reduction)
        assert point.operations == pytest.approx(whole / count_operations(lambda fast=fast: fast(image)))
        assert point.speed <= point.operations <= 1.3 * point.speed
        assert point.reduction.softens == (point.reduction.guided or point.reduction.input_size is not None)
    assert len({(point.way, point.speed, point.reduction) for point in found}) == len(found)


@torch.no_grad()
def divergences(target, guides, points, batches):
    """Each point's mean divergence, written down."""
    seen = torch.cat([batch.images for batch in batches])
    wanted, found = target(seen).log_softmax(dim=1), []
    for point in points:
        given = AcceleratedViT(target, guides.get(point.way), point.reduction)(seen).log_softmax(dim=1)
        found.append((wanted.exp() * (wanted - given)).sum(dim=1).mean().item())
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_the_point_of_each_way_is_the_one_that_changes_answers_least(tiny_vit, guides, photos):
    images = MixedImages([open_data(photos, model_transform(tiny_vit))])
    batches = list(images.batches(range(len(images)), 4))
    chosen = frontier_points(tiny_vit, guides, [batches], SPEEDS)
    candidates = candidate_points(tiny_vit, guides, SPEEDS)
    kl = divergences(tiny_vit, guides, candidates, batches)
    for point in chosen:
        same_place = [(other.way, other.speed) == (point.way, point.speed) for other in candidates]
        found = {other.reduction: value for other, value, here in zip(candidates, kl, same_place, strict=True) if here}
        assert point.kl == pytest.approx(min(found.values()), rel=1e-4)
        assert found[point.reduction] == pytest.approx(point.kl, rel=1e-4)
    assert {(point.way, point.speed) for point in chosen} == {(point.way, point.speed) for point in candidates}


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_each_round_judges_the_best_of_the_one_before(tiny_vit, guides, photos, monkeypatch):
    """Of each way and speed the least divergence, on the second round's images, of the two least on the first's."""
    monkeypatch.setattr("vitsal.experiments.frontier.FINALISTS", 2)
    images = MixedImages([open_data(photos, model_transform(tiny_vit))])
    first, second = (list(images.batches(part, 4)) for part in (range(3), range(3, len(images))))
    candidates = candidate_points(tiny_vit, guides, SPEEDS)
    kl = [divergences(tiny_vit, guides, candidates, batches) for batches in (first, second)]
    chosen = frontier_points(tiny_vit, guides, [first, second], SPEEDS)
    different = 0
    for point in chosen:
        places = [at for at, other in enumerate(candidates) if (other.way, other.speed) == (point.way, point.speed)]
        finalists = sorted(places, key=lambda at: kl[0][at])[:2]
        expected = min(finalists, key=lambda at: kl[1][at])
        assert (point.reduction, point.kl) == (candidates[expected].reduction, pytest.approx(kl[1][expected], rel=1e-4))
        different += expected != finalists[0]
    assert different  # both rounds have a say


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_coarse_patches_are_chosen_and_kept(tiny_vit, guides, photos, tmp_path, monkeypatch):
    """Where guides have nothing else."""
    monkeypatch.setattr(acceleration, "RATIOS", ())
    images = MixedImages([open_data(photos, model_transform(tiny_vit))])
    chosen = kept_points(tmp_path / "front", tiny_vit, guides, images, SPEEDS)
    assert {point.way for point in chosen if point.reduction.coarse} == {*guides}
    assert {point.reduction.coarse for point in chosen if point.way in guides} == {True}
    monkeypatch.setattr("vitsal.experiments.frontier.frontier_points", None)
    assert kept_points(tmp_path / "front", tiny_vit, guides, images, SPEEDS) == chosen


def test_a_guide_with_the_name_of_what_needs_none(tiny_vit):
    with pytest.raises(UserError, match="'no guide' is what is done without a guide"):
        frontier_points(tiny_vit, {UNGUIDED: RandomGuide((4, 4))}, [])


@pytest.mark.usefixtures("few")
def test_speeds_that_nothing_reaches(tiny_vit):
    with pytest.raises(UserError, match="Nothing that is tried makes the target 50 times cheaper"):
        frontier_points(tiny_vit, {}, [], (50.0, 60.0))


@torch.no_grad()
def test_measured_as_the_pieces_by_hand(tiny_vit, guides, photos):
    dataset = open_data(photos, model_transform(tiny_vit))
    points = [
        Point("student", 2.0, Reduction(0.5, "1"), 2.1, 0.3),
        Point("random", 2.0, Reduction(0.5, "1"), 2.2, 0.4),
        Point("random", 1.5, Reduction(0.5, "1@1", rest="coarse"), 1.6, 0.1),
        Point(MERGING, 2.0, Reduction(merge="2"), 2.0, 0.2),
        Point(UNGUIDED, 2.0, Reduction(input_size=(48, 48)), 2.05, 0.25),
    ]
    found = measure_frontier(tiny_vit, guides, points, dataset, progress=False)
    samples = [dataset[number] for number in range(len(dataset))]
    images, labels = (
        torch.stack([sample.image for sample in samples]),
        torch.tensor([sample.label for sample in samples]),
    )
    for point, right in zip(points, found.hits, strict=True):
        fast = AcceleratedViT(tiny_vit, guides.get(point.way), point.reduction)
        assert right.tolist() == (fast(images).argmax(dim=1) == labels).tolist()
    assert found.whole.tolist() == (tiny_vit(images).argmax(dim=1) == labels).tolist()


def test_table_by_hand():
    whole = np.array([True] * 8 + [False] * 2)
    points = [
        Point("student", 2.0, Reduction(0.5), 2.1, 0.3),
        Point(UNGUIDED, 2.0, Reduction(merge="2"), 2.0, 0.2),
        Point("student", 3.0, Reduction(0.3), 3.1, 0.9),
        Point("random", 3.0, Reduction(0.3), 3.4, 1.0),
    ]
    hits = [np.roll(whole, 1), *(np.arange(10) < right for right in (5, 4, 2))]
    found = Frontier(points, whole, hits)
    assert found.best == [points[1], points[2]]
    table = found.table.set_index(["way", "speed"])
    assert table.top1.tolist() == [0.8, 0.5, 0.4, 0.2]
    assert table.best.tolist() == [False, True, True, False]
    assert table.lost.tolist() == pytest.approx([0.0, 0.3, 0.4, 0.6])
    student = table.loc["student", 2.0]
    assert student["over no guide"] == pytest.approx(0.3)
    assert student["over no guide_low"] < 0.3 < student["over no guide_high"]
    assert math.isnan(student[f"over {MERGING}"])
    assert math.isnan(table.loc["student", 3.0]["over no guide"])
    assert table.loc[UNGUIDED, 2.0]["over no guide"] == 0
    assert table.loc["student", 3.0]["over random"] == pytest.approx(0.2)
    assert math.isnan(student["over random"])
    everywhere = Frontier(points[:1], whole, [whole]).table.iloc[0]
    assert (everywhere.lost, everywhere.lost_low, everywhere.lost_high) == (0, 0, 0)


@torch.no_grad()
def test_speedups_are_medians_of_rounds_of_what_each_point_runs(tiny_vit, guides, monkeypatch):
    points = [
        Point("student", 2.0, Reduction(0.5, "1"), 2.1, 0.3),
        Point(MERGING, 2.0, Reduction(merge="2"), 2.0, 0.2),
        Point(UNGUIDED, 2.0, Reduction(merge="2"), 2.0, 0.2),  # the same thing, under another name: timed once
    ]
    ran = []

    def timed(tasks, repeats, device):
        ran.append([task() for task in tasks.values()])
        seconds = [[4.0, 6.0, 8.0], [2.0, 2.0, 2.0], [1.0, 3.0, 1.0]]
        return dict(zip(tasks, map(np.array, seconds), strict=True))

    monkeypatch.setattr("vitsal.experiments.frontier.time_alternating", timed)
    found = measured_speedups(tiny_vit, guides, points, (1, 3))
    assert found.to_dict("list") == {"speedup_1": [3.0, 4.0, 4.0], "speedup_3": [3.0, 4.0, 4.0]}
    for size, answers in zip((1, 3), ran, strict=True):
        images = example_images(tiny_vit, size)
        models = [tiny_vit, *(AcceleratedViT(tiny_vit, guides.get(p.way), p.reduction) for p in points[:2])]
        assert all(torch.equal(answer, model(images)) for answer, model in zip(answers, models, strict=True))


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_where_no_point_is_near_the_nearest_from_above_stands_in(tiny_vit, guides, monkeypatch):
    set_slack(monkeypatch, 10.0)
    every = candidate_points(tiny_vit, guides, SPEEDS)
    set_slack(monkeypatch, 0.0)
    found = {(point.way, point.speed): point.operations for point in candidate_points(tiny_vit, guides, SPEEDS)}
    assert found.keys() == {(point.way, point.speed) for point in every}
    for (way, speed), times in found.items():
        assert times == min(point.operations for point in every if (point.way, point.speed) == (way, speed)) >= speed


def test_merging_late_is_among_the_ways(tiny_vit):
    assert {one.merge for one in all_reductions(tiny_vit, guided=False)} >= {"5@1c", "4@1c", "5c"}
