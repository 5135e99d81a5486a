"""What commands keep on disk, made by the real functions on tiny models, and the same functions run once more on it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch
from damage import BYTES, HEADLINES, JOURNAL, SETTINGS, TABLE, Damage
from films import frames_of, write_film
from helpers import KillError, MadeImages, killed_once, randomise
from PIL import Image
from torch import nn

from vitsal.choices import AnswerSettings, TrainingSettings, TuningSettings
from vitsal.course.notebooks import read_headlines, save_headlines
from vitsal.data.images import IndexedImages
from vitsal.experiments import frontier
from vitsal.experiments.evaluation import drop_curve
from vitsal.experiments.outcomes import Outcomes
from vitsal.experiments.results import add_results, results_table
from vitsal.guides import RolloutGuide
from vitsal.guides.accelerated import AcceleratedViT
from vitsal.guides.baselines import CenterGuide, RandomGuide
from vitsal.models.loading import load_model
from vitsal.models.tokens import model_transform
from vitsal.pictures import video, video_files
from vitsal.pictures.overlays import Column
from vitsal.students.distillation import distill
from vitsal.students.maps import CachedMaps, MapSettings, cache_maps
from vitsal.students.student import load_student, new_student, save_student
from vitsal.tuning import pupils, steps, tolerance
from vitsal.tuning.mixture import MixedImages
from vitsal.tuning.parameters import load_difference, save_difference

SAMPLES, CLASSES = 48, 5
SEGMENT = 4  # frames per part of a video, so that a short one has several


@dataclass(frozen=True)
class State:
    """A folder that `make` fills, `again` goes on with, and the damages that its files get, so many times each.

    `again` returns what a user would take away, as text.
    """

    make: Callable[[Path], object]
    again: Callable[[Path], str]
    files: Mapping[str, Mapping[Damage, int]]


@cache
def target(seed: int = 0) -> nn.Module:
    """The cheapest ViT that timm makes: 2 x 2 patches, one block."""
    torch.manual_seed(0)
    options = {"img_size": 32, "depth": 1, "embed_dim": 16, "num_heads": 2, "num_classes": CLASSES}
    return randomise(load_model("vit_tiny_patch16_224", pretrained=False, **options), seed)


@cache
def dataset() -> IndexedImages:
    """Plain colours with labels."""
    colours = [tuple(37 * (index + 1) * step % 256 for step in (1, 3, 7)) for index in range(SAMPLES)]
    read = [(Image.new("RGB", (32, 32), colour), index % CLASSES) for index, colour in enumerate(colours)]
    images = MadeImages(read.__getitem__, SAMPLES, "{:03d}.png".format, "{:03d}".format)
    return IndexedImages(images, model_transform(target()), "colours")


def digest(*parts: object) -> str:
    """Tensors, arrays and whatever can be printed, as a short text."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.tobytes() if hasattr(part, "tobytes") else repr(part).encode())
    return found.hexdigest()[:16]


def weights(model: nn.Module) -> list:
    return [value.numpy() for value in model.state_dict().values()]


def predict(folder: Path, *names: str, seed: int = 0) -> Outcomes:
    """The drop curve of some guides, with its journal."""
    guides = {"center": CenterGuide((2, 2)), "random": RandomGuide((2, 2)), "rollout": RolloutGuide(target(seed))}
    chosen = {name: guides[name] for name in names or ("center", "random")}
    return drop_curve(target(seed), chosen, dataset(), (1.0, 0.5), folder=folder, batch_size=8, progress=False)


def go_on(folder: Path) -> str:
    """Every prediction, label and name of the drop curve."""
    outcomes = predict(folder)
    predictions = [(key, classes.tolist()) for key, classes in outcomes.predictions.items()]
    return digest(outcomes.names, outcomes.labels.tolist(), dict(outcomes.skipped), predictions)


def tabulate(folder: Path, *names: str) -> str:
    """The whole table that the drop curve of some guides is added to."""
    table = add_results(results_table(predict(folder, *names), "tiny"), folder / "table.csv")
    return table.sort_values(["guide", "keep_ratio"]).to_csv(index=False)


def make_journals(folder: Path) -> None:
    """A drop curve's journal, and beside it that of another target."""
    predict(folder)
    predict(folder / "other", seed=1)


def make_maps(folder: Path) -> None:
    """A teacher's maps, and beside them those of another teacher."""
    teach_maps(folder)
    teach_maps(folder / "other", seed=1)


def teach_maps(folder: Path, seed: int = 0) -> str:
    """A teacher's maps, two shards."""
    teacher, settings = RolloutGuide(target(seed)), MapSettings((16, 16), batch_size=2)
    cache_maps(teacher, dataset(), folder / "maps", settings, progress=False)
    maps = CachedMaps(folder / "maps")
    return digest(*[part.numpy() for index in range(len(maps)) for part in maps[index]])


def teach(folder: Path, killed: bool = False) -> str:
    """Two epochs of a student, or one and a kill."""

    def after_epoch(history: object) -> None:
        if killed:
            raise KillError

    torch.manual_seed(0)
    pupil = new_student("convnet", (2, 2), width=4)
    history = distill(
        pupil, folder / "maps", folder / "student", TrainingSettings(epochs=2, batch_size=16), progress=False,
        on_epoch=after_epoch,
    )  # fmt: skip
    best = load_student(folder / "student")
    return digest(*weights(pupil), *weights(best), history.drop(columns="seconds").to_csv())


def make_training(folder: Path) -> None:
    make_maps(folder)
    try:
        teach(folder, killed=True)
    except KillError:
        return


