"""A teacher's maps on disk: computed once, shard by shard, resumed after a kill, memory-mapped from then on.

A shard is one safetensors file with `images` (n, 3, h, w) uint8, downsampled, and `maps` (n, gh, gw) float16, each
scaled to a mean of 1, which float16 holds to three digits. Its metadata has the images that could not be read, what the
shard claims to be, and a checksum over all of it: no shard is used in another's place, of other maps, or damaged.
"""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from vitsal.data.images import Batch, LabelledImages, batches
from vitsal.data.pictures import warn_of_skipped
from vitsal.errors import UserError
from vitsal.jobs.files import check_folder, read_json, write_whole
from vitsal.jobs.identity import describe, question_hash, refuse_other
from vitsal.jobs.tensors import DamagedError, read_tensors, write_tensors
from vitsal.models.pixels import denormalize, downsample
from vitsal.models.tokens import grid_size
from vitsal.students.views import random_views, warp

SETTINGS = "settings.json"
BATCHES_PER_SHARD = 16
HOLDOUT = 10


class Teacher(Protocol):
    """A guide that explains a model, such as `vitsal.guides.RolloutGuide`."""

    model: nn.Module

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> saliency (B, gh, gw)."""


@dataclass(frozen=True)
class MapSettings:
    """What is cached besides the teacher and the data.

    Args:
        image_size: (h, w) of the cached images; twice a student's input leaves room for crops.
        limit: number of images, spread evenly over the data; a stream needs one.
        views: 0 caches each image as it is; n caches n random crops and flips of it, and asks the teacher about each.
        seed: of the views.
        batch_size: images that the teacher sees at once; a shard holds 16 batches.
    """

    image_size: tuple[int, int]
    limit: int | None = None
    views: int = 0
    seed: int = 0
    batch_size: int = 32


def cache_maps(
    teacher: Teacher,
    dataset: LabelledImages,
    folder: str | Path,
    settings: MapSettings,
    *,
    num_workers: int = 0,
    process: int = 0,
    num_processes: int = 1,
    progress: bool = True,
) -> None:
    """Compute a teacher's maps for a data set into a folder; what is there already, and whole, is kept.

    The data set has the transform of the teacher's model; `num_workers` processes decode its images. Of several
    processes each, told its number, computes its share of the shards; whoever reads them afterwards must wait for all.

    Raises:
        UserError: no images; a stream without a limit; a map that is not finite; or the folder holds maps of another
            teacher, other data or other settings, which are left as they are.
    """
    folder, total = Path(folder), _total(dataset, settings)
    about = describe_maps(teacher, dataset, settings)
    check_folder(folder)
    if not (folder / SETTINGS).is_file():
        write_whole(folder / SETTINGS, lambda part: part.write_text(json.dumps(about, indent=1)))
    what, advice = f"{folder} holds maps made by other settings", "Name another folder, or remove it."
    refuse_other(read_settings(folder), about, what, advice)
    claims = list(_claims(about, total))
    bar = tqdm(claims[process::num_processes], desc="teacher's maps", unit="shard", mininterval=1, disable=not progress)
    source, skipped = _Source(dataset, settings, num_workers), {}
    for claim in bar:
        shard = _read_or_warn(folder, claim)
        if not shard:
            shard = _compute_shard(teacher, source.batches_of(claim), settings, claim)
            write_shard(folder, shard)
        skipped |= shard.skipped
    if len(skipped) >= total:
        name, problem = next(iter(skipped.items()))
        raise UserError(f"None of {len(skipped)} images could be read; the first is {name} ({problem}).")
    warn_of_skipped(skipped)


def describe_maps(teacher: Teacher, dataset: LabelledImages, settings: MapSettings) -> dict[str, Any]:
    """What cached maps are of, weights and data included."""
    data = dataset.fingerprint(dataset.keys(dataset.numbers(settings.limit)))
    return {"teacher": describe(teacher), "data": data, **asdict(settings)}


def maps_folder(root: str | Path, teacher: Teacher, dataset: LabelledImages, settings: MapSettings) -> Path:
    """The folder in `root` that belongs to these maps: its name holds the hash of what they are of."""
    return Path(root, f"maps-{question_hash(describe_maps(teacher, dataset, settings))}")


def _total(dataset: LabelledImages, settings: MapSettings) -> int:
    total = dataset.count(settings.limit)
    if total is None:
        raise UserError("A stream does not tell how many images it has: give a limit.")
    if total == 0:
        raise UserError("The data set is empty: there is no image to ask the teacher about.")
    return total


class Claim(NamedTuple):
    """What a shard says that it is: part of which maps (their hash), its view and first image, of so many in all."""

    maps: str
    view: int
    first: int
    total: int

    @property
    def file(self) -> str:
        """The shard's name."""
        return f"view{self.view}-{self.first:09d}.safetensors"


