"""Running notebooks headlessly, two at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError

from vitsal.errors import UserError, cut, suggestion

AT_ONCE = 2  # notebooks: each may need a gigabyte or two of memory


class _Job(NamedTuple):
    """A notebook, its parameters, and the seconds between its first and last cell when it was last executed."""

    notebook: Path
    parameters: list[str]
    seconds: float


def run_notebooks(
    notebooks: Sequence[Path], output: str | Path | None = None, parameters: Mapping[str, object] | None = None
) -> Path:
    """Execute notebooks with papermill, each in its own folder; figures and executed copies go to `output`.

    Where there are two cores, two run at a time, the longest first, and each has half of the cores. If one fails, or
    on Ctrl-C, the other is stopped. stderr tells what goes on, and where the first figure is.

    Args:
        notebooks: as `find_notebooks` returns them.
        output: folder for everything made; `runs/<time>` by default.
        parameters: for every notebook that has them.

    Returns:
        The output folder.

    Raises:
        UserError: a damaged notebook, a parameter that none of them has, or a cell that failed: the notebook, the cell,
            the error.
    """
    output = Path(output or Path("runs", datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))).resolve()
    jobs = sorted(map(_look_into, notebooks), key=lambda job: -job.seconds)
    _check_all_used(parameters or {}, jobs)
    output.mkdir(parents=True, exist_ok=True)
    _execute_all(jobs, output, parameters or {})
    return output


def _look_into(notebook: Path) -> _Job:
    """What is to be known of a notebook before it is run.

    Raises:
        UserError: it is damaged, or no notebook.
    """
    try:
        content = nbformat.read(notebook, as_version=4)
        nbformat.validate(content)
        moments = [moment for cell in content.cells for moment in cell.metadata.get("execution", {}).values()]
        times = [datetime.fromisoformat(moment).timestamp() for moment in moments]
        seconds = max(times) - min(times) if times else 0.0
        return _Job(notebook, list(papermill.inspect_notebook(str(notebook))), seconds)
    except OSError:
        raise
    except Exception as error:  # whatever the readers raise over what is no notebook
        raise UserError(
            f"{notebook} cannot be read as a notebook: {cut(str(error).partition(chr(10))[0])}. It may be damaged: "
            "fetch it anew (git checkout), or remove it."
        ) from error


def _check_all_used(parameters: Mapping[str, object], jobs: Sequence[_Job]) -> None:
    known = sorted({name for job in jobs for name in job.parameters})
    for name in parameters:
        if name not in known:
            raise UserError(
                f"No notebook has a parameter {name!r}.{suggestion(name, known)} Known: {', '.join(known)}."
            )


def _execute_all(jobs: Sequence[_Job], output: Path, parameters: Mapping[str, object]) -> None:
    """Execute notebooks in this order, AT_ONCE at a time, and tell which one has ended, and of the first figure."""
    cores, start, figure = os.cpu_count() or 1, time.time(), None
    at_once = min(AT_ONCE, cores, len(jobs))
    waiting, running = list(jobs), {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                given = {name: value for name, value in parameters.items() if name in job.parameters}
                process, answers = _begin(job.notebook, output, given, cores // at_once)
                running[answers] = job.notebook, process, time.time()
            for answers in wait(running, timeout=0.5):
                notebook, _, begun = running[answers]
                _check(answers, notebook)
                del running[answers]
                print(f"Finished {notebook} in {time.time() - begun:.0f} s.", file=sys.stderr)
            if figure is None and (figure := _find_figure(output, start)):
                print(f"First figure: {figure} (after {time.time() - start:.0f} s)", file=sys.stderr)
    finally:
        for _, process, _ in running.values():
            process.terminate()
            process.join()


def _begin(
    notebook: Path, output: Path, parameters: Mapping[str, object], threads: int
) -> tuple[multiprocessing.Process, Connection]:
    """Start a process that executes a notebook; None comes out of the connection in the end, or an error."""
    print(f"Running {notebook} ...", file=sys.stderr)
    answers, answer = multiprocessing.Pipe(duplex=False)
    arguments = notebook, output / notebook.name, {**parameters, "output_dir": str(output)}, threads, answer
    process = multiprocessing.Process(target=_execute, args=arguments)
    process.start()
    answer.close()  # here: or the end of the process would not be noticed
    return process, answers


def _execute(notebook: Path, executed: Path, parameters: dict[str, object], threads: int, answer: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal; the process that started this one ends it, by
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # which papermill stops the kernel
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    try:
        papermill.execute_notebook(
            str(notebook),
            str(executed),
            parameters,
            cwd=str(notebook.parent),
            kernel_name="python3",
            progress_bar=False,  # two would write over each other
            shutdown_kernel="immediate",  # or one that is stopped at work would print a traceback
        )
        answer.send(None)
    except PapermillExecutionError as error:
        said = (
            f"Notebook {notebook} failed in cell [{error.exec_count}] with {error.ename}: {error.evalue} The cell "
            f"begins with {error.source.strip().splitlines()[0]!r}; the executed copy up to there is {executed}."
        )
        answer.send(UserError(said))
    except Exception as error:
        answer.send(error)


def _check(answers: Connection, notebook: Path) -> None:
    """Raise the error that a notebook has ended with, if any."""
    try:
        error = answers.recv()
    except EOFError:
        error = UserError(f"Notebook {notebook} was stopped from outside, perhaps because the memory does not suffice.")
    if error is not None:
        raise error


def _find_figure(output: Path, start: float) -> Path | None:
    """A figure that was saved after this time."""
    return next((path for path in sorted(output.glob("*.png")) if path.stat().st_mtime >= start), None)
