"""The commands that train students: `train-student`, by maps, and `teach-student`, by answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import vitsal as vs
from vitsal.choices import ARCHITECTURES, CELL, LOSSES, TEACHERS, AnswerSettings, TrainingSettings
from vitsal.cli import options
from vitsal.data.places import check_data
from vitsal.errors import check_choice
from vitsal.jobs.paths import check_output, check_output_folder


def train_student(
    teacher: Annotated[str, typer.Option(help="The ViT whose rollout is learnt: any timm ViT.")],
    data: options.Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the student and its checkpoints.")],
    method: Annotated[str, typer.Option(help=f"{', '.join(TEACHERS)}.")] = "rollout",
    head_fusion: options.HeadFusion = None,
    discard_ratio: options.Discard = None,
    category_index: options.Category = None,
    checkpoint: options.Checkpoint = None,
    split: options.Split = "train",
    limit: options.Limit = None,
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
    architecture: Annotated[
        str, typer.Option(help="convnet, transformer, a timm model, or position, which sees no image.")
    ] = "convnet",
    pretrained: Annotated[bool, typer.Option(help="Start from the timm model's weights.")] = False,
    width: Annotated[
        int | None, typer.Option(help="Channels of a convnet's first stage.", min=4, max=4_096, show_default="32")
    ] = None,
    cell: Annotated[int, typer.Option(help="Pixels of the input per patch, each way.", min=1, max=64)] = CELL,
    loss: Annotated[str, typer.Option(help=f"{', '.join(LOSSES)}.")] = TrainingSettings.loss,
    epochs: options.Epochs = TrainingSettings.epochs,
    batch_size: options.StepSize = TrainingSettings.batch_size,
    learning_rate: options.LearningRate = TrainingSettings.learning_rate,
    accumulate: Annotated[
        int, typer.Option(help="Compute a batch in so many parts.", min=1, max=65_536)
    ] = TrainingSettings.accumulate,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many epochs without progress.", min=1, max=options.MOST_EPOCHS)
    ] = None,
    num_workers: options.Workers = 0,
    seed: options.Seed = 0,
) -> None:
    """Teach a student to predict a ViT's rollout from a downsampled image; started again, it goes on.

    Several processes or machines, a GPU, mixed precision: accelerate launch -m vitsal.cli train-student ...
    """
    given = options.explain_options(
        [check_choice("method", method, TEACHERS)],
        head_fusion=head_fusion,
        discard_ratio=discard_ratio,
        category_index=category_index,
    )
    if geometry and views:
        options.refuse_option("geometry", "a training with --views, which are cropped already", "one without")
    check_output(output / "model.safetensors", checkpoint)
    place, model_folder = options.data_path(data), options.model_path(teacher)
    check_output_folder(output, place, maps, model_folder, within=True)
    check_output_folder(maps or Path("runs", "maps"), place, within=True)
    recipe = TrainingSettings(
        loss=loss, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate,
        geometry=not views if geometry is None else geometry, accumulate=accumulate, patience=patience, seed=seed,
    )  # fmt: skip
    options.check_checkpoints(checkpoint)
    if width is not None and architecture not in ARCHITECTURES:
        vs.students.check_known(architecture)
        options.refuse_option("width", architecture, " and ".join(ARCHITECTURES))
    check_data(data, split)
    vs.students.check_training_folder(output)
    accelerator = vs.students.accelerator_for(recipe)
    vit = vs.load_model(teacher, checkpoint, device=vs.find_device("auto"))
    explainer = vs.make_guide(method, vit, **given)
    grid, own = vs.grid_size(vit), {} if width is None else {"width": width}
    own |= {"lesson": {"teacher": teacher, "method": method, "data": data, "loss": loss}}
    size = [cell * cells for cells in grid]
    pupil = vs.new_student(architecture, grid, pretrained=pretrained, seed=seed, input_size=size, **own)
    settings = vs.students.MapSettings(tuple(2 * pixels for pixels in pupil.input_size), limit, views, seed)
    dataset = vs.open_data(data, vs.model_transform(vit), split=split)
    given = {"maps": maps, "num_workers": num_workers, "accelerator": accelerator}
    history = vs.students.teach(pupil, explainer, dataset, output, recipe, settings, **given)
    accelerator.print(history.tail(1).to_string(index=False, float_format="{:.4f}".format))
    accelerator.print(output)


def teach_student(
    student: Annotated[str, typer.Option(help="A student that has learnt rollout: a folder or a hub name.")],
    target: Annotated[str, typer.Option(help="The ViT whose answers are learnt from: any timm ViT of its grid.")],
    data: options.Images,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the student that it becomes.")],
    head_fusion: options.HeadFusion = None,
    discard_ratio: options.Discard = None,
    checkpoint: options.Checkpoint = None,
    split: options.Split = "train",
    limit: options.LimitOfEach = AnswerSettings.limit,
    epochs: options.Epochs = AnswerSettings.epochs,
    batch_size: options.StepSize = AnswerSettings.batch_size,
    learning_rate: options.LearningRate = AnswerSettings.learning_rate,
    keep: Annotated[str, typer.Option(help="Lowest and highest keep ratio of a step.")] = ",".join(
        map(str, AnswerSettings.keep_ratios)
    ),
    soften: options.Soften = None,
    num_workers: options.Workers = 0,
    seed: options.Seed = 0,
) -> None:
    """Teach a student, without labels, to keep the patches without which the target changes its answers.

    It begins with what train-student has taught it, and goes on with what its choices do to the target. Started again,
    it goes on; several processes as for train-student.
    """
    explained = options.explain_options(["rollout"], head_fusion=head_fusion, discard_ratio=discard_ratio)
    settings = AnswerSettings(epochs, batch_size, learning_rate, options.parse_values(keep), soften, limit, seed)
    check_output(output / "model.safetensors", checkpoint)
    places = [options.data_path(source) for source in data]
    check_output_folder(output, *places, options.model_path(target), student, within=True)
    options.check_checkpoints(checkpoint)
    for source in data:
        check_data(source, split)
    vs.tuning.check_taught_folder(output)
    accelerator, where = vs.jobs.make_accelerator(), vs.find_device("auto")
    vit, pupil = vs.load_model(target, checkpoint, device=where), vs.load_student(student, where)
    guide = vs.make_guide("rollout", vit, **explained)
    datasets = [vs.open_data(source, vs.model_transform(vit), split=split) for source in data]
    lesson = pupil.lesson | {"start": student, "target": target, "answers_on": list(data)}
    given = {"lesson": lesson, "num_workers": num_workers, "accelerator": accelerator}
    report = vs.tuning.teach_by_answers(pupil, vit, guide, datasets, output, settings, **given)
    if accelerator.is_main_process:
        print(report.to_string(index=False, float_format="{:.4f}".format))
        print(output)
