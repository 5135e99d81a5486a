"""What neighbours choose tokens by: values by hand, from no more of a model than they are said to need."""

import pytest
import torch
from families import FAMILIES, family_fixture
from helpers import assert_close, randomise, traces
from safetensors.torch import save_file
from torch.nn import functional as F

from vitsal.choices import GUIDES, METHODS
from vitsal.errors import UserError
from vitsal.guides import ActivationGuide, AttentionNotRecorded, ClassAttentionGuide, NormChangeGuide
from vitsal.guides.attention import record_attention
from vitsal.guides.factory import make_choosers, make_guide
from vitsal.jobs.identity import describe
from vitsal.models.loading import load_model, load_network
from vitsal.models.pixels import convert_images
from vitsal.models.tokens import default_readout, grid_size

EARLY = [ClassAttentionGuide, NormChangeGuide]
QUICK = ("ViT tiny", "DeiT distilled", "DINOv2 registers", "SigLIP", "DINOv3", "EVA-02 not square", "BEiT not square")
family = family_fixture(FAMILIES, QUICK)


@pytest.fixture
def network():
    """timm's smallest ResNet."""
    return randomise(load_network("test_resnet", pretrained=False))


@torch.no_grad()
def test_class_attention_is_the_readouts_row_of_the_whole_models_map(family, model, pictures):
    with record_attention(model) as maps:
        model(pictures)
    for block, attention in enumerate(maps):
        mean = attention.mean(dim=1)
        row = mean[:, 0] if default_readout(model) == "class" else mean[:, family.prefix :].mean(dim=1)
        expected = row[:, family.prefix :].unflatten(1, grid_size(model))
        assert_close(ClassAttentionGuide(model, block)(pictures), expected)


@torch.no_grad()
def test_norm_change_is_the_difference_that_the_mlp_half_makes(family, model, pictures):
    """What comes out of a block, less what the norm before its MLP was given."""
    for index, block in enumerate(model.blocks):
        given, left = [], []
        handles = [
            block.norm2.register_forward_pre_hook(lambda _, args, given=given: given.append(args[0])),
            block.register_forward_hook(lambda _, args, tokens, left=left: left.append(tokens)),
        ]
        model(pictures)
        for handle in handles:
            handle.remove()
        change = (left[0] - given[0])[:, family.prefix :].square().sum(dim=-1).sqrt()
        assert_close(NormChangeGuide(model, index)(pictures), change.unflatten(1, grid_size(model)), 1e-3)


@pytest.mark.parametrize("make", EARLY)
def test_each_family_batch_by_batch_and_left_as_it_was(family, model, pictures, make):
    before = traces(model)
    guide = make(model, 1)
    saliency = guide(pictures)
    assert saliency.flatten(1).std(dim=1).min() > 1e-5
    for alone, among in zip(pictures, saliency, strict=True):
        assert_close(guide(alone[None])[0] / among.max(), among / among.max())
    assert traces(model) == before


@torch.no_grad()
def test_norm_change_of_the_first_blocks_by_hand(tiny_vit, images):
    tokens = tiny_vit.norm_pre(tiny_vit.patch_drop(tiny_vit._pos_embed(tiny_vit.patch_embed(images))))
    for index, block in enumerate(tiny_vit.blocks):
        middle = tokens + block.attn(block.norm1(tokens))
        tokens = middle + block.mlp(block.norm2(middle))
        expected = torch.linalg.vector_norm((tokens - middle)[:, 1:], dim=2)
        assert_close(NormChangeGuide(tiny_vit, index)(images).flatten(1), expected, 1e-4)


@pytest.mark.parametrize("make", EARLY)
@pytest.mark.parametrize("block", [0, 1, 2, -3, -2, -1])
def test_later_blocks_never_run(tiny_vit, images, make, block):
    ran = []
    for number, module in enumerate(tiny_vit.blocks):
        module.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    tiny_vit.norm.register_forward_pre_hook(lambda *_: ran.append("norm"))
    saliency = make(tiny_vit, block)(images)
    assert ran == list(range(block % 3 + 1))
    assert torch.equal(saliency, make(tiny_vit, block % 3)(images))


def test_fused_attention_stays_fused(tiny_vit, images, monkeypatch):
    calls, fused = [], F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *args, **more: calls.append(1) or fused(*args, **more)
    )
    NormChangeGuide(tiny_vit, 1)(images)
    assert len(calls) == 2
    ClassAttentionGuide(tiny_vit, 1)(images)
    assert len(calls) == 3  # all but the block that is looked at


@pytest.mark.parametrize("name", ["class-attention", "norm-change"])
def test_in_another_model_than_the_target(tiny_vit, images, name):
    """Its own normalisation, and its map on the target's grid."""
    inner = randomise(load_model("deit3_small_patch16_224", pretrained=False, img_size=96, depth=2))
    alone = make_guide(name, inner, block=1)(convert_images(images, tiny_vit, inner))
    laid = F.interpolate(alone[:, None], (4, 4), mode="bilinear", antialias=True)[:, 0]
    assert_close(make_guide(name, tiny_vit, model=inner, block=1)(images), laid)


