"""The drop experiment at real size: cheap images, nearly free guides and a target of a few thousand parameters.

What is timed is what handles data (loading, journal, table, bootstrap, cached maps), and hardly the models: time and
memory must grow in proportion to the samples, and the table must not depend on the number of processes.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.numpy import load_file
from torch import nn

from vitsal.data.images import IndexedImages
from vitsal.experiments.evaluation import drop_curve
from vitsal.experiments.outcomes import SUMMARY_COLUMNS
from vitsal.experiments.results import DIFFERENCE, add_results, results_table
from vitsal.guides import RolloutGuide
from vitsal.guides.baselines import CenterGuide, RandomGuide
from vitsal.jobs.identity import checksum
from vitsal.jobs.processes import make_accelerator
from vitsal.models.loading import load_model
from vitsal.models.tokens import grid_size, model_transform
from vitsal.students.maps import MapSettings, cache_maps

CLASSES, BATCH = 10, 250


def cheap_target() -> nn.Module:
    """One block, 4 x 4 patches, 6,858 parameters, the same random weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": CLASSES}
        return load_model("vit_tiny_patch16_224", pretrained=False, **options)


@dataclass(frozen=True)
class _Colours:
    """Images of 4 x 4 random colours, made on the fly; the same number is the same image."""

    count: int

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> tuple[Image.Image, int]:
        """Colours that the number is the seed of."""
        colours = np.random.default_rng(index).integers(256, size=(4, 4, 3), dtype=np.uint8)
        return Image.fromarray(colours), index % CLASSES

    name, stamp = staticmethod("{:08d}.png".format), staticmethod(str)


def cheap_images(count: int, target: nn.Module) -> IndexedImages:
    """That many images of 4 x 4 random colours."""
    return IndexedImages(_Colours(count), model_transform(target), "made on the fly")


def real_size_cost(samples: Sequence[int], folder: str | Path) -> pd.DataFrame:
    """Time and memory of a drop curve with 3 guides and 4 keep ratios, from nothing and from its journal, and of maps.

    On as many processes as accelerate's launcher has started; killed and called again, it goes on. Journal, table and
    maps go into `folder`.

    Returns:
        One row per number of samples and task: seconds, microseconds per sample, this process's peak memory so far in
        MB, and the CRC-32 of the results, which must be the same on any number of processes.
    """
    return pd.concat([_cost(count, Path(folder, str(count))) for count in samples], ignore_index=True)


def _cost(count: int, folder: Path) -> pd.DataFrame:
    accelerator, target = make_accelerator(), cheap_target()
    dataset, rollout = cheap_images(count, target), RolloutGuide(target)
    guides = {"random": RandomGuide(grid_size(target)), "center": CenterGuide(grid_size(target)), "rollout": rollout}

    def curve() -> str:
        vit = target.to(accelerator.device)
        outcomes = drop_curve(vit, guides, dataset, (1.0, 0.75, 0.5, 0.25), folder=folder, batch_size=BATCH)
        table = results_table(outcomes, "cheap")
        if accelerator.is_main_process:
            add_results(table, folder / "table.csv")
        return checksum(table[[*SUMMARY_COLUMNS, *DIFFERENCE]].to_csv())

    def maps() -> str:
        settings = MapSettings(image_size=(32, 32), batch_size=BATCH)
        share = {"process": accelerator.process_index, "num_processes": accelerator.num_processes}
        cache_maps(rollout, dataset, folder / "maps", settings, **share)
        accelerator.wait_for_everyone()
        return checksum(*(load_file(path)["maps"].tobytes() for path in sorted(folder.glob("maps/*.safetensors"))))

    rows = []
    for task, function in {"drop curve": curve, "the same, from its journal": curve, "maps": maps}.items():
        start = time.perf_counter()
        crc = function()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        rows.append([count, task, seconds, 1e6 * seconds / count, peak, crc])
    return pd.DataFrame(rows, columns=["samples", "task", "seconds", "us_per_sample", "peak_mb", "crc32"])
