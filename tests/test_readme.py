"""The README's tables are what `data/measured` holds: each row is computed here from the outcomes of single images.

`python tests/test_readme.py` prints them.
"""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from vitsal.analysis.cost import count_operations
from vitsal.analysis.faithfulness import score_table
from vitsal.analysis.intervals import Interval, difference
from vitsal.experiments.frontier import RIVALS
from vitsal.experiments.outcomes import Outcomes, paired_difference, read_outcomes, recovered_share, summarize
from vitsal.guides.accelerated import AcceleratedViT
from vitsal.guides.baselines import CenterGuide
from vitsal.guides.factory import make_guide
from vitsal.models.loading import load_model
from vitsal.reduction.reduction import Reduction
from vitsal.students.student import new_student

ROOT = Path(__file__).parents[1]
MEASURED = ROOT / "data" / "measured"
README = (ROOT / "README.md").read_text()
RATIOS = (0.7, 0.5, 0.4, 0.3, 0.2)
SHARE_AT = 0.3
DATA = {"nips2017": 500, "imagenet-sample": 500, "imagenette": 1000}
NAMES = {
    "random": "random",
    "center": "center",
    "student position": "position alone, learnt",
    "last-attention": "own last attention",
    "rollout": "own rollout",
    "grad-rollout": "own gradient rollout",
    "grad-attention": "own gradient x attention",
    "student convnet": "convnet, taught rollout",
    "student transformer": "transformer, taught rollout",
    "student convnet-grad": "convnet, taught gradient rollout",
    "student answers": "convnet, taught rollout, then answers",
    "student narrow": "convnet of half the width, taught rollout",
    "flow": "own flow (max, 0.9)",
}
AGAINST_CENTER = ("student position", "student convnet", "student transformer", "student convnet-grad", "rollout")
ASKED = ("deletion", "insertion", "ROAD", "correlation")
LEVERS = ("nips2017", "imagenet-sample")
LEAGUES = (("deit_tiny", "0"), ("deit_tiny", "1-"), ("deit_tiny_tuned", "1"))  # target, and how attention is softened
KINDS = ("levers", "rivals")
LESSONS = ("student convnet", "student convnet-grad", "student answers", "student narrow")
LESSON_RATIOS = (0.5, 0.3)
WAYS = {
    "merging alone": "merging alone",
    "smaller image alone": "smaller image alone",
    "no guide": "no guide: both",
    "random": "random",
    "center": "center",
    "student convnet": "student, taught rollout",
    "student narrow": "the same, a quarter of its cost",
    "student answers": "student, taught by answers",
    "class-attention": "class attention of block 0 (EViT)",
    "norm-change": "norm change of block 0 (Representation Shift)",
}
REDUCTIONS = [
    Reduction(),
    Reduction(0.3),
    Reduction(0.2),
    Reduction(merge="8"),
    Reduction(merge="16"),
    Reduction(merge="13-"),
    Reduction(merge="16-"),
    Reduction(input_size=(160, 160)),
    Reduction(input_size=(144, 144)),
    Reduction(input_size=(128, 128)),
    Reduction(0.7, "8"),
    Reduction(1.0, "8", (160, 160)),
    Reduction(0.7, "8", (160, 160)),
]
DROPPED = Reduction(0.4, soften="1-")  # 78 of 196 tokens
COARSE = Reduction(0.2, soften="1-", rest="coarse")  # 79: four of each of ten cells, one of each other
COARSE_MERGED = [Reduction(0.2, merge, soften="1", rest="coarse") for merge in ("5@3", "8@3")]
SIZES = (192, 160, 144, 128, 112)  # pixels of a smaller image


def outcomes_of(data: str, size: str = "") -> Outcomes:
    return read_outcomes(MEASURED / f"deit_tiny-{data}{size}.parquet")


def percent(row: pd.Series) -> str:
    """Top-1 in % with its Wilson interval."""
    return f"{100 * row.top1:.1f} [{100 * row.ci_low:.1f}, {100 * row.ci_high:.1f}]"


