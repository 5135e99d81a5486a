"""What all of the room share: who learns does so on the processor, which is the same everywhere."""

import pytest


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
