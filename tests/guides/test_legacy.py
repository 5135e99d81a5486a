"""vit-explain's published arithmetic, written out as loops; and that ours differs where it should."""

import pytest
import torch
from helpers import assert_close

from vitsal.errors import UserError
from vitsal.guides.legacy import legacy_gradient_rollout, legacy_rollout
from vitsal.guides.rollout import attention_rollout, fuse_gradient


def loops(matrices, discard_ratio):
    """Class row of the rollout of one image as published: entry (i, j) is divided by the sum of row j."""
    tokens = range(len(matrices[0]))
    product = [[float(i == j) for j in tokens] for i in tokens]
    for matrix in matrices:
        matrix = [list(row) for row in matrix]
        lowest = sorted((matrix[i][j], i, j) for i in tokens for j in tokens)
        for _, i, j in lowest[: int(len(tokens) ** 2 * discard_ratio)]:
            if (i, j) != (0, 0):
                matrix[i][j] = 0.0
        matrix = [[matrix[i][j] + (i == j) for j in tokens] for i in tokens]
        sums = [sum(row) for row in matrix]
        matrix = [[matrix[i][j] / sums[j] for j in tokens] for i in tokens]
        product = [[sum(matrix[i][k] * product[k][j] for k in tokens) for j in tokens] for i in tokens]
    return product[0][1:]


@pytest.mark.parametrize("discard_ratio", [0.0, 0.5, 0.9])
def test_rollout_equals_loops_and_differs_from_ours(discard_ratio):
    fused = [torch.rand(3, 6, 6) for _ in range(4)]
    legacy = legacy_rollout(fused, discard_ratio=discard_ratio)
    for image in range(3):
        expected = loops([matrix[image].double().tolist() for matrix in fused], discard_ratio)
        torch.testing.assert_close(legacy[image], torch.tensor(expected), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(legacy, attention_rollout(fused, discard_ratio=discard_ratio), rtol=0.01)


def test_ours_and_legacy_agree_where_all_row_sums_are_equal():
    """Mean fusion without discard: every row of A + I sums to 2, so dividing columns by row sums does no harm."""
    fused = [torch.randn(2, 6, 6).softmax(dim=-1) for _ in range(3)]
    assert_close(legacy_rollout(fused, discard_ratio=0.0), attention_rollout(fused))


def test_gradient_rollout_equals_loops():
    """Score gradients by autograd, last block first, beside attentions first block first."""
    scores = [torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    attentions = [score.softmax(dim=-1) for score in scores]
    weights = [torch.randn(2, 3, 5, 5, dtype=torch.float64) for _ in range(3)]
    answer = sum((a * w).sum() for a, w in zip(attentions, weights, strict=True))
    score_gradients = torch.autograd.grad(answer, scores)
    fused = [(a * g).mean(dim=1).clamp(min=0) for a, g in zip(attentions, score_gradients[::-1], strict=True)]

    # the gradient of the answer to each attention is its weights: what a caller passes in
    legacy = legacy_gradient_rollout([a.detach() for a in attentions], weights, discard_ratio=0.3)
    for image in range(2):
        assert_close(legacy[image], loops([matrix[image].tolist() for matrix in fused], 0.3))

    ours = [fuse_gradient(a.detach(), w) for a, w in zip(attentions, weights, strict=True)]
    assert not torch.allclose(legacy.float(), attention_rollout(ours, discard_ratio=0.3), rtol=0.01)


def test_discard_ratio_outside_its_range():
    with pytest.raises(UserError, match=r"\[0, 1\)"):
        legacy_rollout([torch.rand(1, 3, 3)], discard_ratio=1.0)
