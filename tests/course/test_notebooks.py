"""Notebooks run headlessly: parameters reach them, numbers come back, a failure says where."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from multiprocessing import Process
from pathlib import Path

import nbformat
import pytest
from helpers import COUNT, write_notebook

from vitsal.course.notebooks import find_notebooks, read_headlines, save_headlines
from vitsal.course.runs import run_notebooks
from vitsal.errors import UserError


@pytest.mark.slow
def test_parameters_go_in_and_headlines_come_out(tmp_path):
    notebook = write_notebook(
        tmp_path / "notebooks" / "01_count.ipynb", 'limit = 1\nname = "a"\noutput_dir = ""', COUNT
    )
    made = run_notebooks([notebook], tmp_path / "made", {"limit": 21})
    assert made == tmp_path / "made"
    assert read_headlines(made) == {"count": {"twice the limit": 42, "name": "a"}}
    executed = nbformat.read(made / "01_count.ipynb", as_version=4)
    assert "limit = 21" in "".join(cell.source for cell in executed.cells)
    assert nbformat.read(notebook, as_version=4).cells[0].source.startswith("limit = 1")  # the original stays


@pytest.mark.slow
def test_failed_cell_is_named(tmp_path):
    notebook = write_notebook(
        tmp_path / "notebooks" / "02_fail.ipynb", 'output_dir = ""', "x = 1", "# divide\ny = x / 0", "never = True"
    )
    with pytest.raises(UserError) as error:
        run_notebooks([notebook], tmp_path / "made")
    message = str(error.value)
    assert "02_fail.ipynb failed in cell" in message
    assert "ZeroDivisionError: division by zero" in message
    assert "'# divide'" in message
    assert str(tmp_path / "made" / "02_fail.ipynb") in message
    assert (tmp_path / "made" / "02_fail.ipynb").is_file()


def test_unknown_parameter_stops_before_anything_runs(tmp_path):
    notebook = write_notebook(tmp_path / "notebooks" / "01_count.ipynb", 'limit = 1\noutput_dir = ""')
    with pytest.raises(UserError, match=r"No notebook has a parameter 'limt'. Did you mean 'limit'\? Known: limit"):
        run_notebooks([notebook], tmp_path / "made", {"limt": 5})
    assert not (tmp_path / "made").exists()


def test_notebooks_are_found_by_number(tmp_path):
    for name in ("03_c.ipynb", "01_a.ipynb", "notes.ipynb", "02_b.txt"):
        (tmp_path / name).touch()
    names = [[path.name for path in find_notebooks(tmp_path, numbers)] for numbers in ((), (3,), (3, 1))]
    assert names == [["01_a.ipynb", "03_c.ipynb"], ["03_c.ipynb"], ["01_a.ipynb", "03_c.ipynb"]]
    with pytest.raises(UserError, match=r"There is no notebook 2. There are: 1, 3"):
        find_notebooks(tmp_path, [1, 2])


def test_folder_without_notebooks(tmp_path):
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(UserError, match="no numbered notebooks"):
            find_notebooks(folder)


def test_headlines_of_several_notebooks(tmp_path):
    assert read_headlines(tmp_path) == {}
    save_headlines(tmp_path, "one", {"accuracy": 0.5})
    save_headlines(tmp_path, "two", {"accuracy": "70 %"})
    save_headlines(tmp_path, "one", {"accuracy": 0.6})
    assert read_headlines(tmp_path) == {"one": {"accuracy": 0.6}, "two": {"accuracy": "70 %"}}


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"one": 3}', "[" * 100_000, "\0"])
def test_damaged_headlines(tmp_path, content):
    """Named, and left as they are."""
    (tmp_path / "headlines.json").write_text(content)
    for use in (read_headlines, lambda folder: save_headlines(folder, "one", {"accuracy": 0.5})):
        with pytest.raises(UserError, match=r"headlines.json (is damaged|holds no headline numbers).*; remove it"):
            use(tmp_path)
    assert (tmp_path / "headlines.json").read_text() == content


def test_headlines_are_old_or_new_and_never_half(tmp_path, monkeypatch):
    save_headlines(tmp_path, "one", {"accuracy": 0.5})
    with pytest.raises(TypeError):
        save_headlines(tmp_path, "two", {"accuracy": object()})

    def fill(path, text):
        path.write_bytes(text.encode()[:3])
        raise OSError("No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", fill)
    with pytest.raises(OSError, match="No space"):
        save_headlines(tmp_path, "two", {"accuracy": 0.6})
    assert read_headlines(tmp_path) == {"one": {"accuracy": 0.5}}
    assert {path.name for path in tmp_path.iterdir()} == {"headlines.json", ".headlines.json.lock"}


def test_headlines_of_many_at_once(tmp_path):
    """Eight notebooks that end together: none loses what another has written."""
    writers = [Process(target=save_headlines, args=(tmp_path, f"0{n} name", {"n": n})) for n in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert list(read_headlines(tmp_path).items()) == [(f"0{n} name", {"n": n}) for n in range(8)]


WHOLE = nbformat.writes(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x = 1")]))


@pytest.mark.parametrize(
    "content",
    [
        *["", "{", "[]", "{}", "\udcff", WHOLE[:-20], WHOLE.replace('"code"', '"cod"')],
        '{"cells": 1, "nbformat": 4, "nbformat_minor": 5, "metadata": {}}',
        '{"cells": [], "nbformat": 99, "nbformat_minor": 0, "metadata": {}}',
    ],
)
def test_damaged_notebook_is_named_before_anything_runs(tmp_path, content):
    notebook = write_notebook(tmp_path / "01_count.ipynb", 'limit = 1\noutput_dir = ""')
    damaged = tmp_path / "02_damaged.ipynb"
    damaged.write_text(content, errors="surrogateescape")
    with pytest.raises(UserError, match=r"02_damaged.ipynb cannot be read as a notebook: .* fetch it anew"):
        run_notebooks([notebook, damaged], tmp_path / "made", {"limit": 5})
    assert not (tmp_path / "made").exists()


MEET = """
import time
from pathlib import Path
here, there = (Path(output_dir, name) for name in names)
here.touch()
while not there.exists():
    time.sleep(0.05)
