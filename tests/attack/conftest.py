"""What all of the bench shares: no command starts worker processes, none takes more memory than is there."""

import resource

import pytest
import torch
from torch.utils.data import dataloader

SPARE = 12 * 2**30  # bytes that a command may ask for beyond what the bench has taken when it starts


@pytest.fixture(autouse=True, scope="module")  # no longer: a browser in other tests would inherit it, and not start
def _bounded_memory():
    """Whoever asks for terabytes is told so by the system at once, and the machine goes on."""
    if torch.cuda.is_available():  # its driver reserves more addresses than there is memory
        yield
        return
    with open("/proc/self/statm") as statm:
        taken = int(statm.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + SPARE, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(autouse=True)
def _no_workers(monkeypatch):
    """A number of workers that is refused is refused before the first of them starts."""

    def refuse(loader_iterator, loader):
        raise AssertionError(f"{loader.num_workers} workers would have been started")

    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter, "__init__", refuse)
