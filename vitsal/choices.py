"""What people choose by name or number, without torch: help and refusals come from here at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from vitsal.errors import UserError, check_choice, check_number

GUIDE_OPTIONS = {
    "rollout": ("model", "head_fusion", "discard_ratio"),
    "grad-rollout": ("model", "category_index", "discard_ratio"),
    "last-attention": ("model",),
    "grad-attention": ("model", "category_index"),
    "flow": ("model", "head_fusion", "discard_ratio"),
    "student": ("student",),
    "random": ("seed",),
    "center": (),
}  # which of `make_guide`'s options a guide takes; it passes over the others
GUIDES = tuple(GUIDE_OPTIONS)
METHODS = tuple(name for name in GUIDES if "model" in GUIDE_OPTIONS[name])  # those that explain a model
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
    "dropping": ("keep", "precision"),
    "student": ("student",),
    "pipeline": ("student", "keep", "precision"),
}  # with the options that each takes
PRECISIONS = ("float32", "bfloat16")
PICTURE_FORMATS = (
    *("eps", "gif", "jpg", "jpeg", "pdf", "pgf", "png", "ps", "raw", "rgba", "svg", "svgz", "tif", "tiff", "webp"),
    "avif",
)  # as matplotlib writes them
TABLE_FORMATS = ("csv", "parquet")
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
