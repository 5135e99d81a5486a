"""Cached maps: what the teacher says, to the digit that is kept; computed once, whatever kills or damages them."""

import re
import shutil
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context

import pytest
import torch
from helpers import MadeImages, assert_close, noise_image, randomise
from PIL import Image
from safetensors import safe_open

from vitsal.data.images import IndexedImages, StreamedImages
from vitsal.data.opening import open_data
from vitsal.data.pictures import spread
from vitsal.errors import UserError
from vitsal.guides import GradientRolloutGuide, RolloutGuide
from vitsal.models.loading import load_model
from vitsal.models.tokens import model_transform
from vitsal.students import maps
from vitsal.students.maps import CachedMaps, MapSettings, cache_maps
from vitsal.students.views import warp

COUNT = 40
SETTINGS = MapSettings((32, 32), batch_size=1)  # shards of 16: 16, 16 and 8 images
SHARDS = [f"view0-{first:09d}.safetensors" for first in (0, 16, 32)]


class Stopped(Exception):
    """As a machine that goes down stops a run, but for this process."""


@dataclass(frozen=True)
class CountingGuide(RolloutGuide):
    """Counts the images it is asked about, and stops after so many."""

    asked = 0
    last = None

    def __call__(self, images):
        if CountingGuide.asked == CountingGuide.last:
            raise Stopped
        CountingGuide.asked += len(images)
        return super().__call__(images)


