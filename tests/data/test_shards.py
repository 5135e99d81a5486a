"""Streams are whole or refused: a missing or damaged shard never makes a smaller data set."""

import io
import json
import os
import random
import tarfile

import pytest
from helpers import noise_image, write_shards
from torchvision.transforms.functional import pil_to_tensor

from vitsal.data.images import batches
from vitsal.data.opening import open_data
from vitsal.errors import UserError

pytest.importorskip("webdataset", reason="needs vitsal[hub]")
PATTERN = "val-{0..2}.tar"


def to_tensor(image):
    return pil_to_tensor(image.resize((8, 8)))


@pytest.fixture
def shards(tmp_path):
    """Three shards of two pictures each, labels 0 to 5."""
    paths = [noise_image(tmp_path / f"{seed}.png", seed) for seed in range(6)]
    write_shards([(path, label) for label, path in enumerate(paths)], tmp_path / "shards", shard_size=2)
    return tmp_path / "shards"


def read_all(folder, split=PATTERN, **options):
    dataset = open_data(f"wds/{folder}", to_tensor, split=split)
    return [label for batch in batches(dataset, **options) for label in batch.labels.tolist()]


def write_info(folder, **parts):
    (folder / "_info.json").write_text(json.dumps({"splits": parts}))


def test_parts_by_name(shards):
    write_info(shards, train={"filenames": ["val-0.tar", "val-1.tar"]}, validation={"filenames": ["val-2.tar"]})
    assert read_all(shards, "train") == [0, 1, 2, 3]
    assert read_all(shards, "validation") == [4, 5]
    assert read_all(f"file:{shards}", "validation") == [4, 5]
    with pytest.raises(UserError, match=r"Unknown split 'trian'. Did you mean 'train'\? Known: train, validation"):
        read_all(shards, "trian")


def test_patterns(shards):
    assert read_all(shards, "val-1.tar::val-{2..0..2}.tar|6") == [2, 3, 4, 5, 0, 1]
    for endless in (
        "{0..99999999999}.tar",
        "{0..1}" * 40 + ".tar",
        "{a,b}" * 40 + ".tar",
        "{0..9" + "9" * 400 + "}.tar",
    ):
        with pytest.raises(UserError, match="stands for no list of 1 to 100,000 shards"):
            read_all(shards, endless)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_missing_shard(shards, number):
    os.remove(shards / f"val-{number}.tar")
    with pytest.raises(UserError, match=rf"There is no shard .*val-{number}\.tar, one of the 3 of split"):
        read_all(shards)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("nowhere", path)])
def test_what_is_no_shard(shards, make):
    os.remove(shards / "val-1.tar")
    make(shards / "val-1.tar")
    with pytest.raises(UserError, match=r"There is no shard .*val-1\.tar"):
        read_all(shards)


@pytest.mark.parametrize("share", [0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_shard_that_is_cut_off(shards, share):
    shard = shards / "val-1.tar"
    shard.write_bytes(shard.read_bytes()[: int(share * content_size(shard))])
    with pytest.raises(UserError, match=r"The shard .*val-1\.tar cannot be read to its end: .*(damaged|end of data)"):
        read_all(shards)


def content_size(shard):
    with tarfile.open(shard) as tar:
        return max(member.offset_data + member.size for member in tar)


def test_shard_that_is_cut_off_between_two_members(shards):
    """Every byte of what is left is right, and Python's tarfile sees nothing missing."""
    shard = shards / "val-1.tar"
    with tarfile.open(shard) as tar:
        start = tar.getmembers()[2].offset
    shard.write_bytes(shard.read_bytes()[:start])
    with tarfile.open(shard) as tar:
        assert len(tar.getmembers()) == 2
    with pytest.raises(UserError, match=r"val-1\.tar cannot be read to its end: it is damaged or cut off at byte"):
        read_all(shards)


def test_no_damaged_header_ends_a_shard(shards):
    shard = shards / "val-1.tar"
    with tarfile.open(shard) as tar:
        starts = [member.offset for member in tar]
    whole = shard.read_bytes()
    chance = random.Random(0)
    for start in starts:
        damaged = bytearray(whole)
        damaged[start + chance.randrange(148)] ^= 64
        shard.write_bytes(damaged)
        with pytest.raises(UserError, match=r"val-1\.tar cannot be read to its end: it is damaged"):
            read_all(shards)


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_compressed_shards(shards, tmp_path, kind):
    with tarfile.open(shards / f"all.tar.{kind}", f"w:{kind}") as tar:
        for name in ("0.png", "3.png"):
            tar.add(tmp_path / name, name)
            label = tarfile.TarInfo(name.replace("png", "cls"))
            label.size = 1
            tar.addfile(label, io.BytesIO(name[:1].encode()))
    assert read_all(shards, f"all.tar.{kind}") == [0, 3]
    content = (shards / f"all.tar.{kind}").read_bytes()
    (shards / f"all.tar.{kind}").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=rf"all\.tar\.{kind} cannot be read to its end"):
        read_all(shards, f"all.tar.{kind}")


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ({"png": b"these are my notes", "cls": b"1"}, "cannot identify image file"),
        ({"txt": b"a caption", "cls": b"1"}, r"it has no image \(jpg, jpeg, png, webp\)"),
        ({"png": None}, r"it has no label that is a number \('cls'\)"),
        ({"png": None, "cls": b"cat"}, r"it has no label that is a number \(invalid literal"),
    ],
)
def test_sample_that_cannot_be_read_is_named(shards, tmp_path, members, problem):
    with tarfile.open(shards / "val-1.tar", "a") as tar:
        for ending, content in members.items():
            data = (tmp_path / "0.png").read_bytes() if content is None else content
            info = tarfile.TarInfo(f"odd.{ending}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(UserError, match=rf"Sample odd of the shard .*val-1\.tar cannot be read: {problem}"):
        read_all(shards)


def test_labels_in_json(shards, tmp_path):
    with tarfile.open(shards / "json.tar", "w") as tar:
        for number, label in enumerate([7, -1, 5]):  # below zero: no part of the data, as timm has it
            tar.add(tmp_path / f"{number}.png", f"{number}.png")
            info, data = tarfile.TarInfo(f"{number}.json"), json.dumps({"kind": label}).encode()
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    write_info(shards, validation={"filenames": ["json.tar"], "alt_label": "kind"})
    assert read_all(shards, "validation") == [7, 5]


@pytest.mark.parametrize(
    "info",
    ["", "[", "[1]", "{}", '{"splits": 3}', '{"splits": {"validation": 3}}', "[" * 100_000]
    + [json.dumps({"splits": {"validation": {"filenames": files}}}) for files in ([], "val-0.tar", [3], None)],
    ids=range(11),
)
def test_damaged_list_of_shards(shards, info):
    (shards / "_info.json").write_text(info)
    with pytest.raises(UserError, match="cannot be opened"):
        read_all(shards, "validation")


def test_stamp_tells_shards_apart(shards, monkeypatch):
    def stamp():
        return open_data("wds/shards", to_tensor, split=PATTERN).stamp

    monkeypatch.chdir(shards.parent)
    before = stamp()
    assert stamp() == before
    content = (shards / "val-2.tar").read_bytes()
    (shards / "val-2.tar").write_bytes(content)
    written_again = stamp()
    (shards / "val-2.tar").write_bytes(content + bytes(512))
    assert len({before, written_again, stamp()}) == 3
    assert open_data("wds/shards", to_tensor, split="val-{0..1}.tar").stamp != before
