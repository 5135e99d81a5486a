"""Views of images and of their maps: where each pixel goes, and what happens to its colour."""

import math

import pytest
import torch
from helpers import assert_close
from torch.nn import functional as F

from vitsal.students.views import LARGEST_STRETCH, SMALLEST_AREA, jitter_colours, random_views, warp

STAY = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
MIRROR = [[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [(8, 8), (14, 10), (56, 56), (3, 5)])
def test_the_whole_image_stays_as_it_is_and_its_mirror_image_is_its_flip(size):
    images = torch.rand(2, 3, *size)
    assert_close(warp(images, torch.tensor([STAY, STAY])), images, 1e-5)
    mixed = warp(images, torch.tensor([MIRROR, STAY]))  # each image has its own view
    assert_close(mixed, torch.stack([images[0].flip(-1), images[1]]), 1e-5)


@pytest.mark.parametrize(("x", "y"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_a_quarter_of_the_image_is_that_slice_enlarged(x, y):
    """But at the cuts, where the view sees what lies beyond them, and the slice does not."""
    images = torch.rand(1, 3, 8, 12)
    view = torch.tensor([[[0.5, 0.0, x - 0.5], [0.0, 0.5, y - 0.5]]])
    part = images[:, :, 4 * y : 4 * y + 4, 6 * x : 6 * x + 6]
    rows, columns = (slice(1, None) if high else slice(-1) for high in (y, x))
    enlarged = F.interpolate(part, (8, 12), mode="bilinear")
    assert_close(warp(images, view)[:, :, rows, columns], enlarged[:, :, rows, columns], 1e-5)


def test_a_ramp_shows_which_coordinates_are_seen():
    """View x' = 0.5 x + 0.3 of an image whose value is its own coordinate x, at pixel centers of 16 columns."""
    centers = (2 * torch.arange(16.0) + 1) / 16 - 1
    ramp = centers.expand(1, 1, 4, 16)
    seen = warp(ramp, torch.tensor([[[0.5, 0.0, 0.3], [0.0, 1.0, 0.0]]]))
    assert_close(seen[0, 0, 2], 0.5 * centers + 0.3, 1e-5)
    mirrored = warp(ramp, torch.tensor([[[-0.5, 0.0, 0.3], [0.0, 1.0, 0.0]]]))
    assert_close(mirrored[0, 0, 2], -0.5 * centers + 0.3, 1e-5)


def blob(x, y, size):
    """A smooth bright spot at (x, y), in [-1, 1], on a grid of this size."""
    centers = (2 * torch.arange(float(size)) + 1) / size - 1
    return torch.exp(-((centers - x) ** 2 + (centers[:, None] - y) ** 2) / (2 * 0.15**2))


def middle(spot):
    """Where a spot lies, (x, y) in [-1, 1], by its center of mass."""
    centers = (2 * torch.arange(float(spot.shape[-1])) + 1) / spot.shape[-1] - 1
    return ((spot.sum(dim=0) * centers).sum() / spot.sum()).item(), (
        (spot.sum(dim=1) * centers).sum() / spot.sum()
    ).item()


def test_map_and_image_stay_aligned():
    """Both blobs go where the view's arithmetic says, to a fifth of a map's cell."""
    x, y, looked_at = 0.2, -0.15, 0
    views = random_views(64, seeded())
    image, saliency = blob(x, y, 56).expand(64, 1, 56, 56), blob(x, y, 14).expand(64, 1, 14, 14)
    for view, large, small in zip(views, warp(image, views)[:, 0], warp(saliency, views)[:, 0], strict=True):
        expected = ((x - view[0, 2]) / view[0, 0]).item(), ((y - view[1, 2]) / view[1, 1]).item()
        if max(map(abs, expected)) < 0.3:  # the whole blob in view
            assert middle(large) == pytest.approx(expected, abs=0.03)
            assert middle(small) == pytest.approx(expected, abs=0.03)
            looked_at += 1
    assert looked_at > 10


def test_drawn_views_are_crops_within_their_limits():
    views = random_views(10_000, seeded())
    width, height, shifts = views[:, 0, 0].abs(), views[:, 1, 1], views[:, :, 2]
    area, stretch = width * height, width / height
    assert views[:, 0, 1].abs().max() == views[:, 1, 0].abs().max() == 0
    assert height.min() > 0
    assert SMALLEST_AREA - 1e-5 <= area.min() < SMALLEST_AREA + 0.01
    assert 0.95 < area.max() <= 1 + 1e-5
    assert 1 / LARGEST_STRETCH - 1e-5 <= stretch.min() < 1 / LARGEST_STRETCH + 0.01
    assert LARGEST_STRETCH - 0.01 < stretch.max() <= LARGEST_STRETCH + 1e-5
    assert (shifts[:, 0].abs() + width).max() <= 1 + 1e-5  # nothing beyond the image is seen
    assert (shifts[:, 1].abs() + height).max() <= 1 + 1e-5
    assert shifts.mean(dim=0).abs().max() < 0.01
    assert shifts.std(dim=0).min() > 0.05
    assert (views[:, 0, 0] < 0).float().mean().item() == pytest.approx(0.5, abs=0.015)


def test_views_follow_from_the_seed_alone():
    views = random_views(20, seeded(3))
    torch.rand(7)  # other random numbers in between
    assert torch.equal(random_views(20, seeded(3)), views)
    assert not torch.equal(random_views(20, seeded(4)), views)
    generator = seeded(3)
    assert not torch.equal(random_views(20, generator), random_views(20, generator))


def test_no_jitter_leaves_colours_as_they_are():
    pixels = torch.rand(3, 3, 6, 5)
    assert_close(jitter_colours(pixels, 0.0, seeded()), pixels, 1e-6)


def by_hand(pixels, factors):
    """Brightness, contrast and saturation of one image (3, H, W), each away from what has none of it."""
    brightness, contrast, saturation = factors
    bright = pixels * brightness
    even = sum(bright.flatten().tolist()) / bright.numel()
    contrasted = even + contrast * (bright - even)
    grey = (contrasted[0] + contrasted[1] + contrasted[2]) / 3
    return (grey + saturation * (contrasted - grey)).clamp(0, 1)


def test_each_image_is_jittered_by_its_own_factors_and_nothing_else_in_the_batch():
    pixels = torch.rand(5, 3, 6, 7)
    jittered = jitter_colours(pixels, 0.4, seeded(2))
    generator = seeded(2)
    factors = torch.stack([torch.empty(5).uniform_(0.6, 1.4, generator=generator) for _ in range(3)], dim=1)
    for index in range(5):
        assert_close(jittered[index], by_hand(pixels[index], factors[index].tolist()), 1e-5)
    others = torch.cat([pixels[:2], torch.rand(3, 3, 6, 7)])
    assert torch.equal(jitter_colours(others, 0.4, seeded(2))[:2], jittered[:2])


def test_jitter_stays_within_pixels_and_within_its_strength():
    pixels = torch.rand(200, 3, 4, 4)
    jittered = jitter_colours(pixels, 0.9, seeded())
    assert jittered.min() == 0
    assert jittered.max() == 1
    plain = jitter_colours(torch.full((4000, 3, 2, 2), 0.5), 0.4, seeded())[
        :, 0, 0, 0
    ]  # an even grey: brightness alone
    assert 0.3 <= plain.min() < 0.302
    assert 0.698 < plain.max() <= 0.7
    assert plain.std().item() == pytest.approx(0.4 / math.sqrt(12), abs=0.005)


def test_a_grey_image_stays_grey():
    grey = torch.rand(6, 1, 5, 5).expand(-1, 3, -1, -1)
    jittered = jitter_colours(grey, 0.4, seeded())
    assert_close(jittered, jittered.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1), 1e-6)
    assert not torch.allclose(jittered, grey, atol=0.01)
