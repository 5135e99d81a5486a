"""Patches of two sizes, against an image that is taken apart patch by patch."""

import math
from dataclasses import replace

import pytest
import torch
from families import FAMILIES, RELATIVE, Family, family_fixture
from helpers import assert_close, traces
from torch.nn.functional import interpolate

from vitsal.errors import UserError
from vitsal.guides.accelerated import AcceleratedViT
from vitsal.models.loading import load_model
from vitsal.models.tokens import grid_size
from vitsal.reduction.coarse import Coarse, check_coarse, coarsen_patches, patches_of, top_k_cells
from vitsal.reduction.merge import merge_tokens
from vitsal.reduction.reduction import Reduction, forward_reduced

COARSENED = {name: family for name, family in FAMILIES.items() if not name.startswith(RELATIVE)}
COARSENED["ViT huge"] = replace(COARSENED["ViT huge"], size=(112, 112))
COARSENED["EVA-01"] = Family("eva_large_patch14_196", readout="patches", size=(112, 112))
family = family_fixture(COARSENED, ("ViT tiny", "ViT not square", "DeiT distilled", "DeiT-III", "DINOv2 registers"))


def slow_tokens(model, image, cells):
    """One image's tokens (N, C) before the first block, and how many patches each stands for."""
    (rows, columns), (height, width) = grid_size(model), model.patch_embed.patch_size
    half = interpolate(image[None], scale_factor=0.5, mode="bicubic", antialias=True)[0]
    plain = model._pos_embed(model.patch_embed(image[None]))
    prefix = (plain[0] if isinstance(plain, tuple) else plain)[0, : model.num_prefix_tokens]
    positions = model.pos_embed[0, -rows * columns :].unflatten(0, (rows, columns))

    def embedded(pixels, row, column):
        patch = pixels[:, row * height : (row + 1) * height, column * width : (column + 1) * width]
        conv = model.patch_embed.proj
        token = conv.weight.flatten(1) @ patch.flatten() + (0 if conv.bias is None else conv.bias)
        return model.patch_embed.norm(token)

    fine, coarse = [], []
    for number, (row, column) in enumerate((row, column) for row in range(rows // 2) for column in range(columns // 2)):
        four = [(2 * row + down, 2 * column + right) for down in (0, 1) for right in (0, 1)]
        if number in cells:
            fine += [embedded(image, *patch) + positions[patch] for patch in four]
        else:
            coarse.append(embedded(half, row, column) + sum(positions[patch] for patch in four) / 4)
    tokens = torch.stack([*prefix, *fine, *coarse])
    return tokens, [1] * (len(prefix) + len(fine)) + [4] * len(coarse)


def slow_forward(model, image, cells):
    tokens, patches = slow_tokens(model, image, cells)
    tokens = model.norm(model.blocks(model.norm_pre(tokens[None])))[0]
    repeated = [token for token, number in zip(tokens, patches, strict=True) for _ in range(number)]
    return model.forward_head(torch.stack(repeated)[None])[0]


def random_cells(model, images, number):
    half = math.prod(grid_size(model)) // 4
    return torch.stack([torch.randperm(half)[:number].sort().values for _ in images])


def run(model, images, cells, merge=0):
    with (
        torch.no_grad(),
        coarsen_patches(model, cells, grid_size(model)) as coarse,
        merge_tokens(model, merge) as merged,
    ):
        return model(images), coarse, merged


def test_cells_by_hand():
    """On a grid of 4 x 6 patches, cell 4 is the middle one of the lower three."""
    assert patches_of(torch.tensor([[4], [0]]), (4, 6)).tolist() == [[14, 15, 20, 21], [0, 1, 6, 7]]
    coarse = Coarse(torch.tensor([[1, 4]]), (4, 6), 1)
    assert coarse.rest.tolist() == [[0, 2, 3, 5]]
    assert coarse.num_tokens == 4 + 4 + 4
    first, second = [8, 8, 0, 1, 9, 9, 8, 8, 2, 3, 9, 9], [10, 10, 4, 5, 11, 11, 10, 10, 6, 7, 11, 11]
    assert coarse.tokens.tolist() == [first + second]


def test_most_salient_cells_by_hand():
    """Each quarter's sum counts, not its highest patch: 4, 5, 0 and 2."""
    saliency = torch.tensor([[4.0, 0, 1, 1], [0, 0, 1, 2], [0, 0, 0, 2], [0, 0, 0, 0]])[None]
    assert top_k_cells(saliency, 0.25).tolist() == [[1]]
    assert top_k_cells(saliency, 0.75).tolist() == [[0, 1, 3]]
    assert top_k_cells(saliency, 0.01).tolist() == [[1]]  # never none


@pytest.mark.parametrize("number", [1, 3])
def test_equals_the_image_taken_apart(model, pictures, number):
    cells = random_cells(model, pictures, number)
    before = traces(model)
    logits, _, _ = run(model, pictures, cells)
    assert traces(model) == before
    with torch.no_grad():
        for image, own, found in zip(pictures, cells, logits, strict=True):
            expected = slow_forward(model, image, own.tolist())
            assert_close(found, expected, 1e-5 * expected.abs().max().clamp(min=1).item())


def test_all_as_they_are_is_the_untouched_model(model, pictures):
    every = torch.arange(math.prod(grid_size(model)) // 4).expand(len(pictures), -1)
    with torch.no_grad():
        expected = model(pictures)
    assert_close(run(model, pictures, every)[0], expected, 1e-5 * expected.abs().max().clamp(min=1).item())


@pytest.mark.parametrize("merge", [0, 2])
def test_a_batch_equals_its_single_images(model, pictures, merge):
    cells = random_cells(model, pictures, 2)
    logits, _, merged = run(model, pictures, cells, merge)
    for index in range(len(pictures)):
        single, _, alone = run(model, pictures[index : index + 1], cells[index : index + 1], merge)
        assert_close(logits[index], single[0], 1e-5 * single.abs().max().clamp(min=1).item())
        if merge:
            assert torch.equal(merged.groups[index], alone.groups[0])


def test_merged_tokens_account_for_all_that_went_in(model, pictures):
    _, coarse, merged = run(model, pictures, random_cells(model, pictures, 2), 2)
    assert merged.groups.shape[1] == coarse.num_tokens
    assert (merged.sizes.sum(dim=1) == coarse.num_tokens + model.num_prefix_tokens).all()


def test_a_flat_image_looks_the_same_coarsely(tiny_vit):
    """Where there is no detail, and positions are all the same, a coarse token is what each of its four would be."""
    with torch.no_grad():
        tiny_vit.pos_embed[:, 1:] = tiny_vit.pos_embed[:, 1:2].clone()
    seen = []
    with tiny_vit.blocks[0].register_forward_pre_hook(lambda block, args: seen.append(args[0])):
        run(tiny_vit, torch.full((1, 3, 64, 64), 0.7), torch.tensor([[2]]))
    assert seen[0].shape == (1, 1 + 4 + 3, tiny_vit.embed_dim)
    assert_close(seen[0][0, 1:], seen[0][0, 1].expand(7, -1))


def test_as_a_reduction(tiny_vit, images):
    """The most salient quarter of a map, here the lower left, is what is shown as it is."""
    saliency = torch.zeros(len(images), 4, 4)
    saliency[:, 2:, :2] = 1
    reduction = Reduction(0.25, rest="coarse")
    with torch.no_grad():
        found = forward_reduced(tiny_vit, images, reduction, saliency)
    assert torch.equal(found, run(tiny_vit, images, torch.tensor([[2]] * len(images)))[0])
    assert str(reduction) == "keep 0.25, rest coarse"
    assert Reduction.from_columns(**reduction.columns) == reduction
    assert Reduction(rest="coarse") == Reduction()  # where all is kept there is no rest
    with pytest.raises(UserError, match=r"Unknown rest 'fine'.*Known: dropped, coarse"):
        Reduction(0.5, rest="fine")


@pytest.mark.parametrize("merge", ["0", "2"])
def test_explained(tiny_vit, images, merge):
    """Each coarse cell's four patches have become part of one token; of the others each has its own, until merged."""
    saliency = torch.rand(len(images), 4, 4)
    told = AcceleratedViT(tiny_vit, lambda _: saliency, Reduction(0.5, merge, rest="coarse")).explain(images)
    cells = top_k_cells(saliency, 0.5)
    for tokens, own in zip(told.tokens, cells.tolist(), strict=True):
        four = {cell: tokens.flatten()[patches_of(torch.tensor([[cell]]), (4, 4))[0]].tolist() for cell in range(4)}
        assert all(len(set(four[cell])) == 1 for cell in set(range(4)) - set(own))
        if merge == "0":
            assert sorted(token for cell in own for token in four[cell]) == list(range(1, 9))
            assert sorted(four[cell][0] for cell in set(range(4)) - set(own)) == [9, 10]
    assert told.tokens.unique().tolist() == list(range(1, 11 if merge == "0" else 5))  # 10, 8, 6 and 4


@pytest.mark.parametrize("cells", [[[0, 0]], [[4]], [[-1]], [[0.5]]])
def test_cells_that_are_none(tiny_vit, images, cells):
    before = traces(tiny_vit)
    with pytest.raises(UserError, match="Patches to keep"):
        run(tiny_vit, images[:1], torch.tensor(cells))
    assert traces(tiny_vit) == before


@pytest.mark.parametrize("name", [name for name in FAMILIES if name.startswith(RELATIVE)])
def test_other_positions_are_refused(name):
    sized = replace(FAMILIES[name], size=(112, 112) if "patch14" in FAMILIES[name].name else (96, 96))
    with pytest.raises(UserError, match=f"The patches of {sized.name} cannot be shown coarsely.*Drop the rest"):
        check_coarse(sized.load())


def test_odd_grids_are_refused(tiny_vit):
    model = load_model("vit_tiny_patch16_224", pretrained=False, img_size=(96, 80), depth=1)
    with pytest.raises(UserError, match="6 x 5 patches here, and only even numbers"):
        check_coarse(model)
    with pytest.raises(UserError, match="3 x 3 patches here"):
        AcceleratedViT(tiny_vit, lambda images: images, Reduction(0.5, input_size=(48, 48), rest="coarse"))
