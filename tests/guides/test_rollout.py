"""The rollout, against numbers found by hand and against a slow reference in plain Python."""

import pytest
import torch
from helpers import assert_close

from vitsal.errors import UserError
from vitsal.guides.rollout import (
    attention_relevance,
    attention_rollout,
    discard_lowest,
    fuse_gradient,
    fuse_heads,
    fuse_positive_gradient,
    propagate,
    readout_row,
    settle_zeros,
)

WHAT_IS_READ = [("class", n) for n in (1, 2, 5)] + [("patches", n) for n in (0, 1, 2, 5)]


def random_attention(num_images=3, num_heads=2, num_tokens=7, num_blocks=3):
    scores = 2 * torch.randn(num_blocks, num_images, num_heads, num_tokens, num_tokens)
    return list(scores.softmax(dim=-1))


def reference_rollout(attentions, head_fusion, discard_ratio, readout, num_prefix_tokens):
    """Rollout of one image by whole matrices, in Python's own float64 numbers; attentions are L lists [H][N][N]."""
    num_tokens = len(attentions[0][0])
    tokens = range(num_tokens)
    fuse = {"max": max, "min": min, "mean": lambda values: sum(values) / len(values)}[head_fusion]
    product = [[float(i == j) for j in tokens] for i in tokens]
    for heads in attentions:
        fused = [[fuse([head[i][j] for head in heads]) for j in tokens] for i in tokens]
        by_value = sorted((fused[i][j], i, j) for i in tokens for j in tokens)
        for _, i, j in by_value[: int(discard_ratio * num_tokens**2)]:
            if num_prefix_tokens == 0 or (i, j) != (0, 0):
                fused[i][j] = 0.0
        for i in tokens:
            fused[i][i] += 1
            total = sum(fused[i])
            fused[i] = [value / total for value in fused[i]]
        product = [[sum(fused[i][k] * product[k][j] for k in tokens) for j in tokens] for i in tokens]
    rows = product[:1] if readout == "class" else product[num_prefix_tokens:]
    return [sum(row[j] for row in rows) / len(rows) for j in tokens[num_prefix_tokens:]]


def test_three_tokens_by_hand():
    """Half of each row stays where it is: [.6 .3 .1] of block 2 spreads over the rows of block 1."""
    first = torch.tensor([[[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5]]])
    second = torch.tensor([[[0.2, 0.6, 0.2], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]]])
    assert_close(attention_rollout([first, second]), [[0.3125, 0.1875]], 1e-7)


def test_three_tokens_by_hand_with_discard():
    """k = int(0.5 * 9) = 4 entries go: .0 .1 .1 and .2 (class to itself is not one of them)."""
    attention = torch.tensor([[[0.3, 0.5, 0.2], [0.1, 0.9, 0.0], [0.1, 0.4, 0.6]]])
    kept = torch.tensor([[[0.3, 0.5, 0.0], [0.0, 0.9, 0.0], [0.0, 0.4, 0.6]]])
    assert_close(discard_lowest(attention, 0.5), kept, 0)
    assert_close(attention_rollout([attention], discard_ratio=0.5), [[0.5 / 1.8, 0.0]], 1e-7)


def test_docstring_example():
    assert_close(attention_rollout([torch.full((1, 3, 3), 1 / 3)]), [[1 / 6, 1 / 6]], 1e-7)