def accuracy_rows(outcomes: Outcomes) -> list[str]:
    """Top-1 in % with its Wilson interval, and the share of the gap from random to rollout."""
    cells = summarize(outcomes, "").set_index(["guide", "keep_ratio"])
    rows = []
    for guide in [name for name in NAMES if (name, RATIOS[0]) in cells.index]:
        values = [percent(cells.loc[guide, ratio]) for ratio in RATIOS]
        share = recovered_share(outcomes, guide, SHARE_AT, chance="random", ideal="rollout")
        said = {"random": "0", "rollout": "1"}.get(guide, "{:.2f} [{:.2f}, {:.2f}]".format(*share))
        rows.append(f"| {' | '.join([NAMES[guide], *values, said])} |")
    return rows


def difference_rows(outcomes: Outcomes) -> list[str]:
    """Top-1 minus the center's, in points, with the paired interval."""
    rows = []
    for guide in AGAINST_CENTER:
        found = [paired_difference(outcomes, guide, "center", ratio) for ratio in RATIOS]
        values = [in_points(part) for part in found]
        rows.append(f"| {' | '.join([NAMES[guide], *values])} |")
    return rows


def smaller_rows() -> list[str]:
    """Top-1 in % on smaller images, and what share of the tokens they are."""
    rows = []
    for size in SIZES:
        values = [percent(summarize(outcomes_of(data, f"-{size}px"), "").iloc[0]) for data in DATA]
        rows.append(f"| {' | '.join([f'{size} x {size}', f'{100 * (size // 16) ** 2 / 196:.0f} %', *values])} |")
    return rows


def faithfulness_rows() -> list[str]:
    """Score by each metric, mean over images with its bootstrap interval."""
    values = pd.read_parquet(MEASURED / "deit_tiny-nips2017-faithfulness.parquet")
    scores = score_table(values).set_index(["guide", "metric"])
    rows = []
    for guide in values.guide.unique():
        cells = [scores.loc[guide, metric] for metric in ASKED]
        said = [f"{cell['mean']:.2f} [{cell.low:.2f}, {cell.high:.2f}]" for cell in cells]
        rows.append(f"| {' | '.join([NAMES[guide], *said])} |")
    return rows


def levers_rows() -> list[str]:
    """Top-1 in % of the targets, reduced, untouched, softened and tuned; by how many times, the student counted."""
    target = load_model("deit_tiny_patch16_224", pretrained=False)
    guides = {"student convnet": make_guide("student", target, student=new_student("convnet", (14, 14)).eval())}
    image, asked = torch.zeros(1, 3, 224, 224), [(f"{name}-{data}", s) for data in LEVERS for name, s in LEAGUES]
    files = {name: [read_outcomes(MEASURED / f"{name}-{kind}.parquet") for kind in KINDS] for name, _ in asked}
    whole, rows = count_operations(partial(target, image)), []
    for reduction in REDUCTIONS:
        for guide in ("random", "student convnet", "rollout") if reduction.guided else (None,):
            fast = AcceleratedViT(target, guides.get(guide, CenterGuide((14, 14))), reduction)
            times = whole / count_operations(partial(fast, image))
            ways = [hits(guide, replace(reduction, soften=s), *files[name]).mean() for name, s in asked]
            values = [f"{100 * share:.1f}" for share in ways]
            who = NAMES[guide] if guide else "all kept"
            rows.append(f"| {' | '.join([f'{times:.2f}', str(reduction), who, *values])} |")
    return rows


def sparing_rows() -> list[str]:
    """Merging alone, what the class token attends to spared: top-1 in %, and points over the most alike first."""
    asked = [(f"{name}-{data}", soften) for data in LEVERS for name, soften in (LEAGUES[0], LEAGUES[2])]
    kinds, rows = (*KINDS, "sparing"), []
    files = {name: [read_outcomes(MEASURED / f"{name}-{kind}.parquet") for kind in kinds] for name, _ in asked}
    for merge in ("8", "16", "13-", "16-"):
        values = []
        for name, soften in asked:
            *alike, sparing = files[name]
            spared = sparing.correct("center", Reduction(merge=f"{merge}c", soften=soften))
            gain = difference(spared, hits(None, Reduction(merge=merge, soften=soften), *alike), 0)
            values.append(f"{100 * spared.mean():.1f}, {in_points(gain)}")
        rows.append(f"| {' | '.join([f'{merge}c', *values])} |")
    return rows


