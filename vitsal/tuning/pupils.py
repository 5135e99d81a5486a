"""Teaching a student by the target's answers: what its choice of patches does to them is what it learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vitsal.choices import AnswerSettings
from vitsal.data.images import LabelledImages
from vitsal.errors import UserError
from vitsal.guides.adapters import StudentGuide
from vitsal.guides.baselines import RandomGuide
from vitsal.guides.factory import Guide
from vitsal.jobs.files import check_own_folder, write_whole
from vitsal.jobs.identity import describe
from vitsal.jobs.processes import alone_in, make_accelerator
from vitsal.models.pixels import denormalize, downsample
from vitsal.models.tokens import grid_size
from vitsal.reduction.reduction import Reduction, forward_reduced
from vitsal.students.losses import kl_loss
from vitsal.students.student import WEIGHTS, Student, write_student
from vitsal.tuning.answers import answer_table, divergence
from vitsal.tuning.lessons import Lesson, Lessons, softening_of
from vitsal.tuning.mixture import MixedImages
from vitsal.tuning.state import HISTORY, STATE
from vitsal.tuning.steps import Steps

REPORT = "report.csv"
NOISE = 0.7  # standard deviation of what is added to a student's logits, and taken from them
# Weight of the map that the student began with. A try moves all patches at once, and so tells little of any one: with a
# weight of 0.3 that noise undid, in 600 steps, what DeiT-tiny's rollout had taught a student.
LEASH = 60.0
RATIOS = (0.5, 0.3, 0.2)  # of the report


def teach_by_answers(
    student: Student,
    target: nn.Module,
    guide: Guide,
    datasets: Sequence[LabelledImages],
    output: str | Path,
    settings: AnswerSettings,
    *,
    lesson: Mapping[str, Any] | None = None,
    num_workers: int = 0,
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> pd.DataFrame | None:
    """Teach a student to keep the patches without which the target changes its answers; killed, it goes on.

    Which patches are kept is no smooth function of a student's logits, so they are tried: with noise added, and with
    the same noise taken away, the target runs, forward only, on both choices, and the student is moved towards the one
    whose answers diverge less from those on the whole image (antithetic evolution strategies: Salimans et al. 2017,
    arXiv:1703.03864). Keep ratios are drawn anew for each step. The guide's map, on a leash, is a second lesson.

    Args:
        student: one that knows what the guide's maps are like (`vitsal.students.teach`); it stays as it is, and its
            normalisation is not learnt.
        target: a timm ViT in eval mode.
        guide: for images prepared for the target; whose maps are the second lesson.
        datasets: as `vitsal.open_data` returns them, with the target's transform; their labels are not used.
        output: folder for the student, as `vitsal.students.load_student` reads it, history, report, and the state to go
            on from.
        lesson: what the student's configuration shall say of it, plain values.

    Returns:
        The report, also in `output/report.csv`, of images that were held out: for random patches, the guide, the
        student before and after, at several keep ratios, the share of images whose likeliest class is that of the
        `whole` image (`same`), and the mean divergence in nats (`kl`). The main process makes it; others return None.

    Raises:
        UserError: a student of another grid; data that cannot be mixed (`MixedImages`), fp16; or `output` holds another
            training, a damaged one, or what is none, or another run is learning there.
        DivergedError: the loss is no finite number.
    """
    output, accelerator = Path(output), accelerator or make_accelerator()
    check_taught_folder(output)
    images = MixedImages(datasets, settings.limit, settings.seed)
    teaching = _Teaching(student, target, guide, images, settings, accelerator)
    with alone_in(output, accelerator):
        teaching.run(output, num_workers, progress=progress)
        if not accelerator.is_main_process:
            return None
        taught = _with_lesson(teaching.learner, lesson)
        write_student(taught, output)
        report = _report(teaching, student, taught, num_workers, progress)
        write_whole(output / REPORT, partial(report.to_csv, index=False))
        return report


def check_taught_folder(folder: Path) -> None:
    """Raise UserError if a student that is taught in this folder would replace files that no teaching has left."""
    check_own_folder(folder, (WEIGHTS, "config.json", HISTORY, REPORT), STATE)


class _Teaching(Steps):
    """A copy of a student, which learns from what its choices do to a target's answers."""

    doing, names, weights = "student", ("kl", "leash"), (1.0, LEASH)

    def __init__(
        self,
        student: Student,
        target: nn.Module,
        guide: Guide,
        images: MixedImages,
        settings: AnswerSettings,
        accelerator: Accelerator,
    ) -> None:
        if student.grid_size != (grid := grid_size(target)):
            raise UserError(f"The student's grid is {student.grid_size}, the target's is {grid}; take one of its grid.")
        soften = softening_of(target, settings.soften)
        lessons = Lessons(("guide",), (), (), settings.keep_ratios, (1, 0, 0), soften, seed=settings.seed)
        number = settings.epochs * images.steps(settings.batch_size)
        learner = deepcopy(student).requires_grad_(True)
        super().__init__(learner, target, images, {"guide": guide}, lessons, settings, number, accelerator)
        self.start = describe(student)

    @property
    def about(self) -> dict[str, Any]:
        return super().about | {"student": self.start}

    def losses(self, images: Tensor, lesson: Lesson, generator: torch.Generator) -> Tensor:
        """The divergence of answers on patches that the student chooses, and that of its map from the guide's.

        The first has the value of what was tried, and the gradient that follows from the difference.
        """
        wanted, saliency = self.ask(images, "guide")
        logits = self.learner(denormalize(downsample(images, self.learner.input_size), self.target))
        noise = NOISE * torch.randn(self.batch_size, *self.learner.grid_size, generator=generator)
        noise = noise[self.own][: len(images)].to(images.device)
        with torch.no_grad():
            tried = [forward_reduced(self.target, images, lesson.reduction, logits + way * noise) for way in (1, -1)]
            more, less = (divergence(answers, wanted) for answers in tried)
            slope = (more - less) / (2 * NOISE**2)
        moved = (slope[:, None, None] * noise * logits.float()).sum(dim=(1, 2))
        return torch.stack([(moved - moved.detach() + (more + less) / 2).mean(), kl_loss(logits.float(), saliency)])


def _with_lesson(student: Student, lesson: Mapping[str, Any] | None) -> Student:
    """A student of the same weights, whose configuration says what it was taught."""
    copy = Student(**student.configuration, lesson=dict(lesson or {}))
    copy.load_state_dict(student.state_dict())
    return copy.eval().requires_grad_(False).to(next(student.parameters()).device)


def _report(teaching: _Teaching, before: Student, after: Student, num_workers: int, progress: bool) -> pd.DataFrame:
    """What the target says of held-out images on the patches that each chooses."""
    target, images = teaching.target, teaching.images
    guides = {"random": RandomGuide(grid_size(target)), "guide": teaching.guides["guide"]}
    guides |= {name: StudentGuide(student, target) for name, student in {"before": before, "after": after}.items()}
    asked = [(name, Reduction(ratio, soften=teaching.lessons.soften)) for ratio in RATIOS for name in guides]
    bar = "report" if progress else ""
    batches = images.batches(images.held_out, teaching.batch_size, num_workers, progress=bar)
    return answer_table(target, {"": target}, asked, guides, batches)