@pytest.fixture(autouse=True)
def _count_from_zero(monkeypatch):
    monkeypatch.setattr(CountingGuide, "asked", 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty images of random colours in two folders."""
    path = tmp_path_factory.mktemp("images")
    for index in range(COUNT):
        noise_image(path / f"{index % 2}" / f"{index:02d}.png", seed=index)
    return path


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return randomise(load_model("vit_tiny_patch16_224", pretrained=False, img_size=64, depth=2, num_classes=10))


@pytest.fixture(scope="module")
def dataset(model, folder):
    return open_data(str(folder), model_transform(model))


@pytest.fixture(scope="module")
def whole(model, dataset, tmp_path_factory):
    """The maps of an undisturbed run."""
    path = tmp_path_factory.mktemp("whole") / "maps"
    cache_maps(CountingGuide(model), dataset, path, SETTINGS, progress=False)
    return path


def contents(path):
    """All that a folder holds; of shards tensors and metadata, which safetensors writes in any order."""
    return {file.name: shard_of(file) if file.name in SHARDS else file.read_bytes() for file in path.iterdir()}


def shard_of(file):
    with safe_open(file, "pt") as shard:
        return shard.metadata(), {name: shard.get_tensor(name).tolist() for name in shard.keys()}  # noqa: SIM118


def run(model, dataset, path, settings=SETTINGS, **options):
    """Cache with a teacher that counts; returns how many images it was asked about."""
    before = CountingGuide.asked
    cache_maps(CountingGuide(model), dataset, path, settings, progress=False, **options)
    return CountingGuide.asked - before


def with_mean_one(saliency):
    return saliency / saliency.mean(dim=(1, 2), keepdim=True)


def small_pixels(images):
    """64 x 64 in tiny ViT's normalisation to the means of 2 x 2 pixels, in [0, 1]."""
    return images.view(-1, 3, 32, 2, 32, 2).mean(dim=(3, 5)) * 0.5 + 0.5


@pytest.mark.parametrize("teacher", [(RolloutGuide, "max", 0.5), (GradientRolloutGuide, 3, 0.5)])
def test_equal_the_teacher_asked_directly(model, dataset, tmp_path, teacher):
    kind, *options = teacher
    settings = replace(SETTINGS, limit=20, batch_size=3)
    cache_maps(kind(model, *options), dataset, tmp_path, settings, progress=False)
    cached = CachedMaps(tmp_path)
    assert (len(cached), cached.grid_size) == (20, (4, 4))
    images = torch.stack([dataset[2 * index].image for index in range(20)])  # the limit spreads them evenly
    expected, pixels = with_mean_one(kind(model, *options)(images)), small_pixels(images)
    assert expected.flatten(1).std(dim=1).min() > 0.01
    for index, (image, saliency) in enumerate(cached):
        assert (image.dtype, saliency.dtype) == (torch.uint8, torch.float16)
        torch.testing.assert_close(saliency.float(), expected[index], rtol=1e-3, atol=1e-4)
        assert_close(image.float() / 255, pixels[index].clamp(0, 1), 0.501 / 255)  # rounded to the nearest
    assert_close(torch.stack([saliency for _, saliency in cached]).float().mean(dim=(1, 2)), torch.ones(20), 1e-3)


def test_map_without_anything_stays_so(model, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(RolloutGuide, "_saliency", lambda self, record: torch.zeros(len(record.images), 16))
    run(model, dataset, tmp_path, replace(SETTINGS, limit=2))
    assert [saliency.abs().max().item() for _, saliency in CachedMaps(tmp_path)] == [0, 0]


def test_computed_once_in_shards(model, dataset, whole):
    before = contents(whole)
    assert sorted(before) == ["settings.json", *SHARDS]
    assert [len(before[shard][1]["maps"]) for shard in SHARDS] == [16, 16, 8]
    assert run(model, dataset, whole) == 0
    assert contents(whole) == before


def test_killed_run_computes_only_what_is_missing(model, dataset, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(CountingGuide, "last", 20)
    with pytest.raises(Stopped):  # at the fifth image of the second shard
        run(model, dataset, tmp_path)
    assert sorted(contents(tmp_path)) == ["settings.json", SHARDS[0]]
    monkeypatch.setattr(CountingGuide, "last", None)
    assert run(model, dataset, tmp_path) == 24
    assert contents(tmp_path) == contents(whole)
    (tmp_path / SHARDS[1]).unlink()
    assert run(model, dataset, tmp_path) == 16
    assert contents(tmp_path) == contents(whole)


def one_bit_flipped(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize(
    "damaged",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: one_bit_flipped(content, 500),  # the header has 200 bytes, the maps follow with 512
        lambda content: one_bit_flipped(content, 20_000),
    ],
    ids=["half", "empty", "bit in a map", "bit in an image"],
)
def test_damaged_shard_is_named_and_computed_again(model, dataset, whole, tmp_path, damaged):
    shutil.copytree(whole, tmp_path / "maps")
    shard = tmp_path / "maps" / SHARDS[1]
    shard.write_bytes(damaged(shard.read_bytes()))
    with pytest.warns(UserWarning, match=rf"maps.{SHARDS[1]} is damaged and is computed again"):
        assert run(model, dataset, tmp_path / "maps") == 16
    assert contents(tmp_path / "maps") == contents(whole)


def test_no_flipped_bit_is_used(whole, tmp_path):
    """A bit of each byte of a shard's header, claims and skipped images included, and of every 211th after it."""
    shutil.copytree(whole, tmp_path / "maps")
    shard = tmp_path / "maps" / SHARDS[2]
    content = shard.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    used = []
    for place in [*range(header), *range(header, len(content), 211)]:
        shard.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        with suppress(UserError):
            CachedMaps(tmp_path / "maps")
            used.append(place)
    assert used == []


@pytest.fixture(scope="module")
def other(model, dataset, tmp_path_factory):
    """Maps of the same images by another teacher, cached at another size."""
    path = tmp_path_factory.mktemp("other") / "maps"
    cache_maps(RolloutGuide(model, "max", 0.5), dataset, path, replace(SETTINGS, image_size=(16, 16)), progress=False)
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder, other: (folder / SHARDS[1]).unlink(), f"{SHARDS[1]} is missing"),
        (lambda folder, other: (folder / SHARDS[2]).unlink(), f"{SHARDS[2]} is missing"),
        (lambda folder, other: shutil.copy(folder / SHARDS[0], folder / SHARDS[1]), f"{SHARDS[1]} is a part of other"),
        (lambda folder, other: shutil.copy(other / SHARDS[1], folder), f"{SHARDS[1]} is a part of other maps"),
        (lambda folder, other: shutil.copy(other / SHARDS[0], folder), f"{SHARDS[0]} is a part of other maps"),
    ],
    ids=["gap", "no end", "swapped", "other teacher's", "other teacher's first"],
)
def test_shards_that_are_not_the_folders_own_are_refused_then_computed_again(
    model, dataset, whole, other, tmp_path, change, said
):
    shutil.copytree(whole, tmp_path / "maps")
    change(tmp_path / "maps", other)
    with pytest.raises(UserError, match=said):
        CachedMaps(tmp_path / "maps", "train")
    with warnings.catch_warnings(record=True) as words:
        assert run(model, dataset, tmp_path / "maps") in (8, 16)
    assert [f"{said}" in str(word.message) for word in words] == ([] if "missing" in said else [True])
    assert contents(tmp_path / "maps") == contents(whole)


