"""A journal of what a target predicts: kept on disk as it is computed, so that nothing is ever computed twice.

The file is lines of JSON: first the subject (target, data, precision), then one line per batch. Lines are only ever
appended, so whenever a run is killed, all but the batch at work is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitsal.errors import UserError
from vitsal.files import write_whole
from vitsal.identity import differences, question_hash
from vitsal.outcomes import Outcomes

Cell = tuple[str, float]  # a guide's id and a keep ratio
UNKNOWN, UNREADABLE = -1, -2  # in place of a class


class Row(NamedTuple):
    """One sample: its number, name and label, why it cannot be read ('' where it can), and one class for each cell."""

    index: int
    name: str
    label: int
    problem: str
    classes: list[int]


class Journal:
    """Predicted classes by sample, for any number of cells: pairs of a guide's id and a keep ratio.

    Args:
        path: file to keep them in, and to go on from; None keeps them in memory only.
        subject: what they are about: only predictions of one target on one data set are ever joined.

    Raises:
        UserError: the file is about another subject, or is no journal; it is left as it is.
    """

    def __init__(self, path: Path | None = None, subject: Mapping[str, Any] | None = None) -> None:
        self.path, self.subject = path, json.loads(json.dumps(dict(subject or {})))
        self.names: dict[int, str] = {}
        self.labels: dict[int, int] = {}
        self.skipped: dict[int, str] = {}
        self.classes: dict[Cell, np.ndarray] = {}
        self.length = 0  # one more than the highest sample number known: where a stream is to be continued
        self.ended = False
        if path is None:
            return
        if path.exists() and path.stat().st_size:
            self._read()
        else:
            self._write([json.dumps({"subject": self.subject})])

    def add(self, rows: Sequence[Row], cells: Sequence[Cell]) -> None:
        """Take samples with a class for each of these cells; a sample that is there already is the same again."""
        if rows:
            self._append({"cells": list(cells), "rows": [list(row) for row in rows]})

    def end(self) -> None:
        """Note that the data, a stream, has no more samples than are known."""
        if not self.ended:
            self._append({"ended": True})

    def missing(self, indices: Sequence[int], cells: Sequence[Cell]) -> list[tuple[list[Cell], list[int]]]:
        """What is still to be computed: groups of samples, each with the cells that are unknown for all of it."""
        if not len(indices):
            return []
        known = np.stack([self._classes(cell)[indices] != UNKNOWN for cell in cells])
        patterns, group = np.unique(known, axis=1, return_inverse=True)
        parts = []
        for number, pattern in enumerate(patterns.T):
            wanted = [cell for cell, is_known in zip(cells, pattern, strict=True) if not is_known]
            if wanted:
                parts.append((wanted, np.asarray(indices)[group.ravel() == number].tolist()))
        return parts

    def outcomes(self, indices: Sequence[int], cells: Mapping[tuple[str, float], Cell]) -> Outcomes:
        """Predictions for these samples, without those that cannot be read: (guide's name, keep ratio) -> classes."""
        good = [index for index in indices if index not in self.skipped]
        return Outcomes(
            names=[self.names[index] for index in good],
            labels=np.array([self.labels[index] for index in good], dtype=np.int64),
            predictions={key: self._classes(cell)[good] for key, cell in cells.items()},
            skipped={self.names[index]: self.skipped[index] for index in indices if index in self.skipped},
        )

    def _classes(self, cell: Cell) -> np.ndarray:
        """Classes by sample number, at least as long as there are samples, UNKNOWN where there is none."""
        column = self.classes.get(cell, np.empty(0, dtype=np.int32))
        if len(column) <= self.length:
            longer = np.full(max(1024, 2 * self.length), UNKNOWN, dtype=np.int32)
            longer[: len(column)] = column
            self.classes[cell] = column = longer
        return column

    def _append(self, record: dict[str, Any]) -> None:
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        self._take(record)

    def _take(self, record: Mapping[str, Any]) -> None:
        self.ended |= record.get("ended", False)
        rows = [Row(*row) for row in record.get("rows", [])]
        for row in rows:
            self.names[row.index], self.labels[row.index] = row.name, row.label
            self.length = max(self.length, row.index + 1)
            if row.problem:
                self.skipped[row.index] = row.problem
        indices = [row.index for row in rows]
        for number, (guide, ratio) in enumerate(record.get("cells", [])):
            self._classes((guide, ratio))[indices] = [row.classes[number] for row in rows]

    def _read(self) -> None:
        """Take what the file holds; a last line that a kill cut short is removed."""
        *lines, torn = self.path.read_text().split("\n")
        try:
            header, *records = [json.loads(line) for line in lines]
            subject = header["subject"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path} is no journal of outcomes; name another folder, or move it away.") from error
        if said := differences(subject, self.subject):
            raise UserError(f"{self.path} holds outcomes of another subject ({said}). Name another folder, or move it.")
        for record in records:
            self._take(record)
        if torn:
            self._write(lines)

    def _write(self, lines: Sequence[str]) -> None:
        """Write whole lines in place of what is there; a kill leaves the old file or the new one."""
        text = "".join(f"{line}\n" for line in lines)
        write_whole(self.path, lambda path: path.write_text(text))


def journal_file(folder: str | Path, subject: Mapping[str, Any]) -> Path:
    """The file in `folder` that belongs to a subject: its name holds the subject's hash."""
    return Path(folder, f"outcomes-{question_hash(subject)}.jsonl")
