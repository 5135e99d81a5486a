"""Notebooks run headlessly: parameters reach them, numbers come back, a failure says where."""

import nbformat
import pytest
from helpers import COUNT, write_notebook

from vitsal.course.notebooks import find_notebooks, read_headlines, save_headlines
from vitsal.course.runs import run_notebooks
from vitsal.errors import UserError


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
    assert [path.name for path in tmp_path.iterdir()] == ["headlines.json"]


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
