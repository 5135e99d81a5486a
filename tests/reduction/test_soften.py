"""Softer attention for fewer tokens: against the formula, and against timm's own scale, set by hand."""

import math

import pytest
import torch
from families import FAMILIES, each_of
from helpers import assert_close, traces

from vitsal.errors import UserError
from vitsal.guides.attention import fused_attention
from vitsal.models.loading import load_model
from vitsal.models.sizes import resized
from vitsal.reduction.drop import keep_patches
from vitsal.reduction.merge import merge_tokens
from vitsal.reduction.reduction import Reduction, forward_reduced
from vitsal.reduction.soften import attention_scale, soften_attention, soften_schedule

SOFTENED = {name: family for name, family in FAMILIES.items() if not name.startswith("BEiT")}
QUICK = ("ViT tiny", "ViT not square", "DeiT distilled", "DeiT-III", "DINOv2 registers")


def test_by_hand():
    assert attention_scale(4, 16) == pytest.approx(0.5)  # ln 4 / ln 16
    assert attention_scale(4, 16, 2.0) == pytest.approx(0.25)
    assert attention_scale(4, 16, 0.0) == 1
    assert attention_scale(16, 16) == attention_scale(17, 16) == 1  # never sharper
    assert attention_scale(1, 1) == 1
    assert attention_scale(1, 16) == 0  # one token draws all attention, whatever its logit


@pytest.mark.parametrize("few", [60, 20])
def test_a_token_that_led_by_enough_for_half_of_the_attention_draws_half_of_it_again(few):
    lead, many = math.log(196), 197

    def drawn(tokens, scale):
        logits = torch.zeros(tokens)
        logits[0] = lead * scale
        return logits.softmax(dim=0)[0].item()

    assert drawn(many, 1.0) == pytest.approx(0.5)
    assert drawn(few, 1.0) > 0.75
    assert drawn(few, attention_scale(few, many)) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("spec", "exponents"),
    [
        ("1", [1, 1, 1, 1, 1]),
        (0.5, [0.5] * 5),
        ("0", [0] * 5),
        ("1-", [2, 1.5, 1, 0.5, 0]),
        (" 1.5- ", [3, 2.25, 1.5, 0.75, 0]),
        (1e-5, [1e-5] * 5),
        ("1e-05", [1e-5] * 5),
        ("2.5E-1-", [0.5, 0.375, 0.25, 0.125, 0]),
        (1 / 3, [1 / 3] * 5),
        (".5", [0.5] * 5),
        ("1.", [1] * 5),
    ],
)
def test_schedules(spec, exponents):
    assert soften_schedule(spec, 5) == pytest.approx(exponents, abs=0)


def test_a_schedule_of_one_block_is_its_first():
    assert soften_schedule("1-", 1) == (0.0,)


@pytest.mark.parametrize(
    "spec",
    ["", "x", "-1", "--", "1--", "10", "nan", "inf", "1e1", "1e400", "e-5", "1e-", ".", ".-", "1..", "1,2", True, None,
     10.0],
)  # fmt: skip
def test_schedules_that_are_none(spec):
    with pytest.raises(UserError, match=r"Softening of attention is a number from 0 to below 10, .*; got"):
        soften_schedule(spec, 3)


@torch.no_grad()
@pytest.mark.parametrize("family", each_of(SOFTENED, QUICK))
@pytest.mark.parametrize("schedule", ["0.5", "2-"])
def test_families_equal_timms_own_scale_set_by_hand(family, schedule):
    model = family.load()
    images, before = torch.randn(2, 3, *family.size), traces(model)
    keep = torch.tensor([[0, 3, 5, 6], [1, 2, 4, 7]])
    own = model.num_prefix_tokens + math.prod(model.patch_embed.grid_size)
    share, last = math.log(model.num_prefix_tokens + 4) / math.log(own), len(model.blocks) - 1
    scales = [share ** (0.5 if schedule == "0.5" else 4 * (last - block) / last) for block in range(last + 1)]
    with keep_patches(model, keep), soften_attention(model, 4, schedule):
        softened = model(images)
    assert traces(model) == before
    attentions = [block.attn for block in model.blocks]
    with keep_patches(model, keep), fused_attention(attentions, False):  # which leaves the scale to torch otherwise
        as_it_is = model(images)
        for attention, scale in zip(attentions, scales, strict=True):
            attention.scale *= scale
        assert_close(softened, model(images), 1e-4)
    assert (softened - as_it_is).abs().max() > 1e-3


@torch.no_grad()
def test_merged_tokens_count_as_the_patches_they_stand_for(tiny_vit):
    """So merging alone softens nothing, and beside dropping it is the kept patches that count."""
    image, saliency = torch.randn(1, 3, 64, 64), torch.rand(1, 4, 4)
    assert torch.equal(
        forward_reduced(tiny_vit, image, Reduction(merge="2", soften="1")),
        forward_reduced(tiny_vit, image, Reduction(merge="2")),
    )
    keep = saliency.flatten(1).topk(8).indices.sort().values
    with keep_patches(tiny_vit, keep), merge_tokens(tiny_vit, 2), soften_attention(tiny_vit, 8, "1"):
        by_hand = tiny_vit(image)
    assert torch.equal(forward_reduced(tiny_vit, image, Reduction(0.5, "2", soften="1"), saliency), by_hand)


@torch.no_grad()
def test_nothing_reduced_is_the_untouched_model(tiny_vit):
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(forward_reduced(tiny_vit, images, Reduction(soften="3-")), tiny_vit(images))


@torch.no_grad()
@pytest.mark.parametrize("size", [(48, 48), (32, 64)])
def test_a_twin_of_another_size_knows_its_originals(tiny_vit, size):
    images, twin = torch.randn(2, 3, *size), resized(tiny_vit, size)
    with soften_attention(twin, size[0] * size[1] // 256, "1"):
        softened = twin(images)
    scale = math.log(1 + size[0] * size[1] // 256) / math.log(17)
    with fused_attention([block.attn for block in twin.blocks], False):
        for block in twin.blocks:
            block.attn.scale *= scale
        assert_close(softened, twin(images), 1e-4)
    assert (forward_reduced(resized(twin, (64, 64)), torch.randn(1, 3, 64, 64), Reduction(soften="9"))).isfinite().all()


def test_attention_whose_queries_cannot_be_reached_is_refused_by_name():
    beit = load_model("beit_base_patch16_224", pretrained=False, depth=1)
    with (
        pytest.raises(UserError, match="beit_base_patch16_224 cannot be softened: its Attention does not"),
        soften_attention(beit, 98),
    ):
        pass
