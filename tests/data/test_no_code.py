"""Data is only ever read: whatever a name, a list of shards or a file says, nothing of it is executed.

Each fixture would make a file, the marker, if it were. What the openers start at all: curl, for shards on the web.
"""

import io
import json
import os
import pickle
import subprocess
import tarfile
from pathlib import Path

import pytest
from helpers import noise_image, save_image, write_shards
from torchvision.transforms.functional import pil_to_tensor

from vitsal.data.images import batches
from vitsal.data.opening import open_data
from vitsal.data.pictures import open_image
from vitsal.data.uploads import read_upload
from vitsal.errors import UserError


def to_tensor(image):
    return pil_to_tensor(image.resize((8, 8)))


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "marker"


@pytest.fixture(autouse=True)
def nothing_runs(marker, monkeypatch):
    """No marker at the end, and no process started meanwhile, not even one that would fail."""
    started = []
    for name in ("system", "posix_spawn", "execv"):
        monkeypatch.setattr(os, name, lambda *arguments, **_: started.append(arguments))
    monkeypatch.setattr(subprocess.Popen, "_execute_child", lambda self, arguments, *_: started.append(arguments))
    yield
    assert not marker.exists()
    assert not started


class Bomb:
    """Unpickled, it makes the marker."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def shards(folder, **members):
    """One shard of one picture, with other members of the same sample."""
    picture = noise_image(folder / "picture.png", seed=1)
    write_shards([(picture, 3)], folder / "shards", shard_size=1)
    with tarfile.open(folder / "shards" / "val-0.tar", "a") as tar:
        for ending, content in members.items():
            info = tarfile.TarInfo(f"000000.{ending}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return folder / "shards"


def read_all(source, split="validation"):
    return [label for batch in batches(open_data(source, to_tensor, split=split)) for label in batch.labels.tolist()]


COMMANDS = ["pipe:touch {}", "PIPE:touch {}", " pipe:touch {}", "pi\tpe:touch {}", "pipe:touch {} #.tar"]


@pytest.mark.parametrize("command", COMMANDS)
def test_shell_command_as_name(command, marker):
    with pytest.raises(UserError, match="cannot be opened"):
        read_all(f"wds/{command.format(marker)}", "val-{0..1}.tar")


@pytest.mark.parametrize("scheme", ["gs", "sftp", "ftps", "scp", "ais", "htgs", "hf", "ftp", "s3", "data"])
def test_every_other_program_that_webdataset_starts(scheme):
    with pytest.raises(UserError, match=f"nothing that begins with '{scheme}:' is opened or run"):
        read_all(f"wds/{scheme}://host/folder", "val-{0..1}.tar")


@pytest.mark.parametrize("command", COMMANDS)
def test_shell_command_in_brace_expansion(command, marker, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for root in ("", ".", str(shards(tmp_path))):
        with pytest.raises(UserError, match="cannot be opened"):
            read_all(f"wds/{root}", f"{{val-0.tar,{command.format(marker)}}}")
        with pytest.raises(UserError, match="cannot be opened"):
            read_all(f"wds/{root}", f"val-0.tar::{command.format(marker)}.tar")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("info", ["_info.json", "info.json"])
def test_shell_command_in_the_list_of_shards(command, info, marker, tmp_path, monkeypatch):
    folder = shards(tmp_path)
    part = {"name": "validation", "num_samples": 1, "filenames": [command.format(marker)], "shard_lengths": [1]}
    (folder / info).write_text(json.dumps({"splits": {"validation": part}}))
    monkeypatch.chdir(folder)
    for root in (folder, ""):
        with pytest.raises(UserError, match="cannot be opened"):
            read_all(f"wds/{root}")


def test_shell_command_in_the_environment(marker, tmp_path, monkeypatch):
    monkeypatch.setenv("GOPEN_REWRITE", f"{tmp_path}=pipe:touch {marker};")
    monkeypatch.setenv("WDS_X", f"pipe:touch {marker}")
    folder = shards(tmp_path)
    assert read_all(f"wds/{folder}", "val-{0..0}.tar") == [3]
    with pytest.raises(UserError, match="cannot be opened"):
        read_all("wds/", "${X}.tar")


@pytest.mark.parametrize("ending", ["pyd", "pickle", "pkl", "pth", "pt", "npy", "npz", "py", "json"])
def test_pickles_in_shards(ending, marker, tmp_path):
    folder = shards(tmp_path, **{ending: pickle.dumps(Bomb(marker))})
    assert read_all(f"wds/{folder}", "val-0.tar") == [3]


@pytest.mark.parametrize("ending", ["png", "cls"])
def test_pickles_in_the_place_of_pictures_and_labels(ending, marker, tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    content = {"png": noise_image(tmp_path / "p.png", seed=1).read_bytes(), "cls": b"3"}
    content[ending] = pickle.dumps(Bomb(marker))
    with tarfile.open(folder / "val-0.tar", "w") as tar:
        for kind, data in content.items():
            info = tarfile.TarInfo(f"0.{kind}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(UserError, match=r"Sample 0 of the shard .*val-0\.tar cannot be read"):
        read_all(f"wds/{folder}", "val-0.tar")


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 80 80\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture
def ghostscript(marker, monkeypatch, tmp_path):
    """A Ghostscript on the path that makes the marker."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {marker}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