def lessons_cells(data: str) -> list[tuple[Outcomes, Reduction]]:
    """Where lessons are compared: in each league, at each keep ratio."""
    files = {name: read_outcomes(MEASURED / f"{name}-{data}-lessons.parquet") for name, _ in LEAGUES}
    return [(files[name], Reduction(ratio, soften=soften)) for name, soften in LEAGUES for ratio in LESSON_RATIOS]


def lessons_rows(data: str) -> list[str]:
    """Top-1 in %, and of students the share of the gap from random to rollout."""
    rows = []
    for guide in ("random", "rollout", "grad-rollout", *LESSONS):
        values = []
        for outcomes, reduction in lessons_cells(data):
            share = recovered_share(outcomes, guide, reduction, chance="random", ideal="rollout")
            told = "; {:.2f} [{:.2f}, {:.2f}]".format(*share) if guide in LESSONS else ""
            values.append(f"{100 * outcomes.correct(guide, reduction).mean():.1f}{told}")
        rows.append(f"| {' | '.join([NAMES[guide], *values])} |")
    return rows


def lessons_differences(data: str) -> list[str]:
    """Points that the first lesson's student is ahead of random, and others' ahead of it, paired."""
    rows, (first, *others) = [], LESSONS
    for guide, rival in ((first, "random"), *((other, first) for other in others)):
        found = [paired_difference(outcomes, guide, rival, how) for outcomes, how in lessons_cells(data)]
        values = [in_points(part) for part in found]
        rows.append(f"| {' | '.join([f'{NAMES[guide]}, minus {NAMES[rival]}', *values])} |")
    return rows


def coarse_rows() -> list[str]:
    """Top-1 in % with as many tokens, the rest dropped and coarse; what that changes, and what is won over random."""
    files = [read_outcomes(MEASURED / f"deit_tiny-{data}-coarse.parquet") for data in LEVERS]
    rows = []
    for guide in ("random", "rollout", "student convnet", "student narrow"):
        values = []
        for outcomes in files:
            dropped, coarse = (outcomes.correct(guide, reduction) for reduction in (DROPPED, COARSE))
            values += [
                f"{100 * dropped.mean():.1f}",
                f"{100 * coarse.mean():.1f}",
                in_points(difference(coarse, dropped, 0)),
            ]
            ahead = [paired_difference(outcomes, guide, "random", reduction) for reduction in (DROPPED, COARSE)]
            values += ["", ""] if guide == "random" else [in_points(part) for part in ahead]
        rows.append(f"| {' | '.join([NAMES[guide], *values])} |")
    return rows


def coarse_merged_rows() -> list[str]:
    """The tolerant target, the rest coarse, tokens merged: times fewer operations, top-1 in %, points over random."""
    target = load_model("deit_tiny_patch16_224", pretrained=False)
    guides = {"random": CenterGuide((14, 14))}  # as cheap
    for name, width in {"student convnet": 32, "student narrow": 16}.items():
        guides[name] = make_guide("student", target, student=new_student("convnet", (14, 14), width=width).eval())
    image = torch.zeros(1, 3, 224, 224)
    whole = count_operations(partial(target, image))
    files = [read_outcomes(MEASURED / f"deit_tiny_tuned-{data}-coarse.parquet") for data in LEVERS]
    rows = []
    for guide in ("random", "rollout", "student convnet", "student narrow"):
        values = []
        for reduction in COARSE_MERGED:
            fast = AcceleratedViT(target, guides.get(guide, guides["random"]), reduction)
            values.append(f"{whole / count_operations(partial(fast, image)):.2f}" if guide in guides else "")
            for outcomes in files:
                ahead = f"; {in_points(paired_difference(outcomes, guide, 'random', reduction))}"
                top1 = 100 * outcomes.correct(guide, reduction).mean()
                values.append(f"{top1:.1f}{'' if guide == 'random' else ahead}")
        rows.append(f"| {' | '.join([NAMES[guide], *values])} |")
    return rows


def in_points(found: Interval) -> str:
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * value for value in found))


def frontier_table(league: str) -> pd.DataFrame:
    return pd.read_csv(MEASURED / f"{league}-nips2017-frontier.csv", dtype={"merge": str, "soften": str})


