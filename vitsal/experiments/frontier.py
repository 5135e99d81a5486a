"""The frontier: how right a target still is at every speed; chosen on some images, reported on others."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from vitsal.analysis.cost import count_operations, example_images, time_alternating
from vitsal.analysis.intervals import Interval, difference, wilson_interval
from vitsal.data.images import Batch, LabelledImages
from vitsal.errors import UserError
from vitsal.experiments.acceleration import SLACK, all_reductions, count_reductions, near_speed
from vitsal.experiments.evaluation import drop_curve
from vitsal.guides.accelerated import AcceleratedViT
from vitsal.guides.baselines import CenterGuide
from vitsal.guides.factory import Guide
from vitsal.jobs.identity import describe, question_hash
from vitsal.jobs.sealed import read_sealed, write_sealed
from vitsal.models.tokens import grid_size
from vitsal.reduction.reduction import Reduction
from vitsal.tuning.answers import judge_answers
from vitsal.tuning.lessons import SOFTENED
from vitsal.tuning.mixture import MixedImages

SPEEDS = (2.0, 2.5, 3.0, 3.5, 4.0)
MERGING, SMALLER, UNGUIDED = RIVALS = ("merging alone", "smaller image alone", "no guide")
FREE = (*RIVALS, "random")  # whom everybody is compared with
BATCH_SIZES = (1, 32)  # at which points are timed
SEED = 0  # of the resampling
FIRST = 80  # images, at least, on which all candidates are judged; every so many-th of all
FINALISTS = 4  # of each way and speed, which are judged on all images
AGAIN = "It holds chosen points: remove it, and they are chosen again."


@dataclass(frozen=True)
class Point:
    """One way to come to one speed.

    Args:
        way: a guide's name, or one of RIVALS: of what is done without a guide.
        speed: by how many times fewer operations it was asked for.
        reduction: what is done to the target.
        operations: by how many times fewer it has, the guide's among them.
        kl: mean divergence of its answers from those on whole images, in nats, on the images that it was chosen on.
    """

    way: str
    speed: float
    reduction: Reduction
    operations: float
    kl: float = float("nan")

    @property
    def asked(self) -> tuple[str | None, Reduction]:
        """The guide, where one is needed, and the reduction, as `vitsal.tuning.judge_answers` takes them."""
        return (self.way if self.reduction.guided else None), self.reduction

    @property
    def chooser(self) -> str:
        """The guide's name, or UNGUIDED."""
        return self.way if self.reduction.guided else UNGUIDED

    @property
    def columns(self) -> dict[str, Any]:
        """What tables say of it."""
        told = {"way": self.way, "speed": self.speed, **self.reduction.columns}
        return told | {"operations": self.operations, "kl": self.kl}

    @classmethod
    def from_columns(cls, way: str, speed: float, operations: float, kl: float, **levers: Any) -> Point:
        """The point of which a table says so (`columns`)."""
        return cls(way, speed, Reduction.from_columns(**levers), operations, kl)


def frontier_points(
    target: nn.Module,
    guides: Mapping[str, Guide],
    rounds: Iterable[Iterable[Batch]],
    speeds: Sequence[float] = SPEEDS,
    soften: str = SOFTENED,
) -> list[Point]:
    """For each way and speed that it reaches the point that changes the target's answers least, found without labels.

    Args:
        target: a timm ViT in eval mode.
        guides: name -> guide; its own operations count.
        rounds: images to choose on, in batches; report on others. All candidates are judged on the images of the first
            round, in each later one the `FINALISTS` that were best so far (successive halving: Jamieson & Talwalkar
            2016, arXiv:1502.07943).
        speeds: by how many times fewer operations; a point may be up to 4 % cheaper than asked, or cheaper where the
            steps of a way are larger.
        soften: how attention is softened for fewer patches (`vitsal.Reduction`), where it can be.

    Raises:
        UserError: a guide that is named as one of RIVALS; no way reaches any of the speeds.
    """
    if taken := [name for name in guides if name in RIVALS]:
        raise UserError(f"{taken[0]!r} is what is done without a guide; name the guide otherwise.")
    candidates = candidate_points(target, guides, speeds, soften)
    if not candidates:
        raise UserError(f"Nothing that is tried makes the target {min(speeds):g} times cheaper. Choose other speeds.")
    for batches in rounds:
        candidates = _best(_judged(target, guides, candidates, batches), FINALISTS)
    return _best(candidates, 1)


