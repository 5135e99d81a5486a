"""The drop experiment: accuracy of a target when a guide chooses the patches that it sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vitsal.data.images import LabelledImages, image_loader
from vitsal.data.labels import check_labels
from vitsal.data.pictures import warn_of_skipped
from vitsal.errors import UserError
from vitsal.experiments.journal import UNREADABLE, Cell, Journal, Row, journal_file
from vitsal.experiments.outcomes import Outcomes
from vitsal.experiments.question import ANY_GUIDE, Question
from vitsal.experiments.schedule import Part, Schedule
from vitsal.guides.factory import Guide
from vitsal.jobs.memory import Halving
from vitsal.jobs.processes import make_accelerator, same_on_all
from vitsal.models.tokens import grid_size
from vitsal.reduction.reduction import Reduction, forward_each


def drop_curve(
    target: nn.Module,
    guides: Mapping[str, Guide],
    dataset: LabelledImages,
    reductions: Sequence[float | Reduction],
    *,
    limit: int | None = None,
    folder: str | Path | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    strict: bool = False,
    progress: bool = True,
) -> Outcomes:
    """Let each guide choose the patches that the target sees, for each reduction, and note what it predicts.

    What is not known yet is computed on as many processes as accelerate's launcher has started. Each image is loaded
    and embedded once, each guide sees it once. Where memory runs out, batches are halved. Images that cannot be read
    are skipped and named at the end.

    Args:
        target: a timm ViT in eval mode.
        guides: name -> guide for images prepared for `target`.
        dataset: as `open_data` returns it, with the target's transform.
        reductions: fractions of patches kept, each in (0, 1], or `vitsal.Reduction`s, which also merge tokens or show
            the target smaller images. Guides see the images as they are; their maps are laid on the smaller grid.
        limit: number of samples, spread evenly over an indexed data set, the first of a stream; None takes all.
        folder: where to keep a journal of the predictions, and to go on from; in memory only by default. What any
            earlier run with this folder has computed for this target and data is not computed again.
        batch_size, num_workers: samples per batch and process, and processes that decode images.
        strict: stop at an image that cannot be read.
        progress: show a bar.

    Raises:
        UserError: a question that cannot be asked (`Question`); a label that the target does not have, answers that are
            not finite, a map that is not on the target's grid, or, with `strict`, an image that cannot be read; an
            image that is replaced during the work.
    """
    question = Question(target, guides, dataset, tuple(reductions), limit)
    return answer(question, folder, batch_size, num_workers, strict, progress)


def answer(
    question: Question, folder: str | Path | None, batch_size: int, num_workers: int, strict: bool, progress: bool
) -> Outcomes:
    """Answer a question: `drop_curve`, for whoever must know first what its results will be about; see there."""
    accelerator = make_accelerator()
    leads = accelerator.is_main_process  # the journal is its business alone
    names = same_on_all({guide_id: name for name, guide_id in question.guide_ids.items()})
    work = _Work(question, names, accelerator, batch_size, num_workers, strict)
    path = None if folder is None else journal_file(folder, question.subject)
    journal = Journal(path, question.subject, question.keys) if leads else Journal()
    schedule = Schedule(question, journal)
    parts = same_on_all(schedule.parts() if leads else [])
    with schedule.progress_bar(parts, progress and leads) as bar:
        for part in parts:
            for rows in work.rows_of(part):
                if leads:
                    question.check_unchanged(rows)
                    journal.add(rows, part.cells)
                bar.update(len(rows))
            if leads:
                schedule.done(part)
    known = replace(journal.outcomes(schedule.asked, question.cells), about=question.about) if leads else None
    outcomes = same_on_all(known)
    if leads:
        warn_of_skipped(outcomes.skipped)
    return outcomes


@dataclass(frozen=True)
class _Work:
    """What each process computes: rows of its share of the samples."""

    question: Question
    names: Mapping[str, str]  # of the guides, by their ids
    accelerator: Accelerator
    batch_size: int
    num_workers: int
    strict: bool

    def rows_of(self, part: Part) -> Iterator[list[Row]]:
        """Rows of all processes together, step by step, in the data's order; padded samples are gone."""
        predict = Halving(lambda images: self.predict(images, part.cells))
        loader = image_loader(self.question.dataset, part.numbers, self.batch_size, self.num_workers)
        for batch in self.accelerator.prepare(loader):
            with self.accelerator.autocast():
                rows = self._rows(batch, predict, len(part.cells))
            yield self.accelerator.gather_for_metrics(rows, use_gather_object=True)

    def _rows(self, batch: Mapping[str, Any], predict: Callable[[Tensor], Tensor], num_cells: int) -> list[Row]:
        """One row for each sample of a batch, in its order."""
        target, name, problems = self.question.target, self.question.dataset.name, batch["problems"]
        if problems and self.strict:
            index, problem = next(iter(problems.items()))
            raise UserError(f"{name(index)} cannot be read as an image: {problem}")
        predictions: Iterator[list[int]] = iter(())
        if len(batch["images"]):
            check_labels(batch["labels"][batch["readable"]], target)
            predictions = iter(predict(batch["images"].to(next(target.parameters()).device)).tolist())
        rows = []
        for index, label in zip(batch["indices"].tolist(), batch["labels"].tolist(), strict=True):
            classes = [UNREADABLE] * num_cells if index in problems else next(predictions)
            rows.append(Row(index, name(index), label, problems.get(index, ""), classes))
        return rows

    @torch.inference_mode()
    def predict(self, images: Tensor, cells: Sequence[Cell]) -> Tensor:
        """Classes that the target predicts: (B, 3, H, W) -> (B, number of cells).

        Raises:
            UserError: logits that are not finite, or a guide whose map is not on the target's grid.
        """
        saliency = {guide_id: self._ask(guide_id, images) for guide_id in sorted({guide_id for guide_id, _ in cells})}
        asked = [(self.question.by_code[code], saliency[guide_id]) for guide_id, code in cells]
        answers = forward_each(self.question.targets, images, asked)
        return torch.stack([_check_finite(logits).argmax(dim=1) for logits in answers], dim=1)

    def _ask(self, guide_id: str, images: Tensor) -> Tensor | None:
        """The map of a guide, which must be on the target's grid: (B, 3, H, W) -> (B, gh, gw); None of any guide."""
        if guide_id == ANY_GUIDE:
            return None
        name = self.names[guide_id]
        saliency = self.question.guides[name](images)
        wanted = (len(images), *grid_size(self.question.target, images))
        if tuple(saliency.shape) != wanted:
            raise UserError(f"The guide {name!r} gives maps {tuple(saliency.shape)} where the target has {wanted}.")
        return saliency


def _check_finite(logits: Tensor) -> Tensor:
    if bad := int((~logits.isfinite()).any(dim=1).sum()):
        raise UserError(
            f"The target's answers are not finite for {bad} of {len(logits)} images: its weights are damaged, or the "
            "precision does not suffice."
        )
    return logits
