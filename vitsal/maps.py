"""A teacher's maps on disk: computed once, shard by shard, resumed after a kill, memory-mapped from then on.

A shard is one safetensors file with `images` (n, 3, h, w) uint8, downsampled, and `maps` (n, gh, gw) float16, each
scaled to a mean of 1, which float16 holds to three digits. Its metadata has a checksum and the images that could not be
read.
"""

from __future__ import annotations

import json
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from vitsal.augmentation import random_views, warp
from vitsal.errors import UserError
from vitsal.files import check_folder, write_whole
from vitsal.guides import GradientRolloutGuide, RolloutGuide
from vitsal.identity import data_fingerprint, describe, differences, question_hash
from vitsal.images import IndexedImages, StreamedImages, batches, spread, warn_of_skipped
from vitsal.models import denormalize, grid_size
from vitsal.students import downsample

Teacher = RolloutGuide | GradientRolloutGuide
TEACHERS = ("rollout", "grad-rollout")  # guides whose maps are learnt
SETTINGS = "settings.json"
BATCHES_PER_SHARD = 16
HOLDOUT = 10


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
    dataset: IndexedImages | StreamedImages,
    folder: str | Path,
    settings: MapSettings,
    *,
    num_workers: int = 0,
    process: int = 0,
    num_processes: int = 1,
    progress: bool = True,
) -> None:
    """Compute a teacher's maps for a data set into a folder; what is there already, and whole, is kept.

    Of several processes each computes its share of the shards; whoever reads them afterwards must wait for all.

    Args:
        teacher: a guide whose maps are learnt.
        dataset: as `open_data` returns it, with the transform of the teacher's model.
        folder: where the shards go; made if there is none.
        settings: what is cached.
        num_workers: processes that decode images.
        process, num_processes: this process's number, and how many there are.
        progress: show a bar.

    Raises:
        UserError: no images; a stream without a limit; or the folder holds maps of another teacher, other data or other
            settings, which are left as they are.
    """
    folder, total = Path(folder), _total(dataset, settings)
    _check_settings(folder, describe_maps(teacher, dataset, settings))
    shard_size = settings.batch_size * BATCHES_PER_SHARD
    todo = [(view, first) for view in range(max(settings.views, 1)) for first in range(0, total, shard_size)]
    bar = tqdm(todo[process::num_processes], desc="teacher's maps", unit="shard", mininterval=1, disable=not progress)
    skipped: dict[str, str] = {}
    for view, first in bar:
        path = folder / f"view{view}-{first:09d}.safetensors"
        if not _is_whole(path):
            samples = batches(dataset, settings.batch_size, first=first, limit=settings.limit, num_workers=num_workers)
            shard, unread = _compute_shard(teacher, islice(samples, BATCHES_PER_SHARD), settings, view, first)
            metadata = {"checksum": _checksum(shard), "skipped": json.dumps(unread)}
            write_whole(path, partial(save_file, shard, metadata=metadata))
        skipped |= json.loads(_metadata(path)["skipped"])
    if len(skipped) >= total:
        name, problem = next(iter(skipped.items()))
        raise UserError(f"None of {len(skipped)} images could be read; the first is {name} ({problem}).")
    warn_of_skipped(skipped)


def describe_maps(teacher: Teacher, dataset: IndexedImages | StreamedImages, settings: MapSettings) -> dict[str, Any]:
    """What cached maps are of, weights and data included, as JSON holds it."""
    about = {"teacher": describe(teacher), "data": data_fingerprint(dataset), **asdict(settings)}
    return json.loads(json.dumps(about))


def maps_folder(
    root: str | Path, teacher: Teacher, dataset: IndexedImages | StreamedImages, settings: MapSettings
) -> Path:
    """The folder in `root` that belongs to these maps: its name holds the hash of what they are of."""
    return Path(root, f"maps-{question_hash(describe_maps(teacher, dataset, settings))}")


def _total(dataset: IndexedImages | StreamedImages, settings: MapSettings) -> int:
    if isinstance(dataset, IndexedImages):
        total = len(spread(len(dataset), settings.limit))
    elif settings.limit is None:
        raise UserError("A stream does not tell how many images it has: give a limit.")
    else:
        total = settings.limit
    if total == 0:
        raise UserError("The data set is empty: there is no image to ask the teacher about.")
    return total


