"""Files and names that would run something, each by `marker`: a file that must not be there afterwards.

A case is a name, a function that makes it in a folder (the current one) and returns what is handed to the package, and
the words of the command line that it is handed to.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import torch
from entry import vitsal
from helpers import noise_image
from values import MODEL

from vitsal.students.checkpoints import Checkpoints
from vitsal.students.student import new_student, save_student

MARKER = "marker"
SHELL = f"touch {MARKER}"
SCRIPT = f"import os\nos.system({SHELL!r})\n"
EXPLAIN = ("explain", "--model", MODEL, "--output", "new/picture.png", "--limit", "1")
CURVE = ("drop-curve", "--target", MODEL, "--limit", "2", "--keep", "0.5", "--output", "new/table.csv")
PROBE = ("probe", "--model", MODEL, "--limit", "2", "--output", "new/probe")
PUPIL = (*CURVE, "--data", "digits", "--guide", "student", "--student")
TRAIN = ("train-student", "--teacher", MODEL, "--data", "digits", "--limit", "20", "--maps", "maps", "--width", "4",
         "--batch-size", "8", "--epochs", "2")  # fmt: skip

SAVE = Checkpoints.save
Case = tuple[str, Callable[[], object], tuple[str, ...]]


class Payload:
    """Runs its call when it is unpickled."""

    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self) -> tuple:
        function, *arguments = self.call
        return function, tuple(arguments)


PAYLOADS = {
    "open": Payload(open, MARKER, "w"),
    "system": Payload(__import__("os").system, SHELL),
    "eval": Payload(eval, f"open({MARKER!r}, 'w')"),
    "touch": Payload(Path.touch, Path(MARKER)),
    "call": Payload(__import__("subprocess").check_call, ["touch", MARKER]),
}


def write(name: str, content: bytes | str) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def saved(name: str, value: object, **options: object) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, name, **options)
    return name


def numbers(payload: object) -> np.ndarray:
    return np.array([payload], dtype=object)


def zipped(name: str, **members: bytes) -> str:
    with ZipFile(name, "w", ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member.replace("__", "/"), content)
    return name


def checkpoints() -> Iterator[Case]:
    """Weights that are code."""
    weights = (*EXPLAIN, "photo.png", "--checkpoint")
    for kind, payload in PAYLOADS.items():
        yield f"dictionary, {kind}", lambda p=payload: saved("evil.pth", {"model": p}), weights
    for protocol in range(6):
        content = pickle.dumps({"state_dict": {"w": PAYLOADS["open"]}}, protocol)
        yield f"pickle, protocol {protocol}", lambda c=content: write("evil.bin", c), weights
    payload = PAYLOADS["system"]
    namespace = argparse.Namespace(run=payload)
    yield "namespace", lambda: saved("evil.pth", {"model": {}, "args": namespace}), weights
    old = {"_use_new_zipfile_serialization": False}
    yield "old format", lambda: saved("evil.pt", {"model": payload}, **old), weights
    for ending in (".safetensors", ".npz", ".npy", ".ckpt", ".pkl", ""):
        yield f"pickle named {ending!r}", lambda e=ending: write(f"evil{e}", pickle.dumps(payload)), weights
    yield "array of objects", lambda: np.save("evil.npy", numbers(payload)) or "evil.npy", weights
    yield "arrays of objects", lambda: np.savez("evil.npz", w=numbers(payload)) or "evil.npz", weights
    script = {"archive__code____torch__.py": SCRIPT.encode(), "archive__data.pkl": pickle.dumps(payload)}
    yield "torchscript", lambda: zipped("evil.pt", **script), weights
    bomb = {"archive__data.pkl": bytes(2**26), "archive__version": b"3"}
    yield "zip bomb", lambda: zipped("evil.pt", **bomb), weights
    for size in (2**63, 2**64 - 1, 2**40, 100):
        header = struct.pack("<Q", size) + b'{"w": {}}'
        yield f"header of {size}", lambda h=header: write("evil.safetensors", h), weights
    deep = b"[" * 50_000
    yield "deep header", lambda: write("evil.safetensors", struct.pack("<Q", len(deep)) + deep), weights


def models() -> Iterator[Case]:
    """Folders and names in the place of a model's name."""

    def folder(**config: object) -> str:
        write("evil/config.json", json.dumps({"architecture": MODEL, "num_classes": 10} | config))
        saved("evil/pytorch_model.bin", {"state_dict": PAYLOADS["open"]})
        return "local-dir:evil"

    named = ("explain", "photo.png", "--output", "new/picture.png", "--model")
    yield "folder with pickled weights", folder, named
    yield "folder with code for an architecture", lambda: folder(architecture=SCRIPT), named
    yield "folder that names its file", lambda: folder(pretrained_cfg={"file": "evil/pytorch_model.bin"}), named
    yield "folder that trusts code", lambda: folder(auto_map={"AutoModel": "evil.Evil"}, trust_remote_code=True), named
    for name in (f"hf-hub:$({SHELL})", f"`{SHELL}`", f"|{SHELL}", f"__import__('os').system({SHELL!r})"):
        yield f"name {name}", lambda n=name: n, named


