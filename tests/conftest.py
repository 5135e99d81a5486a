"""Fixtures that several test files share. No test needs a network: the hub is switched off."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ["MPLBACKEND"] = "Agg"
os.environ["OMP_NUM_THREADS"] = "1"  # models here are small: on a busy machine threads only wait for each other

import copy
from pathlib import Path

import pytest
import torch
from helpers import randomise

from vitsal.models.loading import load_model


def _folder(variable):
    """The folder that an environment variable names; None where it names none."""
    path = Path(os.environ.get(variable, "")).resolve()
    return path if os.environ.get(variable) and path.is_dir() else None


WEIGHTS_DIR = _folder("VITSAL_WEIGHTS_DIR")
DATA_DIR = _folder("VITSAL_DATA_DIR")


@pytest.fixture(autouse=True)
def _fixed_seed(monkeypatch):
    """Each test starts from the same random numbers, and finds weights and data where it says itself."""
    torch.manual_seed(0)
    for variable in ("VITSAL_WEIGHTS_DIR", "VITSAL_DATA_DIR"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(scope="session")
def deit_tiny():
    """The real DeiT-tiny, trained on ImageNet."""
    name = "deit_tiny_patch16_224"
    checkpoint = WEIGHTS_DIR and WEIGHTS_DIR / f"{name}.safetensors"
    if checkpoint is None or not checkpoint.is_file():
        pytest.skip(f"no {name}.safetensors: set VITSAL_WEIGHTS_DIR to its folder")
    return load_model(name, checkpoint)


@pytest.fixture(scope="session")
def imagenet_sample():
    """Folder of 500 ImageNet images in folders named by WordNet id."""
    path = DATA_DIR and DATA_DIR / "imagenet-sample"
    if path is None or not path.is_dir():
        pytest.skip("no folder imagenet-sample: set VITSAL_DATA_DIR to the folder that holds it")
    return path


@pytest.fixture(scope="session")
def _tiny_vit():
    return randomise(load_model("vit_tiny_patch16_224", pretrained=False, img_size=64, depth=3, num_classes=10))


@pytest.fixture
def tiny_vit(_tiny_vit):
    """timm's own ViT, 4 x 4 patches, 3 blocks, 10 classes, random weights; each test gets its own copy."""
    return copy.deepcopy(_tiny_vit)


@pytest.fixture
def images():
    """Four random images for `tiny_vit`, (4, 3, 64, 64)."""
    return torch.randn(4, 3, 64, 64)


@pytest.fixture(scope="module")
def model(family):
    """The model of a test file's `family` (`families.family_fixture`), with random weights."""
    return family.load()


@pytest.fixture
def pictures(family):
    """Three random images for `model`."""
    return torch.randn(3, 3, *family.size)