def _check_settings(folder: Path, wanted: Mapping[str, Any]) -> None:
    check_folder(folder)
    path = folder / SETTINGS
    if not path.is_file():
        write_whole(path, lambda part: part.write_text(json.dumps(wanted, indent=1)))
        return
    if said := differences(read_settings(folder), wanted):
        raise UserError(f"{folder} holds maps made by other settings ({said}). Name another folder, or remove it.")


@torch.no_grad()
def _compute_shard(
    teacher: Teacher, samples: Iterator, settings: MapSettings, view: int, first: int
) -> tuple[dict[str, Tensor], dict[str, str]]:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{settings.seed} {view} {first}".encode()))
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
        maps.append(_with_mean_one(teacher(seen)).to("cpu", torch.float16))
    if len(images) == 1 and not skipped:
        raise UserError(f"The data ended before image {first}: give a limit of at most {first}.")
    return {"images": torch.cat(images), "maps": torch.cat(maps)}, skipped


def _with_mean_one(maps: Tensor) -> Tensor:
    return maps / maps.mean(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


def _is_whole(path: Path) -> bool:
    """Whether this shard is there and undamaged; a damaged one is named."""
    if not path.is_file():
        return False
    try:
        whole = _metadata(path)["checksum"] == _checksum(_read(path))
    except (SafetensorError, OSError, KeyError, TypeError):
        whole = False
    if not whole:
        warnings.warn(f"{path} is damaged and is computed again.", stacklevel=2)
    return whole


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as shard:
        return shard.metadata()


def _read(path: Path) -> dict[str, Tensor]:
    """The shard's tensors, memory-mapped: what is not used is not read."""
    with safe_open(path, "pt") as shard:
        return {name: shard.get_tensor(name) for name in ("images", "maps")}


def _open_shard(path: Path) -> dict[str, Tensor]:
    try:
        return _read(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): cache the maps again, which computes it alone.") from error


def _checksum(shard: Mapping[str, Tensor]) -> str:
    value = 0
    for name in ("images", "maps"):
        value = zlib.crc32(shard[name].contiguous().view(torch.uint8).numpy(), value)
    return f"{value:08x}"


class CachedMaps(Dataset):
    """Cached images (3, h, w) uint8 with the teacher's maps (gh, gw) float16, memory-mapped.

    Args:
        folder: as `cache_maps` filled it.
        split: "train", "validation" or "all". Every tenth image is for validation, none of whose views are for
            training; validation takes first views only.

    Raises:
        UserError: there are no maps in the folder, or too few to have this split.
    """

    def __init__(self, folder: str | Path, split: str = "all") -> None:
        self.folder = Path(folder)
        paths = sorted(self.folder.glob("view*-*.safetensors"))
        self.shards = [_open_shard(path) for path in paths]
        self.rows = [
            (number, row)
            for number, (path, shard) in enumerate(zip(paths, self.shards, strict=True))
            for row in range(len(shard["maps"]))
            if split in ("all", _split_of(path, row))
        ]
        if not self.rows:
            raise UserError(f"{folder} holds too few cached maps for a {split} split: {len(paths)} shards.")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        number, row = self.rows[index]
        return self.shards[number]["images"][row], self.shards[number]["maps"][row]

    @property
    def grid_size(self) -> tuple[int, int]:
        """(gh, gw) of the maps."""
        return tuple(self.shards[0]["maps"].shape[-2:])


def read_settings(folder: str | Path) -> dict[str, Any]:
    """What the maps in a folder are of, as `describe_maps` gives it."""
    path = Path(folder, SETTINGS)
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} does not tell what the maps there are of ({error}). Name another folder.") from error


def _split_of(path: Path, row: int) -> str | None:
    view, first = re.fullmatch(r"view(\d+)-(\d+)", path.stem).groups()
    if (int(first) + row) % HOLDOUT:
        return "train"
    return "validation" if int(view) == 0 else None
