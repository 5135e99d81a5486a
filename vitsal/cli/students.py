"""The command that trains: `train-student`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import vitsal as vs
from vitsal.choices import ARCHITECTURES, CELL, LOSSES, TEACHERS, VIT_EXPLAIN, TrainingSettings
from vitsal.cli.options import (
    DATA_HELP,
    CategoryOption,
    CheckpointOption,
    DiscardOption,
    HeadFusionOption,
    LimitOption,
    SeedOption,
    WorkersOption,
    check_checkpoints,
    data_path,
    refuse_option,
    taken_options,
)
from vitsal.errors import check_choice
from vitsal.jobs.paths import check_data, check_output, check_output_folder

MOST_EPOCHS = 1_000_000


def train_student(
    teacher: Annotated[str, typer.Option(help="The ViT whose rollout is learnt: any timm ViT.")],
    data: Annotated[str, typer.Option(help=DATA_HELP)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the student and its checkpoints.")],
    method: Annotated[str, typer.Option(help=f"{', '.join(TEACHERS)}.")] = "rollout",
    head_fusion: HeadFusionOption = None,
    discard_ratio: DiscardOption = None,
    category_index: CategoryOption = None,
    checkpoint: CheckpointOption = None,
    split: Annotated[str, typer.Option(help="Part of the data, where it has parts.")] = "train",
    limit: LimitOption = None,
    maps: Annotated[
        Path | None, typer.Option(help="Folder for the teacher's maps; runs/maps-<what they are of>.")
    ] = None,
    views: Annotated[
        int, typer.Option(help="Crops of each image that the teacher is asked about.", min=0, max=1_000)
    ] = 0,
    geometry: Annotated[
        bool | None,
        typer.Option(help="Crop and mirror images, and their maps with them; by default where there are no views."),
    ] = None,
    architecture: Annotated[str, typer.Option(help="convnet, transformer, or a timm model.")] = "convnet",
    pretrained: Annotated[bool, typer.Option(help="Start from the timm model's weights.")] = False,
    width: Annotated[
        int | None, typer.Option(help="Channels of a convnet's first stage.", min=4, max=4_096, show_default="32")
    ] = None,
    cell: Annotated[int, typer.Option(help="Pixels of the input per patch, each way.", min=1, max=64)] = CELL,
    loss: Annotated[str, typer.Option(help=f"{', '.join(LOSSES)}.")] = TrainingSettings.loss,
    epochs: Annotated[int, typer.Option(min=1, max=MOST_EPOCHS)] = TrainingSettings.epochs,
    batch_size: Annotated[
        int, typer.Option(help="Images per step, over all processes.", min=1, max=65_536)
    ] = TrainingSettings.batch_size,
    learning_rate: Annotated[float, typer.Option(max=1e30)] = TrainingSettings.learning_rate,
    accumulate: Annotated[
        int, typer.Option(help="Compute a batch in so many parts.", min=1, max=65_536)
    ] = TrainingSettings.accumulate,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many epochs without progress.", min=1, max=MOST_EPOCHS)
    ] = None,
    num_workers: WorkersOption = 0,
    seed: SeedOption = 0,
) -> None:
    """Teach a student to predict a ViT's rollout from a downsampled image; started again, it goes on.

    Several processes or machines, a GPU, mixed precision: accelerate launch -m vitsal.cli train-student ...
    """
    options = {"head_fusion": head_fusion, "discard_ratio": discard_ratio, "category_index": category_index}
    options = VIT_EXPLAIN | taken_options([check_choice("method", method, TEACHERS)], **options)
    if geometry and views:
        refuse_option("geometry", "a training with --views, which are cropped already", "one without")
    check_output(output / "model.safetensors", checkpoint)
    place, model_folder = data_path(data), teacher.partition("local-dir:")[2]
    check_output_folder(output, place, maps, model_folder, within=True)
    check_output_folder(maps or Path("runs", "maps"), place, within=True)
    recipe = TrainingSettings(
        loss=loss, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate,
        geometry=not views if geometry is None else geometry, accumulate=accumulate, patience=patience, seed=seed,
    )  # fmt: skip
    check_checkpoints(checkpoint)
    if width is not None and architecture not in ARCHITECTURES:
        vs.students.check_known(architecture)
        refuse_option("width", architecture, " and ".join(ARCHITECTURES))
    check_data(data, split)
    vs.students.check_training_folder(output)
    accelerator = vs.students.accelerator_for(recipe)
    vit = vs.load_model(teacher, checkpoint, device=vs.find_device("auto"))
    explainer = vs.make_guide(method, vit, **options)
    pupil = vs.new_student(
        architecture,
        vs.grid_size(vit),
        pretrained=pretrained,
        seed=seed,
        input_size=[cell * cells for cells in vs.grid_size(vit)],
        lesson={"teacher": teacher, "method": method, "data": data, "loss": loss},
        **({} if width is None else {"width": width}),
    )
    settings = vs.students.MapSettings(tuple(2 * pixels for pixels in pupil.input_size), limit, views, seed)
    dataset = vs.open_data(data, vs.model_transform(vit), split=split)
    options = {"maps": maps, "num_workers": num_workers, "accelerator": accelerator}
    history = vs.students.teach(pupil, explainer, dataset, output, recipe, settings, **options)
    accelerator.print(history.tail(1).to_string(index=False, float_format="{:.4f}".format))
    accelerator.print(output)