@pytest.mark.parametrize(("readout", "num_prefix_tokens"), WHAT_IS_READ)
@pytest.mark.parametrize("discard_ratio", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("head_fusion", ["mean", "max", "min"])
def test_equals_plain_loops(head_fusion, discard_ratio, readout, num_prefix_tokens):
    attentions = random_attention(num_tokens=6 + num_prefix_tokens)
    fused = [fuse_heads(attention, head_fusion) for attention in attentions]
    options = {"discard_ratio": discard_ratio, "readout": readout, "num_prefix_tokens": num_prefix_tokens}
    ours = attention_rollout(fused, **options)
    for image in range(3):
        heads = [attention[image].double().tolist() for attention in attentions]
        assert_close(ours[image], reference_rollout(heads, head_fusion, **options))


@pytest.mark.parametrize("discard_ratio", [0.0, 0.9])
def test_batch_equals_single_images(discard_ratio):
    fused = [fuse_heads(attention, "max") for attention in random_attention(num_images=5)]
    together = attention_rollout(fused, discard_ratio=discard_ratio)
    for image in range(5):
        alone = attention_rollout([matrix[image : image + 1] for matrix in fused], discard_ratio=discard_ratio)
        assert_close(together[image : image + 1], alone)


@pytest.mark.parametrize("readout", ["class", "patches"])
@pytest.mark.parametrize("head_fusion", ["mean", "max", "min"])
def test_contributions_of_all_tokens_sum_to_one(head_fusion, readout):
    kept = [discard_lowest(fuse_heads(attention, head_fusion), 0.6) for attention in random_attention()]
    row = propagate(kept, readout_row(kept[0], num_prefix_tokens=2, readout=readout))
    assert row.min() >= 0
    assert_close(row.sum(dim=1), torch.ones(3))


def test_readout_rows_by_hand():
    matrix = torch.zeros(2, 4, 4)
    assert readout_row(matrix, 1, "class").tolist() == [[1, 0, 0, 0]] * 2
    assert readout_row(matrix, 2, "patches").tolist() == [[0, 0, 0.5, 0.5]] * 2


def test_fuse_heads_by_hand():
    heads = torch.tensor([[[[0.2, 0.8], [0.6, 0.4]], [[0.4, 0.6], [1.0, 0.0]]]])
    assert_close(fuse_heads(heads, "mean"), [[[0.3, 0.7], [0.8, 0.2]]], 1e-7)
    assert_close(fuse_heads(heads, "max"), [[[0.4, 0.8], [1.0, 0.4]]], 1e-7)
    assert_close(fuse_heads(heads, "min"), [[[0.2, 0.6], [0.6, 0.0]]], 1e-7)


def test_half_precision_is_fused_to_float32():
    assert fuse_heads(torch.ones(1, 2, 3, 3, dtype=torch.bfloat16), "max").dtype == torch.float32
    assert fuse_heads(torch.ones(1, 2, 3, 3, dtype=torch.float64), "max").dtype == torch.float64


def test_fuse_gradient_by_hand():
    """Products per head, their mean, and only then the cut at zero: (0.5 - 0.9) / 2 < 0, (0.5 + 0.1) / 2 = 0.3."""
    attention = torch.tensor([[[[0.5, 0.5]], [[0.9, 0.1]]]])
    gradient = torch.tensor([[[[1.0, 1.0]], [[-1.0, 1.0]]]])
    assert_close(fuse_gradient(attention, gradient), [[[0.0, 0.3]]], 1e-7)


@pytest.mark.parametrize("discard_ratio", [0.01, 0.37, 0.5, 0.99])
def test_discards_exactly_the_lowest(discard_ratio):
    fused = torch.rand(4, 10, 10) + 0.01
    fused[:, 0, 0] = 2  # nothing protected is among the lowest
    kept = discard_lowest(fused, discard_ratio)
    for before, after in zip(fused.flatten(1), kept.flatten(1), strict=True):
        gone = before.argsort()[: int(discard_ratio * 100)]
        assert (after == 0).sum() == len(gone)
        assert (after[gone] == 0).all()
        assert after.sum() == pytest.approx((before.sum() - before[gone].sum()).item(), rel=1e-5)


def test_ties_with_the_lowest_survivor_stay():
    fused = torch.tensor([[[4.0, 1.0], [1.0, 3.0]]])
    assert discard_lowest(fused, 0.25).tolist() == fused.tolist()  # one of two equal entries cannot be chosen
    assert discard_lowest(fused, 0.5).tolist() == [[[4, 0], [0, 3]]]
    assert discard_lowest(torch.ones(1, 5, 5), 0.9).sum() == 25


def test_class_to_itself_is_protected():
    fused = torch.rand(2, 4, 4) + 0.5
    fused[:, 0, 0] = torch.tensor([0.1, 0.2])
    assert_close(discard_lowest(fused, 0.5)[:, 0, 0], [0.1, 0.2], 0)
    assert discard_lowest(fused, 0.5, protect_class=False)[:, 0, 0].tolist() == [0, 0]


def test_input_is_not_changed():
    fused = torch.rand(2, 5, 5)
    before = fused.clone()
    attention_rollout([fused], discard_ratio=0.9)
    assert torch.equal(fused, before)


def test_unknown_fusion_suggests_the_nearest():
    with pytest.raises(UserError, match=r"Unknown head fusion 'maxx'. Did you mean 'max'\? Known: mean, max, min"):
        fuse_heads(torch.ones(1, 1, 2, 2), "maxx")


@pytest.mark.parametrize("discard_ratio", [1.0, 1.5, -0.1, "0.9", None, True, float("nan")])
def test_discard_ratio_outside_its_range(discard_ratio):
    with pytest.raises(UserError, match=r"discard ratio must .*\[0, 1\)"):
        attention_rollout([torch.ones(1, 3, 3)], discard_ratio=discard_ratio)


def test_no_blocks():
    with pytest.raises(UserError, match="at least one block"):
        attention_rollout([])


def test_readout_errors():
    with pytest.raises(UserError, match=r"Unknown readout 'clss'. Did you mean 'class'"):
        attention_rollout([torch.ones(1, 3, 3)], readout="clss")
    with pytest.raises(UserError, match="needs a class token"):
        attention_rollout([torch.ones(1, 3, 3)], num_prefix_tokens=0, readout="class")


def reference_relevance(attentions, gradients, readout, num_prefix_tokens):
    """Chefer et al., equations 5 and 6, whole matrices, in Python's own numbers; [L][H][N][N]."""
    num_tokens, num_heads = len(attentions[0][0]), len(attentions[0])
    tokens = range(num_tokens)
    relevance = [[float(i == j) for j in tokens] for i in tokens]
    for heads, slopes in zip(attentions, gradients, strict=True):
        mean = [
            [sum(max(0.0, heads[h][i][j] * slopes[h][i][j]) for h in range(num_heads)) / num_heads for j in tokens]
            for i in tokens
        ]
        added = [[sum(mean[i][k] * relevance[k][j] for k in tokens) for j in tokens] for i in tokens]
        relevance = [[relevance[i][j] + added[i][j] for j in tokens] for i in tokens]
    rows = relevance[:1] if readout == "class" else relevance[num_prefix_tokens:]
    return [sum(row[j] for row in rows) / len(rows) for j in tokens[num_prefix_tokens:]]


@pytest.mark.parametrize(("readout", "num_prefix_tokens"), WHAT_IS_READ)
def test_relevance_against_the_reference(readout, num_prefix_tokens):
    attentions = random_attention(num_images=2)
    gradients = [torch.randn_like(attention) for attention in attentions]
    fused = [fuse_positive_gradient(a, g) for a, g in zip(attentions, gradients, strict=True)]
    saliency = attention_relevance(fused, num_prefix_tokens=num_prefix_tokens, readout=readout)
    for image in range(2):
        one = [[values[image].tolist() for values in part] for part in (attentions, gradients)]
        assert_close(saliency[image], reference_relevance(*one, readout, num_prefix_tokens))


def test_zeros_are_settled_by_hand():
    saliency = torch.tensor([[0.0, 0.8, 0.0, 0.2], [0.0, 0.0, 0.0, 0.0], [0.4, 0.3, 0.2, 0.1], [0.0, 0.0, 0.5, 0.5]])
    by = torch.tensor([[0.1, 0.3, 0.4, 0.2], [0.4, 0.1, 0.3, 0.2], [0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 0.5, 0.5]])
    expected = [[5e-5, 0.8, 2e-4, 0.2], [1e-3, 2.5e-4, 7.5e-4, 5e-4], [0.4, 0.3, 0.2, 0.1], [0, 0, 0.5, 0.5]]
    assert_close(settle_zeros(saliency, by), expected, 1e-8)
    for index in range(4):
        assert torch.equal(settle_zeros(saliency, by)[index], settle_zeros(saliency[[index]], by[[index]])[0])


def test_relevance_example():
    one = torch.tensor([[[0.0, 0.3, 0.1], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    assert_close(attention_relevance([one]), [[0.3, 0.1]], 1e-7)
