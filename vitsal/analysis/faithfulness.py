"""Faithfulness: does a model's answer rest on the patches that a map calls salient? Quantus' metrics, patch by patch.

Four metrics, all of the class that the target predicts for the whole image, each image for itself:

deletion: its probability while patches are hidden, most salient first (pixel flipping: Bach et al. 2015, Samek et al.
    2017). Lower is better. A hidden patch is a grey square, which no training image had: the answer may fall because
    the picture looks strange, not because evidence is gone.
insertion: the same, least salient first; read backwards, patches are laid on grey, most salient first (Petsiuk et al.
    2018). Higher is better. It has the same weakness, and asks less: to keep enough, not to find everything.
    Chefer et al. 2021 judge ViTs by these two, as positive and negative perturbation.
ROAD: whether it is still the predicted class, most salient patches first, each hole filled smoothly from what lies
    around it (noisy linear imputation: Rong et al. 2022). Lower is better. The filling is blurred, and in a large hole
    as strange as grey; and what can be guessed from around a patch counts as not hidden.
correlation: over random subsets of the patches, between the sum of their saliency and how far the logit falls when they
    are hidden, grey (faithfulness correlation: Bhatt et al. 2020). Higher is better. The only one that looks at values
    and not at their order; it takes patches to add up, and few subsets of one size are noisy.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from quantus import ROAD, FaithfulnessCorrelation, PixelFlipping
from quantus.helpers.model.pytorch_model import PyTorchModel
from scipy.stats import bootstrap
from torch import Tensor, nn
from tqdm import tqdm

from vitsal.analysis.intervals import REPEATS
from vitsal.analysis.occlusion import Fill, PatchSwitches, hide_grey, hide_smoothly, switch_off
from vitsal.data.images import Batch, LabelledImages, batches
from vitsal.data.pictures import warn_of_skipped
from vitsal.errors import UserError, check_choice
from vitsal.guides.factory import Guide
from vitsal.models.classes import check_answering
from vitsal.models.tokens import grid_size
from vitsal.reduction.keep import rank_patches

ROAD_PERCENT = (10, 30, 50)  # of the patches filled; a larger hole has nothing around it to be filled from
NUM_SUBSETS = 30  # random subsets for each image's correlation,
SUBSET_SHARE = 0.25  # each of so many of the patches
AS_GIVEN = {"normalise": False, "disable_warnings": True}  # maps go to the library as they are


class Metric(NamedTuple):
    """How patches are hidden, how the library is asked, and which score is better: 1, a higher one; -1, a lower one.

    `ask` maps switches of one image, its class and its map (gh, gw) to {share of the patches hidden: value}; the score
    is the mean of the values.
    """

    sign: int
    fill: Fill
    ask: Callable[[PatchSwitches, int, np.ndarray], dict[float, float]]


def _delete(switches: PatchSwitches, category: int, saliency: np.ndarray) -> dict[float, float]:
    """Probability of the class as patches are hidden, most salient first, a row of the grid's number at a step."""
    metric = PixelFlipping(features_in_step=saliency.shape[1], perturb_baseline=0.0, **AS_GIVEN)
    curve = _call(metric, switches, category, _ranks(saliency), softmax=True)[0]
    return {(step + 1) / len(curve): value for step, value in enumerate(curve)}


def _insert(switches: PatchSwitches, category: int, saliency: np.ndarray) -> dict[float, float]:
    """The same, least salient first."""
    return _delete(switches, category, -_ranks(saliency))


def _road(switches: PatchSwitches, category: int, saliency: np.ndarray) -> dict[float, float]:
    """1 where the class is still predicted, else 0, with the most salient patches hidden."""
    metric = ROAD(percentages=ROAD_PERCENT, perturb_func=switch_off, **AS_GIVEN)
    hits = _call(metric, switches, category, _ranks(saliency), softmax=False)
    return {percent / 100: float(hit) for percent, hit in hits.items()}