def _judged(
    target: nn.Module, guides: Mapping[str, Guide], points: Sequence[Point], batches: Iterable[Batch]
) -> list[Point]:
    """The same points, with the divergence of the target's answers on these images."""
    asked = list(dict.fromkeys(point.asked for point in points))
    divergences = judge_answers(target, {"target": target}, asked, guides, batches)["target"][1].mean(dim=1)
    kl = dict(zip(asked, divergences.tolist(), strict=True))
    return [replace(point, kl=kl[point.asked]) for point in points]


def _best(points: Iterable[Point], number: int) -> list[Point]:
    """So many of each speed and way, those with the least divergence."""
    place = attrgetter("speed", "way")
    ordered = sorted(points, key=attrgetter("speed", "way", "kl"))
    return [point for _, found in groupby(ordered, key=place) for point in islice(found, number)]


def candidate_points(
    target: nn.Module, guides: Mapping[str, Guide], speeds: Sequence[float], soften: str = SOFTENED
) -> list[Point]:
    """All that may be chosen for each way and speed."""
    image, tried = example_images(target, 1), all_reductions(target, bool(guides), [soften])
    whole = count_operations(partial(target, image))
    own = {name: count_operations(partial(guide, image)) for name, guide in guides.items()}
    least = whole / (1 + SLACK) / max(speeds) - max(own.values(), default=0)  # what is cheaper is past every speed
    found = defaultdict(dict)  # way -> reduction -> by how many times fewer
    for reduction, count in count_reductions(target, tried, least=least).items():
        for way in ways_of(reduction, guides):
            found[way][reduction] = whole / (count + own.get(way, 0))
    return [
        Point(way, speed, *one) for way in found for speed in speeds for one in near_speed(found[way], speed).items()
    ]


def ways_of(reduction: Reduction, guides: Iterable[str]) -> list[str]:
    """To which ways a reduction belongs: to any of these guides', or to those without: alone, and together."""
    if reduction.guided:
        return list(guides)
    alone = {(True, False): [MERGING], (False, True): [SMALLER]}
    return [*alone.get((reduction.merges, reduction.input_size is not None), []), UNGUIDED]


@dataclass(frozen=True)
class Frontier:
    """How often a target is right at points that were chosen on other images.

    Args:
        points: as `frontier_points` gives them.
        whole: whether each of n whole images is right, (n,) bool.
        hits: the same of each point.
    """

    points: Sequence[Point]
    whole: np.ndarray
    hits: Sequence[np.ndarray]

    @property
    def best(self) -> list[Point]:
        """Of each speed the point with the least divergence, on the images of the choice."""
        speeds = dict.fromkeys(point.speed for point in self.points)
        return [min((p for p in self.points if p.speed == speed), key=lambda point: point.kl) for speed in speeds]

    @property
    def table(self) -> pd.DataFrame:
        """One row per point: its columns, n, correct, top1 with its 95 % Wilson interval, and whether it is the `best`.

        Paired, with 95 % bootstrap intervals (..._low, ..._high): what it has `lost` against whole images, and won over
        each of FREE at its speed; nothing where that does not come so far, or is none of the guides.
        """
        best, rows = self.best, []
        found = {(point.way, point.speed): right for point, right in zip(self.points, self.hits, strict=True)}
        for point, right in zip(self.points, self.hits, strict=True):
            correct, n = int(right.sum()), len(right)
            ends = dict(zip(("ci_low", "ci_high"), wilson_interval(correct, n), strict=True))
            row = point.columns | {"best": point in best, "n": n, "correct": correct, "top1": correct / n} | ends
            row |= _difference("lost", self.whole, right)
            for rival in FREE:
                row |= _difference(f"over {rival}", right, found.get((rival, point.speed)))
            rows.append(row)
        return pd.DataFrame(rows)


