"""What is done to a ViT to make it cheaper: patches dropped or shown coarsely, tokens merged, a smaller image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitsal.choices import RESTS
from vitsal.errors import UserError, check_choice, check_number
from vitsal.models.pixels import fit_grid, resize
from vitsal.models.sizes import resized
from vitsal.models.tokens import grid_size
from vitsal.reduction.coarse import Coarse, check_coarse, coarsen_patches, num_cells, top_k_cells
from vitsal.reduction.drop import embed_once, keep_patches
from vitsal.reduction.keep import top_k_patches
from vitsal.reduction.merge import Merged, merge_tokens, plain_merging
from vitsal.reduction.soften import plain_softening, query_norms, soften_attention


@dataclass(frozen=True)
class Reduction:
    """One way to reduce a ViT. Nothing at all, the default, is the untouched model.

    Args:
        keep_ratio: fraction of the patches kept, in (0, 1], those that a guide finds most salient.
        merge: how many tokens each block merges away, as `vitsal.reduction.merge_schedule` reads it.
        input_size: (H, W) in pixels to which images are resized; None is the model's own.
        soften: by how much attention is softened where a model sees fewer patches than its own, as
            `vitsal.reduction.soften_schedule` reads it. It costs nothing; "0" leaves attention as it is.
        rest: what becomes of the other patches: "dropped", or "coarse": shown at half the resolution, four as one
            (`vitsal.reduction.coarsen_patches`); whole cells of 2 x 2 are kept then.

    Raises:
        UserError: the keep ratio is no number in (0, 1], softening none from 0 to below 10, the rest neither.
    """

    keep_ratio: float = 1.0
    merge: str = "0"
    input_size: tuple[int, int] | None = None
    soften: str = "0"
    rest: str = "dropped"

    def __post_init__(self) -> None:
        ratio = check_number("keep ratio", self.keep_ratio, 0, 1, open_end="low")
        object.__setattr__(self, "keep_ratio", ratio)  # what is the same has one name: 1 and 1.0, "8" and "08"
        object.__setattr__(self, "merge", plain_merging(self.merge))
        object.__setattr__(self, "soften", plain_softening(self.soften))
        check_choice("rest", self.rest, RESTS)
        object.__setattr__(self, "rest", self.rest if self.guided else "dropped")

    def __str__(self) -> str:
        """Such as "keep 0.5, merge 8, 160 x 160 px"."""
        return ", ".join(filter(None, [f"keep {self.keep_ratio}", self.others]))

    @property
    def others(self) -> str:
        """What is done besides dropping patches, such as "merge 8, 160 x 160 px, soften 1"; "" for nothing."""
        coarse = "rest coarse" if self.coarse else None
        merge = f"merge {self.merge}" if self.merges else None
        size = self.input_size and "{} x {} px".format(*self.input_size)
        soften = f"soften {self.soften}" if self.softens else None
        return ", ".join(filter(None, [coarse, merge, size, soften]))

    @property
    def key(self) -> float | Reduction:
        """Under what outcomes are kept: its keep ratio where that is all, else itself."""
        return self if self.others else self.keep_ratio

    @property
    def code(self) -> float | str:
        """What a journal calls it: its keep ratio where that is all, else its text."""
        return str(self) if self.others else self.keep_ratio

    @property
    def columns(self) -> dict[str, float | str]:
        """What tables say: keep ratio, merge and soften (or "none"), input size ("160 x 160", or "own"), and rest."""
        size = "{} x {}".format(*self.input_size) if self.input_size else "own"
        merge = self.merge if self.merges else "none"
        soften = self.soften if self.softens else "none"
        levers = {"keep_ratio": self.keep_ratio, "merge": merge, "input_size": size, "soften": soften}
        return levers | {"rest": self.rest}

    @classmethod
    def from_columns(
        cls, keep_ratio: float, merge: str, input_size: str, soften: str = "none", rest: str = "dropped"
    ) -> Reduction:
        """The reduction of which a table says so (`columns`)."""
        size = None if input_size == "own" else tuple(map(int, input_size.split(" x ")))
        return cls(keep_ratio, "0" if merge == "none" else merge, size, "0" if soften == "none" else soften, rest)

    @property
    def guided(self) -> bool:
        """Whether a map is needed, to choose the patches that are kept."""
        return self.keep_ratio < 1

    @property
    def coarse(self) -> bool:
        """Whether the other patches are shown coarsely, and not dropped."""
        return self.rest == "coarse"

    @property
    def merges(self) -> bool:
        """Whether tokens are merged."""
        return self.merge != "0"

    @property
    def softens(self) -> bool:
        """Whether attention is softened, where there are fewer patches."""
        return self.soften != "0"


def as_reduction(reduction: float | Reduction) -> Reduction:
    """A reduction, or the one that a keep ratio alone stands for."""
    return reduction if isinstance(reduction, Reduction) else Reduction(reduction)


def check_reduction(model: nn.Module, reduction: Reduction) -> None:
    """Raise UserError if `model` does not allow it: tokens to be merged, attention softened, patches shown coarsely."""
    if reduction.merges:
        with merge_tokens(model, reduction.merge):
            pass
    if reduction.softens:
        query_norms(model)
    if reduction.coarse:
        check_coarse(model)


def num_ranked(model: nn.Module, reduction: Reduction) -> int:
    """How many things a map ranks for `model`, to choose those that are kept: its patches, or cells of them."""
    grid = grid_size(model)
    return num_cells(grid) if reduction.coarse else math.prod(grid)


def allows(model: nn.Module, reduction: Reduction) -> bool:
    """Whether `model` can be reduced so, its images resized too."""
    try:
        check_reduction(resized(model, reduction.input_size), reduction)
    except UserError:
        return False
    return True


@dataclass(frozen=True)
class Shown:
    """What a model is shown in `reduced`: all patches, or those in `keep`, (B, K); some coarsely; how they merge."""

    keep: Tensor | None
    coarse: Coarse | None
    merged: Merged | None

    def count(self, patches: int) -> int:
        """How many patch tokens the first block sees of so many patches."""
        if self.coarse:
            return self.coarse.num_tokens
        return patches if self.keep is None else self.keep.shape[1]

    def laid_on(self, tokens: Tensor, num_prefix_tokens: int) -> Tensor:
        """Number of the token that each patch became part of, after a forward pass: (B, P) of -1 -> (B, P).

        Where a patch was dropped the -1 is left.
        """
        batch, patches = tokens.shape
        everything = torch.arange(patches, device=tokens.device).expand(batch, -1)
        keep = everything if self.keep is None else self.keep
        entered = self.coarse.tokens if self.coarse else everything[:, : keep.shape[1]]
        own = num_prefix_tokens + entered if self.merged is None else self.merged.groups.gather(1, entered)
        return tokens.scatter(1, keep, own)


@contextmanager
def reduced(model: nn.Module, images: Tensor, reduction: Reduction, saliency: Tensor | None = None) -> Iterator[Shown]:
    """Inside this context `model` runs on these images (B, 3, H, W), reduced as is said.

    Model and images have the reduction's size already (`vitsal.models.resized`, `vitsal.models.resize`). Saliency
    (B, gh, gw), for a reduction that keeps a part of the patches, is laid on the model's grid.

    Raises:
        UserError: patches are to be chosen without saliency, or the model does not allow it (`check_reduction`).
    """
    keep = coarse = merged = None
    grid, ratio = grid_size(model, images), reduction.keep_ratio
    with ExitStack() as stack:
        if reduction.guided:
            if saliency is None:
                raise UserError(f"To keep {ratio:g} of the patches takes saliency; got none.")
            laid = fit_grid(saliency[:, None], grid)[:, 0]
            if reduction.coarse:
                coarse = stack.enter_context(coarsen_patches(model, top_k_cells(laid, ratio), grid))
            else:
                stack.enter_context(keep_patches(model, keep := top_k_patches(laid, ratio)))
        if reduction.merges:
            merged = stack.enter_context(merge_tokens(model, reduction.merge))
        shown = Shown(keep, coarse, merged)
        if reduction.softens:
            stack.enter_context(soften_attention(model, shown.count(math.prod(grid)), reduction.soften))
        yield shown


def forward_reduced(model: nn.Module, images: Tensor, reduction: Reduction, saliency: Tensor | None = None) -> Tensor:
    """Logits of `model` on images (B, 3, H, W), patches dropped and tokens merged as `reduction` says (`reduced`)."""
    with reduced(model, images, reduction, saliency):
        return model(images)


def forward_each(
    models: Mapping[tuple[int, int] | None, nn.Module],
    images: Tensor,
    asked: Sequence[tuple[Reduction, Tensor | None]],
) -> list[Tensor]:
    """Logits on images (B, 3, H, W) under each of several reductions, with the saliency (B, gh, gw) that each needs.

    `models` are one model's twins by input size (`vitsal.models.resized`); each resizes and embeds images only once,
    and only once at half their size.
    """
    found: dict[int, Tensor] = {}
    for size in dict.fromkeys(reduction.input_size for reduction, _ in asked):
        seen = resize(images, size)
        with embed_once(models[size], seen):
            for number, (reduction, saliency) in enumerate(asked):
                if reduction.input_size == size:
                    found[number] = forward_reduced(models[size], seen, reduction, saliency)
    return [found[number] for number in range(len(asked))]
