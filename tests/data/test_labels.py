"""What folders mean as classes: the right labels, or none."""

import tarfile
import warnings
from types import SimpleNamespace

import pytest
from helpers import save_image
from torchvision.transforms.functional import pil_to_tensor

from vitsal.data.labels import check_classes
from vitsal.data.opening import open_data
from vitsal.errors import UserError

IMAGENETTE = {  # WordNet ids of Imagenette's classes, and their numbers in ImageNet
    "n01440764": 0, "n02102040": 217, "n02979186": 482, "n03000684": 491, "n03028079": 497,
    "n03394916": 566, "n03417042": 569, "n03425413": 571, "n03445777": 574, "n03888257": 701,
}  # fmt: skip


def to_tensor(image):
    return pil_to_tensor(image.resize((8, 8)))


def make(root, *paths):
    for path in paths:
        save_image(root / path)
    return root


def as_tar(root):
    """The same data as a tar file."""
    with tarfile.open(root.with_suffix(".tar"), "w") as tar:
        tar.add(root, ".")
    return root.with_suffix(".tar")


@pytest.fixture(params=["folder", "tar"])
def opened(request, tmp_path):
    """A function that makes images under these paths and opens them, as a folder and as a tar file."""

    def open_paths(*paths):
        root = make(tmp_path / "data", *paths)
        return open_data(str(root if request.param == "folder" else as_tar(root)), to_tensor)

    return open_paths


def labels_of(dataset):
    return {dataset.name(index): dataset[index].label for index in range(len(dataset))}


def test_wordnet_ids(opened):
    dataset = opened(*(f"{wnid}/{wnid}_{number}.jpg" for wnid in IMAGENETTE for number in range(2)))
    assert labels_of(dataset) == {f"{w}/{w}_{n}.jpg": label for w, label in IMAGENETTE.items() for n in range(2)}
    assert (dataset.num_classes, dataset.folders) == (1000, ())


@pytest.mark.parametrize("form", ["{}/images/{}.jpg", "val/{}/{}.jpg", "a/{}/b/c/{}.jpg"])
def test_wordnet_ids_anywhere_in_the_path(opened, form):
    dataset = opened(*(form.format(wnid, number) for wnid in IMAGENETTE for number in range(2)))
    assert labels_of(dataset) == {form.format(w, n): label for w, label in IMAGENETTE.items() for n in range(2)}


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "__MACOSX", ".git/objects", "n01440764/.ipynb_checkpoints"])
def test_hidden_folders_and_files_are_no_classes(opened, hidden):
    dataset = opened("n01440764/0.jpg", "n03888257/0.jpg", "n03888257/._0.jpg", f"{hidden}/0.jpg")
    assert labels_of(dataset) == {"n01440764/0.jpg": 0, "n03888257/0.jpg": 701}


def test_hidden_folders_do_not_shift_the_others(opened):
    dataset = opened(".cache/0.jpg", "__MACOSX/cat/0.jpg", "cat/0.jpg", "dog/0.jpg")
    assert labels_of(dataset) == {"cat/0.jpg": 0, "dog/0.jpg": 1}
    assert (dataset.num_classes, dataset.folders) == (2, ("cat", "dog"))


@pytest.mark.parametrize("stray", ["n99999999", "cats", "n01440764/n02102040", "n0144076", "N01440764"])
def test_folders_that_cannot_be_mapped_are_named(opened, stray):
    dataset = opened(*(f"{wnid}/0.jpg" for wnid in IMAGENETTE), f"{stray}/0.jpg")
    assert labels_of(dataset) == {f"{w}/0.jpg": label for w, label in IMAGENETTE.items()} | {f"{stray}/0.jpg": -1}
    with pytest.raises(UserError, match=rf"and others that are not, or not by one alone: {stray}\. The class of their"):
        check_classes(dataset, SimpleNamespace(num_classes=1000))


