"""Whether a model says of reduced images what another says of whole ones: no label is needed for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitsal.data.images import Batch
from vitsal.data.pictures import warn_of_skipped
from vitsal.errors import UserError
from vitsal.guides.factory import Guide
from vitsal.models.classes import check_answering
from vitsal.models.sizes import resized_each
from vitsal.reduction.reduction import Reduction, forward_each
from vitsal.tuning.lessons import Lessons

RATIOS = (0.5, 0.2)
KINDS = ("same", "kl")
Asked = tuple[str | None, Reduction]  # how a model is reduced, and which guide chooses, where one must


def divergence(logits: Tensor, wanted: Tensor) -> Tensor:
    """Kullback-Leibler divergence of answers from those that are wanted, in nats: logits (B, classes) twice -> (B,)."""
    wanted, given = wanted.float().log_softmax(dim=1), logits.float().log_softmax(dim=1)
    return F.kl_div(given, wanted, reduction="none", log_target=True).sum(dim=1)


def logit_distance(logits: Tensor, wanted: Tensor) -> Tensor:
    """Mean square of the differences of logits, each less its mean over the classes: (B, classes) twice -> (B,).

    `divergence` weighs classes by how likely they are: images of a few classes let all the others drift. Here each
    class counts the same.
    """
    difference = logits.float() - wanted.float()
    return difference.var(dim=1, correction=0)


def compare_answers(
    target: nn.Module,
    tuned: nn.Module,
    guides: Mapping[str, Guide],
    lessons: Lessons,
    batches: Iterable[Batch],
) -> pd.DataFrame:
    """What both say of images as they are, reduced by each lever alone, against what the target says of whole ones.

    Returns:
        One row per reduction, and guide where there is one: `n` images, the share of them whose likeliest class is the
        whole image's, by the target (`same_before`) and tuned (`same_after`), and the mean divergence in nats
        (`kl_before`, `kl_after`).
    """
    asked = [
        (None, Reduction()),
        *((name, Reduction(ratio, soften=lessons.soften)) for name in guides for ratio in RATIOS),
    ]
    asked += [(None, Reduction(input_size=size, soften=lessons.soften)) for size in _middle(lessons.sizes)]
    asked += [(None, Reduction(merge=merge)) for merge in _middle(lessons.merges)]
    return answer_table(target, {"_before": target, "_after": tuned}, asked, guides, batches)


def _middle(values: Sequence[Any]) -> Sequence[Any]:
    """The middle one alone; of none, none."""
    return values[len(values) // 2 :][:1]


def answer_table(
    target: nn.Module,
    models: Mapping[str, nn.Module],
    asked: Sequence[Asked],
    guides: Mapping[str, Guide],
    batches: Iterable[Batch],
) -> pd.DataFrame:
    """What `judge_answers` finds, over all images; models are named by what their columns end in, "" for one alone.

    Returns:
        One row per reduction that is asked: its `guide`, or "", and its columns, `n` images, and for each model the
        share of them whose likeliest class is the `same`, and the mean divergence `kl` in nats.
    """
    judged = judge_answers(target, models, asked, guides, batches)
    table = pd.DataFrame([{"guide": name or "", **reduction.columns} for name, reduction in asked])
    means = {name: found.mean(dim=2).tolist() for name, found in judged.items()}
    told = {f"{kind}{name}": means[name][k] for k, kind in enumerate(KINDS) for name in means}
    return table.assign(n=next(iter(judged.values())).shape[-1], **told)


@torch.no_grad()
def judge_answers(
    target: nn.Module,
    models: Mapping[str, nn.Module],
    asked: Sequence[Asked],
    guides: Mapping[str, Guide],
    batches: Iterable[Batch],
) -> dict[str, Tensor]:
    """What models say of reduced images against what `target` says of whole ones: model's name -> (2, asked, images).

    First whether the likeliest class is the same, then the divergence in nats. Guides are asked once for each image;
    images that cannot be read are passed over, and named at the end.

    Raises:
        UserError: a target without a classifier, or in training mode; no image that can be read.
    """
    check_answering(target)
    device, skipped, found = next(target.parameters()).device, {}, {name: [] for name in models}
    sizes = [reduction.input_size for _, reduction in asked]
    twins = {name: resized_each(model, sizes) for name, model in models.items()}
    for batch in batches:
        skipped |= batch.skipped
        if batch.names:
            images = batch.images.to(device)
            wanted, maps = target(images), {name: guide(images) for name, guide in guides.items()}
            shown = [(reduction, maps.get(guide)) for guide, reduction in asked]
            for name in models:
                answers = forward_each(twins[name], images, shown)
                found[name].append(torch.stack([_judge(logits, wanted) for logits in answers], dim=1).cpu())
    if not all(found.values()):
        raise UserError(f"None of {len(skipped)} images could be read, so there are no answers to compare.")
    warn_of_skipped(skipped)
    return {name: torch.cat(parts, dim=2) for name, parts in found.items()}


def _judge(logits: Tensor, wanted: Tensor) -> Tensor:
    """Whether the likeliest class is the one that is wanted, and the divergence: (B, classes) twice -> (2, B)."""
    return torch.stack([(logits.argmax(dim=1) == wanted.argmax(dim=1)).float(), divergence(logits, wanted)])
