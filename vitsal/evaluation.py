"""The drop experiment: accuracy of a target when a guide chooses the patches that it sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from vitsal.dropping import forward_kept, top_k_patches
from vitsal.errors import UserError, check_number
from vitsal.files import write_whole
from vitsal.guides import Guide
from vitsal.identity import data_fingerprint, describe
from vitsal.images import Batch, IndexedImages, StreamedImages, batches, spread, warn_of_skipped
from vitsal.outcomes import Outcomes


def drop_curve(
    target: nn.Module,
    guides: Mapping[str, Guide],
    dataset: IndexedImages | StreamedImages,
    keep_ratios: Sequence[float],
    *,
    batch_size: int = 32,
    limit: int | None = None,
    num_workers: int = 0,
    strict: bool = False,
    outcomes: Outcomes | None = None,
    progress: bool = True,
) -> Outcomes:
    """Let each guide choose the patches that the target sees, for each keep ratio, and note what it predicts.

    Each image is loaded once and each guide sees it once. Images that cannot be read are skipped and named at the end.

    Args:
        target: a timm ViT in eval mode.
        guides: name -> guide for images prepared for `target`.
        dataset: as `open_data` returns it, with the target's transform.
        keep_ratios: fractions of patches kept, each in (0, 1].
        batch_size, limit, num_workers, strict: see `vitsal.images.batches`.
        outcomes: where to keep the results, and to go on from; in memory only by default.
        progress: show a bar.

    Raises:
        UserError: a keep ratio outside (0, 1], a label that the target does not have, or, with `strict`, an image that
            cannot be read.
    """
    for ratio in keep_ratios:
        check_number("keep ratio", ratio, 0, 1, open_end="low")
    outcomes = Outcomes() if outcomes is None else outcomes
    todo = batches(dataset, batch_size, first=outcomes.num_samples, limit=limit, num_workers=num_workers, strict=strict)
    total = limit if isinstance(dataset, StreamedImages) else len(spread(len(dataset), limit))
    with tqdm(
        total=total, initial=outcomes.num_samples, unit="image", mininterval=1, disable=not progress, desc="drop curve"
    ) as bar:
        for batch in todo:
            outcomes.add(batch, predict_batch(target, guides, batch, keep_ratios) if batch.names else {})
            bar.update(batch.num_samples)
    warn_of_skipped(outcomes.skipped)
    return outcomes


@torch.inference_mode()
def predict_batch(
    target: nn.Module, guides: Mapping[str, Guide], batch: Batch, keep_ratios: Sequence[float]
) -> dict[tuple[str, float], list[int]]:
    """Classes that `target` predicts for one batch: (guide, keep ratio) -> B class indices.

    Keeping everything is the untouched model, whatever the guide, and runs once.
    """
    check_labels(batch.labels, target)
    images = batch.images.to(next(target.parameters()).device)
    whole = predict(target(images)) if 1.0 in keep_ratios else []
    predictions = {}
    for name, guide in guides.items():
        saliency = guide(images)
        for ratio in keep_ratios:
            if ratio == 1.0:
                predictions[name, ratio] = whole
                continue
            keep = top_k_patches(saliency, ratio)
            predictions[name, ratio] = predict(forward_kept(target, images, keep))
    return predictions


def predict(logits: Tensor) -> list[int]:
    """Class with the highest logit, (B, C) -> B class indices."""
    return logits.argmax(dim=1).tolist()


def check_labels(labels: Tensor, target: nn.Module) -> None:
    """Raise UserError if the target has no classifier, or not all of the classes that the data names."""
    if not target.num_classes:
        raise UserError("The target has no classifier, so its accuracy cannot be told; choose a model with a head.")
    if labels.min() < 0:
        raise UserError(
            f"The data has label {labels.min().item()}: this part of it is not labelled; choose another split."
        )
    if labels.max() >= target.num_classes:
        raise UserError(
            f"The data has class {labels.max().item()}, but the target knows classes 0 to {target.num_classes - 1}: "
            "data and target do not belong together."
        )


def question_of(
    target: nn.Module,
    guides: Mapping[str, Guide],
    dataset: IndexedImages | StreamedImages,
    keep_ratios: Sequence[float],
    *,
    limit: int | None = None,
) -> dict[str, Any]:
    """What a drop curve asks, weights and data included: outcomes belong together where this is equal."""
    return {
        "target": describe(target),
        "guides": {name: describe(guide) for name, guide in guides.items()},
        "data": data_fingerprint(dataset),
        "keep_ratios": list(keep_ratios),
        "limit": limit,
    }


def write_table(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table as CSV; whoever reads `path` sees the old file or the whole new one."""
    write_whole(path, partial(table.to_csv, index=False))
