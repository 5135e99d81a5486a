"""Train the three embedded models again: ``python -m vitsal.embedded.train --model all --output DIR``.

What makes small ViTs learn from scratch within minutes on two CPU cores:

- They first see few patches of a scene, all of the digit's among them; then more; in the last stage, all.
  So masks choose what is shown in the first epochs, but no loss sees one: nobody tells a model where to look.
- Positions begin as sines, so that neighbours in the grid begin as neighbours (Beyer et al. 2022, "Better
  plain ViT baselines for ImageNet-1k").
- Muon (Jordan et al. 2024), as timm has it: matrices by Muon, the rest by AdamW. Measured here, it needs
  about half as many scenes as AdamW alone.

``vitsal_digits_target_drop`` goes on from the weights of ``vitsal_digits_target``, random patches dropped.

What was chosen by a look at test scenes: how large digits are, how small and few the other shapes. The rest was chosen
by losses on training scenes.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import timm
import torch
import typer
from safetensors.torch import load_file, save_file
from timm.layers import build_sincos2d_pos_embed
from timm.optim import create_optimizer_v2, muon
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from tqdm import tqdm

from vitsal.data.scenes import make_scene
from vitsal.jobs.files import write_whole
from vitsal.models.digits import MODEL_NAMES
from vitsal.reduction.drop import forward_kept

GRID = 14  # patches on each side of a scene
BATCH = 32
# CPUs are slow at the bfloat16 that is timm's default
NEWTON_SCHULZ = partial(muon.zeropower_via_newtonschulz, dtype=torch.float32)


@dataclass(frozen=True)
class Schedule:
    """How one model is trained, in stages of (epochs, fewest patches shown, most patches shown).

    Each batch draws its number of patches: all of the digit's and random others, or random ones only.
    """

    stages: tuple[tuple[int, int, int], ...]
    learning_rate: float
    start: str | None = None  # the model whose weights it starts from
    whole_digit: bool = True
    epoch_size: int = 4_000
    test_scenes: int = 2_000

    @property
    def steps(self) -> int:
        """Steps in one epoch."""
        return self.epoch_size // BATCH

    @property
    def shown(self) -> list[tuple[int, int]]:
        """Fewest and most patches shown in each epoch."""
        return [(fewest, most) for epochs, fewest, most in self.stages for _ in range(epochs)]


RECIPES = {
    "vitsal_digits_target": Schedule(((10, 32, 32), (6, 64, 64), (4, 112, 112), (8, 196, 196)), 2e-3),
    "vitsal_digits_target_drop": Schedule(((4, 20, 196),), 5e-4, "vitsal_digits_target", whole_digit=False),
    "vitsal_digits_guide": Schedule(((16, 32, 32), (8, 64, 64), (4, 112, 112), (6, 196, 196)), 3e-3),
}


@dataclass(frozen=True)
class Scenes:
    """Images (N, 112, 112, 3) uint8, labels (N,), and which patches the digit touches, (N, 196) bool."""

    images: Tensor
    labels: Tensor
    touched: Tensor

    @classmethod
    def make(cls, split: str, seed: int, indices: range) -> "Scenes":
        """These scenes of a split, in memory: 38 kB each."""
        scenes = [make_scene(split, seed, index) for index in indices]
        images = torch.from_numpy(np.stack([scene.image for scene in scenes]))
        masks = torch.from_numpy(np.stack([scene.mask for scene in scenes]))
        touched = F.max_pool2d(masks.float(), masks.shape[-1] // GRID).flatten(1) > 0
        return cls(images, torch.tensor([scene.label for scene in scenes]), touched)

    def inputs(self) -> Tensor:
        """Images under the models' own normalisation, (N, 3, 112, 112) in -1..1."""
        return self.images.permute(0, 3, 1, 2).float() / 127.5 - 1


def shown_patches(touched: Tensor, shown: tuple[int, int], whole_digit: bool) -> Tensor:
    """Patches shown, (B, K), K drawn from ``shown`` with both ends; ``touched`` (B, 196) by the digit."""
    order = torch.rand(touched.shape) + touched * whole_digit
    return order.argsort(1, descending=True)[:, : torch.randint(shown[0], shown[1] + 1, ()).item()]