def test_settings_of_other_maps_are_refused(whole, other, tmp_path):
    shutil.copytree(whole, tmp_path / "maps")
    shutil.copy(other / "settings.json", tmp_path / "maps")
    with pytest.raises(UserError, match=f"{SHARDS[0]} is a part of other maps than settings.json there says"):
        CachedMaps(tmp_path / "maps")


def test_shard_that_nobody_asked_for_is_not_used(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "maps")
    shutil.copy(whole / SHARDS[0], tmp_path / "maps" / "view0-000000048.safetensors")
    assert len(CachedMaps(tmp_path / "maps")) == COUNT


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "[1, 2]", '{"views": 1e400, "batch_size": 0}', '{"limit": ' + "9" * 5000, ""]
)
def test_damaged_settings_are_refused(model, dataset, whole, tmp_path, content):
    shutil.copytree(whole, tmp_path / "maps")
    (tmp_path / "maps" / "settings.json").write_text(content)
    for use in (lambda: CachedMaps(tmp_path / "maps"), lambda: run(model, dataset, tmp_path / "maps")):
        with pytest.raises(UserError, match=r"settings.json|holds maps made by other settings"):
            use()
    assert (tmp_path / "maps" / "settings.json").read_text() == content


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_map_that_is_not_finite_is_refused_at_once(model, dataset, tmp_path, monkeypatch, value):
    def broken(self, record):
        maps = torch.ones(len(record.images), 16)
        maps[len(maps) // 2, 3] = value
        return maps

    monkeypatch.setattr(RolloutGuide, "_saliency", broken)
    with pytest.raises(UserError, match=rf"map of {dataset.name(2)} is not finite"):
        run(model, dataset, tmp_path, replace(SETTINGS, batch_size=4))
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"image_size": (16, 16)}, r"image_size: \[32, 32\] there, \[16, 16\] now"),
        ({"limit": 10}, "data: .* there, .* now; limit: None there, 10 now"),
        ({"views": 2, "seed": 1}, "seed: 0 there, 1 now; views: 0 there, 2 now"),
        ({"batch_size": 2}, "batch_size: 1 there, 2 now"),
        ("weights", "teacher: .*vit_tiny_patch16_224 .* there, .*vit_tiny_patch16_224 .* now"),
        ("discard ratio", "teacher: .*'discard_ratio': 0.0.* there, .*'discard_ratio': 0.5.* now"),
        ("data", "data: .* there, .* now"),
    ],
)
def test_maps_of_something_else_are_refused_and_left_alone(model, dataset, whole, folder, tmp_path, changed, said):
    teacher, settings = CountingGuide(model), SETTINGS
    if changed == "weights":
        teacher = CountingGuide(randomise(load_model("vit_tiny_patch16_224", pretrained=False, img_size=64, depth=2)))
    elif changed == "discard ratio":
        teacher = CountingGuide(model, "mean", 0.5)
    elif changed == "data":
        shutil.copytree(folder, tmp_path / "images")
        (tmp_path / "images" / "0" / "00.png").rename(tmp_path / "images" / "1" / "00.png")
        dataset = open_data(str(tmp_path / "images"), dataset.transform)
    else:
        settings = replace(SETTINGS, **changed)
    before = contents(whole)
    with pytest.raises(UserError, match=rf"holds maps made by other settings \({said}\)"):
        cache_maps(teacher, dataset, whole, settings, progress=False)
    assert contents(whole) == before
    assert CountingGuide.asked == 0


def test_folder_that_cannot_hold_maps(model, dataset, tmp_path):
    (tmp_path / "notes").write_text("these are my notes")
    with pytest.raises(UserError, match="notes"):
        run(model, dataset, tmp_path / "notes")
    (tmp_path / "settings.json").write_text("these are my notes")
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        run(model, dataset, tmp_path)


