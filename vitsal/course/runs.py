"""Running notebooks headlessly."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError

from vitsal.errors import UserError, cut, suggestion


def run_notebooks(
    notebooks: Sequence[Path], output: str | Path | None = None, parameters: Mapping[str, object] | None = None
) -> Path:
    """Execute notebooks with papermill, each in its own folder; figures and executed copies go to `output`.

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
    given = {path: _parameters_for(path, parameters or {}) for path in notebooks}
    _check_all_used(parameters or {}, given)
    output.mkdir(parents=True, exist_ok=True)
    for path in notebooks:
        print(f"Running {path} ...", file=sys.stderr)
        _execute(path, output / path.name, {**given[path], "output_dir": str(output)})
    return output


def _parameters_for(notebook: Path, parameters: Mapping[str, object]) -> dict[str, object]:
    known = _parameters_of(notebook)
    return {name: value for name, value in parameters.items() if name in known}


def _parameters_of(notebook: Path) -> list[str]:
    """Names of the parameters that a notebook has.

    Raises:
        UserError: it is damaged, or no notebook.
    """
    try:
        nbformat.validate(nbformat.read(notebook, as_version=4))
        return list(papermill.inspect_notebook(str(notebook)))
    except OSError:
        raise
    except Exception as error:  # whatever the readers raise over what is no notebook
        raise UserError(
            f"{notebook} cannot be read as a notebook: {cut(str(error).partition(chr(10))[0])}. It may be damaged: "
            "fetch it anew (git checkout), or remove it."
        ) from error


def _check_all_used(parameters: Mapping[str, object], given: Mapping[Path, Mapping[str, object]]) -> None:
    known = sorted({name for path in given for name in _parameters_of(path)})
    for name in parameters:
        if name not in known:
            raise UserError(
                f"No notebook has a parameter {name!r}.{suggestion(name, known)} Known: {', '.join(known)}."
            )


def _execute(notebook: Path, executed: Path, parameters: Mapping[str, object]) -> None:
    try:
        papermill.execute_notebook(
            str(notebook), str(executed), dict(parameters), cwd=str(notebook.parent), kernel_name="python3"
        )
    except PapermillExecutionError as error:
        raise UserError(
            f"Notebook {notebook} failed in cell [{error.exec_count}] with {error.ename}: {error.evalue} The cell "
            f"begins with {error.source.strip().splitlines()[0]!r}; the executed copy up to there is {executed}."
        ) from error
