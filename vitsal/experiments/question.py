"""What a drop experiment asks, checked, and what identifies its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import timm
import torch
from torch import nn

import vitsal
from vitsal.data.images import LabelledImages, describe_transform
from vitsal.data.labels import check_classes
from vitsal.errors import UserError
from vitsal.experiments.journal import Cell, Row
from vitsal.guides.factory import Guide, models_in
from vitsal.jobs.devices import device_name
from vitsal.jobs.identity import describe, question_hash
from vitsal.jobs.processes import computed_precision, make_accelerator
from vitsal.models.sizes import resized_each
from vitsal.reduction.reduction import Reduction, as_reduction, check_reduction

ANY_GUIDE = "any"  # keeping all patches is the untouched target, whoever chooses


@dataclass(frozen=True)
class Question:
    """How well a target does on a data set that it sees reduced, for each guide and reduction; see `drop_curve`.

    Raises:
        UserError: no guide, no reduction, a keep ratio outside (0, 1], or a reduction that the target does not allow; a
            target, or a model in a guide, in training mode; a target without a classifier, or data whose classes cannot
            be its own.
    """

    target: nn.Module
    guides: Mapping[str, Guide]
    dataset: LabelledImages
    reductions: tuple[float | Reduction, ...]
    limit: int | None = None

    def __post_init__(self) -> None:
        if not self.guides or not self.reductions:
            raise UserError("A drop curve needs at least one guide and one keep ratio.")
        for reduction in self.by_code.values():
            check_reduction(self.targets[reduction.input_size], reduction)
        for name, part in {"target": self.target, **self.guides}.items():
            if any(module.training for model in models_in(part) for module in model.modules()):
                raise UserError(
                    f"The {name} is in training mode, and answers at random: call its model's eval() first."
                )
        if not self.target.num_classes:
            raise UserError("The target has no classifier, so its accuracy cannot be told; choose a model with a head.")
        check_classes(self.dataset, self.target)

    @cached_property
    def guide_ids(self) -> dict[str, str]:
        """Guide's name -> hash of its kind, weights and settings; of a function, another one on each process."""
        return {name: question_hash({"guide": describe(guide)}) for name, guide in self.guides.items()}

    @cached_property
    def by_code(self) -> dict[float | str, Reduction]:
        """Reductions under what the journal calls them: by their keep ratio where that is all, else by their text."""
        asked = [as_reduction(reduction) for reduction in self.reductions]
        return {reduction.code: reduction for reduction in asked}

    @cached_property
    def targets(self) -> dict[tuple[int, int] | None, nn.Module]:
        """Input size -> the target of that size, of the same weights; None is its own."""
        return resized_each(self.target, (reduction.input_size for reduction in self.by_code.values()))

    @cached_property
    def cells(self) -> dict[tuple[str, float | Reduction], Cell]:
        """(guide's name, reduction) -> under what the journal keeps it: who chooses, and how the target is reduced.

        What is done to the target is told here, and done in `vitsal.experiments.evaluation`.
        """
        asked = product(self.guides, self.by_code.items())
        return {
            (name, reduction.key): (self.guide_ids[name] if reduction.guided else ANY_GUIDE, code)
            for name, (code, reduction) in asked
        }

    @cached_property
    def keys(self) -> dict[int, str] | None:
        """What tells each sample and its content, as it is before the work; None for a stream."""
        return self.dataset.keys(self.dataset.numbers(self.limit))

    @cached_property
    def subject(self) -> dict[str, str]:
        """What predictions are about: only those of one subject are kept in one journal."""
        return {
            "target": describe(self.target),
            "data": self.dataset.place,
            "transform": describe_transform(self.dataset.transform),
            "precision": computed_precision(make_accelerator()),
        }

    @cached_property
    def about(self) -> dict[str, Any]:
        """All that identifies the results, for the results table; device and versions are this run's."""
        seeds = {name: getattr(guide, "seed", None) for name, guide in self.guides.items()}
        return {
            "target_id": self.subject["target"],
            "guides": {name: {"guide_id": self.guide_ids[name], "seed": seed} for name, seed in seeds.items()},
            "data": self.dataset.source,
            "data_id": self.dataset.fingerprint(self.keys),
            "limit": self.limit,
            "precision": self.subject["precision"],
            "device": device_name(next(self.target.parameters()).device),
            "vitsal": vitsal.__version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
        }

    def check_unchanged(self, rows: Sequence[Row]) -> None:
        """Raise UserError if one of these samples, which have been read, is not what it was when the work began."""
        now = self.dataset.keys([row.index for row in rows])
        for row in rows:
            if now and now[row.index] != self.keys[row.index]:
                raise UserError(
                    f"{row.name} was changed during the work; what was done before is kept: start it again."
                )
