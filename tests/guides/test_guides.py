"""Guides: images in, a saliency map per image out, whatever is behind them."""

import pytest
import torch
from helpers import assert_close, randomise
from torch.nn import functional as F

from vitsal.choices import GUIDE_OPTIONS, GUIDES, METHODS
from vitsal.errors import UserError
from vitsal.guides import GradientRolloutGuide, LastAttentionGuide, RolloutGuide
from vitsal.guides.adapters import AdaptedGuide
from vitsal.guides.attention import AttentionRecord, record_attention
from vitsal.guides.baselines import CenterGuide, RandomGuide
from vitsal.guides.explainers import HeadGuide
from vitsal.guides.factory import make_guide
from vitsal.guides.legacy import LegacyGradientRolloutGuide, LegacyRolloutGuide
from vitsal.guides.rollout import attention_rollout, fuse_gradient, fuse_heads
from vitsal.models.loading import load_model, load_network
from vitsal.models.pixels import convert_images
from vitsal.students.student import Student


@pytest.fixture
def siglip():
    """Another model for `tiny_vit`: normalised by 0.5, 6 x 6 patches, no class token, as trained without a head."""
    name = "vit_base_patch16_siglip_224"
    return randomise(load_model(name, pretrained=False, img_size=96, depth=1, embed_dim=96, num_heads=2))


@pytest.fixture(scope="module")
def inside():
    """What some guides need to be given."""
    student, network = Student(grid_size=(4, 4), width=4).eval(), load_network("test_resnet", pretrained=False)
    return {"student": student, "network": network, "block": 0}


@pytest.mark.parametrize("name", GUIDES)
def test_every_guide_by_name(tiny_vit, images, inside, name):
    saliency = make_guide(name, tiny_vit, **inside)(images)
    assert saliency.shape == (4, 4, 4)
    assert saliency.isfinite().all()
    assert not saliency.requires_grad


def test_unknown_guide_suggests_the_nearest(tiny_vit):
    with pytest.raises(UserError, match=r"Unknown guide 'rollot'. Did you mean 'rollout'"):
        make_guide("rollot", tiny_vit)


def test_rollout_guide_is_the_rollout_of_the_recorded_maps(tiny_vit, images):
    with record_attention(tiny_vit) as maps:
        tiny_vit(images)
    fused = [fuse_heads(attention, "max") for attention in maps]
    expected, whole = attention_rollout(fused, discard_ratio=0.9), attention_rollout(fused)
    saliency = RolloutGuide(tiny_vit, "max", 0.9)(images)
    ranks = saliency.flatten(1).argsort(dim=1, descending=True)
    for image, (discarded, plain) in enumerate(zip(expected.tolist(), whole.tolist(), strict=True)):
        assert 0 in discarded  # so that there is something to settle
        assert ranks[image].tolist() == sorted(range(16), key=lambda p: (discarded[p], plain[p]), reverse=True)
    assert (saliency > 0).all()
    assert_close(saliency.flatten(1)[expected > 0], expected[expected > 0])
    assert not torch.allclose(saliency, RolloutGuide(tiny_vit, "mean", 0.9)(images))


def test_gradient_rollout_guide_explains_the_class_asked_for(tiny_vit, images):
    logits = tiny_vit(images)
    predicted, other = logits.argmax(dim=1), 3
    assert (predicted != other).all()
    with record_attention(tiny_vit, with_gradient=True) as attentions:
        gradients = torch.autograd.grad(tiny_vit(images)[:, other].sum(), attentions)
    fused = [fuse_gradient(a, g) for a, g in zip(attentions, gradients, strict=True)]
    assert_close(GradientRolloutGuide(tiny_vit, other)(images).flatten(1), attention_rollout(fused))
    default = GradientRolloutGuide(tiny_vit)(images)
    for index, category in enumerate(predicted.tolist()):
        alone = GradientRolloutGuide(tiny_vit, category)(images[index : index + 1])
        assert_close(default[index], alone[0])  # each image its own predicted class


