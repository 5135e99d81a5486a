"""The results table: what it says, how it grows, and what is never mixed in."""

import multiprocessing
import os
from functools import partial

import pandas as pd
import pytest

from vitsal.errors import UserError
from vitsal.experiments.outcomes import SUMMARY_COLUMNS, Outcomes, paired_difference, summarize
from vitsal.experiments.results import (
    POINT,
    RESULT_COLUMNS,
    add_results,
    check_same,
    identity_table,
    read_results,
    results_file,
    results_table,
    row_checksums,
    save_results,
)

ABOUT = {
    "target_id": "vit 0123",
    "guides": {"random": {"guide_id": "r", "seed": 3}, "rollout": {"guide_id": "0123456789", "seed": None}},
    "data": "photos, val",
    "data_id": "d4t4",
    "limit": 4,
    "precision": "float32",
    "device": "cpu",
    "vitsal": "0.1",
    "torch": "2.15",
    "timm": "1.0",
}


def outcomes(**changes):
    """Four images of class 1: random gets one right at half, rollout three; all are right on all patches."""
    predictions = {("random", 0.5): [1, 0, 0, 0], ("rollout", 0.5): [1, 1, 1, 0]}
    predictions |= {(name, 1.0): [1, 1, 1, 1] for name in ("random", "rollout")}
    return Outcomes(["a", "b", "c", "d"], [1, 1, 1, 1], predictions, about=ABOUT | changes)


def test_rows_say_what_they_are():
    table = results_table(outcomes(), "vit")
    assert list(table.columns) == RESULT_COLUMNS
    pd.testing.assert_frame_equal(table[SUMMARY_COLUMNS], summarize(outcomes(), "vit"))
    row = table.set_index(["guide", "keep_ratio"]).loc["rollout", 0.5]
    assert (row.minus, row.difference, row.difference_low) == (
        "random",
        *paired_difference(outcomes(), "rollout", "random", 0.5)[:2],
    )
    assert row.difference == 0.5
    assert (row.target_id, row.guide_id, row.data, row.data_id, row.limit) == (
        "vit 0123",
        "0123456789",
        "photos, val",
        "d4t4",
        4,
    )
    assert (row.device, row.vitsal, row.torch, row.timm, row.precision) == ("cpu", "0.1", "2.15", "1.0", "float32")
    assert table.seed.fillna(-1).tolist() == [3, -1, 3, -1]
    assert (table[table.guide == "random"].difference == 0).all()


def test_table_grows_and_replaces_points(tmp_path):
    path, first = tmp_path / "new" / "t.csv", results_table(outcomes(), "vit")
    add_results(first[first.keep_ratio == 1.0], path)
    add_results(first[first.keep_ratio == 0.5], path)
    whole = add_results(first[first.guide == "rollout"], path)
    assert len(whole) == 4
    for read in (read_results(path), pd.read_parquet(path.with_suffix(".parquet"))):
        both = [table.sort_values(["guide", "keep_ratio"], ignore_index=True) for table in (read, first)]
        pd.testing.assert_frame_equal(*both, check_dtype=False)
    assert sorted(file.name for file in path.parent.glob("[!.]*")) == ["t.csv", "t.parquet"]