@torch.inference_mode()
def accuracy(model: nn.Module, size: int, seed: int) -> float:
    """Share of the first test scenes of a seed whose digit the model tells, all patches shown."""
    model.eval()
    batches = (Scenes.make("test", seed, range(size)[start : start + BATCH]) for start in range(0, size, BATCH))
    hits = [model(scenes.inputs()).argmax(1) == scenes.labels for scenes in batches]
    return torch.cat(hits).float().mean().item()


def new_model(name: str, weights: Path | None) -> nn.Module:
    """The model with the weights of a file, or with new ones and positions that begin as sines."""
    model = timm.create_model(name)
    if weights:
        model.load_state_dict(load_file(weights))
    else:
        model.pos_embed.data[:, 1:] = build_sincos2d_pos_embed([GRID, GRID], dim=model.embed_dim) / 2
    return model


def train_epoch(
    model: nn.Module, optimizer: Optimizer, recipe: Schedule, epoch: int, seed: int, progress: tqdm
) -> None:
    """One epoch of scenes never seen before."""
    model.train()
    steps = len(recipe.shown) * recipe.steps  # of the whole training: 60 of warm-up, then half a cosine
    scheduler = CosineLRScheduler(optimizer, steps, lr_min=1e-6, t_in_epochs=False, warmup_t=60, warmup_lr_init=1e-6)
    for step in range(epoch * recipe.steps, (epoch + 1) * recipe.steps):
        scheduler.step_update(step)
        scenes = Scenes.make("train", seed, range(step * BATCH, (step + 1) * BATCH))
        keep = shown_patches(scenes.touched, recipe.shown[epoch], recipe.whole_digit)
        logits = forward_kept(model, scenes.inputs(), keep)
        loss = F.cross_entropy(logits, scenes.labels, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        progress.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
        progress.update(BATCH)


def restore(checkpoint: Path, model: nn.Module, optimizer: Optimizer) -> int:
    """Go on from a checkpoint if there is one: the number of epochs done."""
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["epochs"]


def train(name: str, seed: int, output: Path, recipe: Schedule) -> float:
    """Train one model, going on from its last epoch after a kill; returns its accuracy on test scenes."""
    torch.manual_seed(seed)
    muon.zeropower_via_newtonschulz = NEWTON_SCHULZ
    model = new_model(name, recipe.start and output / f"{recipe.start}.safetensors")
    optimizer = create_optimizer_v2(model, "muon", lr=recipe.learning_rate, weight_decay=0.05)
    checkpoint = output / f"{name}.checkpoint.pt"
    for epoch in range(restore(checkpoint, model, optimizer), len(recipe.shown)):
        torch.manual_seed(seed * 1000 + epoch)
        with tqdm(total=recipe.epoch_size, desc=f"{name} {epoch + 1}/{len(recipe.shown)}", mininterval=1) as progress:
            train_epoch(model, optimizer, recipe, epoch, seed, progress)
            share = accuracy(model, min(256, recipe.test_scenes), seed)
            progress.set_postfix_str(f"{progress.postfix}, test accuracy {share:.3f}")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epochs": epoch + 1}
        write_whole(checkpoint, partial(torch.save, state))
    half = {key: value.half() for key, value in model.state_dict().items()}
    write_whole(output / f"{name}.safetensors", partial(save_file, half))
    return accuracy(model, recipe.test_scenes, seed)


def main(
    model: Annotated[str, typer.Option(help="One of the three, or all.")] = "all",
    seed: Annotated[int, typer.Option(help="Of weights, scenes and dropping.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for weights and checkpoints.")] = Path("embedded"),
) -> None:
    """Train embedded models from a seed; a killed run goes on from its last epoch."""
    output.mkdir(parents=True, exist_ok=True)
    for name in MODEL_NAMES if model == "all" else [model]:
        print(f"{name}: test accuracy {train(name, seed, output, RECIPES[name]):.4f}")


if __name__ == "__main__":
    typer.run(main)
