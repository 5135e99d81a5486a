"""A journal of what a target predicts: kept on disk as it is computed, so that nothing is ever computed twice.

The file is lines of JSON, each behind its checksum: first the subject (target, data, precision), then one line per
batch. Lines are only ever appended, so whenever a run is killed, all but the batch at work is kept; several runs may
append at the same time. A line that is damaged, or was written for another subject, does not fit its checksum, and is
removed; what it held is computed again. Samples that cannot be read are no part of it: each run tries them again.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitsal.errors import UserError
from vitsal.experiments.outcomes import Outcomes
from vitsal.jobs.files import locked, write_whole
from vitsal.jobs.identity import checksum, question_hash, refuse_other
from vitsal.reduction.reduction import Reduction

Cell = tuple[str, float | str]  # a guide's id and a reduction's code
UNKNOWN, UNREADABLE = -1, -2  # in place of a class


class Row(NamedTuple):
    """One sample: its number, name and label, why it cannot be read ('' where it can), and one class for each cell."""

    index: int
    name: str
    label: int
    problem: str
    classes: list[int]


class Journal:
    """Predicted classes by sample, for any number of cells: pairs of a guide's id and a reduction's code.

    Args:
        path: file to keep them in, and to go on from; None keeps them in memory only.
        subject: what they are about: only predictions of one target on one data set are ever joined.
        keys: number of each sample that is asked about -> what tells it and its content (`IndexedImages.keys`): what
            the file holds of other samples, or of the same ones as they were, is left there. None for a stream, whose
            samples are told by their numbers.

    Raises:
        UserError: the file is about another subject, or is no journal; it is left as it is. Two samples have one key.
    """

    def __init__(
        self, path: Path | None = None, subject: Mapping[str, Any] | None = None, keys: Mapping[int, str] | None = None
    ) -> None:
        self.path, self.subject = path, dict(subject or {})
        self.keys, self.numbers = keys, {key: index for index, key in (keys or {}).items()}
        if len(self.numbers) < len(keys or {}):
            raise UserError("Two samples of the data have one name and one content; leave one out, or name them apart.")
        self.names: dict[int, str] = {}
        self.labels: dict[int, int] = {}
        self.skipped: dict[int, str] = {}
        self.classes: dict[Cell, np.ndarray] = {}
        self.ended: int | None = None  # how many samples a stream has, once that is known
        self._header = _sealed({"subject": self.subject})
        if path is not None:
            with locked(path):
                self._read() if path.exists() and path.stat().st_size else self._write([self._header])

    @property
    def length(self) -> int:
        """Of a stream: how many samples are known from the first on, without a gap."""
        return next(index for index in range(len(self.names) + 1) if index not in self.names)

    def add(self, rows: Sequence[Row], cells: Sequence[Cell]) -> None:
        """Take samples with a class for each of these cells; a sample that is there already is the same again."""
        readable = [row for row in rows if UNREADABLE not in row.classes]
        if readable:
            keyed = [[row.index if self.keys is None else self.keys[row.index], *row[1:]] for row in readable]
            self._append({"cells": list(cells), "rows": keyed})
        self._note(rows, cells)

    def end(self) -> None:
        """Note that the data, a stream, has no more samples than are known."""
        if self.ended != self.length:
            self.ended = self.length
            self._append({"ended": self.ended})

    def missing(self, indices: Sequence[int], cells: Sequence[Cell]) -> list[tuple[list[Cell], list[int]]]:
        """What is still to be computed: groups of samples, each with the cells that are unknown for all of it."""
        if not len(indices):
            return []
        known = np.stack([self._column(cell, max(indices) + 1)[indices] != UNKNOWN for cell in cells])
        patterns, group = np.unique(known, axis=1, return_inverse=True)
        samples = (np.asarray(indices)[group.ravel() == number].tolist() for number in range(patterns.shape[1]))
        parts = ((list(compress(cells, unknown)), part) for unknown, part in zip(~patterns.T, samples, strict=True))
        return [(wanted, part) for wanted, part in parts if wanted]

    def outcomes(self, indices: Sequence[int], cells: Mapping[tuple[str, float | Reduction], Cell]) -> Outcomes:
        """Predictions for these samples, without those that cannot be read: (guide's name, reduction) -> classes."""
        good = [index for index in indices if index not in self.skipped]
        length = max(good, default=-1) + 1
        return Outcomes(
            names=[self.names[index] for index in good],
            labels=np.array([self.labels[index] for index in good], dtype=np.int64),
            predictions={key: self._column(cell, length)[good] for key, cell in cells.items()},
            skipped={self.names[index]: self.skipped[index] for index in indices if index in self.skipped},
        )

    def _column(self, cell: Cell, length: int) -> np.ndarray:
        """Classes by sample number, for `length` samples at least, UNKNOWN where there is none."""
        column = self.classes.get(cell, np.empty(0, dtype=np.int32))
        if len(column) < length:
            longer = np.full(max(length, 2 * len(column)), UNKNOWN, dtype=np.int32)
            longer[: len(column)] = column
            self.classes[cell] = column = longer
        return column

    def _append(self, record: dict[str, Any]) -> None:
        if self.path is None:
            return
        with locked(self.path), self.path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            torn = file.read() != b"\n"  # by a run that was killed: not to swallow this line
            file.write(b"\n" * torn + f"{_sealed(record, self._header)}\n".encode())

    def _note(self, rows: Sequence[Row], cells: Sequence[Cell]) -> None:
        for row in rows:
            self.names[row.index], self.labels[row.index] = row.name, row.label
            if UNREADABLE in row.classes:
                self.skipped[row.index] = row.problem
        indices = [row.index for row in rows]
        for number, cell in enumerate(cells):
            self._column(cell, max(indices, default=-1) + 1)[indices] = [row.classes[number] for row in rows]

    def _take(self, record: Mapping[str, Any]) -> None:
        """What one line holds of the samples that are asked about."""
        self.ended = record.get("ended", self.ended)
        rows = [Row(*row) for row in record.get("rows", [])]
        if self.keys is not None:
            rows = [row._replace(index=self.numbers[row.index]) for row in rows if row.index in self.numbers]
        self._note(rows, [(guide, code) for guide, code in record.get("cells", [])])

    def _read(self) -> None:
        """Take what the file holds; a last line that a kill cut short is removed, and so are damaged ones."""
        header, *lines = self.path.read_bytes().split(b"\n")
        self._check_header(header)
        torn, good = lines.pop() if lines else b"", []
        for line in lines:
            with suppress(ValueError):
                self._take(_unsealed(line, self._header))
                good.append(line.decode())
        if damaged := len(lines) - len(good):
            told = f"{damaged} lines of {self.path} are damaged; what they held is computed again."
            warnings.warn(told, stacklevel=2)
        if torn or damaged:
            self._write([self._header, *good])

    def _check_header(self, line: bytes) -> None:
        try:
            subject = _unsealed(line)["subject"]
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{self.path} is no journal of outcomes, or is damaged; name another folder, or move it away."
            ) from error
        what, advice = f"{self.path} holds outcomes of another subject", "Name another folder, or move it."
        refuse_other(subject, self.subject, what, advice)

    def _write(self, lines: Sequence[str]) -> None:
        """Write whole lines in place of what is there; a kill leaves the old file or the new one."""
        text = "".join(f"{line}\n" for line in lines)
        write_whole(self.path, lambda path: path.write_text(text))


def _sealed(record: Mapping[str, Any], header: str = "") -> str:
    """A line that holds a record: its checksum, of the header too, and JSON."""
    text = json.dumps(record)
    return f"{checksum(header, text)} {text}"


def _unsealed(line: bytes, header: str = "") -> dict[str, Any]:
    """The record in a line; ValueError where it does not fit its checksum."""
    promised, _, text = line.decode().partition(" ")
    if promised != checksum(header, text):
        raise ValueError("damaged")
    return json.loads(text)


def journal_file(folder: str | Path, subject: Mapping[str, Any]) -> Path:
    """The file in `folder` that belongs to a subject: its name holds the subject's hash."""
    return Path(folder, f"outcomes-{question_hash(subject)}.jsonl")