class Shard(NamedTuple):
    """Images (n, 3, h, w) with their maps (n, gh, gw), and those that could not be read."""

    claim: Claim
    images: Tensor
    maps: Tensor
    skipped: dict[str, str]


def _claims(about: Mapping[str, Any], total: int) -> Iterator[Claim]:
    """All shards that maps consist of: view by view, in the images' order."""
    starts = range(0, total, about["batch_size"] * BATCHES_PER_SHARD)
    maps = question_hash(about)
    return (Claim(maps, view, first, total) for view in range(max(about["views"], 1)) for first in starts)


class _Source:
    """Batches of shard after shard, read on from the one before: a stream begun anew for each takes quadratic time."""

    def __init__(self, dataset: LabelledImages, settings: MapSettings, num_workers: int) -> None:
        self.dataset, self.settings, self.num_workers = dataset, settings, num_workers
        self.view, self.next, self.batches = -1, 0, iter(())

    def batches_of(self, claim: Claim) -> Iterator[Batch]:
        """Batches of this shard; those of the shard before must have been taken."""
        size, limit = self.settings.batch_size, self.settings.limit
        ahead = claim.first - self.next
        if claim.view != self.view or ahead < 0 or (ahead and not self.dataset.streamed):
            ahead = 0
            self.batches = batches(self.dataset, size, first=claim.first, limit=limit, num_workers=self.num_workers)
        self.view, self.next = claim.view, claim.first + size * BATCHES_PER_SHARD
        return islice(self.batches, ahead // size, ahead // size + BATCHES_PER_SHARD)


@torch.no_grad()
def _compute_shard(teacher: Teacher, samples: Iterator[Batch], settings: MapSettings, claim: Claim) -> Shard:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{settings.seed} {claim.view} {claim.first}".encode()))
    device = next(teacher.model.parameters()).device
    images = [torch.empty(0, 3, *settings.image_size, dtype=torch.uint8)]
    maps = [torch.empty(0, *grid_size(teacher.model), dtype=torch.float16)]
    skipped: dict[str, str] = {}
    for batch in samples:
        skipped |= batch.skipped
        if not batch.names:
            continue
        seen = batch.images.to(device)
        if settings.views:
            seen = warp(seen, random_views(len(seen), generator))
        small = denormalize(downsample(seen, settings.image_size), teacher.model)
        images.append((255 * small).round().clamp(0, 255).to("cpu", torch.uint8))
        maps.append(_with_mean_one(teacher(seen), batch.names).to("cpu", torch.float16))
    if len(images) == 1 and not skipped:
        raise UserError(f"The data ended before image {claim.first}: give a limit of at most {claim.first}.")
    return Shard(claim, torch.cat(images), torch.cat(maps), skipped)


def _with_mean_one(maps: Tensor, names: Sequence[str]) -> Tensor:
    for name, fine in zip(names, maps.isfinite().flatten(1).all(dim=1).tolist(), strict=True):
        if not fine:
            raise UserError(f"The teacher's map of {name} is not finite, so it cannot be learnt. Take another teacher.")
    return maps / maps.mean(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


def write_shard(folder: Path, shard: Shard) -> None:
    """Write a shard into its file, as `CachedMaps` reads it."""
    metadata = {name: str(value) for name, value in shard.claim._asdict().items()}
    metadata["skipped"] = json.dumps(shard.skipped)
    write_tensors(folder / shard.claim.file, {"images": shard.images, "maps": shard.maps}, metadata)


def _read_shard(path: Path, claim: Claim | None = None) -> Shard:
    """Read a shard, its tensors memory-mapped: what is not used is not kept; or say in a DamagedError why not."""
    if not path.is_file():
        raise DamagedError("missing")
    try:
        tensors, metadata = read_tensors(path)
        said = Claim(metadata["maps"], *(int(metadata[part]) for part in ("view", "first", "total")))
        shard = Shard(said, tensors["images"], tensors["maps"], json.loads(metadata["skipped"]))
    except (DamagedError, LookupError, ValueError) as error:
        raise DamagedError("damaged") from error
    if claim and said != claim:
        raise DamagedError("a part of other maps")
    return shard


def _read_or_warn(folder: Path, claim: Claim) -> Shard | None:
    """A shard if it is there and whole; one that cannot be used is named."""
    path = folder / claim.file
    try:
        return _read_shard(path, claim) if path.exists() else None
    except DamagedError as damage:
        warnings.warn(f"{path} is {damage} and is computed again.", stacklevel=3)
        return None


def _read_all(folder: Path) -> Iterator[Shard]:
    """All shards of the maps in a folder, in order; a UserError names one that is missing, damaged, or of others."""
    path = min(folder.glob("view*-*.safetensors"), default=None)
    if path is None:
        return
    about = read_settings(folder)
    try:
        first = _read_shard(path)
        if first.claim.maps != question_hash(about):
            raise DamagedError(f"a part of other maps than {SETTINGS} there says")
        for claim in _claims(about, first.claim.total):
            path = folder / claim.file
            yield first if claim == first.claim else _read_shard(path, claim)
    except DamagedError as damage:
        raise UserError(f"{path} is {damage}: cache the maps again, which computes it alone.") from damage


class CachedMaps(Dataset):
    """Cached images (3, h, w) uint8 with the teacher's maps (gh, gw) float16, memory-mapped and verified.

    Split "validation" is of every tenth image the first view; "train" is all views of the others; "all" is everything.

    Raises:
        UserError: there are no maps in the folder, or too few to have this split; or a shard is missing, damaged, or of
            other maps.
    """

    def __init__(self, folder: str | Path, split: str = "all") -> None:
        self.folder, self.shards = Path(folder), list(_read_all(Path(folder)))
        self.rows = self._rows(split)

    def _rows(self, split: str) -> list[tuple[int, int]]:
        places = ((number, row) for number, shard in enumerate(self.shards) for row in range(len(shard.maps)))
        rows = [(number, row) for number, row in places if split in ("all", _split_of(self.shards[number].claim, row))]
        if not rows:
            raise UserError(f"{self.folder} holds too few cached maps for a {split} split: {len(self.shards)} shards.")
        return rows

    def part(self, split: str) -> CachedMaps:
        """Another split of the same maps, which are not read again."""
        part = copy(self)
        part.rows = self._rows(split)
        return part

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        number, row = self.rows[index]
        return self.shards[number].images[row], self.shards[number].maps[row]

    @property
    def grid_size(self) -> tuple[int, int]:
        """(gh, gw) of the maps."""
        return tuple(self.shards[0].maps.shape[-2:])


def read_settings(folder: str | Path) -> dict[str, Any]:
    """What the maps in a folder are of, as `describe_maps` gives it."""
    return read_json(Path(folder, SETTINGS), "It should say what the maps there are of: name another folder.")


def _split_of(claim: Claim, row: int) -> str | None:
    if (claim.first + row) % HOLDOUT:
        return "train"
    return "validation" if claim.view == 0 else None
