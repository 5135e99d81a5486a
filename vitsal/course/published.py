"""The published curves, and our numbers beside them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from vitsal.course.recipes import PublishedExperiment
from vitsal.errors import UserError, check_choice

PUBLISHED = Path(__file__).parents[2] / "data" / "reference" / "seed_curves.csv"


def published_curves(recipe: PublishedExperiment) -> pd.DataFrame:
    """The published curves of a recipe's chart, under the recipe's labels.

    Returns:
        One row per point: target, guide, keep_ratio, published_top1 (fraction).

    Raises:
        UserError: the file of published curves is not here.
    """
    points = _read_published().set_index(["figure", "guide"]).sort_index()
    parts = [
        points.loc[[curve.published]].assign(target=curve.target, guide=curve.label).sort_values("drop_percent")
        for curve in recipe.curves
    ]
    table = pd.concat(parts, ignore_index=True).rename(columns={"top1": "published_top1"})
    table["keep_ratio"] = (100 - table["drop_percent"]) / 100
    return table[["target", "guide", "keep_ratio", "published_top1"]]


def _read_published() -> pd.DataFrame:
    if not PUBLISHED.is_file():
        raise UserError(
            f"The published curves are not here: there is no {PUBLISHED}. They come with the repository, not with an "
            "installed package: clone it, and install it from there with pip install -e."
        )
    return pd.read_csv(PUBLISHED)


def compare_with_published(recipe: PublishedExperiment, table: pd.DataFrame) -> pd.DataFrame:
    """Set our accuracies beside the published ones.

    Args:
        recipe: whose curves were measured.
        table: target, guide, keep_ratio, n, top1, ci_low, ci_high, one row per point, as `summarize` gives it.

    Returns:
        One row per point that both have, in the table's order: its columns, published_top1, and ours minus theirs:
        difference, and difference_low and difference_high by our 95 % interval (theirs come without one).

    Raises:
        UserError: a curve in the table that the recipe does not have, or no published curves here.
    """
    published = published_curves(recipe)
    for target, guide in table[["target", "guide"]].drop_duplicates().itertuples(index=False):
        check_choice(f"guide of {target!r}", guide, [curve.label for curve in recipe.of_target(target)])
    key = ["target", "guide", "keep_ratio"]
    joined = table.assign(keep_ratio=table["keep_ratio"].round(6)).merge(published, on=key)  # 1 - 0.9 is not 0.1
    ours = {"difference": "top1", "difference_low": "ci_low", "difference_high": "ci_high"}
    return joined.assign(**{name: joined[column] - joined["published_top1"] for name, column in ours.items()})