def _correlate(switches: PatchSwitches, category: int, saliency: np.ndarray) -> dict[float, float]:
    """Correlation of saliency and fall of the logit over random subsets; the map's scale and offset do not matter."""
    subsets = {"nr_runs": NUM_SUBSETS, "subset_size": max(1, round(SUBSET_SHARE * saliency.size))}
    metric = FaithfulnessCorrelation(**subsets, perturb_baseline=0.0, return_aggregate=False, **AS_GIVEN)
    scaled = (saliency - saliency.min()) / np.ptp(saliency)  # the library wants no negative map
    return {SUBSET_SHARE: float(_call(metric, switches, category, scaled, softmax=False)[0])}


METRICS: dict[str, Metric] = {
    "deletion": Metric(-1, hide_grey, _delete),
    "insertion": Metric(1, hide_grey, _insert),
    "ROAD": Metric(-1, hide_smoothly, _road),
    "correlation": Metric(1, hide_grey, _correlate),
}


def _call(metric: Callable, switches: PatchSwitches, category: int, saliency: np.ndarray, *, softmax: bool) -> Any:
    """Ask a metric of the library about one image's map (gh, gw); all patches are there to begin with.

    One image at a time: so the answer does not depend on the others, and Quantus 0.6.0 tells ROAD's mean alone.
    """
    return metric(
        model=switches,
        x_batch=np.ones((1, 1, *saliency.shape), dtype=np.float32),
        y_batch=np.array([category]),
        a_batch=saliency[None, None],
        channel_first=True,
        softmax=softmax,
        device=switches.images.device,
    )


def _ranks(saliency: np.ndarray) -> np.ndarray:
    """The most salient patch has the highest rank, as they are kept (`rank_patches`). (gh, gw) -> the same."""
    order = rank_patches(torch.from_numpy(saliency)[None])[0].numpy()
    return (saliency.size - 1 - order.argsort()).reshape(saliency.shape)


