"""Making a target so many times cheaper: of all ways that its levers allow, the one that changes its answers least."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from vitsal.analysis.cost import count_operations, example_images, pipeline_cost
from vitsal.data.images import Batch, LabelledImages
from vitsal.errors import UserError
from vitsal.experiments.evaluation import drop_curve
from vitsal.experiments.outcomes import summarize
from vitsal.guides.accelerated import AcceleratedViT
from vitsal.guides.adapters import StudentGuide
from vitsal.guides.factory import Guide
from vitsal.models.classes import check_answering
from vitsal.models.pixels import resize
from vitsal.models.sizes import resized_each
from vitsal.models.tokens import grid_size
from vitsal.reduction.reduction import Reduction, allows, forward_reduced
from vitsal.students.student import Student
from vitsal.tuning.answers import answer_table
from vitsal.tuning.lessons import SOFTENED, can_soften, merge_counts, smaller_sizes

RATIOS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5, 0.4, 0.3)
FINE = (0.6, 0.5, 0.4, 0.3, 0.2)  # of the patches, where the rest is shown coarsely
SIDES = (12 / 14, 11 / 14, 10 / 14, 9 / 14, 8 / 14)  # of the patches along each side
LATE = (0.31, 0.43, 0.5, 0.65, 0.75, 0.86, 1.0, 1.11)  # of what blocks share, merged late: 5 to 18 of 196 in each of 12
ALONE = tuple(count / 16 for count in (*range(2, 23), *range(24, 37, 2)))  # likewise, where no patches are dropped
STARTS = (1 / 4, 1 / 2)  # of the blocks: where late is
SOFTENINGS = ("0", "1", SOFTENED)
SLACK = 0.04  # by how much a point may be cheaper than was asked
CARD = """---
library_name: vitsal
---
# {name}, {operations:.2f} times fewer operations

{levers}. Load it, and classify an image:

```python
import vitsal as vs
from PIL import Image

fast = vs.AcceleratedViT.from_pretrained("FOLDER")
images = fast.transform(Image.open("cat.jpg").convert("RGB"))[None]
print(vs.models.top_classes(fast(images)[0], vs.models.class_names(fast.target)))
```

Of all ways to be so many times cheaper it was chosen, without labels, as the one whose answers are nearest to those of
the target on whole images: on {n} images the likeliest class is the same for {same:.1%} of them.

{right}

Time, the guide's included, against the untouched target in the same process (speedup, and its limit by operations):

{times}

Made by `{command}`.

