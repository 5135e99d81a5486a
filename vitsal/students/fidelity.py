"""How close a predicted map is to the teacher's: overlap of what is kept, rank correlation, divergence."""

from __future__ import annotations

import torch
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional as F

from vitsal.reduction.keep import top_k_patches

OVERLAP_RATIOS = (0.5, 0.3, 0.2, 0.1)


def kept_overlap(saliency: Tensor, reference: Tensor, keep_ratio: float) -> Tensor:
    """Intersection over union of the patches that two maps keep: (B, gh, gw) twice -> (B,), in [0, 1].

    Maps that know nothing of each other overlap by about r / (2 - r) at keep ratio r.
    """
    ours, theirs = (_kept(values, keep_ratio) for values in (saliency, reference))
    return (ours & theirs).sum(dim=1) / (ours | theirs).sum(dim=1)


def _kept(saliency: Tensor, keep_ratio: float) -> Tensor:
    """(B, gh, gw) -> which patches are kept, (B, P) bool."""
    keep = top_k_patches(saliency, keep_ratio)
    return torch.zeros_like(saliency.flatten(1), dtype=torch.bool).scatter(1, keep, True)


def rank_correlation(saliency: Tensor, reference: Tensor) -> Tensor:
    """Spearman's correlation of two maps, equal values sharing their mean rank: (B, gh, gw) twice -> (B,).

    A map without any difference has no ranks; its correlation is 0.
    """
    ranks = [torch.from_numpy(rankdata(values.flatten(1).cpu().numpy(), axis=1)) for values in (saliency, reference)]
    ours, theirs = (values - values.mean(dim=1, keepdim=True) for values in ranks)
    return F.cosine_similarity(ours, theirs, dim=1).float().to(saliency.device)


def divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """Kullback-Leibler divergence, in nats, of a prediction from a map as a distribution over patches, (B,).

    The prediction is logarithms of shares, up to a constant, (B, gh, gw); the map has no negative values, (B, gh, gw).
    """
    log_shares = logits.flatten(1).log_softmax(dim=1)
    return F.kl_div(log_shares, as_distribution(reference), reduction="none").sum(dim=1)


def as_distribution(maps: Tensor) -> Tensor:
    """Each patch's share of its map: (B, gh, gw), not negative -> (B, P), summing to 1; uniform where all is 0."""
    values = maps.flatten(1).float() + 1e-8  # of the mean, which cached maps have at 1: no effect but on empty maps
    return values / values.sum(dim=1, keepdim=True)


def measure_fidelity(logits: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """All of these for a student's output (B, gh, gw) and the teacher's maps (B, gh, gw): name -> (B,)."""
    return {
        "kl": divergence(logits, reference),
        "spearman": rank_correlation(logits, reference),
        **{f"iou_{100 * ratio:.0f}": kept_overlap(logits, reference, ratio) for ratio in OVERLAP_RATIOS},
    }
