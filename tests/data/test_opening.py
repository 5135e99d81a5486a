"""Data from every source, with broken images skipped, counted and named."""

import os
import random
import shutil
import tarfile
import warnings

import numpy as np
import pytest
import torch
from helpers import noise_image, save_image, write_shards
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from vitsal.data.images import batches
from vitsal.data.opening import open_data, open_pictures
from vitsal.data.pictures import open_image, open_images, spread, warn_of_skipped
from vitsal.errors import UserError

NAMES = ["cat/0", "cat/1", "cat/2", "cat/3", "dog/0", "dog/1", "dog/2", "owl/0", "owl/1"]


def to_tensor(image):
    """A transform that keeps the pixels: sources can be compared with what was put in."""
    return pil_to_tensor(image.resize((8, 8)))


def collect(dataset, **options):
    """All that the batches hold, one after the other: names, labels, images, skipped."""
    names, labels, images, skipped = [], [], [], {}
    for batch in batches(dataset, **options):
        names += batch.names
        labels += batch.labels.tolist()
        images += list(batch.images)
        skipped |= batch.skipped
    return names, labels, images, skipped


@pytest.fixture
def folder(tmp_path):
    """Three classes with 4, 3 and 2 images of random pixels."""
    for seed, name in enumerate(NAMES):
        noise_image(tmp_path / "images" / f"{name}.png", seed)
    return tmp_path / "images"


def expected_images(folder, names):
    return [to_tensor(Image.open(folder / name).convert("RGB")) for name in names]


def assert_same_images(actual, expected):
    assert len(actual) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


def test_class_folders(folder):
    names, labels, images, skipped = collect(open_data(str(folder), to_tensor), batch_size=4)
    assert names == [
        f"{n}.png" for n in ["cat/0", "cat/1", "cat/2", "cat/3", "dog/0", "dog/1", "dog/2", "owl/0", "owl/1"]
    ]
    assert labels == [0, 0, 0, 0, 1, 1, 1, 2, 2]
    assert_same_images(images, expected_images(folder, names))
    assert skipped == {}


def test_folders_named_by_wordnet_id_are_imagenets_classes(tmp_path):
    for wnid in ("n03888257", "n01440764", "n15075141"):
        save_image(tmp_path / wnid / "image.jpg")
    names, labels, *_ = collect(open_data(str(tmp_path), to_tensor))
    assert dict(zip(names, labels, strict=True)) == {
        "n01440764/image.jpg": 0,  # tench
        "n03888257/image.jpg": 701,  # parachute
        "n15075141/image.jpg": 999,  # toilet tissue
    }
    assert open_data(str(tmp_path), to_tensor).num_classes == 1000


def test_every_folder_of_the_real_sample_is_known(imagenet_sample):
    dataset = open_data(str(imagenet_sample), to_tensor)
    assert len(dataset) == 500
    labels = {dataset.images.read(index)[1] for index in range(len(dataset))}
    assert len(labels) == 500
    assert max(labels) <= 999


def test_missing_empty_and_flat_folders(tmp_path):
    with pytest.raises(UserError, match=r"There is no data at .*gone"):
        open_data(str(tmp_path / "gone"), to_tensor)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no images"):
        open_data(str(tmp_path / "empty"), to_tensor)
    save_image(tmp_path / "flat" / "image.png")
    with pytest.raises(UserError, match=r"flat holds images that lie in no class folder"):
        open_data(str(tmp_path / "flat"), to_tensor)


def test_broken_images_are_skipped_counted_and_named(folder):
    (folder / "cat" / "1.png").rename(folder / "cat" / "1.old")
    (folder / "cat" / "1.jpg").write_text("these are my notes")
    noisy = folder / "dog" / "1.png"
    noisy.write_bytes(noisy.read_bytes()[:2000])
    (folder / "owl" / "0.png").write_bytes(b"")
    for batch_size in (1, 2, 9):
        names, labels, images, skipped = collect(open_data(str(folder), to_tensor), batch_size=batch_size)
        assert sorted(skipped) == ["cat/1.jpg", "dog/1.png", "owl/0.png"]
        assert "cannot identify image" in skipped["cat/1.jpg"]
        assert labels == [0, 0, 0, 1, 1, 2]
        assert_same_images(images, expected_images(folder, names))


