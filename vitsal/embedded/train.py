"""Train the three embedded models again: ``python -m vitsal.embedded.train --model all --output DIR``.

What makes small ViTs learn from scratch within minutes on two CPU cores:

- They first see few patches of a scene, all of the largest digit's among them, and learn to read; then more, those of
  all digits among them, and learn which one to read; in the last stage, all patches. So masks choose what is shown in
  the first epochs, but no loss sees one: nobody tells a model where to look.
- Digits are smaller than in the scenes on which the models are judged: few patches show them whole, and what is read
  at one size is read at the other too.
- Attention begins near what trained ViTs come to: like attends to like, and positions are sines, so that heads begin
  local, each with a reach of its own (Trockman & Kolter 2023, "Mimetic initialization of self-attention layers",
  arXiv:2305.09828).
- Muon (Jordan et al. 2024), as timm has it: matrices by Muon, the rest by AdamW. Measured here, it needs
  about half as many scenes as AdamW alone.

``vitsal_digits_target_drop`` goes on from the weights of ``vitsal_digits_target``, random patches dropped.

How faint digits are was chosen by a look at scenes of both splits; the sizes on which models are judged (`LARGE`), by
the target's accuracy on 150 to 400 test scenes, so that guides part where nine patches of ten are dropped: how far they
part there is no finding. The rest was chosen by losses on training scenes.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

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

from vitsal.data.scenes import LARGE, SMALL, Sizes, make_scene, patch_masks
from vitsal.jobs.files import write_whole
from vitsal.models.digits import MODEL_NAMES
from vitsal.reduction.drop import forward_kept

GRID = 14  # patches on each side of a scene
BATCH = 32
LONGEST_WAVE = 100  # of the sines that positions begin as, in patches, divided by 2 pi
STRENGTHS = (0.3, 0.8, 1.7, 3.5)  # of the heads of each block, see `mimetic`
# CPUs are slow at the bfloat16 that is timm's default
NEWTON_SCHULZ = partial(muon.zeropower_via_newtonschulz, dtype=torch.float32)


class Stage(NamedTuple):
    """Epochs in which each batch draws how many patches it shows: those sure to be shown, and random others."""

    epochs: int
    fewest: int
    most: int
    sure: str | None = None  # those of the "largest" digit, or of all "digits": fields of `Scenes`


@dataclass(frozen=True)
class Schedule:
    """How one model is trained."""

    stages: tuple[Stage, ...]
    learning_rate: float
    start: str | None = None  # the model whose weights it starts from
    epoch_size: int = 4_000
    test_scenes: int = 2_000

    @property
    def steps(self) -> int:
        """Steps in one epoch."""
        return self.epoch_size // BATCH

    @property
    def epochs(self) -> list[Stage]:
        """The stage of each epoch."""
        return [stage for stage in self.stages for _ in range(stage.epochs)]


RECIPES = {
    "vitsal_digits_target": Schedule(
        (Stage(8, 32, 32, "largest"), Stage(10, 64, 64, "digits"), Stage(8, 112, 112, "digits"), Stage(6, 196, 196)),
        2e-3,
    ),
    "vitsal_digits_target_drop": Schedule((Stage(4, 20, 196),), 5e-4, "vitsal_digits_target"),
    "vitsal_digits_guide": Schedule(
        (Stage(12, 32, 32, "largest"), Stage(10, 64, 64, "digits"), Stage(8, 112, 112, "digits"), Stage(6, 196, 196)),
        3e-3,
    ),
}


@dataclass(frozen=True)
class Scenes:
    """Images (N, 112, 112, 3) uint8, labels (N,), and the patches that the largest digit and all digits touch.

    Patches are (N, 196), bool.
    """

    images: Tensor
    labels: Tensor
    largest: Tensor
    digits: Tensor

    @classmethod
    def make(cls, split: str, seed: int, indices: range, sizes: Sizes = LARGE) -> "Scenes":
        """These scenes of a split, in memory: 38 kB each."""
        scenes = [make_scene(split, seed, index, sizes) for index in indices]
        images = torch.from_numpy(np.stack([scene.image for scene in scenes]))
        largest = [scene.mask for scene in scenes]
        digits = [np.any([digit.mask for digit in scene.digits], axis=0) for scene in scenes]
        touched = [patch_masks(masks, (GRID, GRID)).flatten(1) for masks in (largest, digits)]
        return cls(images, torch.tensor([scene.label for scene in scenes]), *touched)

    def inputs(self) -> Tensor:
        """Images under the models' own normalisation, (N, 3, 112, 112) in -1..1."""
        return self.images.permute(0, 3, 1, 2).float() / 127.5 - 1


