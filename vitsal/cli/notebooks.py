"""The commands around the notebooks: `run`, `recipes`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import vitsal as vs
from vitsal.choices import STUDENTS
from vitsal.cli.options import parse_run_arguments, refuse_option
from vitsal.jobs.files import check_folder
from vitsal.jobs.paths import check_output_folder


def run(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[NUMBERS]... [-p NAME VALUE]...", help="Which notebooks; parameters.")
    ] = None,
    notebooks: Annotated[Path, typer.Option(help="Folder of the notebooks.")] = Path("notebooks"),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for all that is made; runs/<time>.")
    ] = None,
) -> None:
    """Execute numbered notebooks headlessly (all by default), export their figures, print their headline numbers."""
    numbers, parameters = parse_run_arguments(arguments or [])
    check_output_folder(output or Path("runs"), notebooks, within=True)
    found = vs.course.find_notebooks(notebooks, numbers)
    made = vs.course.run_notebooks(found, output, parameters)
    for notebook, headlines in vs.course.read_headlines(made).items():
        print(f"\n{notebook}")
        for text, value in headlines.items():
            print(f"  {text}: {value}")
    print(f"\nNotebooks, figures and tables: {made}")


def list_recipes(
    name: Annotated[str, typer.Argument(help="A recipe, to see all that it needs; by default all are listed.")] = "",
    students: Annotated[Path, typer.Option(help="Folder of the students' folders.")] = STUDENTS,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, ..., to tell the time of all.", show_default="auto")
    ] = None,
) -> None:
    """List the published experiments: their models and sizes, what is not here yet, the time they take here."""
    check_folder(students)
    if name and device is not None:
        refuse_option("device", "a single recipe", "the list of all, whose times it tells")
    if name:
        return _print_needs(name, students)
    speed = vs.course.measure_speed(vs.find_device(device or "auto"))
    for row in vs.course.describe_recipes(students=students, speed=speed).itertuples():
        time = f"{60 * row.hours:.0f} minutes" if row.hours < 2 else f"{row.hours:,.0f} hours"
        print(f"{row.name}: {row.title}\n  models: {row.models}; {row.missing_mb:,.0f} MB are not here")
        print(f"  {row.images:,} images, {row.pflop:.3g} PFLOP, about {time} on this machine")
    print("\nAll that one of them needs, and the command that runs it: vitsal recipes NAME")


def _print_needs(name: str, students: Path) -> None:
    """Print what must be here before a recipe can run, where to get it, and the command that runs it."""
    recipe = vs.course.choose_recipe(name)
    print(recipe.title)
    for row in vs.course.needs(recipe, students=students).itertuples():
        print(f"- {row.role} {row.model}, {row.megabytes:.1f} MB: {row.where or f'not here; {row.source}'}")
    data, images = vs.course.PRESETS["imagenet"], vs.course.NUM_IMAGES
    print(f"- data {data.data}, split {data.split}, {images:,} images; or your own folder: -p data FOLDER")
    notebook = "03_ideal_drop_experiment.ipynb"
    print(f"\ncd notebooks && papermill {notebook} {name}.ipynb -p recipe {name} -p limit {images}")
