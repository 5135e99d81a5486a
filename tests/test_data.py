"""Data from every source, with broken images skipped, counted and named."""

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

from vitsal.data import open_data, open_pictures
from vitsal.errors import UserError
from vitsal.images import batches, open_image, spread, warn_of_skipped

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
    labels = {dataset.read(index)[1] for index in range(len(dataset))}
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
    assert spread(10, None) == spread(10, 10) == spread(10, 99) == list(range(10))
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
    sizes = [batch.num_samples for batch in batches(open_data(str(folder), to_tensor), batch_size=4)]
    assert sizes == [4, 4, 1]


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
