"""Every supported family, with timm's own code: recording, rollout, and dropping that is exactly attention masking."""

import pytest
import torch
from families import FAMILIES, family_fixture
from helpers import assert_close, traces
from PIL import Image
from timm.models.beit import Beit

from vitsal.analysis.exploration import Exploration
from vitsal.errors import UserError
from vitsal.guides import FlowGuide, GradientAttentionGuide, GradientRolloutGuide, LastAttentionGuide, RolloutGuide
from vitsal.guides.adapters import AdaptedGuide
from vitsal.guides.attention import record_attention
from vitsal.guides.explainers import HeadGuide
from vitsal.models.tokens import default_readout, grid_size, model_transform
from vitsal.pictures.explorer_figure import draw_exploration
from vitsal.reduction.drop import embed_once, forward_kept, gather_tokens, keep_patches
from vitsal.reduction.keep import top_k_patches

QUICK = ("ViT tiny", "DeiT distilled", "DINO", "DINOv2 registers", "DINOv3", "EVA-02 not square", "BEiT not square")
family = family_fixture(FAMILIES, QUICK)


def different_patches(model, pictures, keep_ratio=0.4):
    """Other patches for each image, (B, K)."""
    return top_k_patches(torch.rand(len(pictures), *grid_size(model)), keep_ratio)


