"""Checkpoints of a training: one per whole epoch, a pointer to the last, and the best student so far.

The pointer is written last and whole, so that a kill at any moment leaves a checkpoint to go on from. It has checksums
of the checkpoint's files, and of itself.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate import Accelerator

from vitsal.errors import UserError
from vitsal.jobs.files import check_folder, check_own_folder, write_whole
from vitsal.jobs.identity import file_hash, refuse_other
from vitsal.jobs.sealed import read_sealed, write_sealed
from vitsal.students.student import Student, write_student

POINTER = "checkpoint.json"
HISTORY = "history.csv"


def check_training_folder(folder: Path) -> None:
    """Raise UserError if a training in this folder would replace files that no training has left there."""
    if not any(folder.glob("epoch-*")):  # killed between its first student and the pointer
        check_own_folder(folder, ("model.safetensors", "config.json", "README.md", HISTORY), POINTER)


@dataclass(frozen=True)
class Checkpoints:
    """What a training leaves in its folder: only a training that is about the same is ever continued."""

    folder: Path
    about: Mapping[str, Any]  # the recipe, the student and the maps
    accelerator: Accelerator  # which has prepared the model and the optimizer

    def save(self, history: pd.DataFrame, student: Student) -> None:
        """Keep the training's state after the last epoch of `history`, and the student if it is the best."""
        state = self.folder / f"epoch-{len(history):04d}"
        self.accelerator.save_state(str(state))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self._point_to(state, history, student)
        self.accelerator.wait_for_everyone()

    def _point_to(self, state: Path, history: pd.DataFrame, student: Student) -> None:
        if history.kl.idxmin() == len(history) - 1:
            write_student(student, self.folder)
        lessons = history.to_dict("records")
        pointer = {"state": state.name, "about": self.about, "history": lessons, "files": _checksums(state)}
        write_sealed(self.folder / POINTER, pointer)
        self._write_history(history)
        for old in set(self.folder.glob("epoch-*")) - {state}:
            shutil.rmtree(old)

    def load(self) -> pd.DataFrame:
        """Take up the last state, if there is one; returns the history, empty at the start.

        Raises:
            UserError: the folder holds another training, or a damaged one; it is left as it is.
        """
        check_folder(self.folder)
        if not (self.folder / POINTER).exists():
            return pd.DataFrame()
        pointer = self._read_pointer()
        advice = "Name another output, or remove it."
        refuse_other(pointer["about"], self.about, f"{self.folder} holds another training", advice)
        self._load_state(self.folder / pointer["state"], pointer["files"])
        history = pd.DataFrame(pointer["history"])
        if self.accelerator.is_main_process:
            self._write_history(history)
        return history

    def _read_pointer(self) -> dict[str, Any]:
        pointer = read_sealed(self.folder / POINTER, self._advice)
        if pointer.keys() != {"state", "about", "history", "files"}:
            raise UserError(f"{self.folder / POINTER} is damaged. {self._advice}")
        return pointer

    def _load_state(self, state: Path, checksums: Mapping[str, str]) -> None:
        """Give accelerate what it has saved, and nothing else; it unpickles plain values and tensors only."""
        there = _checksums(state)
        for name in sorted(there.keys() | checksums.keys()):
            if there.get(name) != checksums.get(name):
                what = "damaged, or none of this training's" if name in there else "missing"
                raise UserError(f"{state / name} is {what}. {self._advice}")
        try:
            self.accelerator.load_state(str(state))
        except Exception as error:  # whatever accelerate and torch say of what they cannot read
            raise UserError(f"{state} cannot be read ({error}). {self._advice}") from error

    def _write_history(self, history: pd.DataFrame) -> None:
        """Write the history for people to read, where what is there is not the same."""
        path, text = self.folder / HISTORY, history.to_csv(index=False)
        if not path.is_file() or path.read_bytes() != text.encode():
            write_whole(path, lambda part: part.write_bytes(text.encode()))

    @property
    def _advice(self) -> str:
        return f"Remove {self.folder} to train from the start, or name another output."


def _checksums(state: Path) -> dict[str, str]:
    """Name of each file of a state -> its hash."""
    return {path.name: file_hash(path) for path in sorted(state.glob("*")) if path.is_file()}
