"""Digit scenes: a labelled data set with known objects, made on the fly from files of two packages.

Real handwritten digits (``sklearn.datasets.load_digits``: 1,797 images of 8 x 8, UCI "Optical Recognition of
Handwritten Digits") are coloured, scaled, rotated, sheared and placed anywhere over crops of real photographs
(scikit-image's and scikit-learn's sample images), one to three in a scene, among shapes and fragments of digits. The
largest digit decides the label; the others, of other classes, have at most half of its side, and may be faint. Each
scene knows which of its pixels are which digit, so a saliency map can be checked against the object that it should
find, and a map for one class against another's. Nothing is downloaded.

Train and test share neither digits nor photographs: see ``PHOTOGRAPHS`` and ``digit_rows``.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import skimage
import sklearn.datasets
import torch
from PIL import Image, ImageDraw, ImageEnhance
from torch import Tensor
from torch.nn import functional as F

from vitsal.data.pictures import spread
from vitsal.errors import check_choice

AFFINE, BICUBIC, BILINEAR = Image.Transform.AFFINE, Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
SIZE = 112  # pixels on each side of a scene
GLYPH_CELL = 8  # pixels of a cached glyph per pixel of the 8 x 8 digit
GLYPH = 10 * GLYPH_CELL  # the digit and one empty pixel around it, so that strokes end inside the glyph
GAP = 3  # pixels at least between the boxes of two digits
PHOTOGRAPHS = {
    "train": (
        "astronaut.png", "brick.png", "camera.png", "flower.jpg", "grass.png", "gravel.png",
        "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg",
    ),
    "test": ("chelsea.png", "china.jpg", "coffee.png", "coins.png", "rocket.jpg"),
}  # fmt: skip
_load_digits = cache(sklearn.datasets.load_digits)


class Sizes(NamedTuple):
    """From and to: side of the largest digit's 8 x 8 box in pixels, and the others' as a share of it."""

    largest: tuple[float, float]
    others: tuple[float, float]


LARGE = Sizes((60, 72), (0.35, 0.5))  # a fifth of the patches: it matters which of a digit's patches are kept
SMALL = Sizes((42, 54), (0.45, 0.65))  # an eighth: few enough to learn fast from (`vitsal.embedded.train`)


class Pose(NamedTuple):
    """Where a digit lies: center (x, y) and side of its 8 x 8 box in pixels, rotation in radians, shear."""

    center: np.ndarray
    side: float
    angle: float
    shear: float


class Digit(NamedTuple):
    """One digit of a scene: its label, mask of its ink (112, 112) bool, side of its 8 x 8 box in pixels, its source."""

    label: int
    mask: np.ndarray
    side: float
    row: int  # in sklearn.datasets.load_digits()


class Scene(NamedTuple):
    """Image (112, 112, 3) uint8, and what it was made of: digits, the largest first, and a photograph."""

    image: np.ndarray
    digits: tuple[Digit, ...]
    photograph: str

    @property
    def label(self) -> int:
        """The largest digit's."""
        return self.digits[0].label

    @property
    def mask(self) -> np.ndarray:
        """The largest digit's, (112, 112) bool."""
        return self.digits[0].mask


@cache
def digit_rows(split: str) -> np.ndarray:
    """Rows of ``load_digits()`` of a split, int64: every fourth is "test", the others "train"; or a UserError."""
    check_choice("split", split, PHOTOGRAPHS)
    rows = np.arange(len(_load_digits().target))
    return rows[(rows % 4 == 3) == (split == "test")]


@cache
def enlarged_digit(row: int, side: int) -> np.ndarray:
    """A handwritten digit, row `row` of ``load_digits()``, light on dark and smoothly enlarged: (side, side) uint8."""
    padded = np.pad(_load_digits().images[row] / 16 * 255, 1).astype(np.uint8)  # an empty pixel around it
    return np.asarray(Image.fromarray(padded).resize((side, side), BICUBIC))


def photographs(*names: str) -> dict[str, Image.Image]:
    """Photographs that come with scikit-image and scikit-learn, RGB: name of a file -> picture, or FileNotFoundError.

    Example:
        >>> photographs("chelsea.png")["chelsea.png"].size
        (451, 300)
    """
    return {name: Image.open(_photograph_file(name)).convert("RGB") for name in names}


def _photograph_file(name: str) -> Path:
    for folder in (Path(skimage.data_dir), Path(sklearn.datasets.__file__).parent / "images"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"photograph {name!r} comes with neither scikit-image nor scikit-learn")


@cache
def _small_photograph(name: str) -> Image.Image:
    """At most three scenes wide: larger would only make every crop slower."""
    image = photographs(name)[name]
    image.thumbnail((3 * SIZE, 3 * SIZE))
    return image