def test_the_same_again_gives_the_same_bytes(tmp_path):
    paths = [tmp_path / name for name in ("a.csv", "b.csv")]
    for path, times in zip(paths, (1, 2), strict=True):
        for _ in range(times):
            add_results(results_table(outcomes(), "vit"), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_another_target_may_stand_beside(tmp_path):
    add_results(results_table(outcomes(), "vit"), tmp_path / "t.csv")
    whole = add_results(results_table(outcomes(target_id="big 99"), "big"), tmp_path / "t.csv")
    assert whole.groupby("target").size().to_dict() == {"vit": 4, "big": 4}


OTHER_GUIDE = ABOUT["guides"] | {"rollout": {"guide_id": "other", "seed": None}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target_id": "vit 9999"}, "target_id of vit: vit 0123 there, vit 9999 now"),
        ({"data_id": "other"}, "data_id: d4t4 there, other now"),
        ({"limit": None}, "limit: 4 there, all now"),
        ({"precision": "bfloat16"}, "precision: float32 there, bfloat16 now"),
        ({"guides": OTHER_GUIDE}, "guide_id of vit, rollout: 0123456789 there, other now"),
    ],
)
def test_results_of_other_things_are_never_mixed_in(tmp_path, change, said):
    path = tmp_path / "t.csv"
    add_results(results_table(outcomes(), "vit"), path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(UserError) as error:
        add_results(results_table(outcomes(**change), "vit"), path)
    assert said in str(error.value)
    assert "is left as it is. Name another output, or move it." in str(error.value)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    with pytest.raises(UserError):  # and known before anything is computed
        check_same(read_results(path), identity_table(ABOUT | change, "vit"), path)


@pytest.mark.parametrize(("name", "content"), [("t.csv", "my,notes\n1,2\n"), ("t.csv", ""), ("t.txt", "notes")])
def test_what_is_no_results_table_is_left_alone(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=name):
        add_results(results_table(outcomes(), "vit"), path)
    assert path.read_text() == content


def test_a_folder_is_no_table(tmp_path):
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(UserError, match="cannot be read as a results table"):
        read_results(tmp_path / "t.csv")


def test_other_identities_have_other_files():
    identities = [{}, {"target_id": "x"}, {"limit": 9}, {"guides": OTHER_GUIDE}, {"device": "A100"}]
    files = [results_file("runs", "curve", identity_table(ABOUT | change, "vit")) for change in identities]
    assert len(set(files)) == 4
    assert files[0] == files[4]  # the machine is no part of the question
    assert files[0] == results_file("runs", "curve", results_table(outcomes(), "vit"))


def damaged(path, line, old, new):
    lines = path.read_text().splitlines(keepends=True)
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    path.write_text("".join(lines))


@pytest.mark.parametrize("lacking", [["merge", "input_size", "soften", "rest"], ["soften", "rest"], ["rest"]])
def test_a_table_of_before_there_were_all_levers_goes_on(tmp_path, lacking):
    path, table = tmp_path / "t.csv", results_table(outcomes(), "vit")
    add_results(table, path)
    pd.read_csv(path, dtype=str, keep_default_na=False).drop(columns=lacking).to_csv(path, index=False)
    copy = path.with_suffix(".parquet")
    pd.read_parquet(copy).drop(columns=lacking).to_parquet(copy, index=False, write_page_checksum=True)
    assert read_results(path)[POINT].values.tolist() == table[POINT].values.tolist()
    add_results(table[:1], path)
    assert len(read_results(path)) == len(table)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("own,none,dropped,4,3", "own,none,dropped,4,2"),
        ("dropped", "coarse"),
        ("0.75", "0.85"),
        ("rollout", "random"),
        ("d4t4", "d4t5"),
        ("0.5", "0.3"),
    ],
)
def test_a_damaged_row_is_refused_and_left_alone(tmp_path, old, new):
    path, table = tmp_path / "t.csv", results_table(outcomes(), "vit")
    add_results(table, path)
    line = 2 + table.index[(table.guide == "rollout") & (table.keep_ratio == 0.5)][0]
    damaged(path, line, old, new)
    before = path.read_bytes()
    for touch in (read_results, partial(add_results, table)):
        with pytest.raises(UserError, match=rf"t.csv is damaged or .* in line {line}, .* Remove both files"):
            touch(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(("lines", "said"), [([0, 1, 2, 3, 4, 4], "in line 6"), ([0, 1, 3, 4], "lacks 1 rows")])
def test_rows_that_stand_twice_or_are_gone(tmp_path, lines, said):
    """Each row fits its checksum."""
    path, table = tmp_path / "t.csv", results_table(outcomes(), "vit")
    add_results(table, path)
    there = path.read_text().splitlines(keepends=True)
    path.write_text("".join(there[number] for number in lines))
    with pytest.raises(UserError, match=f"changed by hand .*{said}"):
        read_results(path)


def test_a_kill_between_table_and_copy_does_no_harm(tmp_path):
    """The table is written first, so that it has rows which the copy lacks; a copy that is damaged is made anew."""
    path, table = tmp_path / "t.csv", results_table(outcomes(), "vit")
    add_results(table[:2], path)
    copy = path.with_suffix(".parquet")
    for before in (copy.read_bytes(), b"torn"):
        add_results(table, path)
        copy.write_bytes(before)
        assert len(read_results(path)) == 4
    add_results(table, path)
    assert len(pd.read_parquet(copy)) == 4


def _add_rows(path, rows):
    for row in rows:
        add_results(row, path)


@pytest.mark.slow
def test_who_reads_while_another_writes_sees_a_whole_table(tmp_path):
    path, table = tmp_path / "t.csv", results_table(outcomes(), "vit")
    add_results(table[:1], path)
    rows = [table[1:2].assign(target=f"vit {number}") for number in range(60)]
    rows = [row.assign(checksum=row_checksums(row)) for row in rows]
    writer = multiprocessing.get_context("fork").Process(target=_add_rows, args=(path, rows))
    writer.start()
    lengths = [len(read_results(path)) for _ in iter(writer.is_alive, False)]
    assert writer.exitcode == 0
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 10
    assert len(read_results(path)) == 61


@pytest.mark.slow
def test_no_row_is_lost_when_four_write_at_once(tmp_path):
    """Twenty tables (a hundred with VITSAL_SLOW_TESTS), four writers of one row each."""
    table = results_table(outcomes(), "vit")
    with multiprocessing.get_context("fork").Pool(4) as pool:
        for trial in range(100 if os.environ.get("VITSAL_SLOW_TESTS") else 20):
            path = tmp_path / f"{trial}.csv"
            pool.starmap(add_results, [(table[number : number + 1], path) for number in range(4)])
            assert len(read_results(path)) == 4
            assert len(pd.read_parquet(path.with_suffix(".parquet"))) == 4


def test_results_of_several_targets_in_one_table_that_is_named_by_them(tmp_path):
    """What is returned are these results alone; the file, whose name tells what they are of, keeps all."""
    targets = {"vit": outcomes(), "big": outcomes(target_id="big 99")}
    table = save_results(targets, tmp_path, "curves")
    whole = pd.concat([results_table(known, target) for target, known in targets.items()], ignore_index=True)
    pd.testing.assert_frame_equal(table, whole)
    assert table[["target", "guide", "keep_ratio", "correct"]].values.tolist() == [
        [target, *row]
        for target in targets
        for row in [("random", 0.5, 1), ("rollout", 0.5, 3), ("random", 1, 4), ("rollout", 1, 4)]
    ]
    (path,) = tmp_path.glob("*.csv")
    assert path == results_file(tmp_path, "curves", table)
    save_results(targets, tmp_path, "curves")
    pd.testing.assert_frame_equal(read_results(path), table, check_dtype=False)
    assert len(save_results({"vit": outcomes()}, tmp_path, "curves")) == 4
    assert sorted(len(read_results(path)) for path in tmp_path.glob("*.csv")) == [4, 8]
