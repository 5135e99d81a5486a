"""Patches of two sizes: what matters is shown as it is, the rest coarsely, four patches as one.

Ronen et al. 2023, "Vision Transformers with Mixed-Resolution Tokenization", arXiv:2304.00287, train a ViT for such
input; here it is shown to one that was trained on patches of one size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from vitsal.errors import UserError
from vitsal.models.tokens import grid_size, position_kind
from vitsal.reduction.drop import check_keep, embed_halved, gather_tokens
from vitsal.reduction.keep import top_k_patches
from vitsal.reduction.surgery import before_blocks, before_pooling


class Coarse:
    """What becomes of patches inside `coarsen_patches`.

    Attributes:
        grid: of the model's patches, (gh, gw).
        cells: numbers of the cells that are shown as they are, (B, K).
    """

    def __init__(self, cells: Tensor, grid: tuple[int, int], num_prefix_tokens: int) -> None:
        self.grid, self.cells, self._num_prefix_tokens = grid, cells, num_prefix_tokens

    @cached_property
    def rest(self) -> Tensor:
        """Numbers of the cells that are shown coarsely, in ascending order, (B, C - K)."""
        number = num_cells(self.grid)
        shown = torch.zeros(self.cells.shape[0], number, device=self.cells.device).scatter(1, self.cells, 1.0)
        return shown.argsort(dim=1, stable=True)[:, : number - self.cells.shape[1]]

    @property
    def num_tokens(self) -> int:
        """How many patch tokens the first block sees: four of each cell that is shown as it is, one of each other."""
        return num_cells(self.grid) + 3 * self.cells.shape[1]

    @property
    def tokens(self) -> Tensor:
        """Number of the token that each of P patches enters in, (B, P), prefix tokens not counted."""
        fine, rest = patches_of(self.cells, self.grid), patches_of(self.rest, self.grid)
        numbers = torch.arange(self.num_tokens, device=fine.device)
        numbers = torch.cat([numbers[: fine.shape[1]], numbers[fine.shape[1] :].repeat_interleave(4)])
        patches = torch.cat([fine, rest], dim=1)
        return torch.empty_like(patches).scatter(1, patches, numbers.expand_as(patches))

    def _embed(self, embed: nn.Module, args: tuple, tokens: Tensor) -> None:
        """After the embedding of all patches: those of the image at half its size."""
        images = args[0]
        check_keep(self.cells, images.shape[0], num_cells(self.grid))
        self._embedded = tokens.flatten(1, -2), embed_halved(embed, images)

    def _mix(self, tokens: Tensor) -> Tensor:
        """After the positions, before the first block: (B, N, C), prefix tokens first, all patches -> both sizes."""
        prefix, patches = tokens.tensor_split([self._num_prefix_tokens], dim=1)
        embedded, small = self._embedded
        positions = (patches - embedded).mT.unflatten(2, self.grid)
        small = small + avg_pool2d(positions, 2).flatten(2).mT
        fine = gather_tokens(patches, patches_of(self.cells, self.grid))
        return torch.cat([prefix, fine, gather_tokens(small, self.rest)], dim=1)

    def _spread(self, tokens: Tensor) -> Tensor:
        """Before the pooling: each patch has the token that it entered in."""
        prefix, patches = tokens.tensor_split([self._num_prefix_tokens], dim=1)
        return torch.cat([prefix, gather_tokens(patches, self.tokens)], dim=1)


def num_cells(grid: tuple[int, int]) -> int:
    """How many cells of 2 x 2 a grid of (gh, gw) patches has."""
    return math.prod(grid) // 4


def patches_of(cells: Tensor, grid: tuple[int, int]) -> Tensor:
    """The patches of cells of 2 x 2, row by row in each: numbers (B, K) -> (B, 4 K), for a grid of (gh, gw) patches.

    Example:
        >>> patches_of(torch.tensor([[1]]), (4, 4))
        tensor([[2, 3, 6, 7]])
    """
    width = grid[1]
    first = 2 * width * (cells // (width // 2)) + 2 * (cells % (width // 2))
    return (first[:, :, None] + first.new_tensor([0, 1, width, width + 1])).flatten(1)


def top_k_cells(saliency: Tensor, keep_ratio: float) -> Tensor:
    """Numbers of the cells of 2 x 2 patches that are most salient on the whole: (B, gh, gw) -> (B, K), ascending.

    Raises:
        UserError: the keep ratio is no number in (0, 1], or the saliency is not finite.
    """
    return top_k_patches(avg_pool2d(saliency[:, None], 2)[:, 0], keep_ratio)


@contextmanager
def coarsen_patches(model: nn.Module, cells: Tensor, grid: tuple[int, int]) -> Iterator[Coarse]:
    """Inside this context `model` sees these cells of 2 x 2 patches as they are, and each other cell as one patch.

    That one is embedded as any patch is, from the image at half its size, and stands at the mean of the positions of
    its four. The first block sees prefix tokens, the patches of `cells`, cell by cell, then the coarse ones. What pools
    over patches at the end sees a coarse one four times, for the four in it.

    Args:
        model: a timm ViT (`vitsal.load_model`) with absolute positions alone.
        cells: numbers from 0 in row-major order, (B, K), for B images.
        grid: of the patches of these images, (gh, gw).

    Yields:
        `Coarse`, which tells what became of each patch.

    Raises:
        UserError: a model or a grid that does not allow it (`check_coarse`); on running, cells that are none.
    """
    check_coarse(model, grid)
    coarse = Coarse(cells, grid, model.num_prefix_tokens)
    with ExitStack() as stack:
        stack.enter_context(model.patch_embed.register_forward_hook(coarse._embed))
        stack.enter_context(before_blocks(model, coarse._mix))
        stack.enter_context(before_pooling(model, coarse._spread))
        yield coarse


def check_coarse(model: nn.Module, grid: tuple[int, int] | None = None) -> None:
    """Raise UserError unless the patches of `model` can be shown coarsely, on this grid or on its own."""
    rows, columns = grid or grid_size(model)
    name = model.pretrained_cfg["architecture"]
    if rows % 2 or columns % 2:
        raise UserError(
            f"{name} has {rows} x {columns} patches here, and only even numbers of them can be shown coarsely, four as "
            "one. Choose another input size, or drop the rest."
        )
    if position_kind(model) != "absolute" or not isinstance(model.patch_embed, PatchEmbed):
        raise UserError(
            f"The patches of {name} cannot be shown coarsely: that takes absolute positions and patches that are "
            "embedded alone. Drop the rest instead."
        )