def _ink(glyph: np.ndarray, pose: Pose) -> np.ndarray:
    """Opacity of the ink, (112, 112) float32 in 0..1: the glyph in its pose, edges sharpened."""
    cos, sin = np.cos(pose.angle), np.sin(pose.angle)
    matrix = 8 * GLYPH_CELL / pose.side * np.array([[1, pose.shear], [0, 1]]) @ np.array([[cos, sin], [-sin, cos]])
    offset = GLYPH / 2 - matrix @ pose.center
    data = (*matrix[0], offset[0], *matrix[1], offset[1])
    image = Image.fromarray(glyph).transform((SIZE, SIZE), AFFINE, data, BILINEAR)
    return np.clip((np.asarray(image, np.float32) / 255 - 0.46) * 6, 0, 1)


def _standout_colour(rng: np.random.Generator, background: np.ndarray) -> np.ndarray:
    """Of 4 random bright colours the one farthest from the mean background: whatever is painted shows."""
    colours = rng.uniform(60, 255, (4, 3)).astype(np.float32)
    colours[range(4), rng.integers(3, size=4)] = 255
    return colours[((colours - background) ** 2).sum(1).argmax()]


def _crop(rng: np.random.Generator, photograph: Image.Image) -> Image.Image:
    side = rng.uniform(SIZE, min(photograph.size))
    left, top = rng.uniform(0, np.array(photograph.size) - side)
    box = (left, top, left + side, top + side)
    crop = photograph.resize((SIZE, SIZE), BILINEAR, box, reducing_gap=1.0)
    return ImageEnhance.Brightness(crop).enhance(0.5)


def _outline(rng: np.random.Generator, radius: float) -> np.ndarray:
    """Corners (n, 2) of a disc, bar, cross or triangle about the origin, turned at random."""
    shape = rng.integers(4)
    if shape == 0:
        turns = np.linspace(0, 2 * np.pi, 24)
        points = np.stack([np.cos(turns), rng.uniform(0.5, 1) * np.sin(turns)], 1)
    elif shape == 1:
        points = np.array([[-1, -0.25], [1, -0.25], [1, 0.25], [-1, 0.25]])
    elif shape == 2:
        quarter = np.array([[1, -0.25], [1, 0.25], [0.25, 0.25]])
        turns = [(1, 0), (0, 1), (-1, 0), (0, -1)]
        points = np.concatenate([quarter @ np.array([[c, s], [-s, c]]) for c, s in turns])
    else:
        points = np.array([[0, -1], [0.87, 0.5], [-0.87, 0.5]])
    cos, sin = np.cos(angle := rng.uniform(0, 2 * np.pi)), np.sin(angle)
    return radius * points @ np.array([[cos, sin], [-sin, cos]])


def _poses(rng: np.random.Generator, sides: Sequence[float], taken: Sequence[Pose]) -> list[Pose]:
    """A pose for each side, anywhere in the scene but in no box that is taken; none where no room is found."""
    poses = list(taken)
    for side in sides:
        for center in rng.uniform(side / 2 + 1, SIZE - side / 2 - 1, (20, 2)):
            if all(np.abs(center - pose.center).max() > (side + pose.side) / 2 + GAP for pose in poses):
                poses.append(Pose(center, side, rng.uniform(-0.2, 0.2), rng.uniform(-0.15, 0.15)))
                break
    return poses[len(taken) :]


def _backdrop(rng: np.random.Generator, photograph: Image.Image, digits: Sequence[Pose]) -> np.ndarray:
    """Crop of a photograph with up to four shapes beside the digits, (112, 112, 3) float32."""
    crop = _crop(rng, photograph)
    background = np.asarray(crop.reduce(8)).mean((0, 1))
    layer = Image.new("RGBA", (2 * SIZE, 2 * SIZE))  # twice the size, halved below: smooth edges
    draw = ImageDraw.Draw(layer)
    for _ in range(rng.integers(2, 5)):
        radius, center = rng.uniform(3.5, 8), rng.uniform(0, SIZE, 2)
        if all(np.abs(center - pose.center).max() > pose.side / 2 + radius for pose in digits):
            outline, colour = _outline(rng, radius), _standout_colour(rng, background)
            draw.polygon([tuple(point) for point in 2 * (center + outline)], fill=tuple(colour.astype(int)))
    crop.paste(shapes := layer.reduce(2), mask=shapes)
    return np.asarray(crop, np.float32)


def _fragment(rng: np.random.Generator, glyph: np.ndarray) -> np.ndarray:
    """Less than half of a glyph: what lies beyond a line at a random angle."""
    angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.1) * GLYPH
    y, x = np.mgrid[:GLYPH, :GLYPH] - (GLYPH - 1) / 2
    return glyph * (np.cos(angle) * x + np.sin(angle) * y > offset).astype(np.uint8)