def test_no_images(model, dataset, tmp_path):
    empty = IndexedImages(MadeImages(dataset.images.read, 0), dataset.transform)
    with pytest.raises(UserError, match="The data set is empty"):
        run(model, empty, tmp_path)


def stream_of(dataset, length=COUNT):
    class Images(torch.utils.data.IterableDataset):
        def __iter__(self):
            return ((dataset[index].image, 0) for index in range(length))

    return StreamedImages(Images(), "mine", transform=dataset.transform)


def test_stream(model, dataset, whole, tmp_path):
    with pytest.raises(UserError, match=r"A stream does not tell how many images it has: give a limit"):
        run(model, stream_of(dataset), tmp_path)
    assert run(model, stream_of(dataset), tmp_path, replace(SETTINGS, limit=COUNT)) == COUNT
    assert [contents(tmp_path)[shard][1] for shard in SHARDS] == [contents(whole)[shard][1] for shard in SHARDS]
    assert run(model, stream_of(dataset), tmp_path, replace(SETTINGS, limit=COUNT)) == 0


def test_stream_is_read_once_and_not_from_its_beginning_for_each_shard(model, dataset, whole, tmp_path):
    read = []
    images = MadeImages(lambda index: read.append(index) or dataset.images.read(index), COUNT)
    counted = IndexedImages(images, dataset.transform)
    settings = replace(SETTINGS, limit=COUNT)
    run(model, stream_of(counted), tmp_path / "maps", settings)
    assert sorted(read) == list(range(COUNT))
    read.clear()
    (tmp_path / "maps" / SHARDS[0]).unlink()
    (tmp_path / "maps" / SHARDS[2]).unlink()
    assert run(model, stream_of(counted), tmp_path / "maps", settings) == 24
    assert sorted(read) == list(range(COUNT))  # over the middle shard too, which a stream cannot skip
    assert [contents(tmp_path / "maps")[shard][1] for shard in SHARDS] == [
        contents(whole)[shard][1] for shard in SHARDS
    ]


def test_stream_that_ends_early(model, dataset, tmp_path):
    settings = replace(SETTINGS, limit=100)
    run(model, stream_of(dataset), tmp_path / "within", replace(settings, limit=45))  # in the middle of the last shard
    assert len(CachedMaps(tmp_path / "within")) == COUNT
    with pytest.raises(UserError, match=r"The data ended before image 48: give a limit of at most 48"):
        run(model, stream_of(dataset), tmp_path / "beyond", settings)
    with pytest.raises(UserError, match="ended before image 32"):
        run(model, stream_of(dataset, 32), tmp_path / "edge", settings)


def test_broken_images_are_skipped_and_named_every_time(model, dataset, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "images")
    for name in ("0/04.png", "1/39.png"):
        (tmp_path / "images" / name).write_text("these are my notes")
    broken = open_data(str(tmp_path / "images"), dataset.transform)
    for asked in (COUNT - 2, 0):
        with pytest.warns(UserWarning, match=r"^2 images could not be read and were skipped: 0/04.png .*; 1/39.png "):
            assert run(model, broken, tmp_path / "maps") == asked
    cached = CachedMaps(tmp_path / "maps")
    good = [index for index in range(COUNT) if broken.name(index) not in ("0/04.png", "1/39.png")]
    assert len(cached) == len(good)
    expected = with_mean_one(RolloutGuide(model)(torch.stack([dataset[index].image for index in good])))
    torch.testing.assert_close(
        torch.stack([saliency for _, saliency in cached]).float(), expected, rtol=1e-3, atol=1e-4
    )


def test_last_shard_may_hold_broken_images_only(model, dataset, folder, tmp_path):
    """33 images: the third shard is one image, which cannot be read; that is no reason to have none."""
    shutil.copytree(folder, tmp_path / "images")
    names = [dataset.name(index) for index in range(COUNT)]
    for name in names[33:]:
        (tmp_path / "images" / name).unlink()
    (tmp_path / "images" / names[32]).write_text("these are my notes")
    with pytest.warns(UserWarning, match=rf"^1 images could not be read and were skipped: {names[32]}"):
        run(model, open_data(str(tmp_path / "images"), dataset.transform), tmp_path / "maps")
    assert len(CachedMaps(tmp_path / "maps")) == 32


