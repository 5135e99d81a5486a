"""Which parameters are tuned, and the small file of what became of them."""

import copy

import pytest
import torch
from families import FAMILIES
from helpers import assert_close, randomise
from safetensors.torch import load_file, save_file

from vitsal.choices import TUNABLE
from vitsal.errors import UserError
from vitsal.models.loading import load_model
from vitsal.models.sizes import resized
from vitsal.tuning.parameters import (
    load_difference,
    resized_with_gradient,
    save_difference,
    tunable_twin,
    tuned_names,
)


def test_of_deit_tiny_norms_biases_class_token_and_positions():
    """68,544 of 5.7 million: 25 norms of 2 x 192, 12 times 576 + 192 + 768 + 192 biases, patches' 192, 198 x 192."""
    model = load_model("deit_tiny_patch16_224", pretrained=False)
    names = tuned_names(model, TUNABLE)
    count = sum(model.get_parameter(name).numel() for name in names)
    assert count == 25 * 2 * 192 + 12 * (576 + 192 + 768 + 192) + 192 + 198 * 192 == 68_544
    assert not [name for name in names if name.startswith("head")]
    assert tuned_names(model, ["blocks.0.norm?.bias"]) == ["blocks.0.norm1.bias", "blocks.0.norm2.bias"]


def test_no_parameter_of_that_name(tiny_vit):
    with pytest.raises(UserError, match=r"No parameter of the model fits 'nrom'; its names are such as cls_token"):
        tuned_names(tiny_vit, ["*norm*", "nrom"])
    with pytest.raises(UserError, match=r"'head\.bias'"):
        tuned_names(tiny_vit, ["head.bias"])


@pytest.mark.parametrize("name", ["DeiT distilled", "DeiT-III", "DINOv2 registers", "BEiT", "EVA-02", "DINOv3"])
def test_twin_shares_what_is_not_tuned(name):
    model = FAMILIES[name].load()
    names = tuned_names(model, TUNABLE)
    twin, images = tunable_twin(model, names), torch.rand(2, 3, *FAMILIES[name].size)
    with torch.no_grad():
        assert torch.equal(twin(images), model(images))
    for key, value in twin.named_parameters():
        assert value.requires_grad == (key in names)
        assert (value.data_ptr() == model.get_parameter(key).data_ptr()) == (key not in names)
    assert all(value.requires_grad for value in model.parameters())


@pytest.mark.parametrize("name", ["DeiT distilled", "DeiT-III", "MAE fine-tuned", "SigLIP", "EVA-02", "DINOv3"])
def test_positions_of_another_size_hand_their_gradient_on(name):
    """What is sent back to the model's own is what moves the answers, by a difference along it."""
    model = FAMILIES[name].load().double()
    height, width = FAMILIES[name].size
    size = (height, width - 2 * model.patch_embed.patch_size[1])
    seen = torch.rand(1, 3, *size, dtype=torch.float64)
    names = [key for key, _ in model.named_parameters() if key == "pos_embed"]
    tuned = tunable_twin(model, names)
    twin = resized_with_gradient(tuned, size)
    assert_close(twin(seen), resized(model, size)(seen), 1e-9)
    if names:
        (gradient,) = torch.autograd.grad(twin(seen).square().sum(), tuned.pos_embed)
        step, found = 1e-2 * gradient / gradient.norm(), []  # timm interpolates in float32
        for sign in (1, -1):
            moved = copy.deepcopy(model).requires_grad_(False)
            moved.pos_embed += sign * step
            found.append(resized(moved, size)(seen).square().sum().item())
        assert (gradient * step).sum().item() == pytest.approx((found[0] - found[1]) / 2, rel=1e-3)


@pytest.fixture
def tuned(tiny_vit):
    twin = tunable_twin(tiny_vit, tuned_names(tiny_vit, ["*norm*", "cls_token"]))
    with torch.no_grad():
        for value in twin.parameters():
            if value.requires_grad:
                value.add_(torch.randn_like(value))
    return twin


@torch.no_grad()
def test_difference_makes_the_tuned_model_again(tiny_vit, tuned, images, tmp_path):
    before = copy.deepcopy(tiny_vit)
    save_difference(tiny_vit, tuned, tmp_path / "difference.safetensors")
    again = load_difference(tiny_vit, tmp_path / "difference.safetensors")
    assert torch.equal(again(images), tuned(images))
    assert not torch.equal(again(images), tiny_vit(images))
    assert torch.equal(before(images), tiny_vit(images))
    own = set(load_file(tmp_path / "difference.safetensors"))
    assert own == {name for name in tiny_vit.state_dict() if "norm" in name or name == "cls_token"}


def test_difference_of_other_weights_or_damaged(tiny_vit, tuned, tmp_path):
    path = tmp_path / "difference.safetensors"
    with pytest.raises(UserError, match="There is no file of differences"):
        load_difference(tiny_vit, path)
    save_difference(tiny_vit, tuned, path)
    with pytest.raises(UserError, match="tunes other weights"):
        load_difference(randomise(copy.deepcopy(tiny_vit), seed=1), path)
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    with pytest.raises(UserError, match="its checksum does not fit"):
        load_difference(tiny_vit, path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="is no file of differences"):
        load_difference(tiny_vit, path)
    save_file({"cls_token": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="is no file of differences"):
        load_difference(tiny_vit, path)
