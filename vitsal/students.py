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
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, resolve_data_config
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from vitsal.errors import UserError, suggestion
from vitsal.files import locked, read_json
from vitsal.identity import checksum, weights_fingerprint

ARCHITECTURES = ("convnet", "transformer")
CELL = 4  # pixels of the input on each side of one cell of the grid, by default
LARGEST = {"grid_size": 256, "input_size": 1024, "width": 1024}  # what a config.json may ask memory for
UNFINISHED, WEIGHTS = ".unfinished", "model.safetensors"
EMBEDDED_STUDENTS = Path(__file__).parent / "embedded" / "students"
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
        architecture: "convnet", "transformer", or the name of a timm model that gives feature maps.
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
        _check_scale(mean, std)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self.network = _make_network(architecture, self.grid_size, self.input_size, width)
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
        parameters = sum(values.numel() for values in self.parameters())
        sizes = {"grid_size": list(self.grid_size), "input_size": list(self.input_size)}
        return {"architecture": self.architecture, **sizes, "parameters": parameters}

    def no_weight_decay(self) -> set[str]:
        """Names that timm's optimizer factory exempts from weight decay."""
        return {"position", "network.tokens.pos_embed"}

    def _save_pretrained(self, save_directory: Path) -> None:
        """What the mixin calls; its own would not write a checksum."""
        weights = {name: values.detach().cpu().clone() for name, values in self.state_dict().items()}
        save_file(weights, save_directory / WEIGHTS, {"format": "pt", "checksum": checksum(weights)})

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
        with safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            promised = (file.metadata() or {}).get("checksum")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged, or not there: {error}") from error
    if promised and promised != checksum(weights):
        raise UserError(f"{path} is damaged")
    return weights


def _whole(what: str, numbers: Sequence[int]) -> tuple[int, ...]:
    """Whole numbers in the range that `what` may have; sizes are two."""
    numbers = tuple(numbers)
    fine = all(type(number) is int and 0 < number <= LARGEST[what] for number in numbers)
    if fine and len(numbers) == (1 if what == "width" else 2):
        return numbers
    wanted = "a whole number" if what == "width" else "two whole numbers"
    raise UserError(f"A student's {what} must be {wanted} from 1 to {LARGEST[what]}; got {list(numbers)}.")


def _check_scale(mean: Sequence[float], std: Sequence[float]) -> None:
    values = [*mean, *std]
    if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, values)) or min(std) <= 0:
        raise UserError(f"A student's mean and std must be three finite numbers each, std positive; got {mean}, {std}.")


def _make_network(architecture: str, grid_size: tuple[int, int], input_size: tuple[int, int], width: int) -> nn.Module:
    if architecture == "convnet":
        return ConvNet(grid_size, width)
    if architecture == "transformer":
        return Transformer(grid_size, input_size, width)
    return TimmNet(architecture, grid_size, input_size)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a short cut (He et al. 2016, arXiv:1512.03385, figure 2)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        same = stride == 1 and channels_in == channels_out
        projection = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
        self.shortcut = nn.Identity() if same else nn.Sequential(projection, nn.BatchNorm2d(channels_out))

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h / stride, w / stride)."""
        return F.relu(self.convolutions(features) + self.shortcut(features))


class ConvNet(nn.Module):
    """A ResNet-like convnet: three stages of strides 2, 4 and 8, the last laid over the middle one.

    The coarse stage sees most of the image at once; adding it to the finer one, as feature pyramids do (Lin et al.
    2017, arXiv:1612.03144), tells each cell what else there is.
    """

    def __init__(self, grid_size: tuple[int, int], width: int) -> None:
        super().__init__()
        fine, middle, coarse = width, 2 * width, 4 * width
        self.grid_size = grid_size
        self.stem = nn.Sequential(
            nn.Conv2d(3, fine, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(fine), nn.ReLU()
        )
        self.middle = nn.Sequential(ResidualBlock(fine, fine, 1), ResidualBlock(fine, middle, 2))
        self.coarse = nn.Sequential(ResidualBlock(middle, coarse, 2), nn.Conv2d(coarse, middle, 1))
        self.fuse = nn.Sequential(
            nn.Conv2d(middle, middle, 3, padding=1, bias=False), nn.BatchNorm2d(middle), nn.ReLU()
        )
        self.head = nn.Conv2d(middle, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, gh, gw)."""
        middle = self.middle(self.stem(images))
        context = F.interpolate(self.coarse(middle), middle.shape[-2:])
        logits = self.head(self.fuse(middle + context))
        return fit_grid(logits, self.grid_size)[:, 0]


