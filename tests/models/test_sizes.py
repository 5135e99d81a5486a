"""The same model for images of another size: timm's own positions, the very same weights, and the model untouched."""

import copy

import pytest
import torch
from families import FAMILIES
from helpers import assert_close

from vitsal.errors import UserError
from vitsal.models.loading import load_model
from vitsal.models.sizes import resized
from vitsal.models.tokens import grid_size, input_size


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["ViT tiny", "MAE fine-tuned", "SigLIP", "DINOv2 registers", "BEiT", "EVA-02", "DINOv3"]
)
def test_a_twin_is_what_timm_makes_of_the_same_weights(name):
    model = FAMILIES[name].load()
    patch, whole = model.patch_embed.patch_size[0], torch.rand(1, 3, *input_size(model))
    before, logits = copy.deepcopy(model.state_dict()), model(whole)
    size = (4 * patch, 3 * patch)
    alone = copy.deepcopy(model)
    alone.set_input_size(img_size=size)
    twin, images = resized(model, size), torch.rand(2, 3, *size)
    assert_close(twin(images), alone(images), 1e-6)
    assert (input_size(twin), grid_size(twin)) == (size, (4, 3))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    assert torch.equal(model(whole), logits)  # the model is untouched, its position tables too
    assert twin.blocks[0].norm1.weight is model.blocks[0].norm1.weight


def test_the_models_own_size_is_the_model():
    model = load_model("vitsal_digits_guide")
    assert resized(model, (112, 112)) is model


@pytest.mark.parametrize("size", [(100, 112), (0, 8), (4, 4), (-8, 8)])
def test_sizes_that_are_no_whole_patches(size):
    with pytest.raises(UserError, match="no whole number of patches: vitsal_digits_guide takes 8 x 8"):
        resized(load_model("vitsal_digits_guide"), size)
