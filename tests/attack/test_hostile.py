"""Files and names that would run something are refused, or read as the data that they are; nothing runs."""

import os
import sys
from pathlib import Path

import pytest
from entry import shown, vitsal
from helpers import noise_image
from hostile import MARKER, SOURCES

STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.startfile", "pty.spawn", "socket.connect")
watched = []  # lists that what is started is written into


def _note(event, arguments):
    if watched and event in STARTS:
        watched[-1].append(f"{event} {arguments!r}"[:160])
        raise PermissionError(f"{event} while a hostile file is open")


@pytest.fixture(scope="session", autouse=True)
def _audit():
    sys.addaudithook(_note)  # Python has no way to take it out again: with `watched` empty it does nothing


def attack(make, command):
    """What is wrong with the answer to one hostile file; '' where nothing is."""
    noise_image(Path("photo.png"), seed=0)
    words = [*command, make()]
    watched.append(started := [])
    try:
        answer = vitsal(words)
    finally:
        watched.pop()
    executed = ["the marker is there"] * os.path.exists(MARKER) + started
    problem = " and ".join(filter(None, [answer.survival, *executed]))
    return f"{shown(words)} -> {problem}" if problem else ""


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
def test_nothing_is_executed(source, tmp_path, monkeypatch):
    wrong = []
    for number, (name, make, command) in enumerate(source()):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        if problem := attack(make, command):
            wrong.append(f"{name}: {problem}")
    assert not wrong, f"{len(wrong)} hostile files:\n" + "\n".join(wrong)


def test_there_are_many():
    assert sum(1 for source in SOURCES for _ in source()) >= 50
