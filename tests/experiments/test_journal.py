"""The journal: what is known is found, what is missing is named, and other subjects are refused."""

import json
import multiprocessing
import warnings

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from vitsal.errors import UserError
from vitsal.experiments.journal import UNKNOWN, UNREADABLE, Journal, Row, journal_file
from vitsal.jobs.identity import question_hash

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


KEYS = {index: f"key {index}" for index in range(40)}


def written(path, subject=None, keys=KEYS):
    """A journal of forty samples, five to a line, two cells."""
    journal = Journal(path, subject or {"target": "tiny"}, keys)
    for first in range(0, 40, 5):
        journal.add(rows(range(first, first + 5), 1, 2), [A, B])
    return path.read_bytes()


def known(journal):
    """(sample, cell) -> class, of all that a journal knows of the forty samples."""
    columns = {cell: journal._column(cell, 40) for cell in (A, B)}
    return {(i, cell): column[i] for cell, column in columns.items() for i in range(40) if column[i] != UNKNOWN}


def expected(lost=()):
    return {(i, cell): 100 * (1 + n) + i for n, cell in enumerate((A, B)) for i in range(40) if i not in lost}


def damaged_line(content, number, old, new):
    """The file with a part of one line replaced."""
    lines = content.split(b"\n")
    assert old in lines[number]
    lines[number] = lines[number].replace(old, new, 1)
    return b"\n".join(lines)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"[105, 205]", b"[105, 206]"),  # another class
        (b"[105, 205]", b"[105, 99999]"),  # one that no target has
        (b"[105, 205]", b"[205, 105]"),  # swapped cells
        (b'["a", 0.5], ["b", 0.3]', b'["b", 0.3], ["a", 0.5]'),
        (b'"key 5"', b'"key 1"'),  # another sample
        (b'"5.png", 2', b'"5.png", 1'),  # another label
        (b"{", b""),
        (b"5.png", b"5\xff.png"),
    ],
)
def test_a_damaged_line_is_never_used(tmp_path, old, new):
    path = tmp_path / "journal.jsonl"
    content = written(path)
    path.write_bytes(damaged_line(content, 2, old, new))
    with pytest.warns(UserWarning, match=r"1 lines of .*journal.jsonl are damaged; what they held is computed again"):
        journal = Journal(path, {"target": "tiny"}, KEYS)
    assert known(journal) == expected(lost=range(5, 10))
    assert journal.missing(range(40), [A, B]) == [([A, B], [5, 6, 7, 8, 9])]
    journal.add(rows(range(5, 10), 1, 2), [A, B])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what was damaged is gone from the file
        assert known(Journal(path, {"target": "tiny"}, KEYS)) == expected()


def test_lines_of_another_journal_are_never_used(tmp_path):
    """Whole lines with fitting checksums: of the same samples and cells, and another target."""
    path, other = tmp_path / "journal.jsonl", tmp_path / "other.jsonl"
    content, foreign = written(path), written(other, {"target": "big"})
    path.write_bytes(content[: content.index(b"\n") + 1] + foreign[foreign.index(b"\n") + 1 :])
    with pytest.warns(UserWarning, match="8 lines"):
        assert known(Journal(path, {"target": "tiny"}, KEYS)) == {}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(bit=st.integers(0, 10_000_000))
def test_one_flipped_bit_anywhere(tmp_path_factory, bit):
    """The file is refused, or what is known is right."""
    path = tmp_path_factory.mktemp("flip") / "journal.jsonl"
    content = bytearray(written(path))
    bit %= 8 * len(content)
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            journal = Journal(path, {"target": "tiny"}, KEYS)
        except UserError:
            assert path.read_bytes() == content
            return
    assert known(journal).items() <= expected().items()
    assert len(known(journal)) >= 2 * 30  # a line, or two that became one


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(parts=st.lists(st.tuples(st.sets(st.integers(0, 6_000), min_size=1, max_size=8), st.booleans()), max_size=12))
def test_any_samples_in_any_order_are_found_again(tmp_path_factory, parts):
    """Sparse and huge numbers too, in memory and from the file, against a dictionary."""
    path = tmp_path_factory.mktemp("any") / "journal.jsonl"
    keys, truth = {index: f"{index:x}" for index in range(6_001)}, {}
    journal = Journal(path, {}, keys)
    for indices, both in parts:
        cells = [A, B] if both else [B]
        journal.add(rows(sorted(indices), 1, *([2] if both else [])), cells)
        truth |= {(i, cell): 100 * (1 + n) + i for n, cell in enumerate(cells) for i in indices}
    for each in (journal, Journal(path, {}, keys)):
        asked = list(range(6_001))
        missing = {(i, cell) for cells, some in each.missing(asked, [A, B]) for cell in cells for i in some}
        assert missing == {(i, cell) for i in asked for cell in (A, B)} - truth.keys()
        for cell in (A, B):
            numbers = sorted(i for i, of in truth if of == cell)
            found = each.outcomes(numbers, {("mine", cell[1]): cell}).predictions["mine", cell[1]]
            assert found.tolist() == [truth[i, cell] for i in numbers]


def test_a_sample_that_changed_is_missing_alone_and_known_again_when_it_comes_back(tmp_path):
    path = tmp_path / "journal.jsonl"
    written(path)
    changed = Journal(path, {"target": "tiny"}, KEYS | {7: "other content"})
    assert changed.missing(range(40), [A, B]) == [([A, B], [7])]
    assert known(Journal(path, {"target": "tiny"}, KEYS)) == expected()
    moved = {index: KEYS[(index + 1) % 40] for index in range(40)}  # a file that came first went: all numbers shift
    assert known(Journal(path, {"target": "tiny"}, moved))[3, A] == 104


def test_a_stream_whose_end_is_damaged_is_not_shorter(tmp_path):
    path = tmp_path / "journal.jsonl"
    content = written(path, keys=None)
    journal = Journal(path, {"target": "tiny"})
    journal.end()
    path.write_bytes(damaged_line(content, 8, b"[135, 235]", b"[135, 999]") + path.read_bytes()[len(content) :])
    with pytest.warns(UserWarning, match="1 lines"):
        again = Journal(path, {"target": "tiny"})
    assert (again.length, again.ended) == (35, 40)


def _append(path, first):
    journal = Journal(path, {"target": "tiny"}, KEYS)
    for index in range(first, 40, 4):
        journal.add(rows([index], 1, 2), [A, B])


def test_four_runs_append_at_once(tmp_path):
    path = tmp_path / "journal.jsonl"
    writers = [multiprocessing.get_context("fork").Process(target=_append, args=(path, n)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert known(Journal(path, {"target": "tiny"}, KEYS)) == expected()


def test_a_line_that_a_killed_run_tore_swallows_no_other(tmp_path):
    """One run has been killed within a line while another goes on appending."""
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, {"target": "tiny"}, KEYS)
    journal.add(rows(range(5), 1, 2), [A, B])
    path.write_bytes(path.read_bytes() + path.read_bytes()[-30:-1])
    journal.add(rows(range(5, 10), 1, 2), [A, B])
    with pytest.warns(UserWarning, match="1 lines"):
        assert known(Journal(path, {"target": "tiny"}, KEYS)) == expected(lost=range(10, 40))


def test_what_cannot_be_read_is_tried_again_by_the_next_run(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, {"target": "tiny"}, KEYS)
    journal.add([*rows([0], 1), Row(1, "1.png", 1, "torn", [UNREADABLE])], [A])
    assert journal.missing([0, 1], [A]) == []
    assert Journal(path, {"target": "tiny"}, KEYS).missing([0, 1], [A]) == [([A], [1])]
