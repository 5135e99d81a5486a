"""Several data sets as one: every image once a pass, and those that are held out never."""

import pytest
import torch
from helpers import noise_folder

from vitsal.data.images import StreamedImages
from vitsal.data.opening import open_data
from vitsal.errors import UserError
from vitsal.tuning.mixture import MixedImages


@pytest.fixture
def datasets(tmp_path):
    """13 images of 3 classes, and 8 of 2."""
    for folder, count, classes in (("a", 13, 3), ("b", 8, 2)):
        noise_folder(tmp_path / folder, count, classes)
    return [open_data(str(tmp_path / folder), lambda image: torch.tensor(image.getpixel((0, 0)))) for folder in "ab"]


def test_every_image_once_a_pass(datasets):
    images = MixedImages(datasets, seed=5)
    assert (len(images), len(images.held_out), images.steps(6)) == (21, 3, 3)
    passes = [[n for step in range(3 * k, 3 * k + 3) for n in images.numbers_of(step, 6)] for k in range(2)]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(set(range(21)) - set(images.held_out))
    assert passes[0] != passes[1]
    again = MixedImages(datasets, seed=5)
    assert (again.held_out, again.numbers_of(4, 6)) == (images.held_out, images.numbers_of(4, 6))
    assert MixedImages(datasets, seed=6).held_out != images.held_out


def test_batches_are_named_by_their_sets(datasets):
    images = MixedImages(datasets)
    batches = list(images.batches([12, 13, 0], 2))
    assert [batch.names for batch in batches] == [[images.name(12), images.name(13)], [images.name(0)]]
    assert torch.equal(batches[0].images, torch.stack([images[12].image, images[13].image]))


def test_numbers_lead_to_the_images_of_their_set(datasets):
    images = MixedImages(datasets)
    for number, (dataset, own) in {0: (datasets[0], 0), 12: (datasets[0], 12), 13: (datasets[1], 0)}.items():
        sample = images[number]
        assert sample.index == number
        assert torch.equal(sample.image, dataset[own].image)
        assert images.name(number) == f"{dataset.source}: {dataset.name(own)}"


def test_limit_counts_for_each_set(datasets):
    images = MixedImages(datasets, limit=4)
    assert [(datasets.index(dataset), number) for dataset, number in images.places] == [
        (which, number) for which in (0, 1) for number in datasets[which].numbers(4)
    ]
    assert images.fingerprints != MixedImages(datasets).fingerprints


def test_streams_and_single_images(datasets):
    with pytest.raises(UserError, match="some/stream is a stream, which cannot be shuffled"):
        MixedImages([*datasets, StreamedImages([], "some/stream")])
    with pytest.raises(UserError, match="There are 1 images: too few"):
        MixedImages(datasets[:1], limit=1)
