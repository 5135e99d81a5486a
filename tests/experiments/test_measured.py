"""Outcomes in a file: what comes back is what went in, and any reader of Parquet can count them."""

import numpy as np
import pandas as pd
import pytest

from vitsal.errors import UserError
from vitsal.experiments.outcomes import NOT_USED, Outcomes, read_outcomes, save_outcomes, summarize
from vitsal.reduction.reduction import Reduction, as_reduction

ABOUT = {"data": "photographs", "guides": {"center": {"guide_id": "1", "seed": None}}, "limit": None}


LEVERS = (Reduction(0.7, "8"), Reduction(1.0, "16-", (160, 192)), Reduction(0.7, rest="coarse"))


@pytest.fixture
def outcomes():
    rng = np.random.default_rng(0)
    cells = [(guide, reduction) for guide in ("center", "student convnet") for reduction in (1.0, 0.7, 0.1, *LEVERS)]
    names = [f"n{number:08d}/photo {number}.jpg" for number in range(50)]
    predictions = {cell: rng.integers(0, 1000, 50) for cell in cells}
    return Outcomes(names, rng.integers(0, 1000, 50), predictions, {"broken.jpg": "cut"}, ABOUT)


def test_they_come_back(outcomes, tmp_path):
    save_outcomes(outcomes, tmp_path / "new" / "o.parquet")
    back = read_outcomes(tmp_path / "new" / "o.parquet")
    assert (back.names, back.skipped, back.about) == (outcomes.names, outcomes.skipped, outcomes.about)
    assert list(back.predictions) == list(outcomes.predictions)
    assert np.array_equal(back.labels, outcomes.labels)
    for cell, predicted in outcomes.predictions.items():
        assert np.array_equal(back.predictions[cell], predicted)
    assert summarize(back, "vit").equals(summarize(outcomes, "vit"))


def test_anybody_can_count_them(outcomes, tmp_path):
    save_outcomes(outcomes, tmp_path / "o.parquet")
    table = pd.read_parquet(tmp_path / "o.parquet")
    levers = ["keep_ratio", "merge", "input_size", "soften", "rest"]
    assert list(table) == ["image", "label", "guide", *levers, "prediction"]
    right = (table.prediction == table.label).groupby([table.guide, *(table[name] for name in levers)]).sum()
    assert right["center", 0.7, "none", "own", "none", "dropped"] == outcomes.correct("center", 0.7).sum()
    assert right["center", 0.7, "8", "own", "none", "dropped"] == outcomes.correct("center", LEVERS[0]).sum()
    assert right["center", 0.7, "none", "own", "none", "coarse"] == outcomes.correct("center", LEVERS[2]).sum()


@pytest.mark.parametrize("lacking", [["merge", "input_size", "soften", "rest"], ["soften", "rest"], ["rest"]])
def test_files_of_before_there_were_all_levers(outcomes, tmp_path, lacking):
    save_outcomes(outcomes, tmp_path / "o.parquet")
    table = pd.read_parquet(tmp_path / "o.parquet")
    older = table[(table[lacking] == pd.Series(NOT_USED)[lacking]).all(axis=1)].drop(columns=lacking)
    older.to_parquet(tmp_path / "older.parquet")
    back = read_outcomes(tmp_path / "older.parquet")
    known = [
        cell
        for cell in outcomes.predictions
        if all(as_reduction(cell[1]).columns[name] == NOT_USED[name] for name in lacking)
    ]
    assert list(back.predictions) == known
    assert np.array_equal(back.correct("center", 0.7), outcomes.correct("center", 0.7))


@pytest.mark.parametrize("damage", ["not there", "a byte", "another table", "an image lost", "empty"])
def test_what_is_no_file_of_outcomes_is_refused(outcomes, tmp_path, damage):
    path = tmp_path / "o.parquet"
    save_outcomes(outcomes, path)
    table = pd.read_parquet(path)
    if damage == "not there":
        path.unlink()
    elif damage == "a byte":
        whole = bytearray(path.read_bytes())
        whole[60] ^= 1
        path.write_bytes(whole)
    elif damage == "another table":
        pd.DataFrame({"a": [1]}).to_parquet(path)
    elif damage == "an image lost":
        table.drop(index=3).to_parquet(path)
    else:
        table[:0].to_parquet(path)
    with pytest.raises(UserError, match=r"There is no outcomes file|cannot be read as outcomes"):
        read_outcomes(path)
