"""The repository keeps its promises: one set of requirements, and notebooks in the house form."""

import ast
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COURSE = [path for path in NOTEBOOKS if path.name[0].isdigit()]  # in reading order
SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
CONDA_NAMES = {"torch": "pytorch"}
HOUSE_IMPORTS = {
    "import matplotlib.pyplot as plt",
    "import numpy as np",
    "import pandas as pd",
    "import torch",
    "import vitsal as vs",
}


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def all_requirements() -> set[str]:
    project = pyproject()
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return {line for line in [*project["dependencies"], *extras] if not line.startswith("vitsal[")}


def test_environment_yml_asks_for_the_same_as_pyproject() -> None:
    listed = re.findall(r"^ +- (\S+>=\S+)$", (ROOT / "environment.yml").read_text(), re.MULTILINE)
    expected = {f"python{pyproject()['requires-python']}"}
    for requirement in all_requirements():
        name, version = requirement.split(">=")
        expected.add(f"{CONDA_NAMES.get(name, name)}>={version}")
    assert set(listed) == expected


def test_constraints_satisfy_pyproject_and_name_no_host() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text
    assert "--" not in text
    pinned = dict(re.findall(r"^(\S+)==(\S+)$", text, re.MULTILINE))
    required = dict(requirement.split(">=") for requirement in all_requirements())
    assert pinned.keys() == required.keys() - {"torch", "torchvision"}
    for name, version in pinned.items():
        assert numbers(version) >= numbers(required[name]), name


def numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def imports_in(source: str) -> set[str]:
    """What a cell imports, the standard library left out: statements."""
    plain = re.sub(r"^( *)[!%].*$", r"\1pass", source, flags=re.MULTILINE)  # without Jupyter's commands
    statements = [node for node in ast.walk(ast.parse(plain)) if isinstance(node, ast.Import | ast.ImportFrom)]
    return {
        ast.unparse(node)
        for node in statements
        if not {getattr(node, "module", name.name).partition(".")[0] for name in node.names} <= sys.stdlib_module_names
    }


