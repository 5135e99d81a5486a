"""Train the three embedded models again: ``python -m vitsal.embedded.train --model all --seed 0 --output DIR``."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import timm
import torch
import typer
from safetensors.torch import load_file, save_file
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from vitsal.dropping import forward_kept
from vitsal.embedded import MODEL_NAMES
from vitsal.scenes import DigitScenes, Scene, make_scene

GRID = 14  # patches on each side of a scene
WINDOW = 7  # patches on each side of a window
BATCH = 128


@dataclass(frozen=True)
class Recipe:
    """How one model is trained: scenes per epoch, epochs on windows, then on whole scenes, of which some dropped."""

    window_epochs: int
    whole_epochs: int
    learning_rate: float
    start: str | None = None  # the model whose weights it starts from
    drop: float = 0.0  # largest share of patches dropped at random in the whole epochs
    epoch_size: int = 4096

    @property
    def epochs(self) -> int:
        return self.window_epochs + self.whole_epochs


RECIPES = {
    "vitsal_digits_target": Recipe(window_epochs=36, whole_epochs=12, learning_rate=1e-3),
    "vitsal_digits_target_drop": Recipe(0, 10, 3e-4, start="vitsal_digits_target", drop=0.9),
    "vitsal_digits_guide": Recipe(window_epochs=36, whole_epochs=30, learning_rate=2e-3),
}


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """The models' own normalisation: (H, W, 3) uint8 -> (3, H, W) in -1..1."""
    return torch.from_numpy(image).permute(2, 0, 1).float() / 127.5 - 1


def window_patches(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices (49,) of the patches of a random 7 x 7 window that holds the digit whose mask is (112, 112)."""
    touched = mask.reshape(GRID, len(mask) // GRID, GRID, -1).any((1, 3))
    starts = []
    for line in (touched.any(1), touched.any(0)):
        first, last = np.flatnonzero(line)[[0, -1]]
        lowest, highest = max(0, last - WINDOW + 1), min(first, GRID - WINDOW)
        starts.append(rng.integers(min(lowest, highest), highest + 1) + np.arange(WINDOW))
    return np.add.outer(starts[0] * GRID, starts[1]).ravel()


class TrainingScenes(Dataset):
    """Scenes of one epoch as (image (3, 112, 112), label, patches (49,) of a window around the digit)."""

    def __init__(self, size: int, seed: int):
        self.size, self.seed = size, seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, np.ndarray]:
        scene: Scene = make_scene("train", self.seed, index)
        return to_tensor(scene.image), scene.label, window_patches(scene.mask, np.random.default_rng(index))


def random_patches(batch: int, largest_drop: float) -> torch.Tensor:
    """Patches kept (B, K), different for each scene; K for a drop ratio drawn from 0 .. largest_drop."""
    kept = math.ceil(GRID**2 * (1 - largest_drop * torch.rand(()).item()))
    return torch.rand(batch, GRID**2).argsort(1)[:, :kept]


@torch.inference_mode()
def test_accuracy(model: torch.nn.Module, size: int = 2000) -> float:
    """Share of test scenes with the right digit, all patches shown."""
    model.eval()
    scenes = DigitScenes("test", size, transform=lambda image: to_tensor(np.asarray(image)))
    hits = [(model(images).argmax(1) == labels).sum().item() for images, labels in DataLoader(scenes, BATCH)]
    return sum(hits) / size


def train_epoch(model, optimizer, scheduler, recipe: Recipe, epoch: int, seed: int, progress: tqdm) -> None:
    model.train()
    scenes = TrainingScenes(recipe.epoch_size, seed * 1000 + epoch)
    torch.manual_seed(scenes.seed)
    steps = math.ceil(len(scenes) / BATCH)
    for step, (images, labels, window) in enumerate(DataLoader(scenes, BATCH, num_workers=2)):
        scheduler.step_update(epoch * steps + step)
        keep = window if epoch < recipe.window_epochs else random_patches(len(images), recipe.drop)
        logits = forward_kept(model, images, keep) if keep.shape[1] < GRID**2 else model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        progress.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
        progress.update(len(images))


def write(path: Path, save: Callable[[Path], None]) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    save(temporary)
    os.replace(temporary, path)


def train(name: str, seed: int, output: Path, recipe: Recipe) -> float:
    """Train one model, going on from its last epoch if there is one; write its weights, return its test accuracy."""
    torch.manual_seed(seed)
    model = timm.create_model(name)
    if recipe.start:
        model.load_state_dict(load_file(output / f"{recipe.start}.safetensors"))
    steps = math.ceil(recipe.epoch_size / BATCH)
    optimizer = create_optimizer_v2(model, "adamw", lr=recipe.learning_rate, weight_decay=0.05)
    scheduler = CosineLRScheduler(
        optimizer, recipe.epochs * steps, warmup_t=steps, warmup_lr_init=1e-6, lr_min=1e-6, t_in_epochs=False
    )
    checkpoint, done = output / f"{name}.checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["epochs"]
    accuracy = 0.0
    for epoch in range(done, recipe.epochs):
        with tqdm(total=recipe.epoch_size, desc=f"{name} {epoch + 1}/{recipe.epochs}", mininterval=1) as progress:
            train_epoch(model, optimizer, scheduler, recipe, epoch, seed, progress)
            accuracy = test_accuracy(model, 256)
            progress.set_postfix_str(f"{progress.postfix}, test accuracy {accuracy:.3f}")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epochs": epoch + 1}
        write(checkpoint, lambda path: torch.save(state, path))
    half = {key: value.half() for key, value in model.state_dict().items()}
    write(output / f"{name}.safetensors", lambda path: save_file(half, path))
    return test_accuracy(model)


def main(
    model: Annotated[str, typer.Option(help="One of the three, or all.")] = "all",
    seed: Annotated[int, typer.Option(help="Of weights, scenes and dropping.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for weights and checkpoints.")] = Path("embedded"),
) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for name in MODEL_NAMES if model == "all" else [model]:
        print(f"{name}: test accuracy {train(name, seed, output, RECIPES[name]):.4f}")


if __name__ == "__main__":
    typer.run(main)
