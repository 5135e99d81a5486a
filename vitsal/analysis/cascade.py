"""A second look at hard images: cheap for all, and a dearer one for those of which a model is least sure.

A cascade of two (Viola & Jones 2001 have many), gated by the margin between the two likeliest classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vitsal.errors import UserError


class SecondLook(NamedTuple):
    """Answers after some images were looked at twice.

    Attributes:
        logits: of each image's last look, (n, classes).
        again: whether an image was looked at twice, (n,) bool.
    """

    logits: Tensor
    again: Tensor

    @property
    def predictions(self) -> Tensor:
        """Classes, (n,)."""
        return self.logits.argmax(dim=1)

    @property
    def share(self) -> float:
        """Share of the images that were looked at twice."""
        return self.again.float().mean().item()


def second_look(first: Tensor, second: Tensor, costs: tuple[float, float], budget: float) -> SecondLook:
    """Give those images a second look of which the first is least sure, as many as a mean cost allows.

    All pay for the first look, these for both. They are ranked among each other, so that the budget is kept exactly; in
    use one would fix a margin beforehand, on other images.

    Args:
        first, second: logits of both looks at n images, (n, classes) each.
        costs: of the first and of the second, in any unit: shares of a whole image's operations, say.
        budget: mean cost of an image that must not be exceeded, in this unit.

    Returns:
        The answers, and which images were looked at twice: all of them where the budget allows it.

    Raises:
        UserError: logits of other shapes, of one class, or not finite; costs that are not above 0; a budget that the
            first look alone exceeds.

    Example:
        >>> first, second = torch.tensor([[3.0, 0.0], [1.0, 0.9]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
        >>> second_look(first, second, costs=(0.2, 0.6), budget=0.5).predictions.tolist()
        [0, 1]
    """
    _check(first, second, costs, budget)
    n, (cost, more) = len(first), costs
    count = int(min(1, (budget - cost) / more) * n + 1e-6)  # 1e-6: what rounding may have taken from a whole number
    hardest = margins(first).argsort(stable=True)[:count]
    again = torch.zeros(n, dtype=torch.bool, device=first.device).scatter(0, hardest, True)
    return SecondLook(torch.where(again[:, None], second, first), again)


def margins(logits: Tensor) -> Tensor:
    """How sure answers are: by how much the likeliest class is likelier than the next, (B, classes) -> (B,) in 0..1.

    Example:
        >>> round(margins(torch.tensor([[0.5, 0.3, 0.2]]).log()).item(), 3)
        0.2
    """
    likeliest, next_one = logits.float().softmax(dim=1).topk(2, dim=1).values.unbind(dim=1)
    return likeliest - next_one


def _check(first: Tensor, second: Tensor, costs: tuple[float, float], budget: float) -> None:
    if first.shape != second.shape or first.ndim != 2 or 0 in first.shape or first.shape[1] < 2:
        raise UserError(
            f"Both looks need logits of the same images, of 2 classes at least; got {tuple(first.shape)} and "
            f"{tuple(second.shape)}."
        )
    if not (first.isfinite().all() and second.isfinite().all()):
        raise UserError("Logits are not finite: whoever is sure of nothing cannot be ranked.")
    if not all(cost > 0 for cost in costs):
        raise UserError(f"A look costs more than nothing; got {costs[0]:g} and {costs[1]:g}.")
    if not budget >= costs[0]:
        raise UserError(f"The first look alone costs {costs[0]:g}, and the budget is {budget:g}: take a cheaper one.")
