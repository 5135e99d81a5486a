"""What a ViT has learnt to look at: filters, positions and attention distances, of any supported model.

The probes of sayakpaul/probing-vits. Sources: Dosovitskiy et al. 2021 (arXiv:2010.11929, figure 7 and appendix D.7) and
Raghu et al. 2021 (arXiv:2108.08810). Each probe runs the model in eval mode without gradients, and leaves it as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from vitsal.data.images import LabelledImages, batches
from vitsal.data.pictures import warn_of_skipped
from vitsal.errors import UserError
from vitsal.guides.attention import record_attention
from vitsal.models.tokens import grid_size
from vitsal.reduction.surgery import eval_mode


def patch_distances(grid_size: tuple[int, int], patch_size: tuple[int, int] = (1, 1)) -> Tensor:
    """Euclidean distances between the centers of patches of a grid (gh, gw): (P, P), row by row.

    They are in the unit of the patch size, (ph, pw), such as pixels; by default the unit is one patch.

    Example:
        >>> patch_distances((1, 3), (16, 16))[0]
        tensor([ 0., 16., 32.])
    """
    y, x = (size * torch.arange(count).float() for count, size in zip(grid_size, patch_size, strict=True))
    centers = torch.cartesian_prod(y, x)
    difference = centers[:, None] - centers[None, :]
    return torch.hypot(difference[..., 0], difference[..., 1])


def attention_distance(attention: Tensor, distances: Tensor, num_prefix_tokens: int = 1) -> Tensor:
    """Mean distance at which the patches of one block read from patches: (B, H, N, N) -> (B, H).

    For each patch, the distance to all patches weighted by its attention to them; then the mean over patches. Prefix
    tokens lie nowhere in the image, so that they are neither queries nor keys here, and what a patch pays to the
    patches is scaled to sum 1. Dosovitskiy et al. do not say what becomes of the class token. probing-vits, with code
    by an author of Raghu et al., cuts it off without scaling: there a head that rests on the class token counts as
    local, wherever it looks otherwise, and a model with more prefix tokens seems more local than one with fewer. A row
    with half of its attention on the class token counts here with its full distance, twice as much as there.

    Args:
        attention: softmaxed attention, (B, H, N, N), N = prefix tokens + P.
        distances: (P, P), see `patch_distances`; its unit is the result's.
        num_prefix_tokens: class, distillation and register tokens before the patch tokens.

    Returns:
        (B, H) in float32; a patch with no attention on any patch counts as 0.

    Example:
        >>> attention_distance(torch.full((1, 1, 3, 3), 1 / 3), patch_distances((1, 2), (16, 16)))
        tensor([[8.]])
    """
    among_patches = attention[..., num_prefix_tokens:, num_prefix_tokens:].flatten(0, 1).transpose(0, 1).float()
    weights = torch.stack([distances, torch.ones_like(distances)], dim=-1).to(attention.device)
    with torch.autocast(attention.device.type, enabled=False):  # which would round the products to 16 bits
        weighted, total = torch.bmm(among_patches, weights).unbind(dim=-1)  # a product per query: nothing is copied
    mean = (weighted / total.clamp_min(torch.finfo(total.dtype).tiny)).mean(dim=0)
    return mean.unflatten(0, attention.shape[:2])


def attention_distances(model: nn.Module, images: Tensor) -> Tensor:
    """Attention distance of each image, block and head, in pixels: (B, 3, H, W) -> (B, L, H).

    Each block's maps are reduced as soon as they are there (`attention_distance`), so that never more than one block's
    are in memory.
    """
    distances = patch_distances(grid_size(model, images), model.patch_embed.patch_size).to(images.device)
    reduce = partial(attention_distance, distances=distances, num_prefix_tokens=model.num_prefix_tokens)
    with eval_mode(model), record_attention(model, reduce) as found:
        model(images)
    return torch.stack(found, dim=1)


def mean_attention_distance(
    model: nn.Module, batches: Iterable[Tensor], *, total: int | None = None, progress: bool = True
) -> tuple[Tensor, Tensor]:
    """Mean attention distance of each block and head over many images, in pixels, and its spread over the images.

    Dosovitskiy et al. 2021, appendix D.7 (128 images); Raghu et al. 2021, figure 3 (5,000); see `attention_distance`
    for what is counted.

    Args:
        model: a timm ViT.
        batches: images (B, 3, H, W), as `model_transform(model)` makes them; batches of no image are passed over.
        total: number of batches, for the progress bar, which `progress` shows.

    Returns:
        Mean and standard deviation over images, each (L, H); the deviation of a single image is 0.

    Raises:
        UserError: no images.
    """
    device = next(model.parameters()).device
    bar = tqdm(batches, desc="attention distance", total=total, unit="batch", mininterval=1, disable=not progress)
    found = [attention_distances(model, images.to(device)).cpu() for images in bar if len(images)]
    if not found:
        raise UserError("Mean attention distance needs at least one image; got none.")
    deviation, mean = torch.std_mean(torch.cat(found), dim=0, correction=0)
    return mean, deviation


@torch.no_grad()
def projection_filters(model: nn.Module, count: int = 28) -> Tensor:
    """Principal components of the patch embedding's filters, as RGB pictures: (count, ph, pw, 3) in [0, 1].

    Dosovitskiy et al. 2021, figure 7 left, shows the first 28. probing-vits shows the first 128 single filters, in
    no order; components are sorted by how much of the filters' variance they hold. Grey (0.5) is no weight; each
    picture is scaled by its own largest weight. A component's sign means nothing: that weight is made positive.

    Raises:
        UserError: patches are not embedded by one convolution over three channels, or there are not so many components.
    """
    projection = getattr(model.patch_embed, "proj", None)
    if not isinstance(projection, nn.Conv2d) or projection.in_channels != 3:
        raise UserError(
            f"This {type(model).__name__} embeds its patches by a {type(model.patch_embed).__name__}, not by one "
            "convolution over three colour channels, so that its filters are no pictures."
        )
    filters = projection.weight.flatten(1).cpu().double()
    if not 1 <= count <= min(filters.shape):
        raise UserError(f"The patch embedding has {min(filters.shape)} principal components; {count} were asked for.")
    components = torch.linalg.svd(filters - filters.mean(dim=0), full_matrices=False).Vh[:count]
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    pictures = (components / largest).view(count, 3, *model.patch_embed.patch_size)
    return (0.5 + pictures / 2).permute(0, 2, 3, 1).float()


@torch.no_grad()
def position_similarity(model: nn.Module) -> Tensor:
    """Cosine similarity of each patch's position embedding with every other's: (gh, gw, gh, gw).

    Dosovitskiy et al. 2021, figure 7 center. Prefix tokens' positions, where a model has such, are left out.

    Raises:
        UserError: the model learns no absolute positions.
    """
    if getattr(model, "pos_embed", None) is None:
        raise UserError(
            f"This {type(model).__name__} has no position embeddings to compare: it adds nothing to its patches, and "
            "tells positions inside attention (rotary or relative positions), if at all."
        )
    grid = grid_size(model)
    patches = model.pos_embed[0, -grid[0] * grid[1] :].float()  # prefix tokens, if embedded, come first
    directions = F.normalize(patches, dim=1)
    return (directions @ directions.T).view(*grid, *grid)


@dataclass(frozen=True)
class Probe:
    """How far a model's heads look, and its first filters."""

    distances: Tensor  # mean over the images of each head's attention distance, (L, H) in pixels
    spreads: Tensor  # its deviation over the images, (L, H)
    uniform: float  # the distance of attention to all patches alike
    filters: Tensor  # (n, ph, pw, 3) in [0, 1], see `projection_filters`
    images: int  # how many there were


