"""Probes against slow, plain computations, over the families."""

import math

import numpy as np
import pytest
import timm
import torch
from families import FAMILIES, family_fixture
from helpers import assert_close, randomise, traces

from vitsal.analysis.probing import (
    attention_distance,
    attention_distances,
    mean_attention_distance,
    patch_distances,
    position_similarity,
    projection_filters,
)
from vitsal.errors import UserError
from vitsal.guides import LastAttentionGuide
from vitsal.guides.attention import record_attention
from vitsal.guides.explainers import HeadGuide
from vitsal.models.loading import load_model
from vitsal.models.tokens import default_readout, grid_size

PROBED = [
    "ViT not square",
    "DeiT distilled",
    "DINO",
    "DINOv2 registers",
    "SigLIP",
    "BEiT not square",
    "EVA-02 not square",
    "RoPE mixed",
    "DINOv3",
]
family = family_fixture({name: FAMILIES[name] for name in PROBED}, PROBED)
WITHOUT_POSITIONS = ("BEiT not square", "RoPE mixed", "DINOv3")


@pytest.fixture
def distilled():
    """Two prefix tokens, 2 x 3 patches of 16 pixels, two blocks of three heads."""
    options = {"pretrained": False, "img_size": (32, 48), "depth": 2}
    return randomise(load_model("deit_tiny_distilled_patch16_224", **options))


def slow_distance(attention, prefix, grid, patch):
    """Mean attention distance of one head of one image, (N, N), number by number."""
    places = [(row * patch[0], column * patch[1]) for row in range(grid[0]) for column in range(grid[1])]
    total = 0.0
    for query, here in enumerate(places):
        row = attention[prefix + query].tolist()[prefix:]
        total += sum(weight * math.dist(here, there) for weight, there in zip(row, places, strict=True)) / sum(row)
    return total / len(places)


def slow_distances(model, images):
    """(B, L, H)."""
    with torch.no_grad(), record_attention(model) as maps:
        model(images)
    settings = model.num_prefix_tokens, grid_size(model, images), model.patch_embed.patch_size
    each = [[[slow_distance(head, *settings) for head in block[i]] for block in maps] for i in range(len(images))]
    return torch.tensor(each)


def test_patch_distances_by_hand():
    assert_close(patch_distances((2, 2), (3, 4)), [[0.0, 4, 3, 5], [4.0, 0, 5, 3], [3.0, 5, 0, 4], [5.0, 3, 4, 0]])
    assert patch_distances((2, 3))[0].tolist() == pytest.approx([0, 1, 2, 1, 2**0.5, 5**0.5])


def test_attention_distance_by_hand():
    """The first patch pays half to the class token, the rest to the other patch; the second a quarter of its rest."""
    attention = torch.tensor([[0.2, 0.4, 0.4], [0.5, 0.0, 0.5], [0.2, 0.2, 0.6]])[None, None]
    assert_close(attention_distance(attention, patch_distances((1, 2), (16, 16))), [[(16 + 4) / 2]])


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize(("grid", "patch"), [((4, 4), (16, 16)), ((3, 5), (8, 14))])
def test_uniform_and_identical_attention(prefix, grid, patch):
    distances = patch_distances(grid, patch)
    num_tokens = prefix + len(distances)
    uniform = torch.full((2, 3, num_tokens, num_tokens), 1 / num_tokens)
    assert_close(attention_distance(uniform, distances, prefix), distances.mean().expand(2, 3), 1e-4)
    itself = torch.eye(num_tokens).expand(2, 3, -1, -1)
    assert (attention_distance(itself, distances, prefix) == 0).all()


def test_nothing_on_the_patches_counts_as_zero():
    attention = torch.zeros(1, 1, 3, 3)
    attention[..., 0] = 1
    assert attention_distance(attention, patch_distances((1, 2))).item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_full(dtype):
    attention = torch.rand(2, 2, 10, 10).softmax(dim=-1).to(dtype)
    distances = patch_distances((3, 3), (16, 16))
    expected = attention_distance(attention.float(), distances)
    with torch.autocast("cpu", torch.bfloat16):
        found = attention_distance(attention, distances)
    assert found.dtype == torch.float32
    assert_close(found, expected)


def test_distances_equal_the_slow_computation(model, pictures):
    assert_close(attention_distances(model, pictures), slow_distances(model, pictures), 1e-3)


