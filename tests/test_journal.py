"""The journal: what is known is found, what is missing is named, and other subjects are refused."""

import json

import numpy as np
import pytest

from vitsal.errors import UserError
from vitsal.identity import question_hash
from vitsal.journal import UNREADABLE, Journal, Row, journal_file

A, B = ("a", 0.5), ("b", 0.3)


def rows(indices, *classes):
    return [Row(index, f"{index}.png", index % 3, "", [100 * kind + index for kind in classes]) for index in indices]


def test_missing_by_hand():
    """A is known of 0 to 3, B of 2 to 5: three groups are left of eight samples."""
    journal = Journal()
    journal.add(rows(range(4), 1), [A])
    journal.add(rows(range(2, 6), 2), [B])
    left = {tuple(cells): indices for cells, indices in journal.missing(range(8), [A, B])}
    assert left == {(B,): [0, 1], (A,): [4, 5], (A, B): [6, 7]}
    assert journal.missing([2, 3], [A, B]) == []
    assert journal.missing([5, 0], [B]) == [([B], [0])]
    assert journal.missing([], [A]) == []
    assert journal.length == 6


def test_outcomes_take_the_samples_and_cells_asked_for():
    journal = Journal()
    journal.add(rows(range(4), 1, 2), [A, B])
    journal.add([Row(4, "4.png", 1, "torn", [UNREADABLE, UNREADABLE])], [A, B])
    outcomes = journal.outcomes([4, 3, 1], {("mine", 0.5): A, ("other", 0.3): B})
    assert outcomes.names == ["3.png", "1.png"]
    assert outcomes.labels.tolist() == [0, 1]
    assert {key: classes.tolist() for key, classes in outcomes.predictions.items()} == {
        ("mine", 0.5): [103, 101],
        ("other", 0.3): [203, 201],
    }
    assert outcomes.skipped == {"4.png": "torn"}
    assert journal.missing([4], [A, B]) == []  # not to be tried again


def test_a_sample_given_twice_counts_once():
    journal = Journal()
    journal.add(rows([0, 1, 0, 1, 2], 1), [A])
    journal.add(rows([2, 0], 1), [A])
    assert journal.outcomes(range(3), {("mine", 0.5): A}).predictions["mine", 0.5].tolist() == [100, 101, 102]


def test_many_samples_in_any_order():
    order = np.random.default_rng(0).permutation(5000)
    journal = Journal()
    for part in np.split(order, 50):
        journal.add(rows(part.tolist(), 1), [A])
    assert journal.outcomes(range(5000), {("m", 0.5): A}).predictions["m", 0.5].tolist() == list(range(100, 5100))


def test_file_is_read_back(tmp_path):
    path, subject = tmp_path / "new" / "journal.jsonl", {"target": "tiny", "data": "d"}
    first = Journal(path, subject)
    first.add(rows(range(3), 1, 2), [A, B])
    first.end()
    first.end()
    again = Journal(path, subject)
    assert again.ended
    assert again.missing(range(4), [A, B]) == [([A, B], [3])]
    for cell in (A, B):
        cells = {("mine", cell[1]): cell}
        one, other = (journal.outcomes(range(3), cells) for journal in (first, again))
        assert one.predictions["mine", cell[1]].tolist() == other.predictions["mine", cell[1]].tolist()
    assert len(path.read_text().splitlines()) == 3  # subject, rows, end


@pytest.mark.parametrize("other", [{"target": "big", "data": "d"}, {"target": "tiny", "data": "e"}, {}])
def test_another_subject_is_refused_and_left_alone(tmp_path, other):
    path = tmp_path / "journal.jsonl"
    Journal(path, {"target": "tiny", "data": "d"}).add(rows([0], 1), [A])
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"journal.jsonl holds outcomes of another subject \(.*(target|data): .*now"):
        Journal(path, other)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content", ["these are my notes", "notes\n", "[1, 2]\n", '{"rows": []}\n', '{"subject": {}}\nx\n']
)
def test_file_that_is_no_journal_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(UserError, match=r"notes.txt is no journal of outcomes"):
        Journal(path)
    assert path.read_text() == content


def test_each_subject_has_its_own_file():
    files = [journal_file("runs", {"target": name}) for name in ("a", "b", "a")]
    assert files[0] == files[2] != files[1]
    assert files[0].name == f"outcomes-{question_hash({'target': 'a'})}.jsonl"
    assert json.loads(json.dumps(str(files[0]))).startswith("runs")
