"""The real entry point, called in this process: what it answers, how long it takes, what it leaves behind."""

from __future__ import annotations

import io
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest.mock import patch

import typer
from matplotlib import pyplot as plt

from vitsal import cli

get_command = cache(typer.main.get_command)  # which typer makes anew for each call, in most of the time that one takes
PATIENCE = 10  # seconds that a command may take over something that it has to refuse


class HangError(BaseException):
    """Nothing catches it on its way out, as `except Exception` would catch an ordinary error."""


@dataclass(frozen=True)
class Answer:
    """How a command ended: exit code, or the exception that came out; what it printed; seconds."""

    code: object
    out: str
    err: str
    seconds: float

    @property
    def refusal(self) -> str:
        """What is wrong with it as the answer to a bad request; '' where nothing is."""
        if self.code != 2:
            return f"ended with {self.code}"
        if "Traceback" in self.err:
            return "a traceback on stderr"
        last = self.err.rstrip().rpartition("\n")[2]
        if not (last.startswith("Error: ") and len(last) > 20) and "─ Error ─" not in self.err:
            return f"the last line is no sentence: {last[:120]!r}"
        return f"took {self.seconds:.0f} s" if self.seconds > PATIENCE else ""

    @property
    def survival(self) -> str:
        """What is wrong with it as the answer to an odd request, which may be met or refused; '' where nothing is."""
        return self.refusal if self.code != 0 else f"took {self.seconds:.0f} s" if self.seconds > PATIENCE else ""


def vitsal(arguments: Sequence[object]) -> Answer:
    """Run one command line. stdout and stderr take what a terminal's would: stderr anything, stdout only characters."""
    out, err = io.StringIO(), io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace", write_through=True)
    start = time.monotonic()
    argv = patch.object(sys, "argv", ["vitsal", *map(str, arguments)])
    with argv, patch.object(typer.main, "get_command", get_command), redirect_stdout(out), redirect_stderr(err):
        code = outcome(cli.main)
    plt.close("all")
    return Answer(code, out.getvalue(), err.buffer.getvalue().decode(), time.monotonic() - start)


def outcome(call: object) -> object:
    """Exit code of what is called; where something else comes out of it, that in a line, with the place."""
    try:
        with patience():
            call()
    except SystemExit as ended:
        return ended.code
    except (Exception, HangError) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:100]!r} at {Path(place.filename).name}:{place.lineno}"
    return 0


@contextmanager
def patience(seconds: float = PATIENCE + 2) -> Iterator[None]:
    """Raise HangError in what takes longer."""

    def give_up(*_: object) -> None:
        raise HangError(f"not ended after {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)  # again and again: what cleans up may wait as well
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """Everything under a folder: files with their bytes, links with their targets, the rest by kind."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_symlink():
            found[str(path)] = f"link to {path.readlink()}"
        else:
            found[str(path)] = path.read_bytes() if path.is_file() else "folder" if path.is_dir() else "other"
    return found


def changes(before: dict[str, bytes | str], after: dict[str, bytes | str]) -> list[str]:
    """Names that are new, gone, or not as they were."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def restore(before: dict[str, bytes | str], names: Sequence[str]) -> None:
    """Undo changes: remove what is new, write again what was there."""
    for name in map(Path, reversed(names)):
        if name.is_dir() and not name.is_symlink():
            shutil.rmtree(name)
        else:
            name.unlink(missing_ok=True)
        if isinstance(content := before.get(str(name)), bytes):
            name.write_bytes(content)


def shown(arguments: Sequence[object], most: int = 60) -> str:
    """A command line for a report; long words are cut."""
    words = [repr(str(word)) if str(word).isprintable() else ascii(str(word)) for word in arguments]
    return " ".join(word if len(word) <= most else f"{word[:most]}...({len(word)})" for word in words)