def students() -> Iterator[Case]:
    """Folders in the place of a student."""

    def folder(weights: bool = True, **config: object) -> str:
        save_student(new_student("convnet", (14, 14), width=4), "evil")
        known = json.loads(Path("evil/config.json").read_text())
        write("evil/config.json", json.dumps(known | config))
        write("evil/evil.py", SCRIPT)
        if not weights:
            Path("evil/model.safetensors").unlink()
            saved("evil/pytorch_model.bin", PAYLOADS["system"])
        return "evil"

    yield "pickled weights", lambda: folder(weights=False), PUPIL
    yield (
        "pickle as safetensors",
        lambda: (folder(), write("evil/model.safetensors", pickle.dumps(PAYLOADS["open"])))[0],
        PUPIL,
    )
    for name in ("evil.evil", f"__import__('os').system({SHELL!r})", "local-dir:evil", "hf-hub:evil", "../evil"):
        yield f"architecture {name}", lambda n=name: folder(architecture=n), PUPIL
    yield "code as a number", lambda: folder(width=f"open({MARKER!r}, 'w')"), PUPIL
    yield "class to make", lambda: folder(lesson={"_target_": "os.system", "py/reduce": [SHELL]}), PUPIL
    yield "code to load", lambda: folder(auto_map={"AutoModel": "evil.Evil"}, trust_remote_code=True), PUPIL


def _save_and_die(checkpoints: Checkpoints, *state: object) -> None:
    SAVE(checkpoints, *state)
    raise KeyboardInterrupt


def trainings() -> Iterator[Case]:
    """A training's folder and a cache of maps, with code in place of their files."""

    def folder(pattern: str, payload: object) -> str:
        killed = Path("../killed").resolve()
        if not killed.exists():  # trained once, for all that follow
            with patch.object(Checkpoints, "save", _save_and_die):
                vitsal([*TRAIN, "--output", "student"])
            shutil.copytree(".", killed)
        shutil.copytree(killed, ".", dirs_exist_ok=True)
        saved(str(next(Path().glob(pattern), Path(pattern))), payload)
        return "student"

    state = "student/epoch-0001/"
    for name in ("optimizer.bin", "random_states_0.pkl", "model.safetensors", "scheduler.bin", "scaler.pt"):
        yield f"training's {name}", lambda n=name: folder(state + n, PAYLOADS["open"]), (*TRAIN, "--output")
    hidden = {"state": {}, "param_groups": [], "extra": PAYLOADS["system"]}
    yield "optimizer with more", lambda: folder(f"{state}optimizer.bin", hidden), (*TRAIN, "--output")
    yield "shard of maps", lambda: folder("maps/view0-*.safetensors", PAYLOADS["call"]), (*TRAIN, "--output")


def tar_of(name: str, **members: bytes | tarfile.TarInfo) -> str:
    """A tar file, `__` in a member's name for a slash, `-` for a dot."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(name, "w") as tar:
        for member, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.name = member.replace("__", "/").replace("-", ".")
            info.size = 0 if info is content else len(content)
            tar.addfile(info, None if info is content else io.BytesIO(content))
    return name


def link(kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


def archives() -> Iterator[Case]:
    """Tar files and shards of data."""
    data = (*PROBE, "--data")
    photo = lambda: noise_image(Path("photo.png"), seed=0).read_bytes()  # noqa: E731
    code, label = pickle.dumps(PAYLOADS["open"]), b"0"
    odd = {
        "parent": lambda: {"--__--__marker": b"x", "0__a-png": photo()},
        "absolute": lambda: {"__tmp__marker-png": photo()},
        "link": lambda: {"0__a-png": link(tarfile.SYMTYPE, "/etc/passwd")},
        "hard link": lambda: {"0__a-png": link(tarfile.LNKTYPE, "../../../etc/passwd")},
        "device": lambda: {"0__a-png": link(tarfile.CHRTYPE)},
        "fifo": lambda: {"0__a-png": link(tarfile.FIFOTYPE)},
        "pickle": lambda: {"0__a-png": code, "class_map-pkl": code},
    }
    for kind, members in odd.items():
        yield f"tar, {kind}", lambda m=members: tar_of("evil.tar", **m()), data
    for kind in ("pyd", "pickle", "pth", "cls-pyd"):
        members = lambda k=kind: {"0-jpg": photo(), "0-cls": label, f"0-{k}": code}  # noqa: E731
        yield f"shard, {kind}", lambda m=members: f"wds/{tar_of('shard.tar', **m())}", data
    yield "label is a pickle", lambda: f"wds/{tar_of('shard.tar', **{'0-jpg': photo(), '0-cls': code})}", data


def shards() -> Iterator[Case]:
    """WebDataset names, and lists of shards, that name a command."""
    plain = ("pipe:", "pipe:true;", " pipe:", "PIPE:", "file:pipe:", "shard.tar::pipe:", "s3://a;", "hdfs://a;",
             "ais://a;", "hf://a;")  # fmt: skip
    names = (*(start + SHELL for start in plain), f"pipe:{SHELL} {{0..3}}.tar", f"{{pipe:{SHELL},shard.tar}}",
             f"gs://$({SHELL})/a.tar", f"htgs://$({SHELL})", f"ssh://-oProxyCommand={SHELL}/a")  # fmt: skip
    for command in (PROBE, CURVE, (*TRAIN[:3], *TRAIN[5:], "--output", "student")):
        for name in names if command is PROBE else names[:2]:
            yield f"{command[0]} {name}", lambda n=name: f"wds/{n}", (*command, "--data")
    for name in names[:3]:
        info = {"splits": {"validation": {"num_samples": 1, "shard_lengths": [1], "filenames": [name]}}}
        yield (
            f"_info.json {name}",
            lambda i=info: f"wds/{write('shards/_info.json', json.dumps(i))[:6]}",
            (*PROBE, "--data"),
        )
    lines = f"splits:\n  validation:\n    filenames: !!python/object/apply:os.system [{SHELL!r}]\n    num_samples: 1\n"
    yield "_info.yaml", lambda: f"wds/{write('shards/_info.yaml', lines)[:6]}", (*PROBE, "--data")


def hubs() -> Iterator[Case]:
    """Folders in the place of a hub's data set."""

    def folder(**files: bytes | str) -> str:
        for name, content in files.items():
            write(f"evil/{name.replace('__', '.')}", content)
        return "evil"

    card = f"---\nconfigs: !!python/object/apply:os.system [{SHELL!r}]\n---\n"
    for prefix in ("hfds/", "hfids/"):
        kinds = {"script": {"evil__py": SCRIPT}, "card": {"README__md": card, "a__csv": "image,label\na.png,0\n"}}
        kinds["pickle"] = {"data__pkl": pickle.dumps(PAYLOADS["open"]), "dataset_info__json": "{}"}
        for kind, files in kinds.items():
            yield f"{prefix} {kind}", lambda p=prefix, f=files: p + folder(**f), (*PROBE, "--data")