def read_cells(path: Path, kind: str) -> list[str]:
    """Sources of a notebook's cells of one kind."""
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("path", [*NOTEBOOKS, *SOLUTIONS], ids=lambda path: path.stem)
class TestNotebookForm:
    def test_opening(self, path: Path) -> None:
        title, set_up, *others = json.loads(path.read_text())["cells"]
        assert title["cell_type"] == "markdown"
        text = "".join(title["source"])
        assert text.startswith("# ")
        place = path.relative_to(ROOT).as_posix()
        assert f"colab.research.google.com/github/vitsal/vitsal/blob/main/{place}" in text
        assert set_up["cell_type"] == "code"
        tagged = [cell for cell in others if "parameters" in cell["metadata"].get("tags", [])]
        assert len(tagged) == 1
        if any("save_figure" in source for source in read_cells(path, "code")):
            told = "".join(others[others.index(tagged[0]) - 1]["source"])
            assert {"PNG", "SVG", "`output_dir`"} <= set(re.findall(r"`\w+`|\w+", told))

    def test_imports_the_package_by_its_face_and_little_else(self, path: Path) -> None:
        set_up, *others = read_cells(path, "code")
        assert {"import vitsal as vs"} <= imports_in(set_up) <= HOUSE_IMPORTS
        assert not any(imports_in(source) for source in others)
        outside_colabs_block = [line for line in set_up.splitlines() if line and not line.startswith((" ", "if "))]
        assert len(outside_colabs_block) <= 8

    def test_cells_are_short(self, path: Path) -> None:
        lines = sorted(len(source.splitlines()) for source in read_cells(path, "code"))
        assert lines[-1] <= 30
        assert lines[len(lines) // 2] < 12

    def test_executed_in_order_without_errors_or_widget_state(self, path: Path) -> None:
        notebook = json.loads(path.read_text())
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
        assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
        assert "widgets" not in notebook["metadata"]
        assert path.stat().st_size < 500_000

    def test_links_lead_somewhere(self, path: Path) -> None:
        links = re.findall(r"\]\((?!https?:)([^)\s]+)\)", "\n".join(read_cells(path, "markdown")))
        assert links
        assert not [link for link in links if not (path.parent / link).exists()]


def test_colab_fetches_the_course_in_one_way() -> None:
    """And once: a second run of the cell finds it there."""
    blocks = {read_cells(path, "code")[0].split("\n\n")[1] for path in [*NOTEBOOKS, *SOLUTIONS]}
    assert len(blocks) == 1
    assert "google.colab" in (block := blocks.pop())
    assert "[ -d vitsal ] || git clone" in block


def test_notebooks_lead_from_one_to_the_next() -> None:
    for before, path, after in zip([None, *COURSE], COURSE, [*COURSE[1:], None], strict=False):
        neighbours = {"Previous": before, "Next": after}
        expected = {word: other.name for word, other in neighbours.items() if other}
        cells = read_cells(path, "markdown")
        for text in (cells[0], cells[-1]):
            assert dict(re.findall(r"\b(Previous|Next): \[.+?\]\((.+?)\)", text)) == expected, path.name


def test_first_notebook_has_the_map_of_the_course() -> None:
    first = read_cells(COURSE[0], "markdown")[0]
    rows = re.findall(r"^\| \[.+?\]\((.+?)\) \| .+? \| .+? \| .+? \|$", first, re.MULTILINE)
    assert rows == [path.name for path in [*COURSE, *(path for path in NOTEBOOKS if path not in COURSE)]]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_asks_and_ends_with_exercises_and_hints(path: Path) -> None:
    cells = read_cells(path, "markdown")
    assert "**The question.**" in cells[0]
    exercises = find_exercises(path)
    assert list(exercises) == ["1", "2"]
    assert cells[-1].count("<summary>Hint</summary>") == 2


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
def test_every_exercise_has_its_solution(path: Path) -> None:
    solutions = path.parent / "solutions" / f"{path.name[:2]}_solutions.ipynb"
    assert f"(solutions/{solutions.name})" in read_cells(path, "markdown")[-1]
    told = read_cells(solutions, "markdown")
    assert f"(../{path.name})" in told[0]
    solved = [text for text in told if text.startswith("## ")]
    for (number, text), solution in zip(find_exercises(path).items(), solved, strict=True):
        assert solution.startswith(f"## Exercise {number}\n\n{text}\n\n")


def find_exercises(path: Path) -> dict[str, str]:
    """Number -> text of a notebook's exercises, without their hints."""
    _, text = read_cells(path, "markdown")[-1].split("**Exercises.**")
    return dict(re.findall(r"^(\d)\. (.+)$", text, re.MULTILINE))


def test_every_notebook_is_listed_with_its_badge() -> None:
    assert NOTEBOOKS
    readme, listing = (ROOT / "README.md").read_text(), (ROOT / "notebooks" / "README.md").read_text()
    for path in NOTEBOOKS:
        assert f"notebooks/{path.name}" in readme
        assert path.name in listing


# ---- the house: rooms on floors, and arrows that go down only
FLOORS = [
    {"errors"},
    {"choices", "jobs", "data", "models"},
    {"reduction"},
    {"students"},
    {"guides"},
    {"analysis", "embedded", "tuning"},
    {"experiments", "pictures", "course"},
    {"cli"},
]
PACKAGE = ROOT / "vitsal"


def room_of(path: Path) -> str:
    """The room, or the file at the door, that a module belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a module imports from; what it takes from the face, `vs.load_model`, is asked for when it runs."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            modules |= {node.module} if node.module != "vitsal" else {f"vitsal.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return {module.split(".")[1] for module in modules if module.startswith("vitsal.")} - {room_of(path)}


def test_rooms_stand_on_floors_and_arrows_go_down_only() -> None:
    arrows = {}
    for path in PACKAGE.rglob("*.py"):
        arrows.setdefault(room_of(path), set()).update(imported_rooms(path))
    arrows.pop("__init__")
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    assert arrows.keys() == floor.keys()
    up = {(room, other) for room in arrows for other in arrows[room] if floor[other] >= floor[room]}
    assert not up, f"these do not look down: {up}"
    assert "embedded" not in set().union(*arrows.values())


def test_rooms_are_small() -> None:
    for room in {path.parent for path in PACKAGE.rglob("*.py")}:
        assert len([path for path in room.iterdir() if path.suffix in (".py", ".pyi")]) <= 11, room.name
