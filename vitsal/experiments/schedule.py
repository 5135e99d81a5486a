"""What is left to do: the samples that the journal does not know, for the cells that it does not know of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tqdm import tqdm

from vitsal.experiments.journal import Cell, Journal
from vitsal.experiments.question import Question


class Part(NamedTuple):
    """Samples, and the cells to compute for all of them; of a stream a slice, of which the last may find its end."""

    cells: list[Cell]
    numbers: list[int] | slice
    to_the_end: bool = False


@dataclass(frozen=True)
class Schedule:
    """The work that a question leaves, after what its journal knows; on several processes, the main one's business."""

    question: Question
    journal: Journal

    @property
    def asked(self) -> Sequence[int]:
        """Numbers of the samples that are asked about; of a stream, as far as it is known."""
        dataset, limit = self.question.dataset, self.question.limit
        return range(self.journal.length)[:limit] if dataset.streamed else dataset.numbers(limit)

    def parts(self) -> list[Part]:
        """What is to be computed; of a stream, what is beyond the known samples too."""
        cells = list(dict.fromkeys(self.question.cells.values()))
        missing = self.journal.missing(self.asked, cells)
        if not self.question.dataset.streamed:
            return [Part(*part) for part in missing]
        parts = [Part(wanted, slice(indices[0], indices[-1] + 1)) for wanted, indices in missing]
        if not self._stream_is_known:
            parts.append(Part(cells, slice(self.journal.length, self.question.limit), to_the_end=True))
        return parts

    @property
    def _stream_is_known(self) -> bool:
        """To its end, or as far as it is asked about."""
        known, limit = self.journal.length, self.question.limit
        return known == self.journal.ended or (limit is not None and known >= limit)

    def done(self, part: Part) -> None:
        """Take note that a part is computed: a stream that gave less than was asked for has no more."""
        if part.to_the_end and not self._stream_is_known:
            self.journal.end()

    def progress_bar(self, parts: Sequence[Part], shown: bool) -> tqdm:
        """Counts samples: once for each part of the work that they are in."""
        if self.question.dataset.streamed:
            total, done = self.question.limit, 0
        else:
            left = sum(len(part.numbers) for part in parts)
            total = max(left, len(self.asked))
            done = total - left
        return tqdm(desc="drop curve", total=total, initial=done, unit="image", mininterval=1, disable=not shown)
