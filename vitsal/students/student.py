"""Students: small, fast models that predict a teacher's saliency from a downsampled image."""

from __future__ import annotations

import io
import math
import os
import shutil
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import PyTorchModelHubMixin
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, resolve_data_config
from torch import Tensor, nn

from vitsal.choices import CELL
from vitsal.errors import UserError
from vitsal.jobs.files import locked, read_json
from vitsal.jobs.identity import weights_fingerprint
from vitsal.jobs.tensors import DamagedError, read_tensors, write_tensors
from vitsal.students.networks import OWN, check_known, make_backbone, make_network

LARGEST = {"grid_size": 256, "input_size": 1024, "width": 1024}  # what a config.json may ask memory for
WEIGHTS = "model.safetensors"
EMBEDDED_STUDENTS = Path(__file__).parents[1] / "embedded" / "students"
MODEL_CARD = """---
{{ card_data }}
---

A student of vitsal: it predicts from a small image which patches will matter to a Vision Transformer. Load it with
`vitsal.students.load_student`; `config.json` says what it was taught.
"""


class Student(nn.Module, PyTorchModelHubMixin, library_name="vitsal", model_card_template=MODEL_CARD):
    """Predicts saliency, as logits over the cells of a patch grid, from a small image.

    huggingface_hub's mixin gives it `save_pretrained` (`model.safetensors` and `config.json`, which holds the arguments
    below), `push_to_hub` and `from_pretrained`; `load_student` reads it from a folder or a hub name.

    Args:
        architecture: "convnet", "transformer", the name of a timm model that gives feature maps, or "position", which
            learns where objects mostly are and looks at no image.
        grid_size: (gh, gw), the teacher's patch grid.
        input_size: (h, w) of the images it takes; None is 4 pixels for each cell, 56 x 56 for a 14 x 14 grid.
        width: channels of the convnet's first stage, and half the transformer's; a timm model has its own.
        mean, std: normalisation of the pixels, per channel.
        lesson: what it was taught (teacher, method, data, loss), for the record; plain values.

    Attributes:
        start: fingerprint of the weights that it starts from, where they are not random: two starts, two trainings.

    Raises:
        UserError: unknown architecture, sizes or a normalisation that are none, or an input size that it cannot take.

    Example:
        >>> Student("convnet", grid_size=(14, 10))(torch.rand(2, 3, 56, 40)).shape
        torch.Size([2, 14, 10])
    """

    def __init__(
        self,
        architecture: str = "convnet",
        grid_size: Sequence[int] = (14, 14),
        input_size: Sequence[int] | None = None,
        width: int = 32,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
        lesson: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.architecture, self.lesson, self.start = architecture, lesson or {}, ""
        self.grid_size = _whole("grid_size", grid_size)
        self.input_size = _whole("input_size", input_size or [CELL * cells for cells in self.grid_size])
        (self.width,) = _whole("width", [width])
        if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, [*mean, *std])) or min(std) <= 0:
            raise UserError(
                f"A student's mean and std must be three finite numbers each, std positive; got {mean}, {std}."
            )
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self.network = make_network(architecture, self.grid_size, self.input_size, width)
        self.position = nn.Parameter(torch.zeros(self.grid_size))  # where objects mostly are, whatever the image shows

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of a batch: pixels (B, 3, h, w) in [0, 1] -> (B, gh, gw)."""
        return self.network((pixels - self.mean) / self.std) + self.position

    def saliency(self, pixels: Tensor) -> Tensor:
        """Predicted share of each cell in the whole map: pixels (B, 3, h, w) in [0, 1] -> (B, gh, gw), summing to 1."""
        logits = self(pixels)
        return logits.flatten(1).softmax(dim=1).view_as(logits)

    @property
    def configuration(self) -> dict[str, Any]:
        """All that its answers depend on besides its weights, as plain values."""
        sizes = {"grid_size": list(self.grid_size), "input_size": list(self.input_size), "width": self.width}
        scale = {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}
        return {"architecture": self.architecture, **sizes, **scale}

    @property
    def summary(self) -> dict[str, Any]:
        """What kind of student this is, as plain values."""
        kind = {name: self.configuration[name] for name in ("architecture", "grid_size", "input_size")}
        return {**kind, "parameters": sum(values.numel() for values in self.parameters())}

    def no_weight_decay(self) -> set[str]:
        """Names that timm's optimizer factory exempts from weight decay."""
        return {"position", "network.tokens.pos_embed"}

    def _save_pretrained(self, save_directory: Path) -> None:
        """What the mixin calls; its own would not write a checksum."""
        write_tensors(save_directory / WEIGHTS, self.state_dict())

    @classmethod
    def _load_as_safetensor(cls, model: Student, model_file: str, *options: Any) -> Student:
        """The mixin's, which would take weights that are damaged, whole numbers, or not finite."""
        weights, expected = _read_weights(model_file), model.state_dict()
        for name, values in weights.items():
            if name in expected and values.is_floating_point() != expected[name].is_floating_point():
                raise UserError(f"its weights {name} are of the type {str(values.dtype).removeprefix('torch.')}")
            if not values.isfinite().all():
                raise UserError(f"its weights {name} are not finite")
        return super()._load_as_safetensor(model, model_file, *options)


