"""The embedded digit scenes: repeatable, split cleanly, and honest about where the digit is."""

import time

import numpy as np
import pytest
import skimage.data
from sklearn.datasets import load_digits, load_sample_image

from vitsal.data import scenes
from vitsal.data.scenes import PHOTOGRAPHS, DigitScenes, digit_rows, enlarged_digit, make_scene, photographs
from vitsal.errors import UserError


def test_a_scene_depends_on_split_seed_and_index_only() -> None:
    small, large = DigitScenes("test", size=5, seed=3), DigitScenes("test", size=50, seed=3)
    large[40]
    assert np.array_equal(np.asarray(small[4][0]), np.asarray(large[4][0]))
    assert np.array_equal(small.mask(4), large.mask(4))
    others = [make_scene("test", 4, 4), make_scene("train", 3, 4), make_scene("test", 3, 5)]
    assert all(not np.array_equal(other.image, small[4][0]) for other in others)


def test_splits_share_neither_digits_nor_photographs() -> None:
    assert not set(PHOTOGRAPHS["train"]) & set(PHOTOGRAPHS["test"])
    rows = np.concatenate([digit_rows("train"), digit_rows("test")])
    assert np.array_equal(np.sort(rows), np.arange(1797))
    for split in PHOTOGRAPHS:
        made = [make_scene(split, 0, index) for index in range(120)]
        assert {scene.digit for scene in made} <= set(digit_rows(split))
        assert {scene.photograph for scene in made} == set(PHOTOGRAPHS[split])


def test_digit_images_are_disjoint_too() -> None:
    images = load_digits().images
    train, test = ({images[row].tobytes() for row in digit_rows(split)} for split in ("train", "test"))
    assert not train & test


@pytest.mark.parametrize("index", range(20))
def test_outside_the_mask_the_digit_changes_nothing(monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    scene = make_scene("test", 0, index)
    monkeypatch.setattr(scenes, "_ink", lambda glyph, pose: np.zeros((112, 112), np.float32))
    with np.errstate(invalid="ignore"), pytest.warns(RuntimeWarning):  # mean colour behind no ink
        without = make_scene("test", 0, index)
    changed = (scene.image != without.image).any(-1)
    assert not changed[~scene.mask].any()
    assert changed[scene.mask].mean() > 0.95


def test_every_digit_lies_whole_in_its_scene_and_anywhere_in_it() -> None:
    masks = np.stack([make_scene("test", 1, index).mask for index in range(400)])
    assert (masks.mean((1, 2)) > 0.015).all()
    assert (masks.mean((1, 2)) < 0.11).all()
    touched = masks.reshape(-1, 14, 8, 14, 8).any((2, 4))
    assert 0.08 < touched.mean() < 0.15
    quarters = touched.mean(0).reshape(2, 7, 2, 7).mean((1, 3))
    assert quarters.min() > 0.8 * quarters.max()


def test_labels_are_the_digits_own_and_balanced() -> None:
    made = [make_scene("train", 0, index) for index in range(400)]
    assert all(load_digits().target[scene.digit] == scene.label for scene in made[:20])
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
    assert np.array_equal(enlarged_digit(make_scene("test", 0, 0).digit, scenes.GLYPH), glyphs[0])
    large = enlarged_digit(3, 200)
    assert large.shape == (200, 200)
    cells = large[20:-20, 20:-20].reshape(8, 20, 8, 20).mean((1, 3))  # without the empty rim, pixel by pixel
    assert np.corrcoef(cells.ravel(), load_digits().images[3].ravel())[0, 1] > 0.98
