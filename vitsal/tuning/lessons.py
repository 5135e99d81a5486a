"""What a target practises on: one reduction after the other, drawn for each step, chosen by better and worse guides."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from vitsal.choices import TuningSettings
from vitsal.errors import UserError
from vitsal.jobs.identity import seed_of
from vitsal.models.sizes import resized
from vitsal.models.tokens import grid_size, input_size
from vitsal.reduction.keep import rank_patches
from vitsal.reduction.reduction import Reduction, allows, check_reduction

SIZES = (8 / 14, 10 / 14, 12 / 14)  # of the patches along each side: 128, 160 and 192 of 224 pixels
MERGED = (0.5, 0.8, 1.0)  # of the tokens that each block of as many would merge away: 8, 13 and 16 of 196 in 12 blocks
SOFTENED = "1-"  # as `vitsal.reduction.soften_schedule` reads it
NOISE = (0.0, 0.25, 0.5, 1.0)  # on ranks from 0 to 1, uniform from 0 to this


class Lesson(NamedTuple):
    """One step's: how the target is reduced, whose map chooses (None where nobody need), how noisy it gets."""

    reduction: Reduction
    guide: str | None = None
    noise: float = 0.0


@dataclass(frozen=True)
class Lessons:
    """All that a target may be asked to bear; what no guide, size or schedule is there for is left out.

    Args:
        guides: names of those whose maps choose patches.
        sizes: (H, W) in pixels.
        merges: schedules.
        keep_ratios: lowest and highest.
        shares: of dropping, merging, and smaller images.
        soften: how attention is softened for fewer patches and smaller images (`vitsal.Reduction`).
        rests: what becomes of patches that are not kept.
        seed: of what is drawn.

    Raises:
        UserError: nothing is left.
    """

    guides: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    merges: tuple[str, ...]
    keep_ratios: tuple[float, float] = TuningSettings.keep_ratios
    shares: tuple[float, float, float] = TuningSettings.shares
    soften: str = "0"
    rests: tuple[str, ...] = TuningSettings.rests
    seed: int = 0

    def __post_init__(self) -> None:
        if not sum(self._shares.values()):
            raise UserError(
                "There is nothing to practise: no guide, no smaller size, no merging that the target allows."
            )

    @classmethod
    def for_model(cls, model: nn.Module, guides: Iterable[str], settings: TuningSettings) -> Lessons:
        """The lessons that were asked for; where nothing was, what suits the grid and the depth of a model.

        UserError for a size, a schedule, a softening or a rest that the model does not allow.
        """
        counts = merge_counts(model, MERGED)
        merges = (*map(str, counts), f"{counts[-1]}-") if counts else ()
        sizes = tuple(smaller_sizes(model, SIZES)) if settings.sizes is None else settings.sizes
        merges = merges if settings.merges is None else settings.merges
        soften = softening_of(model, settings.soften)
        for reduction in [
            *(Reduction(merge=merge) for merge in merges),
            *(Reduction(input_size=size) for size in sizes),
            *(Reduction(max(settings.keep_ratios), rest=rest) for rest in settings.rests),
        ]:
            check_reduction(resized(model, reduction.input_size), reduction)
        return cls(
            tuple(guides), sizes, merges, settings.keep_ratios, settings.shares, soften, settings.rests, settings.seed
        )

    @property
    def _shares(self) -> dict[str, float]:
        """Kind of lesson -> its share, of those that are to be had."""
        there = {"drop": self.guides, "merge": self.merges, "shrink": self.sizes}
        return {kind: share for (kind, ways), share in zip(there.items(), self.shares, strict=True) if ways}

    def draw(self, step: int) -> Lesson:
        """The lesson of a step, the same whenever it is drawn."""
        dice, shares = random.Random(seed_of(self.seed, "lesson", step)), self._shares
        kind = dice.choices(list(shares), list(shares.values()))[0]
        if kind == "shrink":
            return Lesson(Reduction(input_size=dice.choice(self.sizes), soften=self.soften))
        if kind == "merge":
            return Lesson(Reduction(merge=dice.choice(self.merges)))
        ratio = math.exp(dice.uniform(*map(math.log, self.keep_ratios)))
        guide, noise, rest = dice.choice(self.guides), dice.choice(NOISE), dice.choice(self.rests)
        return Lesson(Reduction(round(ratio, 3), soften=self.soften, rest=rest), guide, noise)


def noisy_ranking(saliency: Tensor, noise: Tensor) -> Tensor:
    """Ranks of an image's patches, from 0 to 1, and noise on top: (B, gh, gw) twice -> (B, gh, gw).

    So a target is not tuned to one guide's choice alone: what worse guides would choose comes up too.
    """
    places = rank_patches(saliency).argsort(dim=1)
    return (1 - places / max(1, places.shape[1] - 1)).view_as(saliency) + noise


def smaller_sizes(model: nn.Module, shares: Sequence[float]) -> list[tuple[int, int]]:
    """Input sizes, (H, W) in pixels, with these shares of the model's patches along each side; none if it has one size.

    The model's own size is none of them.
    """
    grid, patch = grid_size(model), model.patch_embed.patch_size
    sides = [
        tuple(max(1, round(share * cells)) * step for cells, step in zip(grid, patch, strict=True)) for share in shares
    ]
    others = (size for size in dict.fromkeys(sides) if size != input_size(model))
    return [size for size in others if allows(model, Reduction(input_size=size))]


def softening_of(model: nn.Module, asked: str | None) -> str:
    """The softening that is asked for; where none is, what a model allows. UserError for one that it does not."""
    if asked is None:
        return SOFTENED if can_soften(model) else "0"
    check_reduction(model, Reduction(soften=asked))
    return asked


def can_soften(model: nn.Module) -> bool:
    """Whether the attention of a model can be softened."""
    return allows(model, Reduction(soften=SOFTENED))


def merge_counts(model: nn.Module, shares: Sequence[float]) -> list[int]:
    """How many tokens each block merges away, as shares of the patches per block; none if none can be merged."""
    if not allows(model, Reduction(merge="1")):
        return []
    patches = math.prod(grid_size(model))
    return list(dict.fromkeys(max(1, int(share * patches / len(model.blocks))) for share in shares))
