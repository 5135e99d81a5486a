"""The drop experiment: accuracy of a target when a guide chooses the patches that it sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from tqdm import tqdm

import vitsal
from vitsal.data.images import (
    IndexedImages,
    StreamedImages,
    data_fingerprint,
    data_place,
    describe_transform,
    image_loader,
    sample_keys,
)
from vitsal.data.labels import check_classes
from vitsal.data.pictures import spread, warn_of_skipped
from vitsal.errors import UserError, check_number
from vitsal.experiments.journal import UNREADABLE, Cell, Journal, Row, journal_file
from vitsal.experiments.outcomes import Outcomes
from vitsal.guides.factory import Guide
from vitsal.jobs.devices import device_name
from vitsal.jobs.identity import describe, question_hash
from vitsal.jobs.memory import Halving
from vitsal.jobs.processes import computed_precision, make_accelerator
from vitsal.models.tokens import grid_size
from vitsal.reduction.drop import embed_once, forward_kept
from vitsal.reduction.keep import top_k_patches

ANY_GUIDE = "any"  # keeping all patches is the untouched target, whoever chooses


def drop_curve(
    target: nn.Module,
    guides: Mapping[str, Guide],
    dataset: IndexedImages | StreamedImages,
    keep_ratios: Sequence[float],
    *,
    limit: int | None = None,
    **options: Any,
) -> Outcomes:
    """Let each guide choose the patches that the target sees, for each keep ratio, and note what it predicts.

    `DropExperiment(target, guides, dataset, keep_ratios, limit).run(**options)`; see there.
    """
    return DropExperiment(target, guides, dataset, tuple(keep_ratios), limit).run(**options)


@dataclass(frozen=True)
class DropExperiment:
    """What is asked: how well a target does on a data set, for each guide and keep ratio.

    Args:
        target: a timm ViT in eval mode.
        guides: name -> guide for images prepared for `target`.
        dataset: as `open_data` returns it, with the target's transform.
        keep_ratios: fractions of patches kept, each in (0, 1].
        limit: number of samples, spread evenly over an indexed data set, the first of a stream; None takes all.

    Raises:
        UserError: no guide, no keep ratio, or one outside (0, 1]; a target, or a model in a guide, in training mode; a
            target without a classifier, or data whose classes cannot be its own.
    """

    target: nn.Module
    guides: Mapping[str, Guide]
    dataset: IndexedImages | StreamedImages
    keep_ratios: tuple[float, ...]
    limit: int | None = None

    def __post_init__(self) -> None:
        if not self.guides or not self.keep_ratios:
            raise UserError("A drop curve needs at least one guide and one keep ratio.")
        for ratio in self.keep_ratios:
            check_number("keep ratio", ratio, 0, 1, open_end="low")
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
        """Guide's name -> hash of its kind, weights and settings; on all processes the same, so all must ask for it."""
        return _same_on_all({name: question_hash({"guide": describe(guide)}) for name, guide in self.guides.items()})

    @cached_property
    def keys(self) -> dict[int, str] | None:
        """What tells each sample and its content, as it is before the work; None for a stream."""
        streamed = isinstance(self.dataset, StreamedImages)
        return None if streamed else sample_keys(self.dataset, spread(len(self.dataset), self.limit))

    @cached_property
    def subject(self) -> dict[str, str]:
        """What predictions are about: only those of one subject are kept in one journal."""
        return {
            "target": describe(self.target),
            "data": data_place(self.dataset),
            "transform": describe_transform(self.dataset.transform),
            "precision": computed_precision(make_accelerator()),
        }

    @cached_property
    def about(self) -> dict[str, Any]:
        """All that identifies the results, for the results table; device and versions are this run's."""
        return {
            "target_id": self.subject["target"],
            "guides": {
                name: {"guide_id": self.guide_ids[name], "seed": getattr(guide, "seed", None)}
                for name, guide in self.guides.items()
            },
            "data": self.dataset.source,
            "data_id": data_fingerprint(self.dataset, self.keys),
            "limit": self.limit,
            "precision": self.subject["precision"],
            "device": device_name(next(self.target.parameters()).device),
            "vitsal": vitsal.__version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
        }

    @cached_property
    def cells(self) -> dict[tuple[str, float], Cell]:
        """(guide's name, keep ratio) -> under what the journal keeps it."""
        return {
            (name, ratio): (ANY_GUIDE if ratio == 1 else self.guide_ids[name], ratio)
            for name in self.guides
            for ratio in self.keep_ratios
        }

    def run(
        self,
        *,
        folder: str | Path | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        strict: bool = False,
        progress: bool = True,
    ) -> Outcomes:
        """Compute what is not known yet, on as many processes as accelerate's launcher has started.

        Each image is loaded and embedded once, each guide sees it once. Where memory runs out, batches are halved.
        Images that cannot be read are skipped and named at the end.

        Args:
            folder: where to keep a journal of the predictions, and to go on from; in memory only by default. What any
                earlier run with this folder has computed for this target and data is not computed again.
            batch_size: samples per batch and process.
            num_workers: processes that decode images; see `vitsal.data.batches`.
            strict: stop at an image that cannot be read.
            progress: show a bar.

        Raises:
            UserError: a label that the target does not have, answers or maps that cannot be used (`predict`), or, with
                `strict`, an image that cannot be read; an image that is replaced during the work.
        """
        accelerator = make_accelerator()
        leads = accelerator.is_main_process  # the journal is its business alone
        _ = self.cells  # on all processes, before one goes on alone
        journal = self._journal(folder) if leads else Journal()
        parts = _same_on_all(self._missing(journal) if leads else None)
        with self._progress_bar(journal, parts, progress and leads) as bar:
            for cells, indices in parts:
                for rows in self._answers(accelerator, cells, indices, batch_size, num_workers, strict):
                    if leads:
                        self._check_unchanged(rows)
                        journal.add(rows, cells)
                    bar.update(len(rows))
                to_the_end = isinstance(indices, slice) and indices.stop == self.limit
                if leads and to_the_end and (self.limit is None or journal.length < self.limit):
                    journal.end()
        known = replace(journal.outcomes(self._asked(journal), self.cells), about=self.about) if leads else None
        outcomes = _same_on_all(known)
        if leads:
            warn_of_skipped(outcomes.skipped)
        return outcomes

    def _journal(self, folder: str | Path | None) -> Journal:
        """What is known of the samples that are asked about, in memory, or from a file in `folder`."""
        return Journal(None if folder is None else journal_file(folder, self.subject), self.subject, self.keys)

    def _check_unchanged(self, rows: Sequence[Row]) -> None:
        """Raise UserError if one of these samples, which have been read, is not what it was when the work began."""
        if self.keys is None:
            return
        now = sample_keys(self.dataset, [row.index for row in rows])
        for row in rows:
            if now[row.index] != self.keys[row.index]:
                raise UserError(
                    f"{row.name} was changed during the work; what was done before is kept: start it again."
                )

    def _asked(self, journal: Journal) -> Sequence[int]:
        """Numbers of the samples that are asked about; of a stream, as far as it is known."""
        if isinstance(self.dataset, IndexedImages):
            return spread(len(self.dataset), self.limit)
        return range(journal.length if self.limit is None else min(journal.length, self.limit))

    def _missing(self, journal: Journal) -> list[tuple[list[Cell], list[int] | slice]]:
        """Parts of the work that are left: cells, and the samples that they are unknown for."""
        cells = list(dict.fromkeys(self.cells.values()))
        parts = journal.missing(self._asked(journal), cells)
        if isinstance(self.dataset, IndexedImages):
            return parts
        parts = [(wanted, slice(indices[0], indices[-1] + 1)) for wanted, indices in parts]
        ended = journal.length == journal.ended or (self.limit is not None and journal.length >= self.limit)
        return parts if ended else [*parts, (cells, slice(journal.length, self.limit))]

    def _progress_bar(self, journal: Journal, parts: list, progress: bool) -> tqdm:
        """Counts samples: once for each part of the work that they are in."""
        streamed = isinstance(self.dataset, StreamedImages)
        left = sum(len(indices) for _, indices in parts) if not streamed else (self.limit or 0)
        done = 0 if streamed else max(0, len(self._asked(journal)) - left)
        total = None if streamed and self.limit is None else done + left
        return tqdm(desc="drop curve", total=total, initial=done, unit="image", mininterval=1, disable=not progress)

    def _answers(
        self,
        accelerator: Accelerator,
        cells: Sequence[Cell],
        indices: list[int] | slice,
        batch_size: int,
        num_workers: int,
        strict: bool,
    ) -> Iterator[list[Row]]:
        """Rows of all processes together, step by step, in the data's order; padded samples are gone."""
        predict = Halving(lambda images: self.predict(images, cells))
        loader = accelerator.prepare(image_loader(self.dataset, indices, batch_size, num_workers))
        for batch in loader:
            with accelerator.autocast():
                rows = self._rows(batch, predict, len(cells), strict)
            yield accelerator.gather_for_metrics(rows, use_gather_object=True)

    def _rows(
        self, batch: Mapping[str, Tensor], predict: Callable[[Tensor], Tensor], num_cells: int, strict: bool
    ) -> list[Row]:
        """One row for each sample of a batch, in its order."""
        readable = batch["readable"].tolist()
        predictions: Iterator[list[int]] = iter(())
        if any(readable):
            check_labels(batch["labels"][batch["readable"]], self.target)
            predictions = iter(predict(batch["images"].to(next(self.target.parameters()).device)).tolist())
        rows = []
        for index, label, fine in zip(batch["indices"].tolist(), batch["labels"].tolist(), readable, strict=True):
            name = self.dataset.name(index)
            problem = "" if fine else self.dataset.problem(index) or "it could not be read at first"
            if strict and not fine:
                raise UserError(f"{name} cannot be read as an image: {problem}")
            rows.append(Row(index, name, label, problem, next(predictions) if fine else [UNREADABLE] * num_cells))
        return rows

    @torch.inference_mode()
    def predict(self, images: Tensor, cells: Sequence[Cell]) -> Tensor:
        """Classes that the target predicts: (B, 3, H, W) -> (B, number of cells).

        Raises:
            UserError: logits that are not finite, or a guide whose map is not on the target's grid.
        """
        names = {guide_id: name for name, guide_id in self.guide_ids.items()}
        chosen = {guide_id for guide_id, _ in cells} - {ANY_GUIDE}
        saliency = {guide_id: self._ask(names[guide_id], images) for guide_id in sorted(chosen)}
        predictions = []
        with embed_once(self.target, images):
            for guide_id, ratio in cells:
                if guide_id == ANY_GUIDE:
                    logits = self.target(images)
                else:
                    logits = forward_kept(self.target, images, top_k_patches(saliency[guide_id], ratio))
                _check_finite(logits)
                predictions.append(logits.argmax(dim=1))
        return torch.stack(predictions, dim=1)

    def _ask(self, name: str, images: Tensor) -> Tensor:
        """The map of a guide, which must be on the target's grid: (B, 3, H, W) -> (B, gh, gw)."""
        saliency, wanted = self.guides[name](images), (len(images), *grid_size(self.target, images))
        if tuple(saliency.shape) != wanted:
            raise UserError(f"The guide {name!r} gives maps {tuple(saliency.shape)} where the target has {wanted}.")
        return saliency


def models_in(value: Any) -> Iterator[nn.Module]:
    """The models in a guide, or the model that this is."""
    if isinstance(value, nn.Module):
        yield value
    elif is_dataclass(value):
        for part in fields(value):
            yield from models_in(getattr(value, part.name))


def _check_finite(logits: Tensor) -> None:
    if not logits.isfinite().all():
        bad = int((~logits.isfinite()).any(dim=1).sum())
        raise UserError(
            f"The target's answers are not finite for {bad} of {len(logits)} images: its weights are damaged, or the "
            "precision does not suffice."
        )


def _same_on_all(value: Any) -> Any:
    """What the main process has, on every process."""
    return broadcast_object_list([value])[0]


def check_labels(labels: Tensor, target: nn.Module) -> None:
    """Raise UserError if the target has not all of the classes that the data names."""
    if labels.min() < 0:
        raise UserError(
            f"The data has label {labels.min().item()}: this part of it is not labelled; choose another split."
        )
    if labels.max() >= target.num_classes:
        raise UserError(
            f"The data has class {labels.max().item()}, but the target knows classes 0 to {target.num_classes - 1}: "
            "data and target do not belong together."
        )
