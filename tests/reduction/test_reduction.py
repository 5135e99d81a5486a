"""Reductions: what each lever does by hand, all together, and how they are named."""

import io
from decimal import Decimal
from fractions import Fraction

import pandas as pd
import pytest
import torch
from helpers import assert_close, traces
from hypothesis import given, strategies as st
from torch.nn import functional as F

from vitsal.errors import UserError
from vitsal.guides.accelerated import AcceleratedViT
from vitsal.guides.baselines import CenterGuide, RandomGuide
from vitsal.models.loading import load_model
from vitsal.models.sizes import resized
from vitsal.reduction.drop import forward_kept, keep_patches
from vitsal.reduction.keep import top_k_patches
from vitsal.reduction.merge import merge_schedule, merge_tokens
from vitsal.reduction.reduction import Reduction, allows, as_reduction, forward_each, forward_reduced, num_ranked
from vitsal.reduction.soften import read_softening


@pytest.fixture(scope="module")
def target():
    return load_model("vitsal_digits_target")


@pytest.fixture(scope="module")
def scenes():
    return torch.rand(3, 3, 112, 112, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_nothing_is_the_untouched_model(target, scenes):
    assert torch.equal(forward_reduced(target, scenes, Reduction()), target(scenes))


@torch.no_grad()
def test_a_keep_ratio_is_dropping(target, scenes):
    saliency = RandomGuide((14, 14))(scenes)
    by_hand = forward_kept(target, scenes, top_k_patches(saliency, 0.3))
    assert torch.equal(forward_reduced(target, scenes, Reduction(0.3), saliency), by_hand)


@torch.no_grad()
def test_all_levers_by_hand(target, scenes):
    before = traces(target)
    guide = RandomGuide((14, 14))
    fast = AcceleratedViT(target, guide, Reduction(0.6, "4", (80, 96)))
    small = F.interpolate(scenes, (80, 96), mode="bicubic", antialias=True)
    laid = F.interpolate(guide(scenes)[:, None], (10, 12), mode="bilinear", antialias=True)[:, 0]
    twin = resized(target, (80, 96))
    with keep_patches(twin, laid.flatten(1).topk(72).indices.sort().values), merge_tokens(twin, 4) as merged:
        by_hand = twin(small)
    assert_close(fast(scenes), by_hand, 1e-5)
    assert merged.sizes.shape == (3, 1 + 72 - 6 * 4)
    assert traces(target) == before


@torch.no_grad()
@pytest.mark.parametrize(
    "lever", [{"keep_ratio": 0.5}, {"merge": "8"}, {"input_size": (80, 80)}, {"keep_ratio": 0.5, "soften": "1-"}]
)
def test_each_lever_matters_and_a_batch_equals_its_single_images(target, scenes, lever):
    fast = AcceleratedViT(target, CenterGuide((14, 14)), Reduction(**lever))
    logits = fast(scenes)
    assert (logits - target(scenes)).abs().max() > 0.05
    assert_close(torch.cat([fast(scene[None]) for scene in scenes]), logits, 1e-4)


@torch.no_grad()
def test_several_at_once_are_each_alone_in_the_order_asked(target, scenes):
    saliency = torch.rand(3, 14, 14, generator=torch.Generator().manual_seed(1))
    asked = [
        (Reduction(0.3, "0", (80, 80)), saliency),
        (Reduction(), None),
        (Reduction(0.3, "2"), saliency),
        (Reduction(merge="3", input_size=(80, 80)), None),
    ]
    sizes = [None, (80, 80)]
    answers = forward_each({size: resized(target, size) for size in sizes}, scenes, asked)
    for logits, (reduction, chosen) in zip(answers, asked, strict=True):
        size = reduction.input_size
        small = scenes if size is None else F.interpolate(scenes, size, mode="bicubic", antialias=True)
        assert_close(logits, forward_reduced(resized(target, size), small, reduction, chosen))


@torch.no_grad()
@pytest.mark.parametrize(("rests", "sides"), [(["dropped"], [112]), (["coarse", "dropped"], [112, 56])])
def test_several_at_once_embed_images_once_whole_and_once_halved_if_asked(target, scenes, rests, sides):
    saliency, seen = torch.rand(3, 14, 14, generator=torch.Generator().manual_seed(1)), []
    asked = [(Reduction(ratio, rest=rest), saliency) for ratio in (0.25, 0.5, 0.75) for rest in rests]
    alone = [forward_reduced(target, scenes, *one) for one in asked]
    with target.patch_embed.proj.register_forward_hook(lambda conv, args, output: seen.append(args[0].shape[-1])):
        together = forward_each({None: target}, scenes, [(Reduction(), None), *asked])[1:]
    assert seen == sides
    assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))


