"""Learning from a target's answers, a lesson a step, on one process or many; killed, it goes on."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from vitsal.choices import AnswerSettings, TuningSettings
from vitsal.data.images import Batch
from vitsal.data.pictures import warn_of_skipped
from vitsal.errors import UserError
from vitsal.guides.attention import AttentionPass
from vitsal.guides.explainers import ModelGuide
from vitsal.guides.factory import Guide
from vitsal.jobs.identity import describe, seed_of
from vitsal.jobs.processes import check_split, computed_precision
from vitsal.models.classes import check_answering
from vitsal.students.distillation import LARGEST_GRADIENT, DivergedError, cosine_schedule
from vitsal.tuning.lessons import Lesson, Lessons
from vitsal.tuning.mixture import MixedImages
from vitsal.tuning.state import TuningState

PART = 25  # steps: what a kill may cost
REVISION = 2  # raised when a step computes something else: what was begun before is not continued


class Steps(ABC):
    """Who learns from a target's answers, what both are shown, and how far it has come.

    Args:
        learner: the module of which all parameters that take a gradient are learnt.
        target: whose answers on whole images are wanted; it stays as it is.
        images: to learn from.
        guides: name -> guide for images prepared for the target: whom lessons may ask.
        lessons: of which one is drawn for each step.
        settings: how fast, and how much at once.
        number: of steps.

    Raises:
        UserError: a target without answers, fp16, or a batch that cannot be split over the processes.
    """

    doing: ClassVar[str]  # what a progress bar calls it
    names: ClassVar[tuple[str, str]]  # of both losses, in the history

    def __init__(
        self,
        learner: nn.Module,
        target: nn.Module,
        images: MixedImages,
        guides: Mapping[str, Guide],
        lessons: Lessons,
        settings: TuningSettings | AnswerSettings,
        number: int,
        accelerator: Accelerator,
    ) -> None:
        check_answering(target)
        self.learner, self.target, self.images, self.guides = learner, target, images, guides
        self.lessons, self.settings, self.number, self.accelerator = lessons, settings, number, accelerator
        self.batch_size = min(settings.batch_size, len(images.training))
        self.parameters = [values for values in learner.parameters() if values.requires_grad]
        self.device = self.parameters[0].device
        self.optimizer = torch.optim.AdamW(self.parameters, lr=settings.learning_rate, weight_decay=0.0)
        self.schedule = cosine_schedule(self.optimizer, number + 1)  # whose first rate and last are 0
        self.history: list[dict[str, Any]] = []
        self.skipped: dict[str, str] = {}
        check_split(self.batch_size, accelerator)
        if accelerator.mixed_precision == "fp16":
            raise UserError("This is learnt in full precision or bf16: fp16 loses small gradients. Choose bf16.")

    @property
    @abstractmethod
    def weights(self) -> tuple[float, float]:
        """How much each of the losses counts."""

    @abstractmethod
    def losses(self, images: Tensor, lesson: Lesson, generator: torch.Generator) -> Tensor:
        """Both losses' means over images (B, 3, H, W), (2,); the generator is the same on all processes."""

    @property
    def about(self) -> dict[str, Any]:
        """What the learning is made of: only one of the same is ever continued."""
        guides = {name: describe(guide) for name, guide in self.guides.items()}
        given = {"target": describe(self.target), "guides": guides, "data": self.images.fingerprints}
        how = {"lessons": asdict(self.lessons), "precision": computed_precision(self.accelerator)}
        return given | how | {"settings": asdict(self.settings), "revision": REVISION}

    @property
    def own(self) -> slice:
        """This process's share of a batch."""
        share = self.batch_size // self.accelerator.num_processes
        return slice(self.accelerator.process_index * share, (self.accelerator.process_index + 1) * share)

    @property
    def step(self) -> int:
        """How many have been taken."""
        return len(self.history)

    def run(self, folder: Path, num_workers: int, *, progress: bool) -> None:
        """Take all steps that are left; the state is kept in `folder`, after every `PART` of them and the last."""
        leads, state = self.accelerator.is_main_process, TuningState(folder, self.about)
        self.history = state.load(self.learner, self.optimizer)
        bar = {"desc": self.doing, "total": self.number, "initial": self.step, "unit": "step", "mininterval": 1}
        with tqdm(**bar, disable=not (progress and leads)) as shown:
            for batch in self.batches(num_workers):
                self.take_step(batch)
                shown.set_postfix_str(
                    f"{self.history[-1]['lesson']}: {self.history[-1][self.names[0]]:.3f}", refresh=False
                )
                shown.update()
                if leads and (self.step % PART == 0 or self.step == self.number):
                    state.save(self.learner, self.optimizer, self.history)
        skipped = gather_object([self.skipped])
        if leads:
            warn_of_skipped({name: problem for part in skipped for name, problem in part.items()})

    def batches(self, num_workers: int) -> Iterator[Batch]:
        """This process's share of the batches that are left."""
        left = (self.images.numbers_of(step, self.batch_size)[self.own] for step in range(self.step, self.number))
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
        self.history.append(told | dict(zip(self.names, losses.tolist(), strict=True)))

    def _gradient(self, images: Tensor, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """Both losses, (2,), and their weighed sum's gradient, all parameters in line."""
        if not len(images):  # none of this process's could be read
            numbers = sum(values.numel() for values in self.parameters)
            return torch.zeros(2, device=self.device), torch.zeros(numbers, device=self.device)
        generator = torch.Generator().manual_seed(seed_of(self.settings.seed, "step", self.step))  # for all processes
        if torch.rand((), generator=generator) < 0.5:
            images = images.flip(3)
        with self.accelerator.autocast():
            losses = self.losses(images, lesson, generator)
        loss = losses @ losses.new_tensor(self.weights)
        found = torch.autograd.grad(loss, self.parameters, allow_unused=True, materialize_grads=True)
        return losses.detach(), torch.cat([values.flatten() for values in found])

    @torch.no_grad()
    def ask(self, images: Tensor, name: str | None) -> tuple[Tensor, Tensor | None]:
        """What the target says of images, and a guide's map of them: by one pass, where it explains the target."""
        guide = self.guides[name] if name else None
        if isinstance(guide, ModelGuide) and guide.model is self.target:
            seen = AttentionPass(self.target, images)
            saliency = guide.explain(seen)
            return seen.logits, saliency
        return self.target(images), guide and guide(images)
