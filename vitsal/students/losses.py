"""What a student is taught by: four ways to compare its logits with a teacher's map."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from vitsal.students.fidelity import as_distribution, divergence

Loss = Callable[[Tensor, Tensor], Tensor]


def kl_loss(logits: Tensor, maps: Tensor) -> Tensor:
    """Divergence of the prediction from the map, both as distributions over patches: (B, gh, gw) twice -> ()."""
    return divergence(logits, maps).mean()


def bce_loss(logits: Tensor, maps: Tensor) -> Tensor:
    """Binary cross-entropy, patch by patch, with the map scaled to a maximum of 1: (B, gh, gw) twice -> ()."""
    return F.binary_cross_entropy_with_logits(logits.flatten(1), _scaled(maps))


def mse_loss(logits: Tensor, maps: Tensor) -> Tensor:
    """Mean squared error of the sigmoid against the map scaled to a maximum of 1: (B, gh, gw) twice -> ()."""
    return F.mse_loss(logits.flatten(1).sigmoid(), _scaled(maps))


def rank_loss(logits: Tensor, maps: Tensor) -> Tensor:
    """Pairwise logistic loss: of two patches the more salient should score higher: (B, gh, gw) twice -> ().

    RankNet (Burges et al. 2005, "Learning to rank using gradient descent") over all pairs that the map tells apart.
    """
    scores, values = logits.flatten(1), maps.flatten(1)
    higher = values[:, :, None] > values[:, None, :]
    losses = F.softplus(scores[:, None, :] - scores[:, :, None])
    return (losses * higher).sum() / higher.sum().clamp(min=1)


def _scaled(maps: Tensor) -> Tensor:
    shares = as_distribution(maps)
    return shares / shares.amax(dim=1, keepdim=True)


LOSS_FUNCTIONS: dict[str, Loss] = {"kl": kl_loss, "bce": bce_loss, "mse": mse_loss, "rank": rank_loss}
