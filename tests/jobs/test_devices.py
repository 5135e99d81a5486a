"""The device: one way to choose it, with and without accelerate."""

import pytest
import torch
from accelerate import PartialState

from vitsal.jobs.devices import find_device


def test_auto_is_what_accelerate_takes():
    assert find_device("auto").type == PartialState().device.type


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "cuda"),
        ({"LOCAL_RANK": "3"}, "cuda:3"),  # as launchers number the processes of a machine
        ({"LOCAL_RANK": "3", "ACCELERATE_USE_CPU": "True"}, "cpu"),
        ({"ACCELERATE_USE_CPU": "false"}, "cuda"),
    ],
)
def test_auto_where_there_are_gpus(monkeypatch, variables, expected):
    """Pretended: nothing is put there."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    for name in ("LOCAL_RANK", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert find_device("auto") == torch.device(expected)
