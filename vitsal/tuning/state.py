"""How far learning in steps has come, in one file that is whole or not there: parameters, moments, history."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor, nn
from torch.optim import AdamW

from vitsal.errors import UserError
from vitsal.jobs.files import write_whole
from vitsal.jobs.identity import refuse_other
from vitsal.jobs.tensors import DamagedError, read_tensors, write_tensors

STATE, HISTORY = "state.safetensors", "history.csv"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps of each parameter


@dataclass(frozen=True)
class TuningState:
    """What learning in steps leaves in its folder: only one that is about the same is ever continued."""

    folder: Path
    about: Mapping[str, Any]

    def save(self, tuned: nn.Module, optimizer: AdamW, history: list[dict[str, Any]]) -> None:
        """Keep the state after the last step of `history`, which is written for people too."""
        about = {"about": json.dumps(self.about), "history": json.dumps(history)}
        write_tensors(self.folder / STATE, _parts(tuned, optimizer), about)
        self._write_history(history)

    def load(self, tuned: nn.Module, optimizer: AdamW) -> list[dict[str, Any]]:
        """Take up the last state, if there is one; returns the history, a row for each step.

        Raises:
            UserError: the folder holds another training, or a damaged one; it is left as it is.
        """
        path, advice = self.folder / STATE, f"Remove {self.folder} to begin anew, or name another output."
        if not path.exists():
            return []
        try:
            tensors, said = read_tensors(path)
            about, history = json.loads(said["about"]), json.loads(said["history"])
        except (DamagedError, LookupError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error}). {advice}") from error
        what = f"{self.folder} holds another training"
        refuse_other(about, self.about, what, "Name another output, or remove it.")
        for name, values in _own(tuned).items():
            values.data.copy_(tensors[name])
            kept = {kind: tensors[f"{kind} {name}"].to(values.device) for kind in MOMENTS[1:]}
            optimizer.state[values] = {"step": tensors[f"step {name}"], **kept}  # which torch keeps on the CPU
        self._write_history(history)
        return history

    def _write_history(self, history: list[dict[str, Any]]) -> None:
        write_whole(self.folder / HISTORY, partial(pd.DataFrame(history).to_csv, index=False))


def _own(tuned: nn.Module) -> dict[str, nn.Parameter]:
    return {name: values for name, values in tuned.named_parameters() if values.requires_grad}


def _parts(tuned: nn.Module, optimizer: AdamW) -> dict[str, Tensor]:
    """All tensors that change: the tuned parameters, and for each what the optimizer keeps."""
    kept = {f"{kind} {name}": optimizer.state[values][kind] for name, values in _own(tuned).items() for kind in MOMENTS}
    return _own(tuned) | kept
