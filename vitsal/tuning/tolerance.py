"""Making a target tolerant: its own answers on whole images are what it learns to give on reduced ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn

from vitsal.choices import TuningSettings
from vitsal.data.images import LabelledImages
from vitsal.guides.factory import Guide
from vitsal.jobs.files import check_own_folder, write_whole
from vitsal.jobs.processes import alone_in, make_accelerator
from vitsal.models.pixels import resize
from vitsal.models.tokens import grid_size
from vitsal.reduction.reduction import forward_reduced
from vitsal.students.student import WEIGHTS
from vitsal.tuning.answers import compare_answers, divergence, logit_distance
from vitsal.tuning.lessons import Lesson, Lessons, noisy_ranking
from vitsal.tuning.mixture import MixedImages
from vitsal.tuning.parameters import resized_with_gradient, save_difference, tunable_twin, tuned_names
from vitsal.tuning.state import HISTORY, STATE
from vitsal.tuning.steps import Steps

DIFFERENCE, REPORT = "difference.safetensors", "report.csv"


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
    with alone_in(output, accelerator):
        tuning.run(output, num_workers, progress=progress)
        return _write_results(tuning, output, num_workers, progress) if accelerator.is_main_process else None


def check_tuning_folder(folder: Path) -> None:
    """Raise UserError if a tuning in this folder would replace files that no tuning has left there."""
    check_own_folder(folder, (WEIGHTS, DIFFERENCE, HISTORY, REPORT), STATE)


class _Tuning(Steps):
    """A target's twin, of which a few parameters learn; whole images count as well."""

    doing, names = "tuning", ("reduced", "whole")

    def __init__(
        self,
        target: nn.Module,
        images: MixedImages,
        guides: Mapping[str, Guide],
        settings: TuningSettings,
        accelerator: Accelerator,
    ) -> None:
        number = images.steps(settings.batch_size) if settings.steps is None else settings.steps
        tuned = tunable_twin(target, tuned_names(target, settings.parameters))
        lessons = Lessons.for_model(target, guides, settings)
        super().__init__(tuned, target, images, guides, lessons, settings, number, accelerator)

    @property
    def weights(self) -> tuple[float, float]:
        return 1.0, self.settings.whole

    def losses(self, images: Tensor, lesson: Lesson, generator: torch.Generator) -> Tensor:
        """How far answers are from those of the target on whole images: on reduced ones, and on half of the whole."""
        reduction, size = lesson.reduction, lesson.reduction.input_size
        wanted, saliency = self.ask(images, lesson.guide)
        if saliency is not None:
            noise = lesson.noise * torch.rand(self.batch_size, *grid_size(self.target), generator=generator)
            saliency = noisy_ranking(saliency, noise[self.own][: len(images)].to(images.device))
        twin = resized_with_gradient(self.learner, size)
        reduced = divergence(forward_reduced(twin, resize(images, size), reduction, saliency), wanted)
        whole = self.learner(images[::2]), wanted[::2]
        return torch.stack([reduced.mean(), (divergence(*whole) + logit_distance(*whole)).mean()])


def _write_results(tuning: _Tuning, output: Path, num_workers: int, progress: bool) -> pd.DataFrame:
    """What a tuning is for: weights, differences, and the report on images that were held out."""
    target, tuned = tuning.target, tuning.learner.requires_grad_(False)
    weights = {name: values.detach().cpu().contiguous() for name, values in tuned.state_dict().items()}
    write_whole(output / WEIGHTS, partial(save_file, weights, metadata={"format": "pt"}))
    save_difference(target, tuned, output / DIFFERENCE)
    bar, images = "report" if progress else "", tuning.images
    batches = images.batches(images.held_out, tuning.batch_size, num_workers, progress=bar)
    report = compare_answers(target, tuned, tuning.guides, tuning.lessons, batches)
    write_whole(output / REPORT, partial(report.to_csv, index=False))
    return report