def test_gradient_of_the_last_block_by_hand(tiny_vit, images):
    """Only the class row of the last block reaches the logit: everything else has no gradient."""
    gradient = AttentionRecord(tiny_vit, images).gradients(0)[-1]
    assert gradient[:, :, 0].abs().min() > 0
    assert gradient[:, :, 1:].abs().max() == 0


def test_gradient_rollout_inside_inference_mode(tiny_vit, images):
    outside = GradientRolloutGuide(tiny_vit)(images)
    with torch.inference_mode():
        inside = GradientRolloutGuide(tiny_vit)(images * 1.0)  # made inside: an inference tensor
    assert torch.equal(inside, outside)
    assert all(parameter.grad is None for parameter in tiny_vit.parameters())


@pytest.mark.parametrize("name", ["rollout", "grad-rollout", "last-attention"])
def test_under_autocast(tiny_vit, images, name):
    guide = make_guide(name, tiny_vit)
    with torch.autocast("cpu", torch.bfloat16):
        half = guide(images)
    assert half.dtype == torch.float32
    assert_close(half, guide(images), 0.05)


@pytest.mark.parametrize("category_index", [10, 5000, -1])
def test_category_that_the_model_does_not_have(tiny_vit, category_index):
    with pytest.raises(UserError, match=f"Category index {category_index} is not .* 10 classes, 0 to 9"):
        GradientRolloutGuide(tiny_vit, category_index)


def test_gradient_rollout_without_a_classifier():
    model = load_model("vit_tiny_patch16_224", pretrained=False, img_size=64, depth=1, num_classes=0)
    with pytest.raises(UserError, match="no classifier"):
        GradientRolloutGuide(model)


def test_bad_rollout_values(tiny_vit):
    with pytest.raises(UserError, match="Unknown head fusion 'median'"):
        RolloutGuide(tiny_vit, "median")
    with pytest.raises(UserError, match="discard ratio"):
        RolloutGuide(tiny_vit, "mean", 1.0)
    with pytest.raises(UserError, match="discard ratio"):
        GradientRolloutGuide(tiny_vit, None, 1.0)


def test_last_attention_is_the_class_row_of_the_last_map(tiny_vit, images):
    with record_attention(tiny_vit) as maps:
        tiny_vit(images)
    assert_close(LastAttentionGuide(tiny_vit)(images).flatten(1), maps[-1].mean(dim=1)[:, 0, 1:])


def test_last_attention_without_a_class_token_is_the_mean_row(siglip):
    images = torch.randn(2, 3, 96, 96)
    with record_attention(siglip) as maps:
        siglip(images)
    assert_close(LastAttentionGuide(siglip)(images).flatten(1), maps[-1].mean(dim=(1, 2)))


def test_legacy_differs_and_needs_a_single_prefix_token(tiny_vit, images):
    for ours, legacy, options in [
        (RolloutGuide, LegacyRolloutGuide, ("max", 0.9)),
        (GradientRolloutGuide, LegacyGradientRolloutGuide, (3, 0.5)),
    ]:
        maps = legacy(tiny_vit, *options)(images)
        assert not torch.allclose(ours(tiny_vit, *options)(images), maps, rtol=0.05)
        assert_close(legacy(tiny_vit, *options).explain(AttentionRecord(tiny_vit, images)), maps)
    distilled = load_model("deit_tiny_distilled_patch16_224", pretrained=False, img_size=64, depth=1)
    for make in (LegacyRolloutGuide, LegacyGradientRolloutGuide):
        with pytest.raises(UserError, match="legacy"):
            make(distilled)


def test_random_depends_on_seed_and_image_only(images):
    guide = RandomGuide((14, 14), seed=3)
    saliency = guide(images)
    assert torch.equal(guide(images), saliency)
    assert torch.equal(guide(images.flip(0)), saliency.flip(0))  # not on the order
    assert torch.equal(guide(images[2:3]), saliency[2:3])  # not on the batch
    assert not torch.equal(RandomGuide((14, 14), seed=4)(images), saliency)
    assert len({tuple(row) for row in saliency.flatten(1).tolist()}) == 4


