"""Making a target tolerant: its own answers on whole images are what it learns to give on reduced ones."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from vitsal.choices import TuningSettings
from vitsal.data.images import Batch, LabelledImages
from vitsal.data.pictures import warn_of_skipped
from vitsal.errors import UserError
from vitsal.guides.attention import AttentionPass
from vitsal.guides.explainers import ModelGuide
from vitsal.guides.factory import Guide
from vitsal.jobs.files import check_own_folder, write_whole
from vitsal.jobs.identity import describe, seed_of
from vitsal.jobs.processes import alone_in, check_split, computed_precision, make_accelerator
from vitsal.models.pixels import resize
from vitsal.models.tokens import grid_size
from vitsal.reduction.reduction import forward_reduced
from vitsal.students.distillation import LARGEST_GRADIENT, DivergedError, cosine_schedule
from vitsal.students.student import WEIGHTS
from vitsal.tuning.answers import check_answering, compare_answers, divergence, logit_distance
from vitsal.tuning.lessons import Lesson, Lessons, noisy_ranking
from vitsal.tuning.mixture import MixedImages
from vitsal.tuning.parameters import resized_with_gradient, save_difference, tunable_twin, tuned_names
from vitsal.tuning.state import HISTORY, STATE, TuningState

DIFFERENCE, REPORT = "difference.safetensors", "report.csv"
PART = 25  # steps: what a kill may cost
REVISION = 2  # raised when a step computes something else: what was begun before is not continued


def tune_target(
    target: nn.Module,
    datasets: Sequence[LabelledImages],
    guides: Mapping[str, Guide],
    output: str | Path,
    settings: TuningSettings,
    *,
    num_workers: int = 0,
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> pd.DataFrame | None:
    """Tune a few of a target's parameters, without labels, so that it bears being reduced; killed, it goes on.

    For each step a lesson is drawn (`Lessons`): patches dropped, as one of the guides has them, tokens merged, or a
    smaller image. The loss is how far the answers are from those of the target as it was on whole images: on reduced
    images their divergence, and, weighed by `settings.whole`, on half of the batch's images as they are divergence and
    `logit_distance`.

    Args:
        target: a timm ViT in eval mode, which stays as it is.
        datasets: as `vitsal.open_data` returns them, with the target's transform; their labels are not used.
        guides: name -> guide for images prepared for the target: who may choose the patches that are kept.
        output: folder for `model.safetensors`, which `vitsal.load_model` reads as a checkpoint; a small file of the
            differences (`vitsal.tuning.load_difference`); history and report; and the state to go on from.
        settings: how long, how fast, what; see there.

    Returns:
        The report, also in `output/report.csv`: `compare_answers` on images that were held out. The main process makes
        it; others return None.

    Raises:
        UserError: data that cannot be mixed (`MixedImages`), parameters that are none of the target's, fp16; or
            `output` holds another tuning, a damaged one, or what is none, or another run is tuning there.
        DivergedError: the loss is no finite number.
    """
    output, accelerator = Path(output), accelerator or make_accelerator()
    check_tuning_folder(output)
    tuning = _Tuning(target, MixedImages(datasets, settings.limit, settings.seed), guides, settings, accelerator)
    leads = accelerator.is_main_process
    with alone_in(output, accelerator):
        state = TuningState(output, tuning.about)
        tuning.history = state.load(tuning.tuned, tuning.optimizer)
        with tuning.progress_bar(progress and leads) as bar:
            for batch in tuning.batches(num_workers):
                tuning.take_step(batch)
                bar.set_postfix_str(tuning.said, refresh=False)
                bar.update()
                if leads and (tuning.step % PART == 0 or tuning.step == tuning.steps):
                    state.save(tuning.tuned, tuning.optimizer, tuning.history)
        skipped = gather_object([tuning.skipped])
        if not leads:
            return None
        warn_of_skipped({name: problem for part in skipped for name, problem in part.items()})
        return _write_results(tuning, output, num_workers, progress)


def check_tuning_folder(folder: Path) -> None:
    """Raise UserError if a tuning in this folder would replace files that no tuning has left there."""
    check_own_folder(folder, (WEIGHTS, DIFFERENCE, HISTORY, REPORT), STATE)


class _Tuning:
    """A target, its twin that is tuned, what both are shown, and how far it has come."""

    def __init__(
        self,
        target: nn.Module,
        images: MixedImages,
        guides: Mapping[str, Guide],
        settings: TuningSettings,
        accelerator: Accelerator,
    ) -> None:
        check_answering(target)
        self.target, self.images, self.guides, self.settings = target, images, guides, settings
        self.accelerator, self.history, self.skipped = accelerator, [], {}
        self.batch_size = min(settings.batch_size, len(images.training))
        self.steps = images.steps(self.batch_size) if settings.steps is None else settings.steps
        self.lessons = Lessons.for_model(target, guides, settings)
        names = tuned_names(target, settings.parameters)
        self.tuned = tunable_twin(target, names)
        self.parameters = [self.tuned.get_parameter(name) for name in names]
        self.device = self.parameters[0].device
        self.optimizer = torch.optim.AdamW(self.parameters, lr=settings.learning_rate, weight_decay=0.0)
        self.schedule = cosine_schedule(self.optimizer, self.steps + 1)  # whose first rate and last are 0
        self._check()

    def _check(self) -> None:
        check_split(self.batch_size, self.accelerator)
        if self.accelerator.mixed_precision == "fp16":
            raise UserError("A target is tuned in full precision or bf16: fp16 loses small gradients. Choose bf16.")

    @property
    def own(self) -> slice:
        """This process's share of a batch."""
        share = self.batch_size // self.accelerator.num_processes
        return slice(self.accelerator.process_index * share, (self.accelerator.process_index + 1) * share)

    @property
    def about(self) -> dict[str, Any]:
        """What the tuning is made of: only one of the same is ever continued."""
        guides = {name: describe(guide) for name, guide in self.guides.items()}
        given = {"target": describe(self.target), "guides": guides, "data": self.images.fingerprints}
        how = {"lessons": asdict(self.lessons), "precision": computed_precision(self.accelerator)}
        return given | how | {"settings": asdict(self.settings), "revision": REVISION}

    @property
    def step(self) -> int:
        return len(self.history)

    @property
    def said(self) -> str:
        return "{lesson}: {reduced:.3f}".format(**self.history[-1])

    def progress_bar(self, shown: bool) -> tqdm:
        return tqdm(total=self.steps, initial=self.step, desc="tuning", unit="step", mininterval=1, disable=not shown)

    def batches(self, num_workers: int) -> Iterator[Batch]:
        """This process's share of the batches that are left."""
        left = (self.images.numbers_of(step, self.batch_size)[self.own] for step in range(self.step, self.steps))
        return self.images.batches(list(chain(*left)), len(range(self.batch_size)[self.own]), num_workers)

    def take_step(self, batch: Batch) -> None:
        """One step of the optimizer, with a lesson of its own: a row of the history."""
        self.schedule.step_update(self.step + 1)
        self.skipped |= batch.skipped
        lesson, started = self.lessons.draw(self.step), time.monotonic()
        losses, gradient = self._gradient(batch.images.to(self.device), lesson)
        losses, gradient = self.accelerator.reduce((losses, gradient), "mean")
        if not (losses.isfinite().all() and gradient.isfinite().all()):
            raise DivergedError(
                f"The loss became {losses.sum().item()}, or its gradient is not finite, at step {self.step} "
                f"({lesson.reduction}). What was learnt before is kept in whole parts of {PART} steps; try a lower "
                f"learning rate than {self.settings.learning_rate:g}, in another folder."
            )
        for values, part in zip(self.parameters, gradient.split([v.numel() for v in self.parameters]), strict=True):
            values.grad = part.view_as(values)
        torch.nn.utils.clip_grad_norm_(self.parameters, LARGEST_GRADIENT)
        self.optimizer.step()
        told = {"step": self.step, "lesson": str(lesson.reduction), "guide": lesson.guide or "", "noise": lesson.noise}
        told |= {"learning_rate": self.optimizer.param_groups[0]["lr"], "seconds": time.monotonic() - started}
        self.history.append(told | dict(zip(("reduced", "whole"), losses.tolist(), strict=True)))

    def _gradient(self, images: Tensor, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """Losses on reduced and on whole images, (2,), and their weighed sum's gradient, all parameters in line."""
        if not len(images):  # none of this process's could be read
            numbers = sum(values.numel() for values in self.parameters)
            return torch.zeros(2, device=self.device), torch.zeros(numbers, device=self.device)
        with self.accelerator.autocast():
            losses = self._losses(images, lesson)
        loss = losses[0] + self.settings.whole * losses[1]
        found = torch.autograd.grad(loss, self.parameters, allow_unused=True, materialize_grads=True)
        return losses.detach(), torch.cat([values.flatten() for values in found])

    def _losses(self, images: Tensor, lesson: Lesson) -> Tensor:
        """How far answers are from those of the target on whole images: on reduced ones, and on half of the whole."""
        generator = torch.Generator().manual_seed(seed_of(self.settings.seed, "step", self.step))  # for all processes
        if torch.rand((), generator=generator) < 0.5:
            images = images.flip(3)
        reduction, size = lesson.reduction, lesson.reduction.input_size
        with torch.no_grad():
            wanted, saliency = self._asked(images, lesson.guide)
            if saliency is not None:
                noise = lesson.noise * torch.rand(self.batch_size, *grid_size(self.target), generator=generator)
                own = noise[self.own][: len(images)].to(images.device)
                saliency = noisy_ranking(saliency, own)
        twin = resized_with_gradient(self.tuned, size)
        reduced = divergence(forward_reduced(twin, resize(images, size), reduction, saliency), wanted)
        whole = self.tuned(images[::2]), wanted[::2]
        return torch.stack([reduced.mean(), (divergence(*whole) + logit_distance(*whole)).mean()])

    def _asked(self, images: Tensor, name: str | None) -> tuple[Tensor, Tensor | None]:
        """What the target says of images, and a guide's map of them: by one pass, where it explains the target."""
        guide = self.guides[name] if name else None
        if isinstance(guide, ModelGuide) and guide.model is self.target:
            seen = AttentionPass(self.target, images)
            saliency = guide.explain(seen)
            return seen.logits, saliency
        return self.target(images), guide and guide(images)


def _write_results(tuning: _Tuning, output: Path, num_workers: int, progress: bool) -> pd.DataFrame:
    """What a tuning is for: weights, differences, and the report on images that were held out."""
    target, tuned = tuning.target, tuning.tuned.requires_grad_(False)
    weights = {name: values.detach().cpu().contiguous() for name, values in tuned.state_dict().items()}
    write_whole(output / WEIGHTS, partial(save_file, weights, metadata={"format": "pt"}))
    save_difference(target, tuned, output / DIFFERENCE)
    bar, images = "report" if progress else "", tuning.images
    batches = images.batches(images.held_out, tuning.batch_size, num_workers, progress=bar)
    report = compare_answers(target, tuned, tuning.guides, tuning.lessons, batches)
    write_whole(output / REPORT, partial(report.to_csv, index=False))
    return report