def test_parts_are_no_classes(opened, tmp_path):
    """Whatever --split says, a training must not see what it is judged on."""
    paths = [f"{part}/{w}/{n}.jpg" for part in ("train", "val") for w in IMAGENETTE for n in range(2)]
    with pytest.raises(UserError, match=r"holds parts, not classes \(train, val\); (name one: .*data/train|make a)"):
        opened(*paths)
    assert len(open_data(str(tmp_path / "data" / "train"), to_tensor, split="train")) == 20


def test_five_of_many_are_named(opened):
    dataset = opened("n01440764/0.jpg", *(f"a{number}/0.jpg" for number in range(8)))
    with pytest.raises(UserError, match="alone: a0, a1, a2, a3, a4 and 3 more"):
        check_classes(dataset, SimpleNamespace(num_classes=1000))


def test_images_in_no_folder(opened):
    with pytest.raises(UserError, match="holds images that lie in no class folder"):
        opened("n01440764/0.jpg", "stray.jpg")


def test_numbers_are_in_the_order_of_numbers(opened):
    assert list(labels_of(opened(*(f"{number}/0.jpg" for number in range(11)))).values()) == list(range(11))


def test_order_of_names_that_differ_in_case_alone(tmp_path):
    """Left to timm, it is that of a set of strings: another one in each process."""
    dataset = open_data(str(make(tmp_path, "cat/0.jpg", "Cat/0.jpg", "CAT/0.jpg")), to_tensor)
    assert labels_of(dataset) == {"CAT/0.jpg": 0, "Cat/0.jpg": 1, "cat/0.jpg": 2}


def test_tar_files_in_a_tar_file_are_classes(tmp_path):
    """The form of ImageNet's own training data."""
    for wnid in ("n03888257", "n01440764"):
        make(tmp_path / wnid, "0.jpg")
        with tarfile.open(tmp_path / f"{wnid}.tar", "w") as tar:
            tar.add(tmp_path / wnid / "0.jpg", f"{wnid}_0.jpg")
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for wnid in ("n03888257", "n01440764"):
            tar.add(tmp_path / f"{wnid}.tar", f"{wnid}.tar")
    dataset = open_data(str(tmp_path / "all.tar"), to_tensor)
    assert labels_of(dataset) == {"n01440764/n01440764_0.jpg": 0, "n03888257/n03888257_0.jpg": 701}
    assert dataset[0].image.shape == (3, 8, 8)


def target(num_classes):
    return SimpleNamespace(num_classes=num_classes)


@pytest.mark.parametrize(
    ("paths", "classes"),
    [(["n01440764/0.jpg"], 1000), (["cat/0.jpg", "dog/0.jpg"], 2), ([f"{n}/0.jpg" for n in range(10)], 10)],
)
def test_classes_that_are_the_targets(opened, paths, classes):
    dataset = opened(*paths)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_classes(dataset, target(classes))
    for other in (classes - 1, classes + 1, 1000 if classes < 1000 else 21_841):
        with pytest.raises(UserError, match=f"has {classes:,} classes.* the target tells {other:,} apart"):
            check_classes(dataset, target(other))


def test_order_is_told_where_it_is_all_there_is(tmp_path):
    dataset = open_data(str(make(tmp_path / "words", "dog/0.jpg", "cat/0.jpg")), to_tensor)
    with pytest.warns(UserWarning, match=r"numbered in the order of their folders' names, .* 0 cat, 1 dog\.$"):
        check_classes(dataset, target(2))
    with pytest.raises(UserError, match=r"has 2 classes \(cat, dog\).*or name the folders by WordNet ids of ImageNet"):
        check_classes(dataset, target(1000))
    for silent in ("digits", str(make(tmp_path / "ids", "n01440764/0.jpg"))):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_classes(open_data(silent, to_tensor), target(10 if silent == "digits" else 1000))


def test_digits_are_no_classes_of_imagenet():
    with pytest.raises(UserError, match="The data 'digits, test' has 10 classes, and the target tells 1,000 apart"):
        check_classes(open_data("digits", to_tensor, split="test"), target(1000))
