"""Training a student on a teacher's cached maps, on one process or many: the loop, its checkpoints, its history."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tqdm import tqdm

from vitsal.choices import TrainingSettings
from vitsal.data.images import LabelledImages
from vitsal.errors import UserError
from vitsal.jobs.identity import question_hash, seed_of
from vitsal.jobs.processes import alone_in, check_split, make_accelerator
from vitsal.models.pixels import downsample
from vitsal.students.checkpoints import Checkpoints
from vitsal.students.fidelity import measure_fidelity
from vitsal.students.losses import LOSS_FUNCTIONS
from vitsal.students.maps import CachedMaps, MapSettings, Teacher, cache_maps, maps_folder, read_settings
from vitsal.students.student import Student
from vitsal.students.views import jitter_colours, random_views, warp

WARMUP_SHARE = 0.05  # of all steps
LARGEST_GRADIENT = 1.0  # norm


class DivergedError(UserError):
    """The loss is no finite number any more; the message says where, and what is left."""


def accelerator_for(recipe: TrainingSettings) -> Accelerator:
    """Accelerate for a recipe: a batch is split over the processes, so that it means the same on any number of them."""
    return make_accelerator(
        gradient_accumulation_steps=recipe.accumulate,
        dataloader_config=DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True, data_seed=recipe.seed),
    )


def teach(
    student: Student,
    teacher: Teacher,
    dataset: LabelledImages,
    output: str | Path,
    recipe: TrainingSettings,
    settings: MapSettings,
    *,
    maps: str | Path | None = None,
    num_workers: int = 0,
    accelerator: Accelerator | None = None,
) -> pd.DataFrame:
    """Cache a teacher's maps, each process its share, and train a student on them: `cache_maps`, and then `distill`.

    The maps' folder is by default one in `runs` that belongs to them. Returns the history of the training.
    """
    accelerator = accelerator or accelerator_for(recipe)
    maps = maps or maps_folder("runs", teacher, dataset, settings)
    processes = {"process": accelerator.process_index, "num_processes": accelerator.num_processes}
    leads = accelerator.is_main_process
    cache_maps(teacher, dataset, maps, settings, num_workers=num_workers, progress=leads, **processes)
    accelerator.wait_for_everyone()
    return distill(student, maps, output, recipe, accelerator=accelerator)


def distill(
    student: Student,
    maps: str | Path,
    output: str | Path,
    recipe: TrainingSettings,
    *,
    accelerator: Accelerator | None = None,
    on_epoch: Callable[[pd.DataFrame], object] = lambda history: None,
    progress: bool = True,
) -> pd.DataFrame:
    """Train a student on cached maps; killed and called again, it goes on after its last whole epoch.

    The student with the lowest validation divergence so far is always in the folder `output`, as `load_student` reads
    it, beside history and checkpoint. The folder `maps` is as `cache_maps` filled it, the accelerator by default
    `accelerator_for` the recipe. `on_epoch` is called with the history after each epoch, and at once where there are
    epochs to go on from.

    Returns:
        The history, also in `output/history.csv`: one row per epoch with step, learning rate, training loss, mean
        `vitsal.students.measure_fidelity` over the validation images, and seconds.

    Raises:
        UserError: grids of student and maps that differ; a batch that cannot be split; maps that are damaged; or
            `output` holds another training or a damaged one, or another run is training there.
        DivergedError: the loss is no finite number.
    """
    training = _Training(student, Path(maps), Path(output), recipe, accelerator or accelerator_for(recipe))
    with alone_in(Path(output), training.accelerator):
        training.history = training.checkpoints.load()
        if training.epochs_done:
            on_epoch(training.history)
        with training.progress_bar(progress) as bar:
            while not training.finished:
                training.train_epoch(bar)
                training.validate_and_save(bar)
                on_epoch(training.history)
    return training.history


def cosine_schedule(optimizer: Optimizer, steps: int) -> CosineLRScheduler:
    """A learning rate that warms up linearly and falls as half a cosine, over so many steps."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    return CosineLRScheduler(optimizer, max(1, steps - warmup), t_in_epochs=False, warmup_t=warmup, warmup_prefix=True)


def describe_training(student: Student, maps: str | Path, recipe: TrainingSettings) -> dict[str, Any]:
    """What a training is made of: only trainings of the same are ever continued."""
    pupil = {**student.configuration, "start": student.start or "random weights"}
    return {"recipe": asdict(recipe), "student": pupil, "maps": read_settings(maps)}


def training_folder(root: str | Path, student: Student, maps: str | Path, recipe: TrainingSettings) -> Path:
    """The folder in `root` that belongs to this training: its name holds the hash of what it is made of."""
    return Path(root, f"student-{question_hash(describe_training(student, maps, recipe))}")


