"""The command line answers at once: help and refusals come without torch; and the lazy faces hold what they promise."""

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from helpers import save_image, write_notebook
from matplotlib.backend_bases import FigureCanvasBase

import vitsal
from vitsal import choices, cli
from vitsal.guides.rollout import HEAD_FUSIONS
from vitsal.students.losses import LOSS_FUNCTIONS

PACKAGE = Path(vitsal.__file__).parent
HEAVY = ("torch", "timm", "pandas", "matplotlib", "papermill", "accelerate", "av", "scipy", "IPython")
MODEL = "vitsal_digits_guide"
CURVE = ["drop-curve", "--target", MODEL, "--data", "digits"]
TUNE = ["tune-target", "--target", MODEL, "--data", "digits", "-o", "tuned"]
FAST = ["accelerate", "--target", MODEL, "--data", "digits", "-o", "fast", "--speed-up"]
TRAIN = ["train-student", "--teacher", MODEL, "--data", "digits", "-o", "student"]
REFUSALS = {
    "No such option": ["explain", "photo.png", "--metod", "rollout"],
    "Unknown guide 'rolout'": [*CURVE, "--guide", "rolout"],
    "Unknown method 'rolout'": ["explain", "photo.png", "--method", "rolout"],
    "Known: rollout, grad-rollout.": [*TRAIN, "--method", "flow"],
    "Unknown loss 'kll'": [*TRAIN, "--loss", "kll"],
    "Unknown benchmark 'roll'": ["benchmark", "roll"],
    "Unknown precision 'int8'": ["benchmark", "dropping", "--precision", "int8"],
    "Unknown rest 'corse'": [*CURVE, "--rest", "dropped,corse"],
    "Unknown head fusion 'median'": ["video", "film.mp4", "out.mp4", "--head-fusion", "median"],
    "The discard ratio must lie in [0, 1); got 1.": ["explain", "photo.png", "--discard-ratio", "1"],
    "The keep ratio must lie in (0, 1]; got 0.": [*CURVE, "--keep", "0"],
    "The image size must be": ["explain", "photo.png", "--image-size", "64x"],
    "The speed-up must lie in (1, 1000]; got 0.": [*FAST, "0"],
    "The weight of whole images must lie in [0, inf); got -1.": [*TUNE, "--whole", "-1"],
    "--seed says nothing to rollout": [*CURVE, "--seed", "3"],
    "--device says nothing to a single recipe": ["recipes", "base16", "--device", "cpu"],
    "Unknown format 'docx'": ["explain", "photo.png", "-o", "out.docx"],
    "There is no image file at gone.png.": ["explain", "gone.png"],
    "broken.png cannot be read as an image": ["explain", "broken.png"],
    "There is no checkpoint file at gone.pth.": ["explain", "photo.png", "--checkpoint", "gone.pth"],
    "There is no checkpoint file at lost.pth.": [*TRAIN, "--checkpoint", "lost.pth"],
    "There is no data at 'gone'": [*CURVE, "--data", "gone"],
    "There is no data at 'gone.tar'": ["probe", "--data", "gone.tar"],
    "Unknown split 'trian'": [*CURVE, "--split", "trian"],
    "There is no video file at gone.mp4.": ["video", "gone.mp4", "out.mp4"],
    "broken.png is a file, and a folder is needed": ["probe", "--data", "digits", "-o", "broken.png/out"],
    "There is no notebook 9.": ["run", "9"],
    "Unknown recipe 'base_16'": ["recipes", "base_16"],
    "One of the words is empty": ["explain", ""],
}
SCRIPT = """
import contextlib, io, json, sys
from vitsal import cli

answers = []
for words in json.load(sys.stdin):
    sys.argv, said = ["vitsal", *words], io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            cli.main()
        except SystemExit as ended:
            answers.append([ended.code, said.getvalue(), [name for name in %r if name in sys.modules]])
print(json.dumps(answers))
"""


def fresh(script, folder, **options):
    """What a new Python prints."""
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)} | options.pop("environment", {})
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, **options)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_help_and_refusals_come_without_torch(tmp_path):
    """All of them in one Python, each of which must have imported nothing that takes long."""
    save_image(tmp_path / "photo.png")
    (tmp_path / "broken.png").write_text("these are my notes")
    (tmp_path / "film.mp4").touch()
    write_notebook(tmp_path / "notebooks" / "01_n.ipynb", "limit = 1")
    commands = typer.main.get_command(cli.app).commands
    lines = [["--help"], *([name, "--help"] for name in commands), *REFUSALS.values()]
    answers = json.loads(fresh(SCRIPT % (HEAVY,), tmp_path, input=json.dumps(lines)))
    wanted = [(0, "Usage:")] * (1 + len(commands)) + [(2, said) for said in REFUSALS]
    for words, (status, said), (code, shown, heavy) in zip(lines, wanted, answers, strict=True):
        assert (code, heavy) == (status, []), (words, shown)
        assert said in " ".join(shown.replace("│", " ").split()), (words, shown)


def test_the_package_is_imported_without_torch(tmp_path):
    shown = fresh(f"import sys, vitsal as vs\nprint([name for name in {HEAVY} if name in sys.modules])", tmp_path)
    assert shown == "[]\n"


@pytest.mark.slow
@pytest.mark.parametrize("stub", sorted(PACKAGE.rglob("*.pyi")), ids=lambda stub: stub.parent.name)
def test_stubs_and_modules_agree(stub):
    """A name stands in the stub as in its module, and each public function and class of a room stands in its stub."""
    package = ".".join(stub.parent.relative_to(PACKAGE.parent).parts)
    promised = {}
    for line in ast.parse(stub.read_text()).body:
        promised |= {alias.name: line.module for alias in line.names if line.module}
    for name, module in promised.items():
        assert hasattr(importlib.import_module(f"{package}.{module}"), name), (module, name)
        assert hasattr(importlib.import_module(package), name), name  # lazily, from the room
    for path in stub.parent.glob("[a-z]*.py") if package != "vitsal" else ():
        kinds = (ast.FunctionDef, ast.ClassDef)
        public = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, kinds)]
        missing = [name for name in public if not name.startswith("_") and name not in promised]
        assert not missing, f"{path.name} has {missing}, which {stub} does not name"


def test_names_without_torch_are_those_that_are_there():
    assert tuple(HEAD_FUSIONS) == choices.HEAD_FUSIONS
    assert tuple(LOSS_FUNCTIONS) == choices.LOSSES
    assert set(FigureCanvasBase.filetypes) <= set(choices.PICTURE_FORMATS)
