"""The commands around the notebooks: `run`, `recipes`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitsal.cli.options import (
    DeviceOption,
    parse_run_arguments,
)
from vitsal.course import notebooks as runs, recipes, requirements
from vitsal.jobs.files import check_folder
from vitsal.jobs.outputs import check_output_folder
from vitsal.jobs.processes import find_device


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
    made = runs.run_notebooks(runs.find_notebooks(notebooks, numbers), output, parameters)
    for notebook, headlines in runs.read_headlines(made).items():
        print(f"\n{notebook}")
        for text, value in headlines.items():
            print(f"  {text}: {value}")
    print(f"\nNotebooks, figures and tables: {made}")


def list_recipes(
    name: Annotated[str, typer.Argument(help="A recipe, to see all that it needs; by default all are listed.")] = "",
    students: Annotated[Path, typer.Option(help="Folder of the students' folders.")] = recipes.STUDENTS,
    device: DeviceOption = "auto",
) -> None:
    """List the published experiments: their models and sizes, what is not here yet, the time they take here."""
    check_folder(students)
    if name:
        return print_needs(recipes.choose_recipe(name), students)
    speed = requirements.measure_speed(find_device(device))
    for row in requirements.describe_recipes(students=students, speed=speed).itertuples():
        time = f"{60 * row.hours:.0f} minutes" if row.hours < 2 else f"{row.hours:,.0f} hours"
        print(f"{row.name}: {row.title}\n  models: {row.models}; {row.missing_mb:,.0f} MB are not here")
        print(f"  {row.images:,} images, {row.pflop:.3g} PFLOP, about {time} on this machine")
    print("\nAll that one of them needs, and the command that runs it: vitsal recipes NAME")


def print_needs(recipe: recipes.PublishedExperiment, students: Path) -> None:
    """Print what must be here before a recipe can run, where to get it, and the command that runs it."""
    print(recipe.title)
    for row in requirements.needs(recipe, students=students).itertuples():
        print(f"- {row.role} {row.model}, {row.megabytes:.1f} MB: {row.where or f'not here; {row.source}'}")
    print(
        f"- data {recipe.data}, split {recipe.split}, {recipe.num_images:,} images; or your own folder: -p data FOLDER"
    )
    notebook = "06_published_experiments.ipynb"
    print(f"\ncd notebooks && papermill {notebook} {recipe.name}.ipynb -p recipe {recipe.name}")
