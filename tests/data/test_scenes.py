"""The embedded digit scenes: repeatable, split cleanly, and honest about where which digit is."""

import time

import numpy as np
import pytest
import skimage.data
import torch
from sklearn.datasets import load_digits, load_sample_image

from vitsal.data import batches, open_data, scenes
from vitsal.data.scenes import (
    LARGE,
    PHOTOGRAPHS,
    SMALL,
    DigitScenes,
    Sizes,
    digit_rows,
    enlarged_digit,
    make_scene,
    patch_masks,
    photographs,
)
from vitsal.errors import UserError


def test_a_scene_depends_on_split_seed_and_index_only() -> None:
    small, large = DigitScenes("test", size=5, seed=3), DigitScenes("test", size=50, seed=3)
    large[40]
    assert np.array_equal(np.asarray(small[4][0]), np.asarray(large[4][0]))
    assert np.array_equal(small.mask(4), large.mask(4))
    others = [make_scene("test", 4, 4), make_scene("train", 3, 4), make_scene("test", 3, 5)]
    assert all(not np.array_equal(other.image, small[4][0]) for other in others)


def test_splits_share_neither_digits_nor_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not set(PHOTOGRAPHS["train"]) & set(PHOTOGRAPHS["test"])
    rows = np.concatenate([digit_rows("train"), digit_rows("test")])
    assert np.array_equal(np.sort(rows), np.arange(1797))
    used = set()  # by fragments too
    monkeypatch.setattr(scenes, "enlarged_digit", lambda row, side: used.add(int(row)) or enlarged_digit(row, side))
    for split in PHOTOGRAPHS:
        used.clear()
        made = [make_scene(split, 0, index) for index in range(120)]
        assert {digit.row for scene in made for digit in scene.digits} < used <= set(digit_rows(split).tolist())
        assert {scene.photograph for scene in made} == set(PHOTOGRAPHS[split])


def test_digit_images_are_disjoint_too() -> None:
    images = load_digits().images
    train, test = ({images[row].tobytes() for row in digit_rows(split)} for split in ("train", "test"))
    assert not train & test


@pytest.mark.parametrize("index", range(20))
def test_outside_its_mask_a_digit_changes_nothing(monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    scene, ink = make_scene("test", 0, index), scenes._ink
    for digit in scene.digits:
        absent = enlarged_digit(digit.row, scenes.GLYPH)
        monkeypatch.setattr(scenes, "_ink", lambda glyph, pose, absent=absent: (glyph is not absent) * ink(glyph, pose))
        changed = (scene.image != make_scene("test", 0, index).image).any(-1)
        assert not changed[~digit.mask].any()
        assert changed[digit.mask].mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "expected"), [(LARGE, [0.42, 0.44, 0.14]), (SMALL, [0.13, 0.49, 0.38])])
def test_the_largest_of_one_to_three_digits_stands_apart_and_decides(sizes: Sizes, expected: list[float]) -> None:
    made = [make_scene("train", 2, index, sizes) for index in range(300)]
    for scene in made:
        largest, *others = scene.digits
        assert (scene.label, scene.mask is largest.mask) == (largest.label, True)
        assert sizes.largest[0] <= largest.side <= sizes.largest[1]
        sides = [digit.side / largest.side for digit in others]
        assert sides == sorted(sides, reverse=True)
        assert all(sizes.others[0] <= side <= sizes.others[1] for side in sides)
        assert len({digit.label for digit in scene.digits}) == len(scene.digits)
        assert np.sum([digit.mask for digit in scene.digits], axis=0).max() == 1  # ink lies on no other digit's
    shares = np.bincount([len(scene.digits) for scene in made], minlength=4)[1:] / 300
    assert np.allclose(shares, expected, atol=0.07)  # one, two and three, where there is room


def test_other_digits_may_be_faint(monkeypatch: pytest.MonkeyPatch) -> None:
    """The share of colour that the ink lays over the photograph: at least 0.6 in the largest, down to 0.3 in others."""
    faintest, paint = [], scenes._paint
    monkeypatch.setattr(scenes, "_paint", lambda *given: faintest.append(given[-1]) or paint(*given))
    scene = make_scene("test", 0, 1)
    assert faintest[-len(scene.digits) :] == [0.6, 0.3, 0.3]
    opacities = []
    for seed in range(200):
        image, ink = np.zeros((112, 112, 3), np.float32), np.zeros((112, 112), np.float32)
        ink[50:60, 40:80] = 1
        mask = paint(np.random.default_rng(seed), image, ink, 0.3)
        assert np.array_equal(mask, ink > 0)
        assert not image[~mask].any()
        opacities.append(image.max() / 255)  # each colour is full in one channel
    assert 0.3 <= min(opacities) < 0.32
    assert 0.98 < max(opacities) <= 1


