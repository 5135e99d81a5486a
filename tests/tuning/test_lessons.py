"""What a target practises on: drawn anew for each step, and the same whenever it is drawn."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from families import FAMILIES
from helpers import assert_close

from vitsal.choices import TuningSettings
from vitsal.errors import UserError
from vitsal.models.loading import load_model
from vitsal.tuning.lessons import Lessons, noisy_ranking, smaller_sizes

PLAIN = TuningSettings()


def test_of_a_model_of_224_pixels():
    model = load_model("deit_tiny_patch16_224", pretrained=False)
    lessons = Lessons.for_model(model, ["rollout"], TuningSettings(seed=3))
    assert lessons.sizes == ((128, 128), (160, 160), (192, 192))
    assert lessons.merges == ("8", "13", "16", "16-")
    assert (lessons.guides, lessons.seed, lessons.soften) == (("rollout",), 3, "1-")


@pytest.mark.parametrize("name", ["BEiT", "EVA-02", "DINOv3"])
def test_of_a_model_whose_tokens_cannot_be_merged(name):
    lessons = Lessons.for_model(FAMILIES[name].load(), ["random"], PLAIN)
    assert not lessons.merges
    assert lessons.sizes
    assert {lesson.reduction.merge for lesson in map(lessons.draw, range(50))} == {"0"}


def test_sizes_that_are_the_models_own_are_none(tiny_vit):
    """Of 4 x 4 patches 8/14, 10/14 and 12/14 are 2, 3 and 3."""
    assert Lessons.for_model(tiny_vit, ["random"], PLAIN).sizes == ((32, 32), (48, 48))


def test_a_model_of_one_size_only():
    model = load_model("vit_tiny_patch16_224", pretrained=False, depth=1)
    assert smaller_sizes(model, [0.5, 1]) == [(112, 112)]
    model.__class__ = type("Fixed", (type(model),), {"set_input_size": property()})
    assert smaller_sizes(model, [0.5, 1]) == []


def test_attention_is_softened_where_there_are_fewer_patches(tiny_vit):
    drawn = [lesson.reduction for lesson in map(Lessons.for_model(tiny_vit, ["random"], PLAIN).draw, range(50))]
    assert {(one.soften, one.guided or one.input_size is not None) for one in drawn} == {("1-", True), ("0", False)}
    assert Lessons.for_model(FAMILIES["BEiT"].load(), ["random"], PLAIN).soften == "0"


def test_draws_follow_from_seed_and_step_alone():
    lessons = Lessons(("a", "b"), ((32, 32),), ("2", "3-"), seed=1)
    drawn = [lessons.draw(step) for step in range(2000)]
    assert drawn[::-1] == [lessons.draw(step) for step in reversed(range(2000))]
    assert drawn != [Lessons(("a", "b"), ((32, 32),), ("2", "3-"), seed=2).draw(step) for step in range(2000)]


def test_draws_hold_to_their_shares():
    """Of 2,000 draws a share of 0.7 is within 0.05 but once in 100,000 times; one lever at a time."""
    drawn = [Lessons(("a", "b"), ((32, 32),), ("2", "3-"), (0.2, 0.8)).draw(step) for step in range(2000)]
    kinds = Counter("keep" if lesson.guide else "size" if lesson.reduction.input_size else "merge" for lesson in drawn)
    for kind, share in {"keep": 0.7, "merge": 0.15, "size": 0.15}.items():
        assert kinds[kind] / 2000 == pytest.approx(share, abs=0.05)
    kept = [lesson for lesson in drawn if lesson.guide]
    ratios = sorted(lesson.reduction.keep_ratio for lesson in kept)
    assert 0.2 <= ratios[0] < 0.21 < 0.79 < ratios[-1] <= 0.8
    assert ratios[len(ratios) // 2] == pytest.approx(0.4, abs=0.03)  # halfway by the logarithm
    assert Counter(lesson.guide for lesson in kept)["a"] / len(kept) == pytest.approx(0.5, abs=0.07)
    assert all(lesson.noise == 0 and lesson.reduction.keep_ratio == 1 for lesson in drawn if not lesson.guide)


def test_what_is_not_kept_is_dropped_or_coarse_as_was_asked(tiny_vit):
    plain = [Lessons(("a",), (), (), shares=(1, 0, 0)).draw(step) for step in range(200)]
    both = [Lessons(("a",), (), (), shares=(1, 0, 0), rests=("dropped", "coarse")).draw(step) for step in range(200)]
    counted = Counter(lesson.reduction.rest for lesson in both)
    assert counted["coarse"] == pytest.approx(100, abs=35)  # but once in a million times
    assert [one._replace(reduction=replace(one.reduction, rest="dropped")) for one in both] == plain
    assert Lessons.for_model(tiny_vit, ["random"], TuningSettings(rests=("coarse",))).rests == ("coarse",)


def test_what_was_asked_for_takes_the_place_of_what_suits(tiny_vit):
    asked = TuningSettings(merges=("1",), sizes=((48, 48),), shares=(0, 1, 0), keep_ratios=(0.5, 0.6))
    lessons = Lessons.for_model(tiny_vit, ["random"], asked)
    assert (lessons.merges, lessons.sizes, lessons.keep_ratios) == (("1",), ((48, 48),), (0.5, 0.6))
    assert Lessons.for_model(tiny_vit, ["random"], TuningSettings(soften="0.5")).soften == "0.5"
    assert {lesson.reduction.merge for lesson in map(lessons.draw, range(50))} == {"1"}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"merges": ("x",)}, "Tokens to merge"),
        ({"sizes": ((50, 50),)}, "no whole number of patches"),
        ({"soften": "11"}, "Softening of attention is a number"),
        ({"rests": ("fine",)}, "Unknown rest 'fine'"),
        ({"merges": (), "shares": (0, 1, 0)}, "There is nothing to practise"),
    ],
)
def test_lessons_that_the_target_does_not_allow(tiny_vit, asked, said):
    with pytest.raises(UserError, match=said):
        Lessons.for_model(tiny_vit, ["random"], TuningSettings(**asked))


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"batch_size": 0}, {"learning_rate": 0}, {"whole": -1}, {"keep_ratios": (0, 1)},
     {"shares": (0, 0, 0)}, {"shares": (1,)}, {"shares": (-1, 1, 1)}],
)  # fmt: skip
def test_settings_outside_their_range(wrong):
    with pytest.raises(UserError, match=r"must|three"):
        TuningSettings(**wrong)


def test_ranking_by_hand():
    saliency = torch.tensor([[[0.1, 9.0], [-3.0, 0.2]]])
    assert_close(noisy_ranking(saliency, torch.zeros(1, 2, 2)), [[[1 / 3, 1.0], [0.0, 2 / 3]]])
    noise = torch.tensor([[[0.5, 0.0], [0.9, 0.1]]])
    assert_close(noisy_ranking(saliency, noise), [[[5 / 6, 1.0], [0.9, 2 / 3 + 0.1]]])


def test_equal_patches_favour_no_place():
    """Of a map of zeros the upper half of the ranks is not the upper half of the image."""
    ranks = noisy_ranking(torch.zeros(1, 14, 14), torch.zeros(1, 14, 14))[0]
    assert sorted(ranks.flatten().tolist()) == pytest.approx([number / 195 for number in range(196)], abs=1e-5)
    assert ranks[:7].mean() == pytest.approx(0.5, abs=0.1)