def test_no_guide_is_asked_where_all_patches_are_kept(target, scenes):
    fast = AcceleratedViT(target, lambda images: pytest.fail("asked"), Reduction(merge="8"))
    fast(scenes)


@pytest.mark.parametrize(
    ("reduction", "text", "key"),
    [
        (Reduction(1), "keep 1.0", 1.0),
        (Reduction(0.25), "keep 0.25", 0.25),
        (Reduction(0.5, "8@6"), "keep 0.5, merge 8@6", Reduction(0.5, "8@6")),
        (Reduction(0.5, "8c"), "keep 0.5, merge 8c", Reduction(0.5, "08c")),
        (Reduction(0.5, soften="1-"), "keep 0.5, soften 1-", Reduction(0.5, soften=" 1.0- ")),
        (Reduction(0.5, soften=1), "keep 0.5, soften 1", Reduction(0.5, soften="1.0")),
        (Reduction(0.5, soften=0.0), "keep 0.5", 0.5),
        (
            Reduction(0.5, "4", (80, 80), "1.5"),
            "keep 0.5, merge 4, 80 x 80 px, soften 1.5",
            Reduction(0.5, "4", (80, 80), "1.5"),
        ),
        (Reduction(0.5, rest="coarse"), "keep 0.5, rest coarse", Reduction(0.5, rest="coarse")),
        (Reduction(1.0, "8", rest="coarse"), "keep 1.0, merge 8", Reduction(1.0, "8")),  # there is no rest
        (Reduction(1.0, "16-", (160, 192)), "keep 1.0, merge 16-, 160 x 192 px", Reduction(1.0, "16-", (160, 192))),
    ],
)
def test_names(reduction, text, key):
    assert str(reduction) == text
    assert reduction.key == key
    assert as_reduction(key) == reduction
    assert Reduction.from_columns(*reduction.columns.values()) == reduction
    assert Reduction.from_columns(**reduction.columns) == reduction
    assert reduction.guided == (reduction.keep_ratio < 1)


@pytest.mark.parametrize(
    ("lever", "spellings"),
    [
        ("soften", ["1", "1.0", "01", " 1 ", 1, 1.0]),
        ("soften", ["0.00001", "0.000010", "00.00001", 1e-5, "1e-05", "1E-5"]),
        ("soften", ["0.00001-", "1e-5-"]),
        ("soften", ["0.30000000000000004", 0.1 + 0.2]),
        ("soften", ["0.123456789"]),
        ("soften", ["0.12345678"]),
        ("soften", ["9.999999999-", "009.999999999-"]),
        ("soften", ["0", "0.0", "0-", "0.000-", 0]),
        ("merge", ["8", "08", " 8", 8]),
        ("merge", ["16-", "0016-"]),
        ("merge", ["8@6", "08@06"]),
        ("merge", ["16-c", "016-c"]),
        ("merge", ["8 10 0", "8  010 00"]),
        ("merge", ["0", "00", "0-", "0c", "0-c", 0]),
        ("keep_ratio", [0.00001, 1e-5, Fraction(1, 100_000)]),
    ],
)
def test_what_is_the_same_has_one_name_whatever_it_was_spelt_as(lever, spellings):
    plain, *others = (Reduction(**{lever: spelling}) for spelling in spellings)
    assert getattr(plain, lever) == spellings[0]
    assert all(other == plain for other in others)