def test_random_is_uniform(images):
    saliency = RandomGuide((100, 100))(images).flatten(1)
    assert saliency.min() >= 0
    assert saliency.max() < 1
    assert_close(saliency.mean(dim=1), torch.full((4,), 0.5), 0.02)
    assert_close(saliency.var(dim=1), torch.full((4,), 1 / 12), 0.005)


def test_center_by_hand(images):
    square = CenterGuide((3, 3))(images)
    assert_close(square[3], [[-(2**0.5), -1, -(2**0.5)], [-1, 0, -1], [-(2**0.5), -1, -(2**0.5)]], 1e-6)
    wide = CenterGuide((2, 4))(images)
    row = [-(2.5**0.5), -(0.5**0.5), -(0.5**0.5), -(2.5**0.5)]  # half a patch above or below, 1.5 or 0.5 beside
    assert_close(wide[0], [row, row], 1e-6)


def test_convert_images_and_back(tiny_vit, siglip):
    """ViT of this size is normalised by 0.5; DeiT-III by ImageNet's own mean and deviation."""
    deit3 = load_model("deit3_small_patch16_224", pretrained=False, img_size=64, depth=1)
    images = torch.rand(2, 3, 64, 64) * 2 - 1  # pixels 0 to 1, as tiny_vit takes them
    converted = convert_images(images, tiny_vit, deit3)
    pixels = (images + 1) / 2
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        assert_close(converted[:, channel], (pixels[:, channel] - mean) / std)
    assert_close(convert_images(converted, deit3, tiny_vit), images)
    assert convert_images(images, tiny_vit, siglip).shape == (2, 3, 96, 96)


def test_constant_image_stays_constant_when_resized(tiny_vit, siglip):
    converted = convert_images(torch.full((1, 3, 64, 64), 0.25), tiny_vit, siglip)
    assert_close(converted, torch.full((1, 3, 96, 96), 0.25))


def test_guide_with_another_model_of_the_same_grid(tiny_vit, images):
    deit3 = randomise(load_model("deit3_small_patch16_224", pretrained=False, img_size=64, depth=2))
    guide = make_guide("rollout", tiny_vit, model=deit3, head_fusion="max", discard_ratio=0.5)
    expected = RolloutGuide(deit3, "max", 0.5)(convert_images(images, tiny_vit, deit3))
    assert_close(guide(images), expected)


def test_map_is_laid_on_the_targets_grid():
    """14 x 14 to 16 x 16: corners stay corners, a flat map stays flat, and the sum follows the number of patches."""
    target = load_model("vit_tiny_patch16_224", pretrained=False, img_size=256, depth=1)
    inner = load_model("vit_tiny_patch16_224", pretrained=False, depth=1)
    images, small = torch.randn(1, 3, 256, 256), torch.rand(1, 14, 14)

    class Fixed:
        model = inner

        def __call__(self, images):
            assert images.shape == (1, 3, 224, 224)
            return small

    large = AdaptedGuide(Fixed(), target)(images)
    assert large.shape == (1, 16, 16)
    assert_close(large[0, 0, 0], small[0, 0, 0], 1e-6)
    assert_close(large[0, -1, -1], small[0, -1, -1], 1e-6)
    assert_close(large, F.interpolate(small[None], (16, 16), mode="bilinear")[0])  # made larger: nothing to smooth
    assert large.mean().item() == pytest.approx(small.mean().item(), abs=0.02)


def test_all_together_on_a_non_square_target(inside):
    target = randomise(load_model("vit_tiny_patch16_224", pretrained=False, img_size=(96, 64), depth=1))
    inner = randomise(load_model("deit3_small_patch16_224", pretrained=False, img_size=64, depth=1))
    for name in GUIDES:
        assert make_guide(name, target, model=inner, **inside)(torch.randn(2, 3, 96, 64)).shape == (2, 6, 4)


