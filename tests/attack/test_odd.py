"""Odd pictures: `explain`, alone or in a folder, and data sets survive them; none makes a command hang."""

import os
import shutil
import warnings

import odd
import pytest
import torch
from entry import outcome, vitsal
from helpers import noise_image
from values import MODEL

from vitsal.analysis.exploration import Exploration
from vitsal.data.images import batches
from vitsal.data.opening import open_data
from vitsal.data.pictures import open_image
from vitsal.errors import UserError
from vitsal.guides import RolloutGuide
from vitsal.models.loading import load_model
from vitsal.models.tokens import model_transform

ODD = ("fifo.png", "endless.png", "dangling.png", "loop.png", "folder.png", "caf\udce9.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("odd")
    odd.furnish(place / "photos")
    return place / "photos"


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_each_is_looked_at_or_refused(folder):
    """As `explain` and the explorer's page look at one picture."""
    vit, wrong = load_model(MODEL), []

    def look(path):
        try:
            seen = Exploration(vit, open_image(path))
        except UserError:
            return
        assert torch.isfinite(torch.as_tensor(seen.saliency(RolloutGuide(vit)))).all()

    for path in sorted(folder.iterdir()):
        if (ended := outcome(lambda path=path: look(path))) != 0:
            wrong.append(f"{path.name!a} -> {ended}")
    assert not wrong, f"{len(wrong)} pictures:\n" + "\n".join(wrong)


@pytest.mark.slow
def test_a_folder_of_them_is_explained(folder, tmp_path):
    """All of them on one sheet would be slow: those whose names are odd, with what is no file, and the good one."""
    photos = tmp_path / "photos"
    photos.mkdir()
    odd.named(photos)
    odd.placed(photos)
    shutil.copy(folder / "good.png", photos)
    answer = vitsal(["explain", photos, "--model", MODEL, "--limit", "99", "--output", tmp_path / "sheet.png"])
    assert (answer.code, answer.err.count("Traceback")) == (0, 0), answer
    assert (tmp_path / "sheet.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", ODD)
def test_each_is_a_word_to_explain(folder, tmp_path, name):
    answer = vitsal(["explain", folder / name, "--model", MODEL, "--output", tmp_path / "picture.png"])
    assert answer.survival == "", answer


def test_a_data_set_of_them_is_read(folder, tmp_path):
    """Ten classes of the same pictures, one of the good one alone: what cannot be read is a problem with a name."""
    data, vit = tmp_path / "data", load_model(MODEL)
    shutil.copytree(folder, data / "odd", symlinks=True, copy_function=os.link)
    for label in range(9):
        noise_image(data / f"good{label}" / "a.png", seed=label, size=(112, 112))

    def read():
        dataset = open_data(str(data), model_transform(vit))
        found = list(batches(dataset, 8))
        assert sum(len(batch.names) + len(batch.skipped) for batch in found) == len(dataset)
        assert all(torch.isfinite(batch.images).all() for batch in found)
        assert all(problem for batch in found for problem in batch.skipped.values())

    assert outcome(read) == 0


def test_a_drop_curve_over_them_is_drawn(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "data" / "odd", symlinks=True, copy_function=os.link)
    for label in range(9):
        noise_image(tmp_path / "data" / f"good{label}" / "a.png", seed=label, size=(112, 112))
    answer = vitsal(["drop-curve", "--data", "data", "--target", MODEL, "--keep", "0.5", "--output", "table.csv"])
    assert answer.survival == "", answer
