"""What is done to a ViT to make it cheaper: patches dropped, tokens merged, a smaller image, or all together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitsal.errors import UserError, check_number
from vitsal.models.pixels import fit_grid, resize
from vitsal.models.sizes import resized
from vitsal.models.tokens import grid_size
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

    Raises:
        UserError: the keep ratio is no number in (0, 1], or softening none from 0 to below 10.
    """

    keep_ratio: float = 1.0
    merge: str = "0"
    input_size: tuple[int, int] | None = None
    soften: str = "0"

    def __post_init__(self) -> None:
        ratio = check_number("keep ratio", self.keep_ratio, 0, 1, open_end="low")
        object.__setattr__(self, "keep_ratio", ratio)  # what is the same has one name: 1 and 1.0, "8" and "08"
        object.__setattr__(self, "merge", plain_merging(self.merge))
        object.__setattr__(self, "soften", plain_softening(self.soften))

    def __str__(self) -> str:
        """Such as "keep 0.5, merge 8, 160 x 160 px"."""
        return ", ".join(filter(None, [f"keep {self.keep_ratio}", self.others]))

    @property
    def others(self) -> str:
        """What is done besides dropping patches, such as "merge 8, 160 x 160 px, soften 1"; "" for nothing."""
        merge = f"merge {self.merge}" if self.merges else None
        size = self.input_size and "{} x {} px".format(*self.input_size)
        soften = f"soften {self.soften}" if self.softens else None
        return ", ".join(filter(None, [merge, size, soften]))

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
        """What tables say of it: keep ratio, merge and soften (or "none"), and input size ("160 x 160", or "own")."""
        size = "{} x {}".format(*self.input_size) if self.input_size else "own"
        merge = self.merge if self.merges else "none"
        soften = self.soften if self.softens else "none"
        return {"keep_ratio": self.keep_ratio, "merge": merge, "input_size": size, "soften": soften}

    @classmethod
    def from_columns(cls, keep_ratio: float, merge: str, input_size: str, soften: str = "none") -> Reduction:
        """The reduction of which a table says so (`columns`)."""
        size = None if input_size == "own" else tuple(map(int, input_size.split(" x ")))
        return cls(keep_ratio, "0" if merge == "none" else merge, size, "0" if soften == "none" else soften)

    @property
    def guided(self) -> bool:
        """Whether a map is needed, to choose the patches that are kept."""
        return self.keep_ratio < 1

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
    """Raise UserError if tokens of `model` are to be merged and cannot be, or its attention softened and cannot be."""
    if reduction.merges:
        with merge_tokens(model, reduction.merge):
            pass
    if reduction.softens:
        query_norms(model)


def allows(model: nn.Module, reduction: Reduction) -> bool:
    """Whether `model` can be reduced so, its images resized too."""
    try:
        check_reduction(resized(model, reduction.input_size), reduction)
    except UserError:
        return False
    return True


@dataclass(frozen=True)
class Shown:
    """What a model is shown in `reduced`: the patches in `keep`, (B, K), or all; and how tokens were merged."""

    keep: Tensor | None
    merged: Merged | None

    def laid_on(self, tokens: Tensor, num_prefix_tokens: int) -> Tensor:
        """Number of the token that each patch became part of, after a forward pass: (B, P) of -1 -> (B, P).

        Where a patch was dropped the -1 is left.
        """
        batch, patches = tokens.shape
        everything = torch.arange(patches, device=tokens.device).expand(batch, -1)
        keep = everything if self.keep is None else self.keep
        own = num_prefix_tokens + torch.arange(keep.shape[1], device=tokens.device).expand(batch, -1)
        return tokens.scatter(1, keep, own if self.merged is None else self.merged.groups)


@contextmanager
def reduced(model: nn.Module, images: Tensor, reduction: Reduction, saliency: Tensor | None = None) -> Iterator[Shown]:
    """Inside this context `model` runs on these images (B, 3, H, W), reduced as is said.

    Model and images have the reduction's size already (`vitsal.models.resized`, `vitsal.models.resize`). Saliency
    (B, gh, gw), for a reduction that keeps a part of the patches, is laid on the model's grid.

    Raises:
        UserError: patches are to be chosen without saliency, or the model does not allow it (`check_reduction`).
    """
    keep = merged = None
    with ExitStack() as stack:
        if reduction.guided:
            if saliency is None:
                raise UserError(f"To keep {reduction.keep_ratio:g} of the patches takes saliency; got none.")
            laid = fit_grid(saliency[:, None], grid_size(model, images))[:, 0]
            stack.enter_context(keep_patches(model, keep := top_k_patches(laid, reduction.keep_ratio)))
        if reduction.merges:
            merged = stack.enter_context(merge_tokens(model, reduction.merge))
        if reduction.softens:
            seen = math.prod(grid_size(model, images)) if keep is None else keep.shape[1]
            stack.enter_context(soften_attention(model, seen, reduction.soften))
        yield Shown(keep, merged)


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

    `models` are one model's twins by input size (`vitsal.models.resized`); each resizes and embeds images only once.
    """
    found: dict[int, Tensor] = {}
    for size in dict.fromkeys(reduction.input_size for reduction, _ in asked):
        seen = resize(images, size)
        with embed_once(models[size], seen):
            for number, (reduction, saliency) in enumerate(asked):
                if reduction.input_size == size:
                    found[number] = forward_reduced(models[size], seen, reduction, saliency)
    return [found[number] for number in range(len(asked))]