def test_mean_and_spread_over_images(distilled):
    images = torch.randn(5, 3, 32, 48)
    expected = slow_distances(distilled, images).double().numpy()
    mean, deviation = mean_attention_distance(distilled, [images], progress=False)
    assert mean.shape == deviation.shape == (2, 3)
    assert_close(mean, expected.mean(axis=0), 1e-4)
    assert_close(deviation, expected.std(axis=0), 1e-4)
    assert deviation.min() > 0.01  # images do differ


def test_batches_do_not_matter(distilled, capsys):
    images = torch.randn(5, 3, 32, 48)
    parts = [images[:2], torch.empty(0), images[2:]]
    whole = mean_attention_distance(distilled, [images], progress=False)
    assert capsys.readouterr().err == ""
    for one, other in zip(mean_attention_distance(distilled, iter(parts), total=3), whole, strict=True):
        assert_close(one, other, 1e-4)
    assert "attention distance: 100%" in capsys.readouterr().err


def test_images_of_another_size():
    options = {"pretrained": False, "img_size": 64, "depth": 1, "dynamic_img_size": True}
    model = randomise(load_model("vit_tiny_patch16_224", **options))
    images = torch.randn(2, 3, 48, 80)
    assert_close(attention_distances(model, images), slow_distances(model, images), 1e-3)
    assert HeadGuide(model)(images).shape == (2, 3, 3, 5)


@pytest.mark.parametrize("batches", [[], [torch.empty(0)]])
def test_no_images(distilled, batches):
    with pytest.raises(UserError, match="at least one image"):
        mean_attention_distance(distilled, batches, progress=False)


def test_filters_are_principal_components(model):
    """Up to their sign those of numpy, most of the variance first, each scaled by its largest weight around grey."""
    filters = model.patch_embed.proj.weight.detach().double().numpy()
    flat = filters.reshape(len(filters), -1)
    _, variances, components = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    assert (np.diff(variances[:5]) < 0).all()
    found = projection_filters(model, 4)
    assert found.shape == (4, *model.patch_embed.patch_size, 3)
    for picture, component in zip(found, components, strict=False):
        expected = component.reshape(filters.shape[1:]).transpose(1, 2, 0)
        expected = expected / expected.flat[np.abs(expected).argmax()]
        assert_close(picture, 0.5 + expected / 2, 1e-4)
    assert found.min() >= 0
    assert_close(found.amax(dim=(1, 2, 3)), torch.ones(4))


def test_filters_of_one_known_pattern(tiny_vit):
    """All filters are multiples of one red and blue pattern: the first component is that pattern."""
    pattern = torch.zeros(3, 16, 16)
    pattern[0, :8], pattern[2, 8:] = 1.0, -0.5
    weight = tiny_vit.patch_embed.proj.weight
    weight.data = torch.randn(len(weight), 1, 1, 1) * pattern
    assert_close(projection_filters(tiny_vit, 1)[0], 0.5 + pattern.permute(1, 2, 0) / 2, 1e-4)


@pytest.mark.parametrize("count", [0, 193])
def test_number_of_filters(tiny_vit, count):
    assert len(projection_filters(tiny_vit)) == 28
    with pytest.raises(UserError, match=f"has 192 principal components; {count} were"):
        projection_filters(tiny_vit, count)


def test_filters_of_a_convolutional_stem():
    model = timm.create_model("vit_tiny_r_s16_p8_224", depth=1)
    with pytest.raises(UserError, match="HybridEmbed, not by one convolution"):
        projection_filters(model)


def test_position_similarity(request, family, model):
    if family in [FAMILIES[name] for name in WITHOUT_POSITIONS]:
        with pytest.raises(UserError, match="no position embeddings"):
            position_similarity(model)
        return
    similarity, (height, width) = position_similarity(model), grid_size(model)
    assert similarity.shape == (height, width, height, width)
    rows = model.pos_embed[0].tolist()
    rows = rows[len(rows) - height * width :]
    for a, b in [(0, 0), (0, 1), (1, 0), (height - 1, width - 1), (2, 1)]:
        for c, d in [(0, 0), (height - 1, 0), (1, width - 1)]:
            one, other = rows[a * width + b], rows[c * width + d]
            dot = sum(x * y for x, y in zip(one, other, strict=True))
            assert similarity[a, b, c, d].item() == pytest.approx(dot / math.hypot(*one) / math.hypot(*other), abs=1e-5)