class Transformer(nn.Module):
    """A small ViT without class token: its tokens are the cells of the grid."""

    def __init__(self, grid_size: tuple[int, int], input_size: tuple[int, int], width: int) -> None:
        super().__init__()
        patch_size = tuple(pixels // cells for pixels, cells in zip(input_size, grid_size, strict=True))
        if any(p * cells != pixels for p, cells, pixels in zip(patch_size, grid_size, input_size, strict=True)):
            raise UserError(
                f"A transformer student's input, {input_size}, must be a multiple of its grid, {grid_size}: "
                f"{tuple(CELL * cells for cells in grid_size)}, for example."
            )
        if width % 2:
            raise UserError(f"A transformer student's width must be even, for four heads; got {width}.")
        self.grid_size = grid_size
        self.tokens = VisionTransformer(
            input_size, patch_size, embed_dim=2 * width, depth=3, num_heads=4, num_classes=0, class_token=False,
            global_pool="",
        )  # fmt: skip
        self.head = nn.Linear(2 * width, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, gh, gw)."""
        return self.head(self.tokens(images))[..., 0].unflatten(1, self.grid_size)


class TimmNet(nn.Module):
    """Any timm model that gives feature maps: each is projected and laid on the grid, and their sum read out."""

    def __init__(self, name: str, grid_size: tuple[int, int], input_size: tuple[int, int], channels: int = 64) -> None:
        super().__init__()
        self.grid_size = grid_size
        self.backbone = make_backbone(name, input_size)
        self.projections = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in self.backbone.feature_info.channels())
        self.head = nn.Conv2d(channels, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, gh, gw)."""
        laid = [
            fit_grid(projection(_channels_first(features, projection.in_channels)), self.grid_size)
            for features, projection in zip(self.backbone(images), self.projections, strict=True)
        ]
        return self.head(F.relu(sum(laid)))[:, 0]


def _channels_first(features: Tensor, channels: int) -> Tensor:
    """Swin and its kin give (B, h, w, C)."""
    return features if features.shape[1] == channels else features.movedim(-1, 1)


def fit_grid(features: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """Lay feature maps on a grid of another size: (B, C, h, w) -> (B, C, gh, gw)."""
    if features.shape[-2:] == grid_size:
        return features
    return F.interpolate(features, grid_size, mode="bilinear", antialias=True)


def downsample(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Shrink images by the mean over each area, (B, 3, H, W) -> (B, 3, h, w), as students are trained and used."""
    return images if images.shape[-2:] == size else F.interpolate(images, size, mode="area")


def make_backbone(name: str, input_size: tuple[int, int], pretrained: bool = False) -> nn.Module:
    """A timm model that gives feature maps, for images of `input_size`, (h, w).

    Raises:
        UserError: timm has none of this name, it gives no feature maps, or its weights cannot be had.
    """
    _check_known(name)
    for options in ({"img_size": input_size}, {}):  # ViTs must be told, convnets refuse to be
        try:
            backbone = timm.create_model(name, features_only=True, pretrained=pretrained, **options).eval()
            with torch.no_grad():
                backbone(torch.zeros(1, 3, *input_size))  # now, and not after all maps are computed
            return backbone.train()
        except TypeError:
            continue
        except Exception as error:  # each family of timm's has its own way to refuse a size
            reason = str(error) or type(error).__name__
            raise UserError(
                f"timm's {name!r} cannot be a student's backbone for images of {input_size}: {reason}"
            ) from error
    raise UserError(f"timm's {name!r} cannot be a student's backbone: it gives no feature maps.")


def _check_known(name: str) -> None:
    if not timm.is_model(name):
        raise UserError(
            f"Unknown architecture {name!r}.{suggestion(name, [*ARCHITECTURES, *timm.list_models()])} "
            f"Known: {', '.join(ARCHITECTURES)}, and the names of timm's models."
        )


def new_student(architecture: str, grid_size: Sequence[int], *, pretrained: bool = False, **options: Any) -> Student:
    """A student before its first lesson: random weights, or, with `pretrained`, a timm model's from its hub.

    Args:
        architecture, grid_size, options: as `Student` takes them.
        pretrained: only for a timm model.

    Raises:
        UserError: see `Student` and `make_backbone`; pretrained weights for an architecture that has none.
    """
    options = {"input_size": [CELL * cells for cells in grid_size], **options}  # so that its config says it
    if not pretrained:
        return Student(architecture, grid_size, **options)
    if architecture in ARCHITECTURES:
        raise UserError(f"A {architecture} student has no pretrained weights; name a timm model instead.")
    _check_known(architecture)
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
    folder = Path(folder)
    unfinished = folder / UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        student.save_pretrained(unfinished)
        for path in sorted(unfinished.iterdir()):
            path.chmod(0o644)
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def load_student(name: str | Path, device: str | torch.device = "cpu") -> Student:
    """Load a student in eval mode.

    Args:
        name: a folder that `save_pretrained` wrote, the name of an embedded one, such as
            "digits-convnet-rollout", or a hub name.
        device: where to put it.

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

    Args:
        names: as `load_student` takes them, with commas between them; a folder of students stands for all in it.
        device: where to put them.

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
