"""Per-image outcomes of an experiment: kept as they are made, resumed after a kill, summed up in a table.

The file holds one line of JSON per batch after a first line with the question that they answer. Lines are only ever
appended, so whenever a run is killed, all but the batch at work is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from vitsal.errors import UserError
from vitsal.files import write_whole
from vitsal.identity import differences, question_hash
from vitsal.images import Batch

Predictions = Mapping[tuple[str, float], Sequence[int]]
COLUMNS = ["target", "guide", "keep_ratio", "n", "correct", "top1", "ci_low", "ci_high"]


@dataclass
class Outcomes:
    """Labels, and the class that a target predicts for each image under each guide and keep ratio.

    Args:
        path: file to keep them in, and to go on from; None keeps them in memory only.
        question: what is asked (models, guide, data, ratios): only outcomes of the same question are ever joined.

    Raises:
        UserError: the file answers another question, or is no outcomes file; it is left as it is.
    """

    path: Path | None = None
    question: Mapping[str, Any] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    predictions: dict[tuple[str, float], list[int]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path is None:
            return
        if self.path.exists() and self.path.stat().st_size:
            self._read()
        else:
            self._write([json.dumps({"question": self.question})])

    @property
    def num_samples(self) -> int:
        """Samples of the data set accounted for, skipped ones included."""
        return len(self.names) + len(self.skipped)

    def add(self, batch: Batch, predictions: Predictions) -> None:
        """Append one batch's predictions, (guide, keep ratio) -> B classes, to memory and file."""
        record = {
            "names": batch.names,
            "labels": batch.labels.tolist(),
            "skipped": batch.skipped,
            "predictions": [[guide, ratio, list(classes)] for (guide, ratio), classes in predictions.items()],
        }
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        self._take(record)

    def _take(self, record: dict[str, Any]) -> None:
        self.names += record["names"]
        self.labels += record["labels"]
        self.skipped |= record["skipped"]
        for guide, ratio, classes in record["predictions"]:
            self.predictions.setdefault((guide, ratio), []).extend(classes)

    def _read(self) -> None:
        """Take what the file holds; a last line that a kill cut short is removed."""
        *lines, torn = self.path.read_text().split("\n")
        try:
            header, *records = [json.loads(line) for line in lines]
            question = header["question"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path} is no outcomes file; name another output, or move it away.") from error
        self._check_same(question)
        for record in records:
            self._take(record)
        if torn:
            self._write(lines)

    def _write(self, lines: Sequence[str]) -> None:
        """Write whole lines in place of what is there; a kill leaves the old file or the new one."""
        text = "".join(f"{line}\n" for line in lines)
        write_whole(self.path, lambda path: path.write_text(text))

    def _check_same(self, question: Mapping[str, Any]) -> None:
        if said := differences(question, json.loads(json.dumps(self.question))):
            raise UserError(
                f"{self.path} holds outcomes of another question ({said}). Name another output, or move it."
            )

    def correct(self, guide: str, keep_ratio: float) -> np.ndarray:
        """Whether each image's prediction is right, (n,) bool."""
        return np.array(self.predictions[guide, keep_ratio]) == np.array(self.labels)


def outcomes_file(folder: str | Path, question: Mapping[str, Any]) -> Path:
    """The file in `folder` that belongs to a question: its name holds the question's hash."""
    return Path(folder, f"drop-curve-{question_hash(question)}.outcomes.jsonl")


def summarize(outcomes: Outcomes, target: str) -> pd.DataFrame:
    """One row per guide and keep ratio: number of images, accuracy, and its 95 % Wilson interval.

    Columns: target, guide, keep_ratio, n, correct, top1 (fraction), ci_low, ci_high.

    Raises:
        UserError: there are no outcomes.
    """
    if not outcomes.names:
        raise UserError("No image could be evaluated, so there is no accuracy to tell.")
    rows = []
    for guide, ratio in outcomes.predictions:
        right = outcomes.correct(guide, ratio)
        correct, n = int(right.sum()), len(right)
        low, high = wilson_interval(correct, n)
        rows.append([target, guide, ratio, n, correct, correct / n, low, high])
    return pd.DataFrame(rows, columns=COLUMNS)


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """95 % confidence interval of a proportion (Wilson 1927)."""
    interval = binomtest(correct, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)