def frontier_rows(league: str) -> list[str]:
    """Top-1 in % of each way at each speed; of guides also how far ahead of no guide, paired."""
    table, rows = frontier_table(league), []
    points = {
        (point.way, point.speed): point
        for point in table.rename(columns=lambda name: name.replace(" ", "_")).itertuples()
    }
    for way, name in WAYS.items():
        cells = [front_cell(points.get((way, speed))) for speed in sorted(table.speed.unique())]
        rows.append(f"| {' | '.join([name, *cells])} |")
    return rows


def front_cell(point: object | None) -> str:
    if point is None:
        return ""
    ahead = Interval(point.over_no_guide, point.over_no_guide_low, point.over_no_guide_high)
    told = "" if point.way in RIVALS or np.isnan(ahead.value) else f"; {in_points(ahead)}"
    return f"{100 * point.top1:.1f}{told}"


def chosen_rows(league: str) -> list[str]:
    """What was chosen for each speed: times fewer operations, times faster at batch 1 and 32, top-1, what it loses."""
    table, rows = frontier_table(league), []
    for point in table[table.best].itertuples():
        how = Reduction.from_columns(*(getattr(point, lever) for lever in Reduction().columns))
        faster = f"{point.speedup_1:.2f}, {point.speedup_32:.2f}"
        lost = "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * end for end in (point.lost, point.lost_low, point.lost_high)))
        cells = [f"{point.speed:.1f}", f"{point.way}: {how}", f"{point.operations:.2f}", faster]
        rows.append(f"| {' | '.join([*cells, f'{100 * point.top1:.1f}', lost])} |")
    return rows


def hits(guide: str | None, reduction: Reduction, levers: Outcomes, rivals: Outcomes) -> np.ndarray:
    """Which images are right; without a guide, in the one file or in the other."""
    if guide is None and ("random", reduction.key) not in levers.predictions:
        return rivals.correct("center", reduction)
    return levers.correct(guide or "random", reduction)


def whole_line(outcomes: Outcomes) -> str:
    return f"Nothing dropped: {percent(summarize(outcomes, '').query('keep_ratio == 1').iloc[0])}"


@pytest.mark.parametrize("data", DATA)
def test_tables_are_what_was_measured(data):
    outcomes = outcomes_of(data)
    assert len(outcomes.names) == DATA[data]
    for line in [*accuracy_rows(outcomes), *difference_rows(outcomes), whole_line(outcomes)]:
        assert line in README


def test_table_of_smaller_images():
    for line in smaller_rows():
        assert line in README


@pytest.mark.slow
def test_table_of_levers():
    for line in levers_rows():
        assert line in README


def test_table_of_sparing():
    for line in sparing_rows():
        assert line in README


@pytest.mark.parametrize("data", LEVERS)
def test_tables_of_lessons(data):
    for line in [*lessons_rows(data), *lessons_differences(data)]:
        assert line in README


def test_tables_of_the_coarse_rest():
    for line in [*coarse_rows(), *coarse_merged_rows()]:
        assert line in README


@pytest.mark.parametrize("league", ["deit_tiny", "deit_tiny_tuned"])
def test_table_of_the_frontier(league):
    for line in [*frontier_rows(league), *chosen_rows(league)]:
        assert line in README


def test_table_of_faithfulness():
    for line in faithfulness_rows():
        assert line in README


@pytest.mark.parametrize("data", DATA)
def test_they_say_what_they_are_about_and_nothing_of_where(data):
    about = outcomes_of(data).about
    assert about["target_id"].startswith("deit_tiny_patch16_224 ")
    assert not re.search(r"(^|[\"' ])/", str(about))  # no path of anybody's machine


if __name__ == "__main__":
    for data in DATA:
        outcomes = outcomes_of(data)
        print(f"\n{data}\n", *accuracy_rows(outcomes), whole_line(outcomes), *difference_rows(outcomes), sep="\n")
    for data in LEVERS:
        print(f"\nlessons, {data}\n", *lessons_rows(data), "", *lessons_differences(data), sep="\n")
    print("\ncoarse\n", *coarse_rows(), "", *coarse_merged_rows(), sep="\n")
    for league in ("deit_tiny", "deit_tiny_tuned"):
        print(f"\nfrontier of {league}\n", *frontier_rows(league), "", *chosen_rows(league), sep="\n")
    print(
        "\nsmaller\n", *smaller_rows(), "\nlevers\n", *levers_rows(), "\nfaithfulness\n", *faithfulness_rows(), sep="\n"
    )