"""


@pytest.mark.slow
def test_two_run_at_a_time(tmp_path, monkeypatch, capsys):
    """Each waits for the other, with half of the cores; the first figure is announced as soon as it is there."""
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS")
    tell = 'import os\nPath(output_dir, f"{names[0]}.png").write_text(os.environ["OMP_NUM_THREADS"])'
    notebooks = [
        write_notebook(tmp_path / f"0{number}_n.ipynb", f'names = {names!r}\noutput_dir = ""', MEET, tell)
        for number, names in enumerate(["ab", "ba"], 1)
    ]
    made = run_notebooks(notebooks, tmp_path / "made")
    assert [(made / name).read_text() for name in ("a.png", "b.png")] == ["3", "3"]
    told = capsys.readouterr().err
    assert all(f"Running {path} ...\n" in told and f"Finished {path} in " in told for path in notebooks)
    assert told.count("First figure: ") == 1
    assert f"First figure: {made}/" in told


@pytest.mark.slow
def test_longest_runs_first(tmp_path, monkeypatch, capsys):
    """How long it took is what Jupyter has noted in its cells; of one core, one has it all."""
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    for number, seconds in enumerate((2, 59, 30), 1):
        path = write_notebook(tmp_path / f"0{number}_n.ipynb", 'output_dir = ""')
        notebook = nbformat.read(path, as_version=4)
        begun, ended = "2026-01-31T23:59:00.5Z", f"2026-01-31T23:59:{seconds}.5Z".replace(":2.", ":02.")
        notebook.cells[0].metadata["execution"] = {"iopub.execute_input": begun, "shell.execute_reply": ended}
        nbformat.write(notebook, path)
    run_notebooks(find_notebooks(tmp_path), tmp_path / "made")
    order = [Path(line.split()[1]).name for line in capsys.readouterr().err.splitlines()]
    assert order == [f"0{number}_n.ipynb" for number in (2, 2, 3, 3, 1, 1)]


ALIVE = """
import os, time
from pathlib import Path
Path(output_dir, "kernel").write_text(str(os.getpid()))
time.sleep(600)
"""


def has_ended(pid):
    """Within ten seconds."""
    for _ in range(100):
        status = Path(f"/proc/{pid}/status")
        if not status.exists() or "State:\tZ" in status.read_text():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
def test_a_failure_stops_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    fail = (
        'import time\nfrom pathlib import Path\nwhile not Path(output_dir, "kernel").exists(): time.sleep(0.05)\n1 / 0'
    )
    long = write_notebook(tmp_path / "01_long.ipynb", 'output_dir = ""', ALIVE)
    bad = write_notebook(tmp_path / "02_bad.ipynb", 'output_dir = ""', fail)
    never = write_notebook(tmp_path / "03_never.ipynb", 'output_dir = ""')
    with pytest.raises(UserError, match=r"02_bad.ipynb failed in cell \[3\] with ZeroDivisionError"):
        run_notebooks([long, bad, never], tmp_path / "made")
    assert has_ended((tmp_path / "made" / "kernel").read_text())
    assert not (tmp_path / "made" / "03_never.ipynb").exists()


@pytest.mark.slow
def test_a_process_that_is_killed_is_no_success(tmp_path):
    kill = "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nimport time\ntime.sleep(600)"
    notebook = write_notebook(tmp_path / "01_n.ipynb", 'output_dir = ""', kill)
    with pytest.raises(UserError, match=r"01_n.ipynb was stopped from outside"):
        run_notebooks([notebook], tmp_path / "made")


@pytest.mark.slow
def test_ctrl_c_stops_the_kernels(tmp_path):
    """From a terminal it goes to all processes."""
    write_notebook(tmp_path / "notebooks" / "01_long.ipynb", 'output_dir = ""', ALIVE)
    options = ["--notebooks", str(tmp_path / "notebooks"), "-o", str(tmp_path / "made")]
    command = [sys.executable, "-m", "vitsal.cli", "run", *options]
    hear = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # whoever starts the tests in the background is deaf
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=hear)
    while not (tmp_path / "made" / "kernel").exists():
        assert run.poll() is None
        time.sleep(0.1)
    os.killpg(run.pid, signal.SIGINT)
    told = run.communicate(timeout=60)[1]
    assert (run.returncode, told.splitlines()[-1]) == (130, "Interrupted.")
    assert "Traceback" not in told
    assert has_ended((tmp_path / "made" / "kernel").read_text())