def test_truncated_jpeg_is_skipped(tmp_path):
    noise_image(tmp_path / "a" / "whole.jpg", seed=0)
    content = (tmp_path / "a" / "whole.jpg").read_bytes()
    (tmp_path / "a" / "cut.jpg").write_bytes(content[: len(content) // 2])
    names, *_, skipped = collect(open_data(str(tmp_path), to_tensor))
    assert names == ["a/whole.jpg"]
    assert "truncated" in skipped["a/cut.jpg"]


def test_warning_names_five_and_counts_the_rest():
    with pytest.warns(
        UserWarning, match=r"^7 images could not be read .* 0.jpg \(torn\); 1.jpg .* and 2 more\.$"
    ) as seen:
        warn_of_skipped({f"{i}.jpg": "torn" for i in range(7)})
    assert "5.jpg" not in str(seen[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_skipped({})


@pytest.mark.parametrize("mode", ["CMYK", "L", "P", "LA", "RGBA", "1", "I;16"])
def test_all_kinds_of_images_decode(tmp_path, mode):
    """A white square stays white, in whatever way its file writes white."""
    path = tmp_path / "white" / ("image.jpg" if mode == "CMYK" else "image.png")
    if mode == "I;16":
        path.parent.mkdir()
        Image.fromarray(np.full((20, 20), 65535, dtype=np.uint16)).save(path)
    else:
        save_image(path, (255, 255, 255), mode=mode)
    assert Image.open(path).mode == mode
    _, _, images, skipped = collect(open_data(str(tmp_path), to_tensor))
    assert skipped == {}
    assert images[0].shape == (3, 8, 8)
    assert images[0].min() == 255


def test_open_image(tmp_path):
    path = save_image(tmp_path / "red.png", (255, 0, 0))
    assert open_image(path).getpixel((0, 0)) == (255, 0, 0)
    (tmp_path / "notes.jpg").write_text("these are my notes")
    with pytest.raises(UserError, match=r"notes.jpg cannot be read as an image"):
        open_image(tmp_path / "notes.jpg")
    for nothing in (tmp_path / "gone.jpg", tmp_path):
        with pytest.raises(UserError, match="There is no image file at"):
            open_image(nothing)


def test_limit_is_spread_evenly(folder):
    assert spread(10, 5) == [0, 2, 4, 6, 8]
    assert spread(10, 3) == [0, 3, 6]
    assert spread(10, None) == spread(10, 10) == spread(10, 99) == range(10)
    for length, limit in [(500, 50), (97, 13)]:
        steps = np.diff([*spread(length, limit), length])
        assert len(steps) == limit
        assert steps.max() - steps.min() <= 1
    names, labels, *_ = collect(open_data(str(folder), to_tensor), limit=3)
    assert labels == [0, 0, 1]
    assert names == ["cat/0.png", "cat/3.png", "dog/2.png"]


@pytest.mark.parametrize("limit", [None, 5])
@pytest.mark.parametrize("first", [0, 2, 5])
def test_first_goes_on_where_another_run_stopped(folder, first, limit):
    dataset = open_data(str(folder), to_tensor)
    whole = collect(dataset, limit=limit)[0]
    assert collect(dataset, limit=limit, first=first, batch_size=2)[0] == whole[first:]


def test_batches_account_for_all_samples(folder):
    (folder / "dog" / "0.png").write_text("these are my notes")
    parts = batches(open_data(str(folder), to_tensor), batch_size=4)
    assert [len(batch.names) + len(batch.skipped) for batch in parts] == [4, 4, 1]


def test_worker_process_gives_the_same_batches(folder):
    (folder / "dog" / "0.png").write_text("these are my notes")
    dataset = open_data(str(folder), to_tensor)
    here, there = collect(dataset, batch_size=4), collect(dataset, batch_size=4, num_workers=2)
    assert here[:2] == there[:2]
    assert_same_images(there[2], here[2])
    assert here[3].keys() == there[3].keys() == {"dog/0.png"}


def test_tar_file(folder, tmp_path):
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        for path in sorted(folder.glob("*/*.png")):
            tar.add(path, path.relative_to(folder))
    from_tar = collect(open_data(str(tmp_path / "images.tar"), to_tensor))
    from_folder = collect(open_data(str(folder), to_tensor))
    assert from_tar[:2] == from_folder[:2]
    assert_same_images(from_tar[2], from_folder[2])


def test_tar_file_of_wordnet_folders(tmp_path):
    save_image(tmp_path / "n03888257" / "image.jpg")
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        tar.add(tmp_path / "n03888257" / "image.jpg", "n03888257/image.jpg")
    assert collect(open_data(str(tmp_path / "images.tar"), to_tensor))[1] == [701]


def test_tar_file_without_images(tmp_path):
    tarfile.open(tmp_path / "empty.tar", "w").close()
    (tmp_path / "notes.tar").write_text("these are my notes")
    for name in ("empty.tar", "notes.tar"):
        with pytest.raises(UserError, match=f"{name} holds no images"):
            open_data(str(tmp_path / name), to_tensor)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_webdataset_shards(folder, tmp_path, num_workers):
    pytest.importorskip("webdataset", reason="needs vitsal[hub]")
    paths = sorted(folder.glob("*/*.png"))[:6]
    write_shards([(path, 100 + index) for index, path in enumerate(paths)], tmp_path / "shards", shard_size=3)
    dataset = open_data(f"wds/{tmp_path}/shards", to_tensor, split="val-{0..1}.tar")
    names, labels, images, _ = collect(dataset, batch_size=4, num_workers=num_workers)
    assert labels == [100, 101, 102, 103, 104, 105]  # each once, in order
    assert names[0] == "sample 00000000"
    assert_same_images(images, [to_tensor(Image.open(path).convert("RGB")) for path in paths])
    assert collect(dataset, limit=5, first=2, batch_size=2, num_workers=num_workers)[1] == [102, 103, 104]


def test_webdataset_that_is_not_there(tmp_path):
    pytest.importorskip("webdataset", reason="needs vitsal[hub]")
    with pytest.raises(UserError, match=r"'wds/.*gone', split 'validation', cannot be opened"):
        open_data(f"wds/{tmp_path}/gone", to_tensor)


@pytest.fixture
def hub_folder(folder, tmp_path, monkeypatch):
    """A Hugging Face image folder on disk, with a train and a test part; caches stay in the test's folder."""
    datasets = pytest.importorskip("datasets", reason="needs vitsal[hub]")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    for split in ("train", "test"):
        for kind in ("cat", "dog", "owl"):
            for path in sorted((folder / kind).glob("*.png"))[: 2 if split == "train" else 1]:
                target = tmp_path / "hub" / split / kind / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
    return tmp_path / "hub"


def test_hugging_face_data_set(hub_folder):
    dataset = open_data(f"hfds/{hub_folder}", to_tensor, split="train")
    names, labels, images, _ = collect(dataset)
    assert sorted(labels) == [0, 0, 1, 1, 2, 2]
    for name, label, image in zip(names, labels, images, strict=True):
        assert ("cat", "dog", "owl")[label] in name
        assert torch.equal(image, to_tensor(Image.open(name).convert("RGB")))
    assert sorted(collect(open_data(f"hfds/{hub_folder}", to_tensor, split="test"))[1]) == [0, 1, 2]


def test_hugging_face_stream(hub_folder):
    indexed = collect(open_data(f"hfds/{hub_folder}", to_tensor, split="train"))
    streamed = collect(open_data(f"hfids/{hub_folder}", to_tensor, split="train"), batch_size=4)
    assert streamed[1] == indexed[1]
    assert_same_images(streamed[2], indexed[2])


def test_hugging_face_split_that_is_not_there(hub_folder):
    with pytest.raises(UserError, match="cannot be opened"):
        open_data(f"hfds/{hub_folder}", to_tensor, split="dev")


def test_hub_without_a_network():
    pytest.importorskip("datasets", reason="needs vitsal[hub]")
    with pytest.raises(UserError, match="'hfds/nobody/nothing', split 'validation', cannot be opened"):
        open_data("hfds/nobody/nothing", to_tensor)


def test_embedded_scenes_are_decoded_and_named():
    names, labels, images, _ = collect(open_data("digits", to_tensor, split="test"), limit=4)
    assert names == ["digits/test/000000", "digits/test/000250", "digits/test/000500", "digits/test/000750"]
    assert set(labels) <= set(range(10))
    assert images[0].shape == (3, 8, 8)
    train = collect(open_data("digits", to_tensor, split="train"), limit=4)
    assert not torch.equal(train[2][0], images[0])


def test_imagenette_without_a_network(tmp_path, monkeypatch):
    def no_network(*args, **options):
        raise OSError("no route to host")

    monkeypatch.setenv("VITSAL_DATA_DIR", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.Imagenette", no_network)
    with pytest.raises(UserError, match=r"Imagenette is not in .* and cannot be downloaded \(no route to host\)"):
        open_data("imagenette", to_tensor)
    save_image(tmp_path / "imagenette2-224" / "val" / "n01440764" / "image.JPEG")
    assert collect(open_data("imagenette", to_tensor))[1] == [0]


def test_order_does_not_depend_on_how_the_folder_was_written(tmp_path):
    names = [f"{kind}/{number}.png" for kind in ("a", "b") for number in range(12)]
    for name in random.Random(0).sample(names, len(names)):
        save_image(tmp_path / name)
    assert collect(open_data(str(tmp_path), to_tensor))[0] == names


def test_pictures_as_they_are(folder):
    (folder / "dog" / "0.png").write_bytes(b"broken")  # sample 4, the only one of the three that cannot be read
    pictures = open_pictures(str(folder), 2)
    assert list(pictures) == ["cat/0.png"]
    pictures = open_pictures(str(folder), 3)
    assert list(pictures) == ["cat/0.png", "cat/3.png", "dog/2.png"]
    for name, picture in pictures.items():
        assert np.array_equal(np.asarray(picture), np.asarray(Image.open(folder / name).convert("RGB")))


def test_pictures_of_a_stream(folder, tmp_path):
    paths = sorted(folder.glob("*/*.png"))
    write_shards([(path, index) for index, path in enumerate(paths)], tmp_path / "shards", shard_size=3)
    pictures = open_pictures(f"wds/{tmp_path}/shards", 2, split="val-{0..2}.tar")
    assert list(pictures) == ["sample 00000000", "sample 00000001"]
    for picture, path in zip(pictures.values(), paths, strict=False):
        assert np.array_equal(np.asarray(picture), np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("split", ["trian", "testing", "", "Train", "train[:10%]", "0", "dev"])
@pytest.mark.parametrize("source", ["digits", "imagenette", "folder", "tar"])
def test_unknown_splits_are_refused_with_the_known_ones(source, split, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("VITSAL_DATA_DIR", str(tmp_path))
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        tar.add(folder, ".")
    source = {"folder": str(folder), "tar": str(tmp_path / "images.tar")}.get(source, source)
    with pytest.raises(UserError, match=r"Unknown split .*Known: train, validation, val, test\.$") as refused:
        open_data(source, to_tensor, split=split)
    assert split != "trian" or "Did you mean 'train'?" in str(refused.value)


def test_known_splits(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("VITSAL_DATA_DIR", str(tmp_path))
    for part, wnid in [("train", "n01440764"), ("val", "n03888257")]:
        save_image(tmp_path / "imagenette2-224" / part / wnid / "image.JPEG")
    expected = {"train": 0, "validation": 701, "val": 701, "test": 701}
    assert {split: open_data("imagenette", to_tensor, split=split)[0].label for split in expected} == expected
    names = {split: open_data("digits", to_tensor, split=split).name(0) for split in expected}
    assert names == {"train": "digits/train/000000"} | dict.fromkeys(
        ["validation", "val", "test"], "digits/test/000000"
    )
    assert {len(open_data(str(folder), to_tensor, split=split)) for split in expected} == {9}


@pytest.mark.parametrize("kind", ["hfds", "hfids"])
@pytest.mark.parametrize("split", ["trian", "validation", "train[:10", "train+", "../train"])
def test_splits_that_hugging_face_does_not_know(hub_folder, kind, split):
    with pytest.raises(UserError, match=rf"^The data set '{kind}/.*', split .* cannot be opened: .+"):
        open_data(f"{kind}/{hub_folder}", to_tensor, split=split)


def test_classes_of_hugging_face_data_sets(hub_folder):
    assert open_data(f"hfds/{hub_folder}", to_tensor, split="train").num_classes == 3
    assert open_data(f"hfids/{hub_folder}", to_tensor, split="train").num_classes == 3


def test_damaged_image_in_a_hugging_face_stream_is_named(hub_folder):
    (hub_folder / "train" / "dog" / "0.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"breaks off: its sample 2 cannot be read"):
        collect(open_data(f"hfids/{hub_folder}", to_tensor, split="train"))
    dataset = open_data(f"hfids/{hub_folder}", to_tensor, split="train")
    (hub_folder / "train" / "dog" / "0.png").unlink()
    with pytest.raises(UserError, match=r"breaks off: its sample 2 cannot be read"):
        collect(dataset)


def stamps(dataset):
    return [dataset.images.stamp(index) for index in range(len(dataset))]


def test_stamp_of_a_file_that_was_replaced(folder):
    dataset = open_data(str(folder), to_tensor)
    before = stamps(dataset)
    noise_image(folder / "dog" / "1.png", seed=99)
    (folder / "owl" / "0.png").unlink()
    changed = [index for index, (old, new) in enumerate(zip(before, stamps(dataset), strict=True)) if old != new]
    assert changed == [5, 7]
    assert dataset.images.stamp(7) == "2 missing"
    assert stamps(open_data(str(folder), to_tensor))[:5] == before[:5]


def test_stamp_knows_of_a_class_that_came_in_between(folder):
    before = stamps(open_data(str(folder), to_tensor))
    noise_image(folder / "cow" / "0.png", seed=99)
    after = stamps(open_data(str(folder), to_tensor))
    assert after[:4] == before[:4]  # cats
    assert not set(after[4:]) & set(before)  # dogs and owls have other numbers now


def test_stamps_of_a_tar_file(folder, tmp_path):
    def write():
        with tarfile.open(tmp_path / "images.tar", "w") as tar:
            tar.add(folder, ".")
        return stamps(open_data(str(tmp_path / "images.tar"), to_tensor))

    before = write()
    assert len(set(before)) == 9
    assert stamps(open_data(str(tmp_path / "images.tar"), to_tensor)) == before
    assert not set(write()) & set(before)


def test_stamps_of_hugging_face_data_sets(hub_folder):
    def opened():
        indexed = open_data(f"hfds/{hub_folder}", to_tensor, split="train")
        return stamps(indexed), open_data(f"hfids/{hub_folder}", to_tensor, split="train").stamp

    before = opened()
    assert len(set(before[0])) == 6
    assert opened() == before
    os.utime(hub_folder / "train" / "cat" / "0.png", (1, 1))
    after = opened()
    assert not set(after[0]) & set(before[0])
    assert after[1] != before[1]


def test_stamps_of_scenes(monkeypatch):
    test, train = (open_data("digits", to_tensor, split=split) for split in ("test", "train"))
    assert len({*stamps(test), train.images.stamp(0), train.images.stamp(1)}) == len(test) + 2
    before = test.images.stamp(7)
    monkeypatch.setattr("vitsal.data.scenes.GLYPH_CELL", 7)  # another recipe
    from vitsal.data.scenes import _recipe

    _recipe.cache_clear()
    assert open_data("digits", to_tensor, split="test").images.stamp(7) != before
    _recipe.cache_clear()


def test_odd_files_in_folders_are_skipped_counted_and_named(folder):
    (folder / "cat" / "0.png").unlink()
    os.symlink("nowhere.png", folder / "cat" / "0.png")
    (folder / "cat" / "1.png").unlink()
    os.mkfifo(folder / "cat" / "1.png")
    os.symlink("/dev/zero", folder / "cat" / "9.png")
    os.symlink(folder / "dog" / "loop.png", folder / "dog" / "loop.png")
    os.symlink(folder, folder / "dog" / "up")
    save_image(folder / "owl" / "strip.png", size=(20_000, 1))
    names, labels, _, skipped = collect(open_data(str(folder), to_tensor))
    assert names == [f"{n}.png" for n in ["cat/2", "cat/3", "dog/0", "dog/1", "dog/2", "owl/0", "owl/1"]]
    assert labels == [0, 0, 1, 1, 1, 2, 2]
    assert sorted(skipped) == ["cat/0.png", "cat/1.png", "cat/9.png", "dog/loop.png", "owl/strip.png"]
    assert skipped.pop("owl/strip.png") == "20000 x 1 pixels, one side more than 100 times the other"
    assert set(skipped.values()) == {"there is no such file, or it is no regular one"}


ODD_NAMES = {
    b"caf\xe9.png": r"caf\udce9.png",
    b"two\nlines.png": r"two\nlines.png",
    b"\x1b[31mred.png": r"\x1b[31mred.png",
    "naïve $x_1$.png".encode(): "naïve $x_1$.png",
}


def test_odd_names_can_be_written_down(tmp_path):
    root = tmp_path / "images"
    for number, name in enumerate(ODD_NAMES):
        noise_image(root / "a" / "0.png", number).rename(root / "a" / os.fsdecode(name))
    (root / "a" / os.fsdecode(b"\xff.png")).write_bytes(b"broken")
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        tar.add(root, ".")
    for source in (root, tmp_path / "images.tar"):
        names, *_, skipped = collect(open_data(str(source), to_tensor))
        assert set(names) == {f"a/{shown}" for shown in ODD_NAMES.values()}
        assert list(skipped) == [r"a/\udcff.png"]
        assert "".join([*names, *skipped, *skipped.values()]).encode().decode().isprintable()
    with pytest.warns(UserWarning, match=r"1 images could not be read and were skipped: \\udcff.png"):
        assert set(open_images(root / "a", 9)) == set(ODD_NAMES.values())


@pytest.mark.parametrize("kind", ["fifo", "socketless", "null", "long", "empty", "surrogate"])
def test_odd_sources(tmp_path, kind):
    os.mkfifo(tmp_path / "fifo")
    names = {"null": "a\0b", "long": "x" * 5000, "empty": "", "surrogate": os.fsdecode(b"\xff")}
    with pytest.raises(UserError, match=r"There is no data at|holds no images") as refused:
        open_data(names.get(kind, str(tmp_path / kind)), to_tensor)
    str(refused.value).encode()
    with pytest.raises(UserError, match="There is no image file at"):
        open_images(names.get(kind, str(tmp_path / kind)), 3)


def test_folder_of_pictures_with_odd_files(tmp_path):
    save_image(tmp_path / "good.png")
    os.symlink("nowhere.png", tmp_path / "link.png")
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "folder.png").mkdir()
    save_image(tmp_path / "strip.png", size=(1, 5000))
    with pytest.warns(UserWarning, match=r"^4 images could not be read and were skipped: .*1 x 5000 pixels, one side"):
        assert list(open_images(tmp_path, 9)) == ["good.png"]


def test_tar_file_that_is_cut_off_is_no_smaller_data_set(folder, tmp_path):
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        tar.add(folder, ".")
    with tarfile.open(tmp_path / "images.tar") as tar:
        starts = [member.offset for member in tar][2:]
    whole = (tmp_path / "images.tar").read_bytes()
    for cut in [*starts, *(start + 100 for start in starts), *(start + 700 for start in starts)]:
        (tmp_path / "images.tar").write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"images.tar holds no images that can be read: .*(cut off|end of data)"):
            open_data(str(tmp_path / "images.tar"), to_tensor)


def test_processes_read_a_tar_file_independently(folder, tmp_path):
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        tar.add(folder, ".")
    dataset = open_data(str(tmp_path / "images.tar"), to_tensor)
    here = collect(dataset, batch_size=1)
    there = collect(dataset, batch_size=1, num_workers=2)
    assert here[:2] == there[:2]
    assert_same_images(there[2], here[2])