@pytest.mark.parametrize(("block", "head", "words"), [(3, 0, "no block 3: this model has 3"), (0, 3, "no head 3")])
def test_head_guide_needs_a_block_and_a_head_that_are_there(tiny_vit, block, head, words):
    with pytest.raises(UserError, match=words):
        HeadGuide(tiny_vit, block, head)


@pytest.mark.parametrize("name", METHODS)
def test_a_recorded_pass_explains_as_a_pass_of_its_own(tiny_vit, images, name):
    guide = make_guide(name, tiny_vit, head_fusion="max", discard_ratio=0.5)
    assert_close(guide.explain(AttentionRecord(tiny_vit, images)), guide(images))


def test_whole_attention_is_not_kept(tiny_vit, images, monkeypatch):
    """Where no gradient is needed, each block's heads are fused before the next block runs."""
    seen = []

    def spy(attention, *_, **__):
        seen.append(attention.shape)
        return fuse_heads(attention)

    monkeypatch.setattr("vitsal.guides.rollout.fuse_heads", spy)
    for block in tiny_vit.blocks[1:]:
        block.register_forward_pre_hook(lambda *_: seen.append("next block"))
    RolloutGuide(tiny_vit)(images)
    assert seen == [(4, 3, 17, 17), "next block", (4, 3, 17, 17), "next block", (4, 3, 17, 17)]
    seen.clear()
    LastAttentionGuide(tiny_vit)(images)
    assert seen == ["next block", "next block", (4, 3, 17, 17)]


def test_one_record_gives_the_gradients_of_any_class(tiny_vit, images):
    record = AttentionRecord(tiny_vit, images)
    for category in (4, 1, 4):
        alone = AttentionRecord(tiny_vit, images).gradients(category)
        for mine, theirs in zip(record.gradients(category), alone, strict=True):
            assert torch.equal(mine, theirs)
    assert_close(record.logits, tiny_vit(images))
    assert not record.attentions[0].requires_grad


@pytest.mark.parametrize("seed", [-1, 2**32, 1e20, 1.0, True, None, "3"])
def test_seeds_beyond_the_generators_range(tiny_vit, seed):
    """zlib takes 32 bits of any whole number: 2**32 would have been 0 again, unnoticed."""
    with pytest.raises(UserError, match=r"The seed must be a whole number from 0 to 4294967295; got"):
        make_guide("random", tiny_vit, seed=seed)


def test_seeds_at_the_ends_of_the_range(tiny_vit, images):
    maps = [make_guide("random", tiny_vit, seed=seed)(images) for seed in (0, 1, 2**32 - 1)]
    assert len({tuple(saliency.flatten().tolist()) for saliency in maps}) == 3


@pytest.mark.parametrize("name", GUIDES)
def test_table_of_options_is_true(name, tiny_vit, images, inside):
    """A map, or a refusal, changes with each option that the table gives the guide, and with no other."""
    other = randomise(Student(grid_size=(4, 4), width=4).eval(), seed=3)
    plain = {**inside, "discard_ratio": 0.3}
    model = load_model("vit_tiny_patch16_224", pretrained=False, img_size=64, depth=2, num_classes=10)
    changes = {
        "model": randomise(model, seed=5),
        "student": other,
        "network": randomise(load_network("test_resnet", pretrained=False)),
        "block": 1,
        "head_fusion": "max",
        "discard_ratio": 0.6,
        "seed": 1,
    }
    changes["category_index"] = int(tiny_vit(images).sum(dim=0).argmin())
    before = make_guide(name, tiny_vit, **plain)(images)
    for option, value in changes.items():
        after = make_guide(name, tiny_vit, **plain | {option: value})(images)
        assert torch.equal(before, after) != (option in GUIDE_OPTIONS[name]), option


@pytest.mark.parametrize("category", [True, 1.0, "1", 10, -1, 10**400])
def test_categories_that_are_none(tiny_vit, category):
    for name in ("grad-rollout", "grad-attention"):
        with pytest.raises(UserError, match="is not a class of this model: it has 10 classes, 0 to 9"):
            make_guide(name, tiny_vit, category_index=category)