def _paint(rng: np.random.Generator, image: np.ndarray, ink: np.ndarray, faintest: float) -> np.ndarray:
    """Paint over ``image``, in place, with a colour that stands out there, at random opacity; the mask of the ink."""
    pixels, inked = image.reshape(-1, 3), np.flatnonzero(ink)
    under, opacity = pixels[inked], rng.uniform(faintest, 1) * ink.ravel()[inked, None]
    mean = under.sum(0) / max(len(under), 1)  # a fragment may have no ink
    pixels[inked] = under + opacity * (_standout_colour(rng, mean) - under)
    return ink > 0


def make_scene(split: str, seed: int, index: int, sizes: Sizes = LARGE) -> Scene:
    """Scene ``index`` of a split: the same arguments give the same bits, whatever was made before.

    No two digits of a scene have the same label, so that a class means one of them.
    """
    rng = np.random.default_rng([list(PHOTOGRAPHS).index(split), seed, index])
    photograph = str(rng.choice(PHOTOGRAPHS[split]))
    side = rng.uniform(*sizes.largest)
    others = side * -np.sort(-rng.uniform(*sizes.others, rng.choice(3, p=(0.1, 0.5, 0.4))))
    poses = _poses(rng, [side, *others], [])
    image = _backdrop(rng, _small_photograph(photograph), poses)
    for pose in _poses(rng, rng.uniform(26, 46, rng.integers(1, 4)), poses):
        _paint(rng, image, _ink(_fragment(rng, enlarged_digit(rng.choice(digit_rows(split)), GLYPH)), pose), 0.4)
    digits = []
    labels = rng.permutation(10)[: len(poses)].tolist()
    for pose, label in zip(poses, labels, strict=True):
        row = int(rng.choice(_rows_of(split, label)))
        mask = _paint(rng, image, _ink(enlarged_digit(row, GLYPH), pose), 0.3 if digits else 0.6)
        digits.append(Digit(label, mask, float(pose.side), row))
    return Scene(image.astype(np.uint8), tuple(digits), photograph)


@cache
def _rows_of(split: str, label: int) -> np.ndarray:
    rows = digit_rows(split)
    return rows[_load_digits().target[rows] == label]


def patch_masks(masks: Sequence[np.ndarray] | np.ndarray | Tensor, grid_size: tuple[int, int]) -> Tensor:
    """Which patches an object touches: pixel masks (B, H, W), bool -> (B, gh, gw), bool."""
    pixels = torch.from_numpy(np.asarray(masks)).float()[:, None]
    return F.adaptive_max_pool2d(pixels, grid_size)[:, 0] > 0


class DigitScenes(torch.utils.data.Dataset):
    """Scenes of one to three digits: ``dataset[i]`` is (image, label), ``dataset.mask(i)`` the largest digit's pixels.

    The image is a ``PIL.Image`` (RGB, 112 x 112), or what ``transform`` makes of it; the label is the largest digit.
    Scene i depends on (split, seed, i) only, so a larger data set begins with the scenes of a smaller one; another
    seed, non-negative, gives other scenes of the same digits and photographs. UserError for an unknown split.

    Example:
        >>> scenes = DigitScenes("test", size=100)
        >>> image, label = scenes[3]
        >>> scenes.mask(3).shape
        (112, 112)
        >>> [digit.label for digit in scenes.scene(1).digits]  # the largest first
        [2, 5, 4]
    """

    classes: tuple[str, ...] = tuple("0123456789")

    def __init__(self, split: str = "test", size: int = 1000, seed: int = 0, transform: Callable | None = None) -> None:
        self.split = check_choice("split", split, PHOTOGRAPHS)
        self.size, self.seed, self.transform = size, seed, transform

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Any, int]:
        scene = self.scene(index)
        image = Image.fromarray(scene.image)
        return (self.transform(image) if self.transform else image), scene.label

    read = __getitem__

    def scene(self, index: int) -> Scene:
        """Everything known about a scene; IndexError outside 0 .. len - 1."""
        if not 0 <= index < self.size:
            raise IndexError(f"scene {index} of {self.size}")
        return make_scene(self.split, self.seed, index)

    def spread(self, limit: int | None) -> list[Scene]:
        """The scenes of which `vitsal.batches(dataset, ..., limit=limit)` shows the images, in its order."""
        return [self.scene(index) for index in spread(len(self), limit)]

    def mask(self, index: int) -> np.ndarray:
        """Pixels of the largest digit's ink, (112, 112) bool; IndexError outside 0 .. len - 1."""
        return self.scene(index).mask

    def name(self, index: int) -> str:
        """A name for listings, such as "digits/test/000012"."""
        return f"digits/{self.split}/{index:06d}"

    def stamp(self, index: int) -> str:
        """Seed and number, and a hash that tells another recipe, or other photographs, apart."""
        return f"{self.seed} {index} {_recipe(self.split, self.seed)}"


@cache
def _recipe(split: str, seed: int) -> str:
    """A hash of the first three scenes."""
    pixels = b"".join(make_scene(split, seed, index).image.tobytes() for index in range(3))
    return hashlib.sha256(pixels).hexdigest()[:12]
