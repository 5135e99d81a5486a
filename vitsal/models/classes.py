"""Names of a model's classes, the classes that it thinks likeliest, and whether it has any."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn

from vitsal.errors import UserError


@dataclass(frozen=True)
class Prediction:
    """A class, by number and name, and the probability that the model gives it."""

    index: int
    name: str
    probability: float

    def __str__(self) -> str:
        return f"{self.name} ({100 * self.probability:.0f} %)"


def class_names(model: nn.Module) -> list[str]:
    """A name for each of the model's classes, its first synonym where it has several.

    Names that the model brings along from the hub, or ImageNet's for its numbers of classes (1,000, 21,841, ...), or
    else the numbers.
    """
    own = model.pretrained_cfg.get("label_names") or []
    if len(own) == model.num_classes:
        return [str(name) for name in own]
    subset = infer_imagenet_subset(model)
    return list(_imagenet_names(subset)) if subset else [str(index) for index in range(model.num_classes)]


@cache
def _imagenet_names(subset: str) -> tuple[str, ...]:
    """Read once: timm looks its names up in files anew each time, which would delay every picture that is explored."""
    return tuple(description.partition(",")[0] for description in ImageNetInfo(subset).label_descriptions())


def top_classes(logits: Tensor, names: list[str], count: int = 5) -> list[Prediction]:
    """The likeliest classes of one image, likeliest first: (classes,) -> `count` of them, or all there are."""
    probabilities = logits.detach().softmax(dim=0)
    likeliest = probabilities.topk(min(count, len(names))).indices.tolist()
    return [Prediction(index, names[index], float(probabilities[index])) for index in likeliest]


def check_answering(target: nn.Module) -> None:
    """Raise UserError unless a target has answers that can be compared: a classifier, and eval mode."""
    if not target.num_classes:
        raise UserError("The target has no classifier, so it has no answers; choose a model with a head.")
    if target.training:
        raise UserError("The target is in training mode, and answers at random: call its eval() first.")