def pictures() -> Iterator[Case]:
    """Pictures whose readers run something or never end, and names that a shell would read."""
    huge = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", huge)
    text = b"\x89PNG\r\n\x1a\n" + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26)))
    svg = f'<svg xmlns="http://www.w3.org/2000/svg"><script>{SHELL}</script><image href="|{SHELL}"/></svg>'
    mvg = f"push graphic-context\nfill 'url(https://a\"|{SHELL}\")'\npop graphic-context\n"
    eps = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(%pipe%{SHELL}) (w) file\n%%EOF\n"
    files = {"bomb.png": png, "text.png": text, "a.svg": svg, "a.mvg": mvg, "a.eps": eps, "eps.png": eps, "a.wmf": eps,
             "a.pickle": pickle.dumps(PAYLOADS["open"]), "pickle.png": pickle.dumps(PAYLOADS["open"])}  # fmt: skip
    for name, content in files.items():
        yield name, lambda n=name, c=content: write(n, c), EXPLAIN
    names = (f"|{SHELL}", f"$({SHELL}).png", f"`{SHELL}`.png", f"a;{SHELL};.png", f"ephemeral:{SHELL}.png", "-o.png",
             f"msl:{SHELL}.png", f"a\n{SHELL}\n.png", "%(os)s{0}.png", "$\\input{a}$.png")  # fmt: skip

    def folder() -> str:
        for name in names:
            noise_image(Path("in/a.png"), seed=0).rename(Path("in", name))
        return "in"

    yield "names for a shell", folder, (*EXPLAIN, "--limit", str(len(names)))


def films() -> Iterator[Case]:
    """Lists of films, which would have FFmpeg open other files and hosts."""
    lists = {
        "list.m3u8": f"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\nsubprocess:{SHELL}\n#EXT-X-ENDLIST\n",
        "list.mp4": "#EXTM3U\n#EXTINF:1,\nconcat:/etc/passwd|/etc/group\n#EXT-X-ENDLIST\n",
        "list.ffconcat": "ffconcat version 1.0\nfile /etc/passwd\n",
        "a.sdp": "v=0\nm=video 9 RTP/AVP 96\nc=IN IP4 127.0.0.1\n",
    }
    for name, content in lists.items():
        yield name, lambda n=name, c=content: write(n, c), ("video", "--model", MODEL, "new.mp4")
    for name in (
        "concat:photo.png|photo.png",
        f"pipe:{SHELL}",
        "subfile,,start,0,end,9,,:photo.png",
        "http://127.0.0.1:9",
    ):
        yield f"named {name}", lambda n=name: n, ("video", "--model", MODEL, "new.mp4")


def tables() -> Iterator[Case]:
    """A results table that is code."""
    yield (
        "pickled table",
        lambda: write("t.csv", pickle.dumps(PAYLOADS["open"])),
        (*CURVE[:-1], "--data", "digits", "--output"),
    )
    formula = f"=cmd|'/c {SHELL}'!A0,@SUM(1)\n"
    yield "formula", lambda: write("t.csv", formula), (*CURVE[:-1], "--data", "digits", "--output")


SOURCES = (checkpoints, models, students, trainings, archives, shards, hubs, pictures, films, tables)