Mind: operations are not time. At batch 1, or with a small target on a fast GPU, launching kernels may cost more than
is saved: see the table, and measure on your machine. Accuracy is that of the images above: other kinds of images, or
several objects in one, may lose more.
"""


def all_reductions(target: nn.Module, guided: bool, softenings: Sequence[str] = SOFTENINGS) -> list[Reduction]:
    """Every way to reduce a target that is tried: keep ratios (where there is a guide), merging and input sizes.

    What is done without a guide has no keep ratios to come near to a speed by, and so more counts of merging.
    Where a target sees fewer patches its attention is softened in each of these ways, as far as it can be. Merging in
    the later blocks alone, after patches are dropped, is PaPr's way (Mahmud et al. 2024), and the only one tried with
    a guide: merged from the first block on, what was kept lost more. Where a class token is read, what it attends to
    is spared: that costs next to nothing, and changes answers less where much is merged (README).
    """
    spared = "c" if allows(target, Reduction(merge="1c")) else ""
    late = [schedule + spared for schedule in _schedules(target, LATE, STARTS)]
    alone = [schedule + spared for schedule in _schedules(target, ALONE, (0, *STARTS))]
    sizes = [None, *smaller_sizes(target, SIDES)]
    plain = [Reduction(1.0, *levers) for levers in product(["0", *alone], sizes)]
    plain += [Reduction(*levers) for levers in product(RATIOS if guided else (), ["0", *late], sizes)]
    coarse = [size for size in sizes if guided and allows(target, Reduction(0.5, input_size=size, rest="coarse"))]
    plain += [Reduction(*levers, rest="coarse") for levers in product(FINE, ["0", *late], coarse)]
    allowed = softenings if can_soften(target) else ("0",)
    softened = (
        replace(one, soften=soften if one.guided or one.input_size else "0") for soften in allowed for one in plain
    )
    return list(dict.fromkeys(softened))


def _schedules(target: nn.Module, shares: Sequence[float], starts: Sequence[float]) -> list[str]:
    """Schedules of merging such shares of what blocks share, from such shares of the blocks on."""
    firsts = dict.fromkeys(int(start * len(target.blocks)) for start in starts)
    counts = merge_counts(target, shares)
    return [f"{count}{f'@{first}' if first else ''}" for first in firsts for count in counts]


def operating_points(
    target: nn.Module, guide: Guide | None, speed_up: float, *, progress: bool = True
) -> dict[Reduction, float]:
    """The reductions that make a target `speed_up` times cheaper, and hardly more: reduction -> by how many times.

    Operations are counted (`vitsal.analysis.count_operations`), the guide's among them.

    Returns:
        See `near_speed`.

    Raises:
        UserError: no reduction comes so far.
    """
    image, tried = example_images(target, 1), all_reductions(target, guide is not None)
    whole, operations = count_operations(partial(target, image)), count_reductions(target, tried, progress=progress)
    choosing = 0 if guide is None else count_operations(partial(guide, image))
    found = {reduction: whole / (count + choosing * reduction.guided) for reduction, count in operations.items()}
    if not (points := near_speed(found, speed_up)):
        name, most = target.pretrained_cfg["architecture"], max(found.values())
        raise UserError(
            f"Nothing that is tried makes {name} {speed_up:g} times cheaper: by count of operations, the guide's among "
            f"them, {most:.1f} times is the most. Choose a smaller speed-up."
        )
    return points


def near_speed(found: Mapping[Reduction, float], speed_up: float) -> dict[Reduction, float]:
    """Those that come so far and are at most 4 % cheaper; where none is, the one that comes nearest from above.

    Args:
        found: reduction -> by how many times fewer operations it has.
    """
    reached = {reduction: times for reduction, times in found.items() if times >= speed_up}
    most = max((1 + SLACK) * speed_up, min(reached.values(), default=0))
    return {reduction: times for reduction, times in reached.items() if times <= most}


def count_reductions(
    target: nn.Module, reductions: Iterable[Reduction], *, least: float = 0, progress: bool = True
) -> dict[Reduction, int]:
    """Operations of a target on one image, reduced in each of these ways, whoever chooses its patches.

    Where one has fewer than `least`, those that come after it and only keep fewer patches are left out, uncounted.
    """
    image, tried, found, past = example_images(target, 1), list(reductions), {}, {}
    saliency = torch.zeros(1, *grid_size(target), device=image.device)
    twins = resized_each(target, (reduction.input_size for reduction in tried))
    for reduction in tqdm(tried, desc="operations", mininterval=1, disable=not progress):
        plain, size = replace(reduction, soften="0"), reduction.input_size  # softening costs nothing
        if past.get(plain.others, 0) > reduction.keep_ratio:
            continue
        run = partial(forward_reduced, twins[size], resize(image, size), plain, saliency)
        found[reduction] = found.get(plain) or count_operations(run)
        if found[reduction] < least:
            past.setdefault(plain.others, reduction.keep_ratio)
    return found


def choose_reduction(
    target: nn.Module,
    guide: Guide | None,
    points: Mapping[Reduction, float],
    batches: Iterable[Batch],
) -> pd.DataFrame:
    """Compare operating points by the target's own answers, without labels; the best comes first.

    Args:
        batches: images to choose on; report on others.

    Returns:
        One row per reduction, the least divergence first: its columns, `operations`, by how many times fewer, `n`
        images, the share of them whose likeliest class is the `same`, and the mean divergence `kl` in nats, of the
        answers on reduced images from those on whole ones.
    """
    asked = [("guide" if reduction.guided else None, reduction) for reduction in points]
    guides = {} if guide is None else {"guide": guide}
    table = answer_table(target, {"": target}, asked, guides, batches).drop(columns="guide")
    table.insert(table.columns.get_loc("n"), "operations", list(points.values()))
    return table.sort_values("kl", ignore_index=True)


def accelerate(
    target: nn.Module, student: Student | None, batches: Iterable[Batch], speed_up: float
) -> tuple[AcceleratedViT, pd.DataFrame]:
    """One module of target and student that is so many times cheaper, and changes the target's answers least.

    Returns:
        The module, and the table of all `operating_points` that it was chosen from (`choose_reduction`).

    Raises:
        UserError: see there; a target without a classifier, or in training mode.
    """
    check_answering(target)
    guide = None if student is None else StudentGuide(student, target)
    table = choose_reduction(target, guide, operating_points(target, guide, speed_up), batches)
    best = Reduction.from_columns(*table.loc[0, list(Reduction().columns)])
    return AcceleratedViT(target, student, best), table


def accelerated_cost(fast: AcceleratedViT, batch_sizes: Sequence[int] = (1, 32)) -> pd.DataFrame:
    """`vitsal.pipeline_cost` of an accelerated model against its untouched target, at several batch sizes."""
    guides = {"student": fast.guide}
    tables = [pipeline_cost(fast.target, guides, [fast.reduction], batch_size=size) for size in batch_sizes]
    return pd.concat(tables, ignore_index=True)


def accelerated_accuracy(fast: AcceleratedViT, dataset: LabelledImages, name: str, **given: Any) -> pd.DataFrame:
    """`vitsal.summarize` of the target, called `name`, as it is and accelerated; the journal is kept in `runs`.

    `given`: limit, batch_size and num_workers, as `vitsal.drop_curve` has them.
    """
    reductions = [Reduction(), fast.reduction]
    return summarize(
        drop_curve(fast.target, {"student": fast.guide}, dataset, reductions, folder="runs", **given), name
    )


def model_card(
    name: str, chosen: Mapping[str, Any], cost: pd.DataFrame, accuracy: pd.DataFrame | None, command: str
) -> str:
    """What a folder's README.md says of an accelerated ViT: how it was made, what it costs, how often it is right.

    Args:
        name: the target's.
        chosen: its row of `choose_reduction`.
        cost: `vitsal.pipeline_cost`, at several batch sizes one below the other.
        accuracy: `vitsal.summarize` on other images; None where none were given.
        command: that made it.
    """
    told = {key: value for key, value in chosen.items() if key not in ("n", "same", "kl", "operations")}
    times = cost[["batch_size", "guide", *told, "median_s", "images_per_s", "speedup", "limit", "device"]]
    right = "It was not tried on labelled images."
    if accuracy is not None:
        right = "On images that it was not chosen on:\n\n" + _markdown(
            accuracy[[*told, "n", "correct", "top1", "ci_low", "ci_high"]]
        )
    levers = "; ".join(f"{key.replace('_', ' ')} {value}" for key, value in told.items())
    counted = {key: chosen[key] for key in ("operations", "n", "same")}
    return CARD.format(name=name, levers=levers, times=_markdown(times), right=right, command=command, **counted)


def _markdown(table: pd.DataFrame) -> str:
    """A table as Markdown has it."""
    lines = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    cells = [[f"{value:.4g}" if isinstance(value, float) else str(value) for value in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
