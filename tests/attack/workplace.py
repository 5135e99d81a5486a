"""A folder with what bad command lines need at hand: good and broken pictures, films, weights, data, notebooks."""

from __future__ import annotations

import argparse
import os
import tarfile
from pathlib import Path

import numpy as np
import torch
from films import write_film
from helpers import COUNT, PARAMETERS, noise_image, write_notebook
from safetensors.torch import save_file
from values import MODEL

from vitsal.models.loading import load_model


def furnish(folder: Path) -> None:
    """Make the files that the command lines of `values` name."""
    photo = noise_image(folder / "photo.png", seed=0, size=(112, 112)).read_bytes()
    for name in ("photos/a.png", "photos/b.png", "words/cat/a.png", "words/dog/b.png"):
        noise_image(folder / name, seed=len(name), size=(112, 112))
    (folder / "cut.png").write_bytes(photo[:200])
    write_film(folder / "film.mp4", frames=6, size=(48, 64))
    (folder / "cut.mp4").write_bytes((folder / "film.mp4").read_bytes()[:2000])
    (folder / "notes.txt").write_text("these are my notes\n")
    (folder / "notes.csv").write_text("these,are\nmy,notes\n")
    (folder / "broken").mkdir()
    (folder / "broken" / "01_cut.ipynb").write_text('{"cells": [')
    (folder / "damaged-maps").mkdir()
    (folder / "damaged-maps" / "settings.json").write_text('{"teacher": ')
    for name in ("empty", "folder.png", "folder.csv", "folder.mp4"):
        (folder / name).mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "link.png").symlink_to("photo.png")
    (folder / "dangling.png").symlink_to("gone.png")
    os.mkfifo(folder / "fifo")
    write_notebook(folder / "notebooks" / "01_count.ipynb", PARAMETERS, COUNT)
    with tarfile.open(folder / "cut.tar", "w") as tar:
        tar.add(folder / "photo.png", "0/photo.png")
    (folder / "cut.tar").write_bytes((folder / "cut.tar").read_bytes()[:600])
    furnish_weights(folder)


def furnish_weights(folder: Path) -> None:
    """Checkpoints of the bench's model, and what is none."""
    state = load_model(MODEL).state_dict()
    save_file(state, folder / "weights.safetensors")
    save_file({name: value.to(torch.int8) for name, value in state.items()}, folder / "int8.safetensors")
    save_file({name: value > 0 for name, value in state.items()}, folder / "bool.safetensors")
    save_file({name: torch.full_like(value, np.nan) for name, value in state.items()}, folder / "nan.safetensors")
    save_file(load_model("vitsal_digits_target").state_dict(), folder / "other.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "weights.safetensors").read_bytes()[:5000])
    (folder / "empty.safetensors").write_bytes(b"")
    torch.save(argparse.Namespace(run=os.system), folder / "code.pth")
    looped: dict = {"model": {}}
    looped["model"]["model"] = looped
    torch.save(looped, folder / "loop.pth")