def _difference(name: str, ours: np.ndarray, theirs: np.ndarray | None) -> dict[str, float]:
    """Columns of a paired difference of accuracies; not numbers, where there is nothing to compare with."""
    found = Interval(*3 * [math.nan]) if theirs is None else difference(ours, theirs, SEED)
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))


def measure_frontier(
    target: nn.Module, guides: Mapping[str, Guide], points: Sequence[Point], dataset: LabelledImages, **options: Any
) -> Frontier:
    """Let a target classify images at these points, and whole; `options` are those of `vitsal.drop_curve`.

    Each guide sees the images once, with all of its points; killed, it goes on from the journal in `folder`.
    """
    outcomes = {}
    for name, guide in {UNGUIDED: CenterGuide(grid_size(target)), **guides}.items():
        asked = [point.reduction for point in points if point.chooser == name]
        outcomes[name] = drop_curve(target, {name: guide}, dataset, [Reduction(), *asked], **options)
    hits = [outcomes[point.chooser].correct(point.chooser, point.reduction) for point in points]
    return Frontier(points, outcomes[UNGUIDED].correct(UNGUIDED, Reduction()), hits)


def measured_speedups(
    target: nn.Module,
    guides: Mapping[str, Guide],
    points: Sequence[Point],
    batch_sizes: Sequence[int] = BATCH_SIZES,
    *,
    repeats: int = 9,
) -> pd.DataFrame:
    """By how many times faster each point is than the untouched target, its guide's time included.

    All take their turn on the same images (`vitsal.analysis.time_alternating`); medians over the rounds.

    Returns:
        One row per point, in their order, one column per batch size: `speedup_1`, `speedup_32`.
    """
    models = {point.asked: AcceleratedViT(target, guides.get(point.way), point.reduction) for point in points}
    found = {}
    for size in batch_sizes:
        images = example_images(target, size)
        tasks = {asked: partial(model, images) for asked, model in {None: target, **models}.items()}
        seconds = time_alternating(tasks, repeats, images.device)
        found[f"speedup_{size}"] = [np.median(seconds[None] / seconds[point.asked]) for point in points]
    return pd.DataFrame(found)


def kept_points(
    folder: str | Path,
    target: nn.Module,
    guides: Mapping[str, Guide],
    images: MixedImages,
    speeds: Sequence[float],
    soften: str = SOFTENED,
    *,
    batch_size: int = 32,
    num_workers: int = 0,
) -> list[Point]:
    """`frontier_points` on these images, kept in `folder`, and read from there when the same is asked again.

    All candidates are judged on every so many-th image, `FIRST` of them or more, and the finalists on all.

    Raises:
        UserError: see there; a file of points that is damaged.
    """
    about = {"target": describe(target), "guides": {name: describe(guide) for name, guide in guides.items()}}
    tried = list(map(str, all_reductions(target, bool(guides), [soften])))
    about |= {"data": images.fingerprints, "speeds": list(speeds), "tried": question_hash({"reductions": tried})}
    about |= {"first": FIRST, "finalists": FINALISTS}
    path = Path(folder, f"points-{question_hash(about)}.json")
    if not path.exists():
        steps = dict.fromkeys((max(1, len(images) // FIRST), 1))
        parts = [range(0, len(images), step) for step in steps]
        rounds = [images.batches(part, batch_size, num_workers, progress="points") for part in parts]
        chosen = [point.columns for point in frontier_points(target, guides, rounds, speeds, soften)]
        write_sealed(path, {"about": about, "points": chosen})
    return [Point.from_columns(**columns) for columns in read_sealed(path, AGAIN)["points"]]