def test_only_broken_images(model, dataset, folder, tmp_path):
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "image.jpg").write_text("these are my notes")
    with pytest.raises(UserError, match=r"None of 2 images .*could be read; the first is a/image.jpg"):
        run(model, open_data(str(tmp_path / "images"), dataset.transform), tmp_path / "maps")


@dataclass(frozen=True)
class FreeGuide(CountingGuide):
    """A teacher that costs next to nothing: how bright each patch is."""

    def _saliency(self, record):
        return record.images.mean(dim=1).unflatten(1, (4, 16)).unflatten(3, (4, 16)).mean(dim=(2, 4)).flatten(1) + 2


@pytest.mark.slow
def test_thousands_of_images_killed_in_the_middle(model, dataset, tmp_path, monkeypatch):
    """2,500 images whose colour tells their number, in 20 shards, spread by a limit of 2,400."""
    colour = lambda index: (index % 256, index // 256, 99)  # noqa: E731
    read = lambda index: (Image.new("RGB", (64, 64), colour(index)), 0)  # noqa: E731
    many = IndexedImages(MadeImages(read, 2500), dataset.transform)
    settings = MapSettings((8, 8), limit=2400, batch_size=8)
    monkeypatch.setattr(CountingGuide, "last", 1000)
    with pytest.raises(Stopped):
        cache_maps(FreeGuide(model), many, tmp_path / "killed", settings, progress=False)
    monkeypatch.setattr(CountingGuide, "last", None)
    for name in ("killed", "whole"):
        cache_maps(FreeGuide(model), many, tmp_path / name, settings, progress=False)
    assert CountingGuide.asked == 1000 + (2400 - 7 * 128) + 2400  # seven shards were whole
    one, other = (list(CachedMaps(tmp_path / name)) for name in ("killed", "whole"))
    colours = [tuple(image[:, 0, 0].tolist()) for image, _ in one]
    assert colours == [colour(index) for index in spread(2500, 2400)]
    for pair in zip(one, other, strict=True):
        assert all(torch.equal(*values) for values in zip(*pair, strict=True))


@pytest.mark.slow
def test_two_runs_at_once_fill_one_folder(model, dataset, whole, tmp_path):
    runs = [get_context("fork").Process(target=run, args=(model, dataset, tmp_path)) for _ in range(2)]
    for process in runs:
        process.start()
    for process in runs:
        process.join(60)
    assert [process.exitcode for process in runs] == [0, 0]
    assert contents(tmp_path) == contents(whole)


def test_two_processes_make_the_same_files_as_one(model, dataset, whole, tmp_path):
    asked = [run(model, dataset, tmp_path, process=process, num_processes=2) for process in (0, 1)]
    assert asked == [24, 16]
    assert contents(tmp_path) == contents(whole)


@pytest.mark.slow
def test_teacher_is_asked_about_each_view_itself(model, dataset, tmp_path, monkeypatch):
    drawn, draw = [], maps.random_views
    monkeypatch.setattr(maps, "random_views", lambda *options: drawn.append(draw(*options)) or drawn[-1])
    settings = replace(SETTINGS, limit=20, views=3)
    assert run(model, dataset, tmp_path / "one", settings) == 60
    assert len(CachedMaps(tmp_path / "one")) == 60
    views = torch.cat(drawn)
    assert len({tuple(view.flatten().tolist()) for view in views}) == 60  # each image, each time, another
    images = torch.stack([dataset[2 * index].image for index in range(20)]).repeat(3, 1, 1, 1)
    seen = warp(images, views)
    expected, pixels = with_mean_one(RolloutGuide(model)(seen)), small_pixels(seen)
    for index, (image, saliency) in enumerate(CachedMaps(tmp_path / "one")):
        torch.testing.assert_close(saliency.float(), expected[index], rtol=1e-3, atol=1e-4)
        assert_close(image.float() / 255, pixels[index], 0.501 / 255)
    run(model, dataset, tmp_path / "same", settings)
    run(model, dataset, tmp_path / "other", replace(settings, seed=1))
    one, same, other = (list(CachedMaps(tmp_path / name)) for name in ("one", "same", "other"))
    for number in range(60):
        assert all(torch.equal(*pair) for pair in zip(one[number], same[number], strict=True))
        assert not torch.equal(one[number][1], other[number][1])