def make_student(folder: Path) -> None:
    torch.manual_seed(0)
    save_student(randomise(new_student("convnet", (2, 2), width=4)), folder / "student")


def use_student(folder: Path) -> str:
    """A student's predictions for one picture."""
    torch.manual_seed(1)
    with torch.no_grad():
        return digest(load_student(folder / "student")(torch.rand(1, 3, 8, 8)).numpy())


def make_parts(folder: Path) -> None:
    """All parts of a video, and a kill before they are put together."""
    folder.mkdir()
    write_film(folder / "film.mp4", frames=10, size=(32, 32), sound=None)
    try:
        with patch.object(video_files, "assemble", side_effect=KillError):
            draw_video(folder)
    except KillError:
        return


def draw_video(folder: Path) -> str:
    columns = {"rollout": Column(RolloutGuide(target()), target())}
    with patch.object(video, "SEGMENT", SEGMENT):
        made = video.draw_on_video(folder / "film.mp4", folder / "out.mp4", columns, progress=False, batch_size=4)
    pictures, times = frames_of(made)
    return digest(pictures, times)


def make_headlines(folder: Path) -> None:
    save_headlines(folder, "01_first", {"accuracy": 0.5, "images": 100})
    save_headlines(folder, "02_second", {"speed-up": 1.75})


def make_tuning(folder: Path) -> None:
    """A tuning of four steps, killed after the second, whose state is on disk."""
    with killed_once(tolerance._Tuning, 2), suppress(KillError):
        tune(folder)


def tune(folder: Path) -> str:
    settings, output = TuningSettings(steps=4, batch_size=4, limit=16), folder / "tuned"
    with patch.object(steps, "PART", 2):
        report = tolerance.tune_target(
            target(), [dataset()], {"center": CenterGuide((2, 2))}, output, settings, progress=False
        )
    return digest(*weights(load_difference(target(), output / "difference.safetensors")), report.to_csv())


def make_teaching(folder: Path) -> None:
    """A student that was to take four steps, killed after the second."""
    make_student(folder)
    with killed_once(pupils._Teaching, 2), suppress(KillError):
        teach_on(folder)


def teach_on(folder: Path) -> str:
    settings, given = AnswerSettings(epochs=1, batch_size=4, limit=18), {"progress": False}
    student, guide = load_student(folder / "student"), CenterGuide((2, 2))
    with patch.object(steps, "PART", 2):
        report = pupils.teach_by_answers(student, target(), guide, [dataset()], folder / "taught", settings, **given)
    return digest(*weights(load_student(folder / "taught")), report.to_csv())


def make_difference(folder: Path) -> None:
    save_difference(target(), target(1), folder / "difference.safetensors")


def use_difference(folder: Path) -> str:
    return digest(*weights(load_difference(target(), folder / "difference.safetensors")))


def make_accelerated(folder: Path) -> None:
    make_student(folder)
    fast = AcceleratedViT(target(), load_student(folder / "student"), 0.5)
    fast.save_pretrained(folder / "fast")


def use_accelerated(folder: Path) -> str:
    """An accelerated model's answer about one picture."""
    torch.manual_seed(1)
    with torch.no_grad():
        return digest(AcceleratedViT.from_pretrained(folder / "fast")(torch.rand(1, 3, 32, 32)).numpy())


def choose_points(folder: Path) -> str:
    """Points of a frontier, chosen, or read from where they were kept."""
    guides, images = {"center": CenterGuide((2, 2))}, MixedImages([dataset()], 8)
    return digest(*map(str, frontier.kept_points(folder, target(), guides, images, (1.2,))))


STATES = {
    "journal": State(make_journals, go_on, {"outcomes-*.jsonl": JOURNAL}),
    "table": State(tabulate, tabulate, {"table.csv": TABLE, "table.parquet": BYTES}),
    "table of earlier guides": State(tabulate, lambda folder: tabulate(folder, "rollout"), {"table.csv": TABLE}),
    "maps": State(make_maps, teach_maps, {"maps/settings.json": SETTINGS, "maps/view0-000000000.safetensors": BYTES}),
    "training": State(
        make_training,
        teach,
        {
            "student/checkpoint.json": SETTINGS,
            "student/epoch-*/optimizer.bin": BYTES,
            "student/epoch-*/model.safetensors": BYTES,
            "student/epoch-*/random_states_0.pkl": {cut: 1 for cut in list(BYTES)[1:]},
            "maps/view0-000000032.safetensors": BYTES,
        },
    ),
    "student": State(make_student, use_student, {"student/config.json": SETTINGS, "student/model.safetensors": BYTES}),
    "tuning": State(make_tuning, tune, {"tuned/state.safetensors": BYTES}),
    "teaching": State(make_teaching, teach_on, {"taught/state.safetensors": BYTES}),
    "difference": State(make_difference, use_difference, {"difference.safetensors": BYTES}),
    "accelerated": State(
        make_accelerated,
        use_accelerated,
        {
            "fast/accelerated.json": SETTINGS,
            "fast/target/config.json": SETTINGS,
            "fast/target/model.safetensors": BYTES,
            "fast/student/config.json": SETTINGS,
            "fast/student/model.safetensors": BYTES,
        },
    ),
    "points": State(choose_points, choose_points, {"points-*.json": SETTINGS}),
    "video parts": State(
        make_parts, draw_video, {"out.mp4.parts/000001*.nut": BYTES, "out.mp4.parts/settings.json": SETTINGS}
    ),
    "headlines": State(make_headlines, lambda folder: repr(read_headlines(folder)), {"headlines.json": HEADLINES}),
}
