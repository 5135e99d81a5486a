"""Train the embedded students again: ``python -m vitsal.embedded.teach --output DIR``.

One for each pairing of architecture and method. All learn from ``vitsal_digits_guide`` on training scenes, which share
neither digits nor photographs with the test scenes. A killed run goes on where it stopped.
"""

from itertools import product
from pathlib import Path
from typing import Annotated

import torch
import typer

from vitsal.choices import ARCHITECTURES, TEACHERS, TrainingSettings
from vitsal.data.opening import open_data
from vitsal.guides.factory import make_guide
from vitsal.models.loading import load_model
from vitsal.models.tokens import grid_size, model_transform
from vitsal.students.distillation import distill
from vitsal.students.maps import MapSettings, cache_maps
from vitsal.students.student import load_student, new_student, save_student

TEACHER = "vitsal_digits_guide"
OUTPUT = Path("embedded/students")
WIDTHS = {"convnet": 16, "transformer": 24}  # small, since they come with the package
RECIPES = {"convnet": TrainingSettings(epochs=16), "transformer": TrainingSettings(epochs=24, learning_rate=2e-3)}


def teach(architecture: str, method: str, output: Path, scenes: int = 6_000) -> Path:
    """Train the student of one pairing; returns its folder, with weights in half precision."""
    vit = load_model(TEACHER)
    guide = make_guide(method, vit, head_fusion="max", discard_ratio=0.5)
    maps = output / f"maps-{method}"
    data = open_data("digits", model_transform(vit), split="train")
    cache_maps(guide, data, maps, MapSettings(image_size=(112, 112), limit=scenes))
    torch.manual_seed(0)
    lesson = {"teacher": TEACHER, "method": method, "data": "digits", "scenes": scenes}
    student = new_student(architecture, grid_size(vit), width=WIDTHS[architecture], lesson=lesson)
    name = f"digits-{architecture}-{method}"
    distill(student, maps, output / f"training-{name}", RECIPES[architecture])
    save_student(load_student(output / f"training-{name}").half(), output / name)
    return output / name


def main(
    output: Annotated[Path, typer.Option(help="Folder for students, maps and checkpoints.")] = OUTPUT,
) -> None:
    """Train the four embedded students."""
    for architecture, method in product(ARCHITECTURES, TEACHERS):
        print(teach(architecture, method, output))


if __name__ == "__main__":
    typer.run(main)