def score_guides(
    target: nn.Module,
    guides: Mapping[str, Guide],
    dataset: LabelledImages,
    *,
    metrics: Sequence[str] = tuple(METRICS),
    limit: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Ask each metric about each guide's map of each image; labels are not needed.

    Args:
        target: a timm ViT in eval mode, with a classifier: the model whose answers maps must be faithful to.
        guides: name -> guide for images prepared for `target`.
        dataset: as `open_data` returns it, with the target's transform.
        metrics: names of METRICS.
        limit: number of images, spread evenly over an indexed data set, the first of a stream; None takes all.
        batch_size: images for which maps are made at once.
        seed: of the random subsets and of the filling's noise; an image's are the same for all guides.
        progress: show a bar.

    Returns:
        Tidy values: image, guide, metric, hidden (share of the patches), value.

    Raises:
        UserError: no guide, an unknown metric, no classifier, a target in training mode, fewer than two images, answers
            that are not finite, or a map that is not on the target's grid, not finite or the same everywhere.
    """
    if not guides or not metrics:
        raise UserError("Faithfulness needs at least one guide and one metric.")
    for name in metrics:
        check_choice("metric", name, METRICS)
    check_answering(target)
    rows, skipped, total = [], {}, dataset.count(limit)
    with tqdm(desc="faithfulness", total=total, unit="image", mininterval=1, disable=not progress) as bar:
        for batch in batches(dataset, batch_size, limit=limit):
            skipped |= batch.skipped
            for image_rows in _score_batch(target, guides, batch, metrics, seed) if batch.names else ():
                rows += image_rows
                bar.update()
    warn_of_skipped(skipped)
    values = pd.DataFrame(rows, columns=["image", "guide", "metric", "hidden", "value"])
    if values.image.nunique() < 2:
        raise UserError(f"Intervals over images need at least two of them; got {values.image.nunique()}.")
    return values


def _score_batch(
    target: nn.Module, guides: Mapping[str, Guide], batch: Batch, metrics: Sequence[str], seed: int
) -> Iterator[list[tuple]]:
    """Rows of image, guide, metric, share hidden and value: one list for each image of a batch."""
    images = batch.images.to(next(target.parameters()).device)
    maps = {guide: make(images).cpu().double().numpy() for guide, make in guides.items()}
    with torch.no_grad():
        categories = _check_answers(target(images), batch.names).argmax(dim=1).tolist()
    for index, (name, category) in enumerate(zip(batch.names, categories, strict=True)):
        switches = {fill: PatchSwitches(target, images[[index]], fill) for fill in (hide_grey, hide_smoothly)}
        rows = []
        for guide, metric in product(guides, metrics):
            saliency = _check_map(maps[guide][index], guide, name, grid_size(target, images))
            with _library_seed(zlib.crc32(name.encode(), seed)):
                answers = METRICS[metric].ask(switches[METRICS[metric].fill], category, saliency)
            rows += [(name, guide, metric, hidden, value) for hidden, value in answers.items()]
        PyTorchModel._get_last_softmax_layer_index.cache_clear()  # it holds every model ever asked, and so its images
        yield rows


def _check_answers(logits: Tensor, names: Sequence[str]) -> Tensor:
    strange = (~logits.isfinite()).any(dim=1).nonzero().flatten().tolist()
    if strange:
        name = names[strange[0]]
        raise UserError(f"The target's answer to {name} is not finite: its weights, or its precision, are at fault.")
    return logits


def _check_map(saliency: np.ndarray, guide: str, image: str, grid: tuple[int, int]) -> np.ndarray:
    what = f"The map that guide {guide!r} gives for {image} is"
    if saliency.shape != tuple(grid):
        raise UserError(f"{what} {saliency.shape}, the target's grid {grid}.")
    if not np.isfinite(saliency).all() or np.ptp(saliency) == 0:
        reason = "not finite, or the same everywhere: it prefers no patch, so it cannot be judged"
        raise UserError(f"{what} {reason}. Leave this guide or this image out.")
    return saliency


@contextmanager
def _library_seed(seed: int) -> Iterator[None]:
    """The library draws from numpy's global state, which is left as it was."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def score_table(values: pd.DataFrame, *, over: str | None = None, seed: int = 0) -> pd.DataFrame:
    """Each guide's score by each metric: mean over images, with its 95 % bootstrap interval (percentiles).

    Args:
        values: as `score_guides` returns them.
        over: a guide, such as a random one: image by image, how much better than its score each other guide's is, so
            that more is better by every metric. UserError where there is no such guide.
        seed: of the resampling.

    Returns:
        Columns: metric, guide, n (images), mean, low, high.
    """
    scores = values.groupby(["metric", "guide", "image"], sort=False).value.mean().unstack("image")
    if over is not None:
        check_choice("guide", over, values.guide.unique())
        signs = scores.index.get_level_values("metric").map(lambda metric: METRICS[metric].sign)
        better = scores.sub(scores.xs(over, level="guide"), level="metric").mul(signs, axis=0)
        scores = better.drop(over, level="guide")
    return _with_interval(scores, seed)


def curve_table(values: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """The curves behind the scores: `score_table` for each share of the patches hidden (column `hidden`), ascending."""
    curves = values.groupby(["metric", "guide", "hidden", "image"], sort=False).value.mean().unstack("image")
    return _with_interval(curves, seed).sort_values("hidden", kind="stable", ignore_index=True)


def _with_interval(values: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Mean of each row over its columns, the images, with a bootstrap interval; the index becomes columns."""
    data, generator = values.to_numpy(), np.random.default_rng(seed)
    resampled = bootstrap((data,), np.mean, axis=1, n_resamples=REPEATS, method="percentile", random_state=generator)
    low, high = resampled.confidence_interval
    table = pd.DataFrame({"n": data.shape[1], "mean": data.mean(axis=1), "low": low, "high": high}, values.index)
    return table.reset_index()