def test_what_is_known_of_its_tokens(family, model, pictures):
    patch = model.patch_embed.patch_size
    assert grid_size(model) == grid_size(model, pictures) == (family.size[0] // patch[0], family.size[1] // patch[1])
    assert model.num_prefix_tokens == family.prefix
    assert default_readout(model) == family.readout


def test_transform_gives_its_input_size(family, model):
    assert model_transform(model)(Image.new("RGB", (300, 200))).shape == (3, *family.size)


@torch.no_grad()
def test_one_row_stochastic_map_per_block(family, model, pictures):
    with record_attention(model) as maps:
        model(pictures)
    num_tokens = family.prefix + model.patch_embed.num_patches
    assert len(maps) == family.depth
    for attention in maps:
        assert attention.shape[::2] == (3, num_tokens)
        assert_close(attention.sum(dim=-1), torch.ones(attention.shape[:-1]))
        assert attention.amax(dim=-1).mean() > 2 / num_tokens  # far from uniform


@pytest.mark.parametrize("make", [RolloutGuide, LastAttentionGuide, GradientRolloutGuide])
def test_saliency(family, model, pictures, make):
    if make is GradientRolloutGuide and not model.num_classes:
        with pytest.raises(UserError, match="no classifier"):
            make(model)
        return
    guide = make(model)
    saliency = guide(pictures)
    total = saliency.flatten(1).sum(dim=1)
    assert saliency.shape == (3, *grid_size(model))
    assert saliency.isfinite().all()
    assert saliency.min() >= 0
    assert total.min() > 0
    if family.prefix:
        assert total.max() < 1  # the rest lies on the prefix tokens
    else:
        assert_close(total, torch.ones(3))
    assert saliency.flatten(1).std(dim=1).min() > 1e-5  # a uniform map would pass all other checks
    for index in range(3):
        assert_close(guide(pictures[index : index + 1])[0], saliency[index])


def test_flow_and_relevance(model, pictures):
    """Flow is at least what rollout carries; relevance adds what speaks for the class, on the patches alone."""
    flow, rollout = FlowGuide(model)(pictures[:1]), RolloutGuide(model)(pictures[:1])
    assert flow.shape == rollout.shape == (1, *grid_size(model))
    assert (flow >= rollout - 1e-6).all()
    assert flow.std() > 1e-5
    if model.num_classes:
        relevance = GradientAttentionGuide(model)(pictures)
        assert relevance.isfinite().all()
        assert relevance.min() >= 0
        assert relevance.flatten(1).std(dim=1).min() > 0
        alone = GradientAttentionGuide(model)(pictures[1:2])[0]
        assert_close(alone / relevance[1].max(), relevance[1] / relevance[1].max())


def test_explorer(family, model):
    """One recorded pass gives what each guide gives by itself, and the figure is drawn."""
    exploration = Exploration(model, Image.effect_noise((200, 150), 80).convert("RGB"))
    assert len(exploration.predictions) == min(10, model.num_classes)
    guides = [RolloutGuide(model, "max", 0.9), HeadGuide(model, block=0, head=1)]
    guides += [GradientRolloutGuide(model, 1)] if model.num_classes else []
    for guide in guides:
        assert_close(exploration.saliency(guide), guide(exploration.images)[0])
    views = {"rollout": exploration.look(guides[0], 0.5), "head": exploration.look(guides[1], 0.5)}
    assert len(draw_exploration(exploration, views).axes[0].images) == 5


@torch.no_grad()
def test_keeping_everything_is_the_untouched_model(model, pictures):
    everything = torch.arange(model.patch_embed.num_patches).expand(3, -1)
    assert_close(forward_kept(model, pictures, everything), model(pictures))


@torch.no_grad()
def test_embedding_once_changes_nothing(model, pictures):
    keeps = [different_patches(model, pictures) for _ in range(2)]
    before, apart = traces(model), [forward_kept(model, pictures, keep) for keep in keeps]
    with embed_once(model, pictures):
        together = [forward_kept(model, pictures, keep) for keep in keeps]
        assert torch.equal(model(pictures), model(torch.zeros_like(pictures)))  # these images alone
    assert all(torch.equal(one, other) for one, other in zip(together, apart, strict=True))
    assert traces(model) == before


def masked_like(model, pictures, keep):
    """Logits where the patches that are not kept are no keys in any block, and do not reach the head."""
    prefix = torch.arange(model.num_prefix_tokens).expand(len(keep), -1)
    indices = torch.cat([prefix, keep + model.num_prefix_tokens], dim=1)
    mask = torch.full((len(keep), model.num_prefix_tokens + model.patch_embed.num_patches), float("-inf"))
    mask = mask.scatter(1, indices, 0.0)[:, None, None, :]
    option = "shared_rel_pos_bias" if isinstance(model, Beit) else "attn_mask"

    def add_mask(block, args, options):
        bias = options.get(option)
        return args, {**options, option: mask if bias is None else bias + mask}

    handles = [block.register_forward_pre_hook(add_mask, with_kwargs=True) for block in model.blocks]
    features = model.forward_features(pictures)
    for handle in handles:
        handle.remove()
    return model.forward_head(gather_tokens(features, indices))


@torch.no_grad()
def test_dropping_equals_masking(model, pictures):
    keep = different_patches(model, pictures)
    dropped = forward_kept(model, pictures, keep)
    assert_close(dropped, masked_like(model, pictures, keep), 1e-4)
    assert (dropped - model(pictures)).abs().max() > 0.05  # the patches that went did matter
    other = forward_kept(model, pictures, different_patches(model, pictures))
    assert (dropped - other).abs().max() > 0.05


@torch.no_grad()
def test_batch_equals_single_images(model, pictures):
    keep = different_patches(model, pictures)
    together = forward_kept(model, pictures, keep)
    for index in range(3):
        alone = forward_kept(model, pictures[index : index + 1], keep[index : index + 1])
        assert_close(alone[0], together[index])


@torch.no_grad()
def test_tokens_are_really_removed(family, model, pictures):
    keep = different_patches(model, pictures)
    counts = []
    handles = [
        block.attn.register_forward_hook(lambda _, args, out: counts.append(out.shape)) for block in model.blocks
    ]
    forward_kept(model, pictures, keep)
    for handle in handles:
        handle.remove()
    assert counts == [(3, family.prefix + keep.shape[1], model.embed_dim)] * family.depth


@torch.no_grad()
def test_attention_of_a_dropped_forward_can_be_recorded(family, model, pictures):
    keep = different_patches(model, pictures)
    with keep_patches(model, keep), record_attention(model) as maps:
        model(pictures)
    assert [attention.shape[-1] for attention in maps] == [family.prefix + keep.shape[1]] * family.depth


def test_model_is_as_before(model, pictures):
    before, logits = traces(model), model(pictures).detach()
    keep = different_patches(model, pictures)
    forward_kept(model, pictures, keep)
    RolloutGuide(model, "max", 0.9)(pictures)
    with pytest.raises(ZeroDivisionError), keep_patches(model, keep):
        1 / 0  # noqa: B018
    assert traces(model) == before
    assert torch.equal(model(pictures), logits)


@torch.no_grad()
def test_as_a_guide_for_another_target(model, tiny_vit):
    """Any family can guide any target: images are converted, the map is laid on the target's grid."""
    saliency = AdaptedGuide(RolloutGuide(model), tiny_vit)(torch.randn(2, 3, 64, 64))
    assert saliency.shape == (2, 4, 4)
    assert saliency.isfinite().all()