class _Training:
    """A student, its data, its optimizer, and how far it has come."""

    def __init__(
        self, student: Student, maps: Path, output: Path, recipe: TrainingSettings, accelerator: Accelerator
    ) -> None:
        train = CachedMaps(maps, "train")
        validation = train.part("validation")
        _check(student, train, recipe, accelerator)
        self.student, self.recipe, self.accelerator = student, recipe, accelerator
        self.checkpoints = Checkpoints(output, describe_training(student, maps, recipe), accelerator)
        self.loss, self.history = LOSS_FUNCTIONS[recipe.loss], pd.DataFrame()
        optimizer = create_optimizer_v2(student, "adamw", lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        part = min(recipe.batch_size, len(train)) // recipe.accumulate
        self.model, self.optimizer, self.train, self.validation = accelerator.prepare(
            student, optimizer, DataLoader(train, part, shuffle=True, drop_last=True), DataLoader(validation, part)
        )
        self.steps = len(self.train) // recipe.accumulate  # optimizer steps in an epoch
        self.started = time.monotonic()
        self.schedule = cosine_schedule(optimizer, self.steps * recipe.epochs)

    @property
    def epochs_done(self) -> int:
        return len(self.history)

    @property
    def finished(self) -> bool:
        patience = self.recipe.patience
        tired = patience and self.epochs_done and self.history.kl.idxmin() + patience < self.epochs_done
        return self.epochs_done >= self.recipe.epochs or bool(tired)

    def progress_bar(self, shown: bool) -> tqdm:
        total, done = self.steps * self.recipe.epochs, self.steps * self.epochs_done
        hidden = not (shown and self.accelerator.is_main_process)
        return tqdm(total=total, initial=done, desc="student", unit="step", mininterval=1, disable=hidden)

    def train_epoch(self, bar: tqdm) -> None:
        """One pass over the training split; its mean loss goes to `self.mean_loss`."""
        self.model.train()
        self.train.set_epoch(self.epochs_done)
        validated = f", validation kl {self.history.kl.iloc[-1]:.3f}" if self.epochs_done else ""
        losses = []
        for part, (images, maps) in enumerate(self.train):
            if part >= self.steps * self.recipe.accumulate:
                continue  # parts that make no whole batch
            step = self.epochs_done * self.steps + part // self.recipe.accumulate
            self.schedule.step_update(step)
            pixels, wanted = self._augment(images, maps, part)
            with self.accelerator.accumulate(self.model):
                loss = self.loss(self.model(pixels), wanted)
                self._check_finite(loss, "loss", step)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), LARGEST_GRADIENT)
                self.optimizer.step()
                self.optimizer.zero_grad()
            losses.append(loss.detach())
            bar.set_postfix_str(f"loss {loss.item():.3f}{validated}", refresh=False)
            bar.update(self.accelerator.sync_gradients)
        self.mean_loss = self.accelerator.reduce(torch.stack(losses).mean(), "mean").item()

    def _augment(self, images: Tensor, maps: Tensor, part: int) -> tuple[Tensor, Tensor]:
        """Cached images and maps as the student gets them: pixels (B, 3, h, w) and maps (B, gh, gw), float."""
        seed = seed_of(self.recipe.seed, self.epochs_done, part, self.accelerator.process_index)
        generator = torch.Generator().manual_seed(seed)
        pixels, wanted = images.float() / 255, maps.float()
        if self.recipe.geometry:
            views = random_views(len(pixels), generator)
            pixels, wanted = warp(pixels, views), warp(wanted[:, None], views)[:, 0]
        pixels = downsample(pixels, self.student.input_size)
        return jitter_colours(pixels, self.recipe.colours, generator), wanted

    def _check_finite(self, values: Tensor, what: str, step: int) -> None:
        if not values.isfinite().all():
            rate = self.optimizer.param_groups[0]["lr"]
            raise DivergedError(
                f"The {what} became {values.sum().item()} at step {step}, learning rate {rate:.2g}. What was learnt in "
                f"{self.epochs_done} whole epochs is kept in {self.checkpoints.folder}; try a lower learning rate."
            )

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean fidelity over the validation split, each image counted once."""
        self.model.eval()
        values: list[dict[str, Tensor]] = []
        for images, maps in self.validation:
            logits = self.model(downsample(images.float() / 255, self.student.input_size))
            self._check_finite(logits, "prediction", self.steps * (self.epochs_done + 1))
            values.append(measure_fidelity(*self.accelerator.gather_for_metrics((logits.float(), maps.float()))))
        return {name: torch.cat([batch[name] for batch in values]).mean().item() for name in values[0]}

    def validate_and_save(self, bar: tqdm) -> None:
        """Close an epoch: a row of the history, and a checkpoint."""
        row = {
            "epoch": self.epochs_done + 1,
            "step": self.steps * (self.epochs_done + 1),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "loss": self.mean_loss,
            **self.validate(),
            "seconds": time.monotonic() - self.started,
        }
        self.history = pd.concat([self.history, pd.DataFrame([row])], ignore_index=True)
        self.checkpoints.save(self.history, self.student)


def _check(student: Student, train: CachedMaps, recipe: TrainingSettings, accelerator: Accelerator) -> None:
    if student.grid_size != train.grid_size:
        raise UserError(
            f"The student's grid is {student.grid_size}, the teacher's maps are {train.grid_size}: make the "
            f"student for the grid of its teacher."
        )
    check_split(min(recipe.batch_size, len(train)), accelerator, recipe.accumulate)
