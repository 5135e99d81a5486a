"""What students are given: which of the cached images, in which order, each with its own map."""

import json
from dataclasses import replace
from itertools import product

import pytest
import torch
from helpers import assert_close
from test_distillation import PLAIN, new, train

from vitsal.errors import UserError
from vitsal.jobs.identity import question_hash
from vitsal.students.losses import LOSS_FUNCTIONS
from vitsal.students.maps import BATCHES_PER_SHARD, CachedMaps, Claim, Shard, write_shard


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def write_shards(folder, images, maps, views=1, size=32):
    """The same images for each view, in shards of `size`, as `cache_maps` writes them."""
    about = {"views": views, "batch_size": size // BATCHES_PER_SHARD}
    for view, first in product(range(views), range(0, len(images), size)):
        claim = Claim(question_hash(about), view, first, len(images))
        part = (values[first : first + size].clone().contiguous() for values in (images, maps))
        write_shard(folder, Shard(claim, *part, {}))
    (folder / "settings.json").write_text(json.dumps(about))


def numbered(count):
    """Images and maps of noise; the first pixel and the first cell tell the number."""
    images, maps = torch.randint(0, 256, (count, 3, 56, 56), dtype=torch.uint8), torch.rand(count, 14, 14)
    images[:, 0, :2, :2], maps[:, 0, 0] = torch.arange(count)[:, None, None], torch.arange(count)
    return images, maps.half()


def numbers_of(folder, split):
    numbers = [(int(image[0, 0, 0]), int(saliency[0, 0])) for image, saliency in CachedMaps(folder, split)]
    assert all(image == saliency for image, saliency in numbers)
    return [number for number, _ in numbers]


@pytest.mark.parametrize("views", [1, 3])
def test_every_tenth_image_is_for_validation_and_none_of_its_views_for_training(tmp_path, views):
    write_shards(tmp_path, *numbered(77), views=views)
    held_out = list(range(0, 77, 10))
    assert numbers_of(tmp_path, "validation") == held_out
    assert numbers_of(tmp_path, "train") == views * [number for number in range(77) if number not in held_out]
    assert numbers_of(tmp_path, "all") == views * list(range(77))


def test_too_few_maps(tmp_path):
    with pytest.raises(UserError, match="holds too few cached maps for a train split: 0 shards"):
        CachedMaps(tmp_path, "train")
    write_shards(tmp_path, *numbered(1))
    assert numbers_of(tmp_path, "validation") == [0]
    with pytest.raises(UserError, match="holds too few cached maps for a train split: 1 shards"):
        CachedMaps(tmp_path, "train")


def test_damaged_shard_is_named(tmp_path):
    write_shards(tmp_path, *numbered(77))
    damaged = tmp_path / "view0-000000032.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with pytest.raises(UserError, match=damaged.name):
        CachedMaps(tmp_path)


def spy_on(student, monkeypatch):
    """Pixels and maps of every step, as the student and its loss get them."""
    pixels, wanted, loss = [], [], LOSS_FUNCTIONS["kl"]
    student.register_forward_pre_hook(lambda module, inputs: pixels.append(inputs[0]) if module.training else None)
    monkeypatch.setitem(LOSS_FUNCTIONS, "kl", lambda logits, maps: wanted.append(maps) or loss(logits, maps))
    return pixels, wanted


def test_every_image_once_an_epoch_in_another_order_and_with_its_map(tmp_path, monkeypatch):
    images, maps = numbered(80)
    write_shards(tmp_path, images, maps)
    student = new()
    pixels, wanted = spy_on(student, monkeypatch)
    train(tmp_path, tmp_path / "output", replace(PLAIN, batch_size=24), student)
    orders = torch.cat(wanted)[:, 0, 0].long().view(2, 72)  # two epochs
    for order in orders:
        assert sorted(order.tolist()) == [number for number in range(80) if number % 10]
    assert not torch.equal(*orders)
    small = images.view(-1, 3, 28, 2, 28, 2).float().mean(dim=(3, 5)) / 255
    assert_close(torch.cat(pixels), small[orders.flatten()], 1e-6)
    assert torch.equal(torch.cat(wanted), maps.float()[orders.flatten()])


def middle(spots):
    """Centers of mass, (B, 2), in shares of the height and width."""
    y, x = ((torch.arange(size) + 0.5) / size for size in spots.shape[-2:])
    shares = spots / spots.sum(dim=(1, 2), keepdim=True)
    return torch.stack([(shares.sum(dim=2) * y).sum(dim=1), (shares.sum(dim=1) * x).sum(dim=1)], dim=1)


def test_crops_take_the_map_with_them(tmp_path, monkeypatch):
    """One bright spot in each image, and the same in its map."""
    centers = 0.35 + 0.3 * torch.rand(40, 2)

    def spots(size):
        y, x = ((torch.arange(size) + 0.5) / size).expand(2, -1)
        return torch.exp(-((y[:, None] - centers[:, :1, None]) ** 2 + (x - centers[:, 1:, None]) ** 2) / 0.005)

    write_shards(tmp_path, (255 * spots(56)).to(torch.uint8)[:, None].expand(-1, 3, -1, -1), spots(14).half())
    student = new()
    pixels, wanted = spy_on(student, monkeypatch)
    train(tmp_path, tmp_path / "output", replace(PLAIN, geometry=True), student)
    seen, mapped = middle(torch.cat(pixels)[:, 0]), middle(torch.cat(wanted))
    inside = ((seen - 0.5).abs() < 0.25).all(dim=1)  # and not at the crop's edge
    assert inside.sum() > 20
    assert_close(seen[inside], mapped[inside], 0.02)
    assert seen.std() > 1.2 * centers.std()


def test_colours_change_pixels_alone(tmp_path, monkeypatch):
    images, maps = numbered(40)
    write_shards(tmp_path, images, maps)
    student = new()
    pixels, wanted = spy_on(student, monkeypatch)
    train(tmp_path, tmp_path / "output", replace(PLAIN, colours=0.4), student)
    order = torch.cat(wanted)[:, 0, 0].long()
    assert torch.equal(torch.cat(wanted), maps.float()[order])
    small = images.view(-1, 3, 28, 2, 28, 2).float().mean(dim=(3, 5)) / 255
    change = (torch.cat(pixels) - small[order]).abs().mean(dim=(1, 2, 3))
    assert change.min() > 0.001
    assert len(set(change.tolist())) == 72  # each image, in each epoch, another