def convert(images, network):
    """`tiny_vit` takes pixels from -1 to 1, a network as its data's mean and deviation have them."""
    mean, std = (torch.tensor(network.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    return (images / 2 + 0.5 - mean) / std


@torch.no_grad()
def test_activation_by_hand(tiny_vit, images, network):
    before = traces(network)
    stem = [network.conv1, network.bn1, network.act1, network.maxpool]
    features = convert(images, network)
    for layer in [*stem, network.layer1, network.layer2, network.layer3, network.layer4]:
        features = layer(features)
    assert features.shape[-2:] == (2, 2)
    expected = F.interpolate(features.mean(dim=1, keepdim=True), (4, 4), mode="bicubic", align_corners=False)[:, 0]
    guide = make_guide("activation", tiny_vit, network=network)
    saliency = guide(images)
    assert_close(saliency, expected)
    assert saliency.flatten(1).std(dim=1).min() > 1e-3
    assert_close(torch.cat([guide(image[None]) for image in images]), saliency)
    assert traces(network) == before


@torch.no_grad()
def test_activation_on_a_target_that_is_not_square(network):
    target = load_model("vit_tiny_patch16_224", pretrained=False, img_size=(96, 64), depth=1)
    images = torch.randn(2, 3, 96, 64)
    sizes = []
    network.conv1.register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape[-2:])))
    saliency = ActivationGuide(network, target)(images)
    assert sizes == [(96, 64)]  # the target's own, as PaPr shows them
    assert saliency.shape == (2, 6, 4)
    flipped = ActivationGuide(network, target)(images.flip(0))
    assert_close(flipped, saliency.flip(0))


@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext", "test_byobnet", "resnet10t", "mobileone_s0"])
def test_convnets_of_any_kind(tiny_vit, images, name):
    """Some in the target's normalisation, some in ImageNet's."""
    network = load_network(name, pretrained=False)
    assert not network.training
    features = network.forward_features(convert(images, network)).detach()
    expected = F.interpolate(features.mean(dim=1, keepdim=True), (4, 4), mode="bicubic")[:, 0]
    assert_close(ActivationGuide(network, tiny_vit)(images), expected)


def test_network_from_a_checkpoint_and_from_the_weights_folder(network, images, tmp_path, monkeypatch):
    save_file(network.state_dict(), tmp_path / "test_resnet.safetensors")
    monkeypatch.setenv("VITSAL_WEIGHTS_DIR", str(tmp_path))
    for loaded in (load_network("test_resnet", tmp_path / "test_resnet.safetensors"), load_network("test_resnet")):
        assert torch.equal(loaded(images), network(images))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "vit_tiny_patch16_224",
            r"'vit_tiny_patch16_224' is a VisionTransformer, .*\(1, 197, 192\), are no map of 192",
        ),
        ("swin_tiny_patch4_window7_224", r"a SwinTransformer, .*\(1, 7, 7, 768\), are no map of 768 channels"),
        ("resnet_18", "Unknown model 'resnet_18'.*Did you mean 'resnet18'"),
        ("resnet18.none", "'resnet18' has no weights 'none'"),
    ],
)
def test_what_is_no_convnet_is_refused_by_name(name, said):
    with pytest.raises(UserError, match=said):
        load_network(name)


def test_what_is_no_convnet_is_refused_from_python_too(tiny_vit, images):
    with pytest.raises(UserError, match="'vit_tiny_patch16_224' is a VisionTransformer"):
        make_guide("activation", tiny_vit, network=tiny_vit)(images)


def test_activation_needs_a_network(tiny_vit):
    with pytest.raises(UserError, match=r"'activation' needs a network: .*\(--network\)"):
        make_guide("activation", tiny_vit)


@pytest.mark.parametrize("name", ["class-attention", "norm-change"])
@pytest.mark.parametrize("block", [3, -4, 10**30])
def test_blocks_that_are_not_there(tiny_vit, name, block):
    with pytest.raises(UserError, match=f"There is no block {block}: this model has 3, 0 to 2, or -3 to -1"):
        make_guide(name, tiny_vit, block=block)


def test_blocks_without_an_mlp_of_their_own_or_an_attention():
    parallel = load_model("vit_small_patch16_18x2_224", pretrained=False, img_size=64, depth=1)
    with pytest.raises(UserError, match="Block 0 is a ParallelThingsBlock, in which no MLP follows"):
        NormChangeGuide(parallel, 0)
    with pytest.raises(AttentionNotRecorded, match="ParallelThingsBlock with 2 attention modules"):
        ClassAttentionGuide(parallel, 0)(torch.randn(1, 3, 64, 64))


def test_journals_tell_them_apart(tiny_vit, network):
    """By kind, block, and the weights of what is inside."""
    other = load_network("test_resnet", pretrained=False)
    names = ("class-attention", "norm-change", "activation")
    choosers = [
        *make_choosers(names, tiny_vit, network=network, block=0).values(),
        *make_choosers(names, tiny_vit, network=other, block=1).values(),
    ]
    told = [describe(guide) for guide in choosers]
    assert all(one != two for number, one in enumerate(told) for two in told[:number])
    assert told == [describe(guide) for guide in choosers]


def test_they_choose_patches_and_explain_nothing():
    assert {"class-attention", "norm-change", "activation"} == set(GUIDES) - {*METHODS, "student", "random", "center"}
    assert METHODS == ("rollout", "grad-rollout", "last-attention", "grad-attention", "flow")


@pytest.mark.parametrize("name", ["class-attention", "norm-change", "activation"])
def test_under_autocast(tiny_vit, images, network, name):
    guide = make_guide(name, tiny_vit, network=network, block=1)
    with torch.autocast("cpu", torch.bfloat16):
        half = guide(images)
    whole = guide(images)
    assert half.dtype == torch.float32
    assert_close(half / whole.abs().max(), whole / whole.abs().max(), 0.05)