def shown_patches(scenes: Scenes, stage: Stage) -> Tensor:
    """Patches shown, (B, K): the sure ones first, then random ones; K is drawn, the same for all scenes."""
    order = torch.rand(scenes.digits.shape)
    if stage.sure:
        order += getattr(scenes, stage.sure)
    return order.argsort(1, descending=True)[:, : torch.randint(stage.fewest, stage.most + 1, ()).item()]


@torch.inference_mode()
def accuracy(model: nn.Module, size: int, seed: int) -> float:
    """Share of the first test scenes of a seed whose digit the model tells, all patches shown."""
    model.eval()
    batches = (Scenes.make("test", seed, range(size)[start : start + BATCH]) for start in range(0, size, BATCH))
    hits = [model(scenes.inputs()).argmax(1) == scenes.labels for scenes in batches]
    return torch.cat(hits).float().mean().item()


def new_model(name: str, weights: Path | None) -> nn.Module:
    """The model with the weights of a file, or with new ones that begin as `mimetic` says."""
    model = timm.create_model(name)
    if weights:
        model.load_state_dict(load_file(weights))
    else:
        mimetic(model)
    return model


@torch.no_grad()
def mimetic(model: nn.Module) -> None:
    """Begin as trained ViTs end: Trockman & Kolter 2023, with a strength for each head instead of one for all.

    Products of a head's query and key weights begin near a multiple of the identity, those of value and projection
    weights near minus the identity, positions as sines. The stronger the multiple, the closer a head's reach.
    """
    width = model.embed_dim
    model.pos_embed[:, 1:] = build_sincos2d_pos_embed([GRID, GRID], dim=width, temperature=LONGEST_WAVE)
    for block in model.blocks:
        queries, keys, values = block.attn.qkv.weight.view(3, -1, width)
        heads = (weights.chunk(len(STRENGTHS)) for weights in (queries, keys))
        for strength, query, key in zip(STRENGTHS, *heads, strict=True):
            left, right = factors(strength * (torch.eye(width) + 0.7 * noise(width)), len(query))
            query[:], key[:] = left.T, right
        left, right = factors(0.4 * (noise(width) - torch.eye(width)), width)
        values[:], block.attn.proj.weight[:] = left.T, right.T


def noise(width: int) -> Tensor:
    """Square, of normal numbers of variance 1 / width."""
    return torch.randn(width, width) / width**0.5


def factors(product: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Two matrices, (D, rank) and (rank, D), whose product is the best of that rank to a square one."""
    left, values, right = torch.linalg.svd(product)
    roots = values[:rank].sqrt()
    return left[:, :rank] * roots, roots[:, None] * right[:rank]


def train_epoch(
    model: nn.Module, optimizer: Optimizer, recipe: Schedule, epoch: int, seed: int, progress: tqdm
) -> None:
    """One epoch of scenes never seen before."""
    model.train()
    steps = len(recipe.epochs) * recipe.steps  # of the whole training: 60 of warm-up, then half a cosine
    scheduler = CosineLRScheduler(optimizer, steps, lr_min=1e-6, t_in_epochs=False, warmup_t=60, warmup_lr_init=1e-6)
    for step in range(epoch * recipe.steps, (epoch + 1) * recipe.steps):
        scheduler.step_update(step)
        scenes = Scenes.make("train", seed, range(step * BATCH, (step + 1) * BATCH), SMALL)
        keep = shown_patches(scenes, recipe.epochs[epoch])
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
    for epoch in range(restore(checkpoint, model, optimizer), len(recipe.epochs)):
        torch.manual_seed(seed * 1000 + epoch)
        with tqdm(total=recipe.epoch_size, desc=f"{name} {epoch + 1}/{len(recipe.epochs)}", mininterval=1) as progress:
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