@pytest.mark.usefixtures("ghostscript")
class TestPostScript:
    def test_in_a_folder(self, tmp_path):
        save_image(tmp_path / "data" / "a" / "0.png")
        (tmp_path / "data" / "a" / "1.jpg").write_bytes(POSTSCRIPT)
        (batch,) = batches(open_data(str(tmp_path / "data"), to_tensor))
        assert batch.names == ["a/0.png"]
        assert batch.skipped.keys() == {"a/1.jpg"}

    def test_as_a_picture(self, tmp_path):
        (tmp_path / "cat.jpg").write_bytes(POSTSCRIPT)
        with pytest.raises(UserError, match=r"cat.jpg cannot be read as an image"):
            open_image(tmp_path / "cat.jpg")
        with pytest.raises(UserError, match=r"cat.jpg cannot be read as a picture"):
            read_upload(POSTSCRIPT, "cat.jpg")

    def test_in_a_stream(self, tmp_path, monkeypatch):
        datasets = pytest.importorskip("datasets", reason="needs vitsal[hub]")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
        for kind in ("a", "b"):
            (tmp_path / "hub" / "train" / kind).mkdir(parents=True)
            (tmp_path / "hub" / "train" / kind / "0.jpg").write_bytes(POSTSCRIPT)
        (batch,) = batches(open_data(f"hfds/{tmp_path}/hub", to_tensor, split="train"))
        assert len(batch.skipped) == 2
        with pytest.raises(UserError, match="breaks off: its sample 0 cannot be read"):
            read_all(f"hfids/{tmp_path}/hub", "train")


@pytest.mark.parametrize("kind", ["hfds", "hfids"])
class TestHuggingFace:
    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch):
        datasets = pytest.importorskip("datasets", reason="needs vitsal[hub]")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_DATASETS_TRUST_REMOTE_CODE", "1")

    @pytest.mark.parametrize("script", ["hub.py", "dataset.py", "__init__.py"])
    def test_loading_script(self, kind, script, marker, tmp_path):
        (tmp_path / "hub").mkdir()
        (tmp_path / "hub" / script).write_text(f"open({str(marker)!r}, 'w')\n")
        for name in (tmp_path / "hub", tmp_path / "hub" / script):
            with pytest.raises(UserError, match="cannot be opened"):
                read_all(f"{kind}/{name}", "train")

    def test_object_in_the_card(self, kind, marker, tmp_path):
        (tmp_path / "hub").mkdir()
        card = f"---\nconfigs: !!python/object/apply:os.system ['touch {marker}']\n---\n"
        (tmp_path / "hub" / "README.md").write_text(card)
        with pytest.raises(UserError, match="cannot be opened"):
            read_all(f"{kind}/{tmp_path}/hub", "train")

    @pytest.mark.parametrize("name", ["train.pkl", "train.pickle", "train.parquet", "train.arrow", "train.csv"])
    def test_pickle_as_table(self, kind, name, marker, tmp_path):
        (tmp_path / "hub").mkdir()
        (tmp_path / "hub" / name).write_bytes(pickle.dumps(Bomb(marker)))
        with pytest.raises(UserError):
            read_all(f"{kind}/{tmp_path}/hub", "train")

    def test_packaged_reader_of_pickles(self, kind, marker, tmp_path, monkeypatch):
        (tmp_path / "train.pkl").write_bytes(pickle.dumps(Bomb(marker)))
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UserError, match=r"Pickle loading .* is disabled|cannot be opened"):
            read_all(f"{kind}/pandas", "train")

    def test_pickle_in_shards(self, kind, marker, tmp_path):
        folder = shards(tmp_path, pickle=pickle.dumps(Bomb(marker)), pth=pickle.dumps(Bomb(marker)))
        with pytest.raises(UserError):
            read_all(f"{kind}/{folder}", "train")


def test_pickle_where_timm_keeps_its_list_of_a_tar_file(marker, tmp_path):
    picture = noise_image(tmp_path / "cat" / "0.png", seed=1)
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        tar.add(picture, "cat/0.png")
    (tmp_path / "_data_tarinfos.pickle").write_bytes(pickle.dumps(Bomb(marker)))
    assert read_all(str(tmp_path / "data.tar")) == [0]


@pytest.mark.parametrize("name", ["class_map.pkl", "class_map.txt", "__init__.py", "dataset_info.json"])
def test_other_files_in_folders(name, marker, tmp_path):
    save_image(tmp_path / "data" / "cat" / "0.png")
    (tmp_path / "data" / name).write_bytes(pickle.dumps(Bomb(marker)))
    assert read_all(str(tmp_path / "data")) == [0]


def test_code_of_a_namespace_of_tensorflow_data_sets():
    with pytest.raises(UserError):
        read_all("tfds/huggingface:mnist", "test")


def test_the_marker_works(marker):
    """The bomb would go off."""
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists()
    marker.unlink()