def _read_weights(path: str) -> dict[str, Tensor]:
    """Weights that fit their file's checksum; older files have none."""
    try:
        return read_tensors(path, unsigned=True)[0]
    except DamagedError as damage:
        raise UserError(f"{path} is damaged, or not there: {damage}") from damage


def _whole(what: str, numbers: Sequence[int]) -> tuple[int, ...]:
    """Whole numbers in the range that `what` may have; sizes are two."""
    count, wanted = (1, "a whole number") if what == "width" else (2, "two whole numbers")
    fine = all(type(number) is int and 0 < number <= LARGEST[what] for number in numbers)
    if not fine or len(numbers) != count:
        raise UserError(f"A student's {what} must be {wanted} from 1 to {LARGEST[what]}; got {list(numbers)}.")
    return tuple(numbers)


def new_student(
    architecture: str, grid_size: Sequence[int], *, pretrained: bool = False, seed: int | None = None, **options: Any
) -> Student:
    """A student, with the options of `Student`, before its first lesson: random weights, or a timm model's pretrained.

    `seed` is that of the random weights, and of all random numbers after them; None leaves torch's state as it is.

    Raises:
        UserError: see `Student` and `make_backbone`; pretrained weights for an architecture that has none.
    """
    if seed is not None:
        torch.manual_seed(seed)
    options = {"input_size": [CELL * cells for cells in grid_size], **options}  # so that its config says it
    if not pretrained:
        return Student(architecture, grid_size, **options)
    if architecture in OWN:
        raise UserError(f"A {architecture} student has no pretrained weights; name a timm model instead.")
    check_known(architecture)
    scale = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(architecture).to_dict())
    student = Student(architecture, grid_size, mean=scale["mean"], std=scale["std"], **options)
    student.network.backbone = make_backbone(architecture, student.input_size, pretrained=True)
    student.start = weights_fingerprint(student.network.backbone)
    return student


def save_student(student: Student, folder: str | Path) -> None:
    """Save a student so that a kill leaves each file old or new, and never half; of two writers one waits."""
    with locked(folder):
        write_student(student, folder)


def write_student(student: Student, folder: str | Path) -> None:
    """`save_student` for whoever holds the folder's lock; what a killed one has left is removed."""
    unfinished = Path(folder, ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        student.save_pretrained(unfinished)
        for path in sorted(unfinished.iterdir()):
            path.chmod(0o644)
            os.replace(path, Path(folder, path.name))
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def load_student(name: str | Path, device: str | torch.device = "cpu") -> Student:
    """Load a student in eval mode.

    It is named by a folder that `save_pretrained` wrote, or as the embedded "digits-convnet-rollout", or by a hub name.

    Raises:
        UserError: nothing there, or what is there is no student.
    """
    embedded = EMBEDDED_STUDENTS / name
    path = embedded if (embedded / "config.json").is_file() else Path(name)
    if path.is_file():
        raise UserError(f"{path} is a file. A student is a folder with config.json and model.safetensors.")
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(f"{path} is no student: it holds no config.json beside model.safetensors.")
    try:
        if path.is_dir():
            read_json(path / "config.json", "It may be damaged.")
        with redirect_stdout(io.StringIO()):  # the mixin prints that it reads a folder
            student = Student.from_pretrained(str(path if path.is_dir() else name), strict=True)
    except Exception as error:  # whatever a foreign config.json makes of the arguments, or the hub of the name
        reason = " ".join(str(error).split())[:300]
        known = ", ".join(sorted(folder.name for folder in EMBEDDED_STUDENTS.glob("*/")))
        raise UserError(
            f"{str(name)!r} is no student ({reason}). Give a folder or a hub name that holds config.json and "
            f"model.safetensors as `vitsal train-student` writes them, or an embedded one: {known}."
        ) from error
    student.start = weights_fingerprint(student)
    return student.eval().to(device)


def load_students(names: str, device: str | torch.device = "cpu") -> dict[str, Student]:
    """Load several students: the last part of a student's name -> student.

    Names, as `load_student` takes them, have commas between them; a folder of students stands for all in it.

    Raises:
        UserError: one of them is no student, or two have the same last part.
    """
    if not all(map(str.strip, names.split(","))):
        raise UserError(f"The name of a student is missing between the commas: {names!r}.")
    paths = [path for name in names.split(",") for path in _students_in(name.strip())]
    labels = [Path(path).name for path in paths]
    if len(set(labels)) < len(labels):
        raise UserError(f"Students are told apart by the last part of their names, and two are alike: {names}.")
    return {label: load_student(path, device) for label, path in zip(labels, paths, strict=True)}


def _students_in(name: str) -> list[str]:
    """All students in a folder of students; otherwise the name itself."""
    configs = [] if Path(name, "config.json").is_file() else sorted(Path(name).glob("*/config.json"))
    return [str(config.parent) for config in configs] or [name]