def probe_model(model: nn.Module, dataset: LabelledImages, batch_size: int = 32, **options: int | None) -> Probe:
    """Probe a timm ViT over a data set with its transform; images that cannot be read are skipped and named.

    The data set is as `open_data` returns it, batch size and options are as `vitsal.data.batches` takes them.
    """
    filters, seen = projection_filters(model), []

    def images() -> Iterator[Tensor]:
        skipped: dict[str, str] = {}
        for batch in batches(dataset, batch_size, **options):
            seen.extend(batch.names)
            skipped.update(batch.skipped)
            yield batch.images
        warn_of_skipped(skipped)

    distances, spreads = mean_attention_distance(model, images())
    uniform = patch_distances(grid_size(model), model.patch_embed.patch_size).mean().item()
    return Probe(distances, spreads, uniform, filters, len(seen))


def distance_table(probes: Mapping[str, Probe]) -> pd.DataFrame:
    """One row per head: model, block, head, mean distance and its spread over images, in pixels."""
    tables = []
    for name, probe in probes.items():
        blocks, heads = 1 + np.indices(probe.distances.shape).reshape(2, -1)
        values = {"mean_px": probe.distances.flatten().tolist(), "std_px": probe.spreads.flatten().tolist()}
        tables.append(pd.DataFrame({"model": name, "block": blocks, "head": heads, **values}))
    return pd.concat(tables, ignore_index=True)