@given(st.integers(0, 10**10 - 1), st.booleans())
def test_softening_is_kept_to_the_last_digit(billionths, decreasing):
    number, sign = Decimal(billionths).scaleb(-9), "-" * decreasing
    kept = Reduction(soften=f"{number:.9f}{sign}").soften
    assert Decimal(kept.removesuffix("-")) == number
    assert read_softening(kept) == (float(number), decreasing and number > 0)
    assert Reduction(soften=kept).soften == kept


@given(st.floats(0, 10, exclude_max=True), st.booleans())
def test_softening_is_read_back_from_a_table(number, decreasing):
    """Where a column has numbers alone, pandas reads numbers: 1e-05 for "0.00001"."""
    reduction = Reduction(0.5, soften=f"{number}-" if decreasing else number)
    assert read_softening(reduction.soften) == (number, decreasing and number > 0)
    told = io.StringIO(pd.DataFrame([reduction.columns]).to_csv(index=False))
    assert Reduction.from_columns(*pd.read_csv(told, float_precision="round_trip").loc[0]) == reduction


@pytest.mark.parametrize(
    "spelling", ["08", " 8", "016-", "0-", "08@02", "8@9", "08c", "8 c", "00 8  010 0", "x", "-1", "1.05"]
)
def test_merging_by_its_plain_name_is_the_same_schedule_or_as_wrong(spelling):
    def schedule(spec):
        try:
            return merge_schedule(spec, 4)
        except UserError as error:
            return str(error)

    assert schedule(Reduction(merge=spelling).merge) == schedule(spelling)


def test_number_of_patches_or_cells_that_are_ranked(target):
    assert num_ranked(target, Reduction(0.5)) == 14 * 14
    assert num_ranked(target, Reduction(0.5, rest="coarse")) == 7 * 7


def test_what_a_model_allows(target):
    beit = load_model("beit_base_patch16_224", pretrained=False, depth=1)
    levers = [{"merge": "8"}, {"soften": "1"}, {"input_size": (80, 96)}, {"input_size": (100, 112)}]
    asked = [Reduction(**lever) for lever in levers]
    assert [allows(target, reduction) for reduction in asked] == [True, True, True, False]
    assert [allows(beit, reduction) for reduction in [*asked, Reduction(0.5)]] == [False, False, True, False, True]


def test_refusals(target, scenes):
    with pytest.raises(UserError, match=r"To keep 0\.5 of the patches takes saliency"):
        forward_reduced(target, scenes, Reduction(0.5))
    with pytest.raises(UserError, match=r"keep ratio must .*\(0, 1\]"):
        Reduction(0)
    for reduction, said in [(Reduction(merge="x"), "Tokens to merge"), (Reduction(input_size=(100, 112)), "no whole")]:
        with pytest.raises(UserError, match=said):
            AcceleratedViT(target, CenterGuide((14, 14)), reduction)
    beit = load_model("beit_base_patch16_224", pretrained=False, depth=1)
    with pytest.raises(UserError, match="cannot be merged: it has relative positions"):
        AcceleratedViT(beit, CenterGuide((14, 14)), Reduction(merge="8"))
    with pytest.raises(UserError, match="attention of beit_base_patch16_224 cannot be softened"):
        AcceleratedViT(beit, CenterGuide((14, 14)), Reduction(0.5, soften="1"))
    for schedule in (-1, 10, float("nan"), "x", True):
        with pytest.raises(UserError, match="Softening of attention is a number"):
            Reduction(0.5, soften=schedule)
    for rest in ("corse", "", None, True):
        with pytest.raises(UserError, match=r"Unknown rest .* Known: dropped, coarse\."):
            Reduction(1.0, rest=rest)