def test_prefix_positions_are_left_out(distilled):
    """By hand: patch 0 and 1 at a right angle, 2 opposite to 0, whatever the two prefix rows hold."""
    distilled.pos_embed.data = torch.randn_like(distilled.pos_embed)
    assert distilled.pos_embed.shape[1] == 2 + 6
    distilled.pos_embed.data[0, 2:5] = 0
    for patch, (place, value) in enumerate([(0, 2.0), (1, 0.5), (0, -3.0)]):
        distilled.pos_embed.data[0, 2 + patch, place] = value
    similarity = position_similarity(distilled)
    assert_close(similarity[0, 0, 0], [1.0, 0, -1])
    assert_close(similarity[0, 1, 0], [0.0, 1, 0])


@pytest.mark.parametrize("block", [0, -1])
def test_head_maps_are_the_recorded_rows(model, pictures, block):
    with torch.no_grad(), record_attention(model) as maps:
        model(pictures)
    prefix, attention = model.num_prefix_tokens, maps[block]
    if default_readout(model) == "class":
        rows = attention[:, :, 0, prefix:]
    else:
        rows = attention[:, :, prefix:, prefix:].mean(dim=2)
    found = HeadGuide(model, block)(pictures)
    assert_close(found, rows.unflatten(-1, grid_size(model)))
    assert_close(HeadGuide(model, block, head=1)(pictures), found[:, 1])


def test_mean_of_the_heads_is_the_last_attention(model, pictures):
    assert_close(HeadGuide(model)(pictures).mean(dim=1), LastAttentionGuide(model)(pictures))


@pytest.mark.parametrize("block", [2, -3])
def test_unknown_block(distilled, block):
    with pytest.raises(UserError, match=f"no block {block}: this model has 2, 0 to 1, or -2 to -1"):
        HeadGuide(distilled, block)


def test_model_is_as_before(distilled):
    """Also one that is being trained, with a part of it frozen; probes see it in eval mode."""
    images = torch.randn(2, 3, 32, 48)
    expected = attention_distances(distilled, images), HeadGuide(distilled)(images)
    distilled.train().blocks[0].eval()
    distilled.blocks[1].attn.attn_drop.p = 0.5
    before, modes = traces(distilled), [module.training for module in distilled.modules()]
    for _ in range(2):
        assert_close(attention_distances(distilled, images), expected[0])
        assert_close(HeadGuide(distilled)(images), expected[1])
        projection_filters(distilled)
        position_similarity(distilled)
    with pytest.raises(AssertionError):
        HeadGuide(distilled)(images[..., :7])
    assert traces(distilled) == before
    assert [module.training for module in distilled.modules()] == modes
    assert torch.is_grad_enabled()


def test_nothing_keeps_a_gradient(distilled):
    images = torch.randn(1, 3, 32, 48)
    results = [attention_distances(distilled, images), HeadGuide(distilled)(images)]
    results += [projection_filters(distilled), position_similarity(distilled)]
    assert not any(result.requires_grad for result in results)


def test_whole_maps_are_not_kept(distilled, monkeypatch):
    """Each block's maps are reduced before the next block runs."""
    shapes = []

    def spy(attention, distances, num_prefix_tokens):
        shapes.append(attention.shape)
        return attention.new_zeros(attention.shape[:2])

    monkeypatch.setattr("vitsal.analysis.probing.attention_distance", spy)
    distilled.blocks[1].register_forward_pre_hook(lambda *_: shapes.append("second block"))
    attention_distances(distilled, torch.randn(4, 3, 32, 48))
    assert shapes == [(4, 3, 8, 8), "second block", (4, 3, 8, 8)]


def test_on_the_real_model(deit_tiny):
    """What everyone finds in trained ViTs: neighbours' positions are alike, and late heads look far."""
    similarity = position_similarity(deit_tiny).flatten(2).flatten(0, 1).fill_diagonal_(-1)
    nearest = patch_distances((14, 14)).gather(1, similarity.argmax(dim=1, keepdim=True))
    assert (nearest < 1.5).float().mean() > 0.95
    distances = attention_distances(deit_tiny, torch.randn(2, 3, 224, 224)).mean(dim=0)
    assert distances[:4].min() < 40 < 80 < distances[-1].min()
