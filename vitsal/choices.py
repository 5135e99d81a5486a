"""What people choose by name or number, without torch: help and refusals come from here at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from vitsal.errors import LARGEST_COUNT, UserError, check_choice, check_number, check_whole

GUIDE_OPTIONS = {
    "rollout": ("model", "head_fusion", "discard_ratio"),
    "grad-rollout": ("model", "category_index", "discard_ratio"),
    "last-attention": ("model",),
    "grad-attention": ("model", "category_index"),
    "flow": ("model", "head_fusion", "discard_ratio"),
    "class-attention": ("model", "block"),
    "norm-change": ("model", "block"),
    "activation": ("network",),
    "student": ("student",),
    "random": ("seed",),
    "center": (),
}  # which of `make_guide`'s options a guide takes; it passes over the others
GUIDES = tuple(GUIDE_OPTIONS)
METHODS = tuple(
    name for name, options in GUIDE_OPTIONS.items() if "model" in options and "block" not in options
)  # those that explain a model: one early block chooses patches, and knows nothing yet of the answer
PICTURED = (*METHODS, "heads")
VIT_EXPLAIN = {"head_fusion": "max", "discard_ratio": 0.9, "category_index": None}  # its defaults
TEACHERS = ("rollout", "grad-rollout")  # guides whose maps are learnt
HEAD_FUSIONS = ("mean", "max", "min")  # as `vitsal.guides.rollout` has them
LOSSES = ("kl", "bce", "mse", "rank")  # as `vitsal.students.losses` has them
ARCHITECTURES = ("convnet", "transformer")
POSITION = "position"  # a student that sees no pixel: a baseline
CELL = 4  # pixels of the input on each side of one cell of the grid, by default
STUDENTS = Path("runs") / "students"
BENCHMARKS = {
    "rollout": (),
    "dropping": ("keep", "merge", "input_size", "precision"),
    "student": ("student",),
    "pipeline": ("student", "keep", "merge", "input_size", "precision"),
}  # with the options that each takes
PRECISIONS = ("float32", "bfloat16")
RESTS = ("dropped", "coarse")  # what becomes of patches that are not kept
PICTURE_FORMATS = (
    *("eps", "gif", "jpg", "jpeg", "pdf", "pgf", "png", "ps", "raw", "rgba", "svg", "svgz", "tif", "tiff", "webp"),
    "avif",
)  # as matplotlib writes them
TABLE_FORMATS = ("csv", "parquet")
TUNABLE = (
    "*norm*",
    "*bias",
    "*.gamma*",
    "cls_token",
    "dist_token",
    "reg_token",
    "pos_embed",
)  # of a target's parameters
SEGMENT = 128  # frames per part: what a kill may cost
WIDEST = 16384  # pixels, as libx264 takes them


@dataclass(frozen=True)
class TrainingSettings:
    """How a student is trained.

    Args:
        loss: "kl", "bce", "mse" or "rank"; see `vitsal.students.losses`.
        epochs: passes over the training split.
        batch_size: images per optimizer step, over all processes and accumulated parts together.
        learning_rate, weight_decay: of AdamW; the rate warms up linearly and falls as half a cosine.
        geometry: crop and mirror cached images, and their maps with them. False where the cache holds views already.
        colours: strength of the change of brightness, contrast and saturation.
        accumulate: parts that a batch is computed in, where memory is short.
        patience: stop after so many epochs without a lower validation divergence; None never does.
        seed: of order and augmentation.

    Raises:
        UserError: unknown loss, a learning rate that is not positive, or a batch that has not so many equal parts.
    """

    loss: str = "kl"
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    geometry: bool = True
    colours: float = 0.4
    accumulate: int = 1
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("loss", self.loss, LOSSES)
        check_number("learning rate", self.learning_rate, 0, math.inf, open_end="low")
        if self.batch_size % self.accumulate:
            raise UserError(
                f"A batch of {self.batch_size} images cannot be split evenly into {self.accumulate} parts; choose a "
                f"multiple of {self.accumulate}."
            )


def _check_keep_ratios(ratios: tuple[float, ...]) -> None:
    """Raise UserError unless these are the lowest and the highest keep ratio of lessons."""
    for ratio in ratios:
        check_number("keep ratio", ratio, 0, 1, open_end="low")
    if len(ratios) != 2 or ratios[0] > ratios[1]:
        raise UserError(f"Keep ratios of lessons are two, the lowest and the highest; got {ratios}.")


@dataclass(frozen=True)
class AnswerSettings:
    """How a student is taught by the target's answers (`vitsal.tuning.teach_by_answers`).

    Args:
        epochs: passes over the images, but for those that are held out for the report.
        batch_size: images per step, over all processes together.
        learning_rate: of AdamW; it warms up linearly and falls as half a cosine.
        keep_ratios: lowest and highest of what is kept; their logarithm is uniform.
        soften: how attention is softened for fewer patches (`vitsal.Reduction`); None takes "1-" where the target
            allows it.
        limit: number of images of each data set, spread evenly; None takes all.
        seed: of order, keep ratios and noise.

    Raises:
        UserError: a number outside its range.
    """

    epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 3e-4
    keep_ratios: tuple[float, float] = (0.2, 0.7)
    soften: str | None = None
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in {"number of epochs": self.epochs, "batch size": self.batch_size}.items():
            check_whole(name, value, 1, LARGEST_COUNT)
        _check_keep_ratios(self.keep_ratios)
        check_number("learning rate", self.learning_rate, 0, math.inf, open_end="low")


@dataclass(frozen=True)
class TuningSettings:
    """How a target is made tolerant of what is done to it.

    Args:
        steps: optimizer steps; None is one pass over the images.
        batch_size: images per step, over all processes together.
        learning_rate: of AdamW; it warms up linearly and falls as half a cosine.
        whole: weight of what the target says of whole images, against what it says of reduced ones.
        parameters: names of the parameters that are tuned, with * for anything; the classifier never is.
        keep_ratios: lowest and highest of lessons in which patches are dropped; their logarithm is uniform.
        merges, sizes: schedules, and (H, W) in pixels, of lessons in which tokens are merged, or images smaller; None
            takes what suits the target (`vitsal.tuning.Lessons`).
        soften: how attention is softened for fewer patches (`vitsal.Reduction`), in these lessons; None takes "1-"
            where the target allows it.
        rests: what becomes of patches that are not kept (`vitsal.Reduction`), of these one in each lesson.
        shares: of the lessons in which patches are dropped, tokens merged, and images smaller.
        limit: number of images of each data set, spread evenly; None takes all.
        seed: of order and lessons.

    Raises:
        UserError: a number outside its range.
    """

    steps: int | None = None
    batch_size: int = 16
    learning_rate: float = 1e-3
    whole: float = 10.0
    parameters: tuple[str, ...] = TUNABLE
    keep_ratios: tuple[float, float] = (0.12, 0.6)
    merges: tuple[str, ...] | None = None
    sizes: tuple[tuple[int, int], ...] | None = None
    soften: str | None = None
    rests: tuple[str, ...] = RESTS[:1]
    shares: tuple[float, float, float] = (0.7, 0.15, 0.15)
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in {"number of steps": self.steps, "batch size": self.batch_size}.items():
            if value is not None:
                check_whole(name, value, 1, LARGEST_COUNT)
        _check_keep_ratios(self.keep_ratios)
        for share in self.shares:
            check_number("share of lessons", share, 0, math.inf, open_end="high")
        if len(self.shares) != 3 or not sum(self.shares):
            raise UserError(f"Shares of lessons are three, one above 0; got {self.shares}.")
        for rest in self.rests:
            check_choice("rest", rest, RESTS)
        check_number("learning rate", self.learning_rate, 0, math.inf, open_end="low")
        check_number("weight of whole images", self.whole, 0, math.inf, open_end="high")
