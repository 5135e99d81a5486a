"""Checkpoints of a training: one per whole epoch, a pointer to the last, and the best student so far.

The pointer is written last and whole, so that a kill at any moment leaves a checkpoint to go on from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate import Accelerator

from vitsal.errors import UserError
from vitsal.files import check_folder, write_whole
from vitsal.identity import differences
from vitsal.students import Student, save_student

POINTER = "checkpoint.json"
HISTORY = "history.csv"


@dataclass(frozen=True)
class Checkpoints:
    """What a training leaves in its folder.

    Args:
        folder: where.
        about: the recipe, the student and the maps: only a training of the same is ever continued.
        accelerator: which has prepared the model and the optimizer.
    """

    folder: Path
    about: Mapping[str, Any]
    accelerator: Accelerator

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
            save_student(student, self.folder)
        pointer = {"state": state.name, "about": self.about, "history": history.to_dict("records")}
        write_whole(self.folder / POINTER, lambda path: path.write_text(json.dumps(pointer, indent=1)))
        write_whole(self.folder / HISTORY, partial(history.to_csv, index=False))
        for old in set(self.folder.glob("epoch-*")) - {state}:
            shutil.rmtree(old)

    def load(self) -> pd.DataFrame:
        """Take up the last state, if there is one; returns the history, empty at the start.

        Raises:
            UserError: the folder holds another training; it is left as it is.
        """
        check_folder(self.folder)
        path = self.folder / POINTER
        if not path.is_file():
            return pd.DataFrame()
        pointer = json.loads(path.read_text())
        if said := differences(pointer["about"], json.loads(json.dumps(self.about))):
            raise UserError(f"{self.folder} holds another training ({said}). Name another output, or remove it.")
        self.accelerator.load_state(str(self.folder / pointer["state"]))
        return pd.DataFrame(pointer["history"])