def test_a_fragment_is_less_than_half_of_a_glyph() -> None:
    rng, glyph = np.random.default_rng(0), np.arange(1, scenes.GLYPH**2 + 1).reshape(scenes.GLYPH, scenes.GLYPH)
    for _ in range(50):
        kept = scenes._fragment(rng, glyph)
        assert (kept == glyph)[kept > 0].all()
        assert not (kept * kept[::-1, ::-1]).any()  # of two opposite pixels one is cut away
        assert 0.35 < (kept > 0).mean() <= 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "patches"), [(LARGE, 0.19), (SMALL, 0.12)])
def test_every_largest_digit_lies_whole_in_its_scene_and_anywhere_in_it(sizes: Sizes, patches: float) -> None:
    masks = np.stack([make_scene("test", 1, index, sizes).mask for index in range(400)])
    touched = masks.reshape(-1, 14, 8, 14, 8).any((2, 4))
    assert abs(touched.mean() - patches) < 0.01
    assert touched.mean((1, 2)).min() > patches / 2
    quarters = touched.mean(0).reshape(2, 7, 2, 7).mean((1, 3))
    assert quarters.min() > 0.8 * quarters.max()


@pytest.mark.slow
def test_labels_are_the_digits_own_and_balanced() -> None:
    made = [make_scene("train", 0, index) for index in range(400)]
    assert all(load_digits().target[digit.row] == digit.label for scene in made[:20] for digit in scene.digits)
    assert np.bincount([scene.label for scene in made], minlength=10).min() > 22


def test_dataset_interface() -> None:
    dataset = DigitScenes("test", size=13, transform=np.asarray)
    image, label = dataset[12]
    assert image.shape == (112, 112, 3)
    assert dataset.classes[label] == str(label)
    assert len(dataset) == 13
    assert dataset.name(12) == "digits/test/000012"
    assert DigitScenes("test", 1)[0][0].mode == "RGB"


def test_errors_name_the_value_and_what_is_known() -> None:
    for make in (DigitScenes, digit_rows):
        with pytest.raises(UserError, match=r"^Unknown split 'validation'\. Known: train, test\.$"):
            make("validation")
    for access in (DigitScenes(size=3).__getitem__, DigitScenes(size=3).mask):
        with pytest.raises(IndexError, match="3"):
            access(3)
        with pytest.raises(IndexError):
            access(-1)


def test_scenes_are_made_quickly() -> None:
    make_scene("test", 0, 0)
    start = time.process_time()
    for index in range(100):
        make_scene("test", 0, index)
    assert time.process_time() - start < 1.5


def test_photographs_are_those_of_the_two_packages() -> None:
    found = photographs("chelsea.png", "coins.png", "china.jpg")
    assert list(found) == ["chelsea.png", "coins.png", "china.jpg"]
    assert np.array_equal(found["chelsea.png"], skimage.data.chelsea())
    assert np.array_equal(found["coins.png"], np.repeat(skimage.data.coins()[..., None], 3, axis=2))
    assert np.array_equal(found["china.jpg"], load_sample_image("china.jpg"))
    with pytest.raises(FileNotFoundError, match="dog"):
        photographs("dog.png")


def test_an_enlarged_digit_is_the_glyph_of_the_scenes_and_keeps_its_strokes(monkeypatch: pytest.MonkeyPatch) -> None:
    glyphs, ink = [], scenes._ink
    monkeypatch.setattr(scenes, "_ink", lambda glyph, pose: glyphs.append(glyph) or ink(glyph, pose))
    whole = [enlarged_digit(digit.row, scenes.GLYPH) for digit in make_scene("test", 0, 0).digits]
    assert len(whole) == sum(any(glyph is digit for digit in whole) for glyph in glyphs)
    large = enlarged_digit(3, 200)
    assert large.shape == (200, 200)
    cells = large[20:-20, 20:-20].reshape(8, 20, 8, 20).mean((1, 3))  # without the empty rim, pixel by pixel
    assert np.corrcoef(cells.ravel(), load_digits().images[3].ravel())[0, 1] > 0.98


def test_a_single_pixel_makes_its_patch() -> None:
    masks = np.zeros((2, 8, 12), dtype=bool)
    masks[0, 3, 4] = True  # row 0, column 1 of 2 x 3 patches of 4 pixels
    masks[1, 4:, 7:9] = True  # row 1, columns 1 and 2
    expected = [[[False, True, False], [False] * 3], [[False] * 3, [False, True, True]]]
    assert patch_masks(masks, (2, 3)).tolist() == expected
    assert patch_masks(list(masks), (2, 3)).tolist() == expected
    assert patch_masks(torch.from_numpy(masks), (2, 3)).tolist() == expected


def test_spread_scenes_are_those_that_batches_show() -> None:
    dataset = open_data("digits", lambda image: torch.from_numpy(np.array(image)), split="test")
    shown = torch.cat([batch.images for batch in batches(dataset, 4, limit=7)])
    for scene, image in zip(DigitScenes("test").spread(7), shown, strict=True):
        assert np.array_equal(scene.image, image)
