"""Which patches are kept. That the others are really gone is tested for every family in test_families.py."""

import pytest
import torch
from helpers import traces

from vitsal.errors import UserError
from vitsal.models.loading import load_model
from vitsal.reduction.drop import forward_kept, keep_patches
from vitsal.reduction.keep import num_kept, rank_patches, top_k_patches


@pytest.mark.parametrize(
    ("num_patches", "keep_ratio", "expected"),
    [
        (196, 1.0, 196),
        (196, 0.7, 137),  # 137.2
        (196, 0.5, 98),
        (196, 0.3, 59),  # 58.8
        (5, 0.5, 3),  # 2.5: halves go up
        (7, 0.5, 4),  # 3.5: always up, not to the even number
        (10, 1, 10),
        (196, 0.001, 1),  # never none
        (1, 0.01, 1),
    ],
)
def test_number_kept(num_patches, keep_ratio, expected):
    assert num_kept(num_patches, keep_ratio) == expected
    assert top_k_patches(torch.rand(2, num_patches), keep_ratio).shape == (2, expected)


def test_top_patches_by_hand():
    saliency = torch.tensor([[[0.1, 0.9], [0.3, 0.2]], [[5.0, -1.0], [-3.0, -2.0]]])
    assert top_k_patches(saliency, 0.5).tolist() == [[1, 2], [0, 1]]
    assert top_k_patches(saliency, 0.25).tolist() == [[1], [0]]
    assert top_k_patches(saliency, 1.0).tolist() == [[0, 1, 2, 3]] * 2


def quarters(keep, side=14):
    """How many of one image's kept patches lie in each quarter of the grid."""
    rows, columns = keep // side, keep % side
    return [
        int(((rows < side / 2) == top).logical_and((columns < side / 2) == left).sum())
        for top in (True, False)
        for left in (True, False)
    ]


@pytest.mark.parametrize("keep_ratio", [0.2, 0.5, 0.8])
def test_of_equal_patches_no_place_is_preferred(keep_ratio):
    """Of 98 patches that a map of zeros keeps, row-major order would take 49, 49, 0 and 0 from the quarters."""
    kept = top_k_patches(torch.zeros(2, 14, 14), keep_ratio)
    assert torch.equal(kept[0], kept[1])
    expected, most = kept.shape[1] / 4, 49
    spread = (expected * (1 - expected / most)) ** 0.5  # of a draw without replacement
    assert all(abs(count - expected) < 3 * spread for count in quarters(kept[0]))


def test_the_few_that_are_not_zero_come_first_and_the_rest_favours_no_corner():
    """As a discard ratio of 0.9 may leave them: 79 % of the patches at exactly zero."""
    saliency = torch.zeros(200, 196)
    marked = torch.rand(200, 196).argsort(dim=1)[:, :41]
    saliency.scatter_(1, marked, torch.rand(200, 41) + 0.1)
    kept = top_k_patches(saliency, 0.5)
    assert all(set(few.tolist()) <= set(many.tolist()) for few, many in zip(marked, kept, strict=True))
    counts = torch.tensor([quarters(keep) for keep in kept]).float().mean(dim=0)
    assert (counts - 24.5).abs().max() < 4  # row-major order: 35, 35, 14, 14 or so


def test_equal_patches_do_not_change_the_order_of_others():
    assert top_k_patches(torch.tensor([[1.0, 2.0, 0.5, 2.0, 0.7]]), 0.6).tolist() == [[0, 1, 3]]
    ranked = rank_patches(torch.tensor([[1.0, 2.0, 1.0, 3.0, 1.0]]))[0].tolist()
    assert ranked[:2] == [3, 1]
    assert sorted(ranked[2:]) == [0, 2, 4]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_saliency_that_is_not_finite(bad):
    saliency = torch.rand(2, 4, 4)
    saliency[1, 2, 3] = bad
    with pytest.raises(UserError, match="not finite"):
        top_k_patches(saliency, 0.5)


@pytest.mark.parametrize("keep_ratio", [0, 0.0, -0.5, 1.5, "half", "0.5", None, True, float("nan")])
def test_keep_ratio_outside_its_range(keep_ratio):
    with pytest.raises(UserError, match=r"keep ratio must .*\(0, 1\]"):
        top_k_patches(torch.rand(1, 4), keep_ratio)


@torch.no_grad()
def test_pixels_of_dropped_patches_do_not_matter(tiny_vit, images):
    """Grey out what is dropped: the same logits; grey out one kept patch: others."""
    keep = torch.tensor([[0, 5, 10, 15]]).expand(4, -1)
    kept = forward_kept(tiny_vit, images, keep)
    visible = torch.eye(4).repeat_interleave(16, 0).repeat_interleave(16, 1)  # patches 0, 5, 10, 15 are the diagonal
    assert torch.equal(forward_kept(tiny_vit, images * visible, keep), kept)
    visible[0, 0] = 0
    assert not torch.allclose(forward_kept(tiny_vit, images * visible, keep), kept)


@torch.no_grad()
def test_order_of_indices_does_not_matter(tiny_vit, images):
    keep = torch.tensor([[1, 6, 7, 12]]).expand(4, -1)
    torch.testing.assert_close(
        forward_kept(tiny_vit, images, keep), forward_kept(tiny_vit, images, keep.flip(1)), rtol=0, atol=1e-5
    )


@torch.no_grad()
def test_context_serves_several_forward_passes(tiny_vit, images):
    keep = top_k_patches(torch.rand(4, 4, 4), 0.5)
    before = traces(tiny_vit)
    with keep_patches(tiny_vit, keep) as model:
        first, second = model(images), model(images)
    assert torch.equal(first, second)
    assert torch.equal(first, forward_kept(tiny_vit, images, keep))
    assert traces(tiny_vit) == before


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "beit_base_patch16_224", "eva02_tiny_patch14_224"])
@pytest.mark.parametrize(
    ("keep", "said"),
    [
        ([[-1, 2]] * 4, r"numbered 0 to 15, each once; image 0 has \[-1, 2\]"),
        ([[0, 1], [0, 1], [3, 16], [0, 1]], r"image 2 has \[3, 16\]"),
        ([[5, 5]] * 4, r"image 0 has \[5, 5\]"),
        ([[1, 2]] * 3, r"4 rows \(one for each image\) .* got \(3, 2\) of int64"),
        ([[1, 2]], "4 rows"),
        ([[]] * 4, "one patch at least"),
        ([[0.0, 1.0]] * 4, "whole numbers"),
        ([[True, False]] * 4, "whole numbers"),
        ([1, 2, 3, 4], "4 rows"),
    ],
)
def test_patches_that_cannot_be_kept_are_refused(name, keep, said):
    size = 56 if "14" in name else 64
    model = load_model(name, pretrained=False, img_size=size, depth=2, embed_dim=48, num_heads=3)
    before = traces(model)
    with pytest.raises(UserError, match=said):
        forward_kept(model, torch.zeros(4, 3, size, size), torch.tensor(keep))
    assert traces(model) == before
