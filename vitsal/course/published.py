"""The published curves, and our numbers beside them.

`published_curves.csv` holds top-1 accuracy against the percentage of patches dropped before the first block, 12 curves
on ImageNet's validation set (50,000 images), from the ViT saliency prediction project, 2024, which this course follows.
Columns: `figure` (chart), `target`, `guide`, `drop_percent`, `top1` (fraction). Two caveats when comparing: that
project did not use each model's own input normalisation, and divided by a padded batch count.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from vitsal.course.recipes import PublishedExperiment
from vitsal.errors import check_choice

PUBLISHED = Path(__file__).with_name("published_curves.csv")


def published_curves(recipe: PublishedExperiment) -> pd.DataFrame:
    """The published curves of a recipe's chart, under the recipe's labels.

    Returns:
        One row per point: target, guide, keep_ratio, published_top1 (fraction).
    """
    points = pd.read_csv(PUBLISHED).set_index(["figure", "guide"]).sort_index()
    parts = [
        points.loc[[curve.published]].assign(target=curve.target, guide=curve.label).sort_values("drop_percent")
        for curve in recipe.curves
    ]
    table = pd.concat(parts, ignore_index=True).rename(columns={"top1": "published_top1"})
    table["keep_ratio"] = (100 - table["drop_percent"]) / 100
    return table[["target", "guide", "keep_ratio", "published_top1"]]


def compare_with_published(recipe: PublishedExperiment, table: pd.DataFrame) -> pd.DataFrame:
    """Set our accuracies beside the published ones.

    Args:
        recipe: whose curves were measured.
        table: target, guide, keep_ratio, n, top1, ci_low, ci_high, one row per point, as `summarize` gives it.

    Returns:
        One row per point that both have, in the table's order: its columns, published_top1, and ours minus theirs:
        difference, and difference_low and difference_high by our 95 % interval (theirs come without one).

    Raises:
        UserError: a curve in the table that the recipe does not have.
    """
    published = published_curves(recipe)
    for target, guide in table[["target", "guide"]].drop_duplicates().itertuples(index=False):
        check_choice(f"guide of {target!r}", guide, [curve.label for curve in recipe.of_target(target)])
    key = ["target", "guide", "keep_ratio"]
    joined = table.assign(keep_ratio=table["keep_ratio"].round(6)).merge(published, on=key)  # 1 - 0.9 is not 0.1
    ours = {"difference": "top1", "difference_low": "ci_low", "difference_high": "ci_high"}
    return joined.assign(**{name: joined[column] - joined["published_top1"] for name, column in ours.items()})
