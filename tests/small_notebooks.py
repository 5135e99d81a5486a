"""Small copies of the notebooks, to be run cell by cell in minutes: `python tests/small_notebooks.py FOLDER`.

They differ from the notebooks in their parameters alone, and write beside themselves.
"""

import sys
from pathlib import Path

import papermill

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "notebooks"
SMALL = {
    "01_rollout_exploration": {"limit": 4},
    "02_train_students": {"train_limit": 100, "epochs": 2, "limit": 20},
    "03_ideal_drop_experiment": {"limit": 20},
    "04_final_evaluation": {"limit": 20, "repeats": 1, "batch_size": 10},
    "05_probing": {"limit": 20, "batch_size": 10},
    "06_frontier": {"limit": 20, "train_limit": 4, "speeds": [2.0, 3.0], "repeats": 1},
    "07_faithfulness": {"limit": 2},
    "08_video": {"seconds": 2, "films": 2},
    "explorer": {},
    "01_solutions": {"limit": 20},
    "02_solutions": {"train_limit": 100, "epochs": 2, "limit": 20},
    "03_solutions": {"limit": 20, "batch_size": 20},
    "04_solutions": {"keep_ratios": [1.0, 0.5, 0.1], "limit": 20, "repeats": 1, "batch_size": 10},
    "05_solutions": {"limit": 20, "batch_size": 20},
    "06_solutions": {"limit": 20},
    "07_solutions": {"limit": 2},
    "08_solutions": {"limit": 2, "frames": 8},
}


def write_copies(folder: Path) -> None:
    """Write a small copy of every notebook and solution, beside a link to the data that they read."""
    folder.mkdir(parents=True)
    (folder.parent / "data").symlink_to(ROOT / "data")
    for path in [*NOTEBOOKS.glob("*.ipynb"), *NOTEBOOKS.glob("solutions/*.ipynb")]:
        known = papermill.inspect_notebook(str(path))
        given = SMALL[path.stem] | ({"output_dir": str(folder / path.stem)} if "output_dir" in known else {})
        if unknown := given.keys() - known:
            sys.exit(f"{path.name} has no parameter {', '.join(unknown)}")
        papermill.execute_notebook(str(path), str(folder / path.name), given, prepare_only=True, progress_bar=False)


if __name__ == "__main__":
    write_copies(Path(sys.argv[1]).resolve())
