"""The README's tables are what `data/measured` holds: each row is computed here from the outcomes of single images.

`python tests/test_readme.py` prints them.
"""

import re
from pathlib import Path

import pandas as pd
import pytest

from vitsal.analysis.faithfulness import score_table
from vitsal.experiments.measured import read_outcomes
from vitsal.experiments.outcomes import Outcomes, paired_difference, recovered_share, summarize

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
    "flow": "own flow",
}
AGAINST_CENTER = ("student position", "student convnet", "student transformer", "student convnet-grad", "rollout")
ASKED = ("deletion", "insertion", "ROAD", "correlation")
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
        values = ["{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * value for value in part)) for part in found]
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
    print("\nsmaller\n", *smaller_rows(), "\nfaithfulness\n", *faithfulness_rows(), sep="\n")
