"""The embedded models: what they weigh, what they know, and that they can be trained again."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from vitsal.analysis.localization import pointing_game
from vitsal.analysis.probing import attention_distances
from vitsal.choices import ARCHITECTURES, TEACHERS, TrainingSettings
from vitsal.data.scenes import make_scene
from vitsal.embedded import teach, train
from vitsal.models.digits import MODEL_NAMES, WEIGHTS
from vitsal.models.pixels import downsample
from vitsal.students.student import EMBEDDED_STUDENTS, load_student

TINY = train.Schedule((train.Stage(1, 20, 20, "largest"), train.Stage(1, 30, 196)), 1e-3, epoch_size=64, test_scenes=32)
GUIDE = "vitsal_digits_guide"


@pytest.mark.slow
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_embedded_weights_tell_the_digits(name: str) -> None:
    model = timm.create_model(name, pretrained=True)
    assert train.accuracy(model, 300, seed=11) >= (0.85 if name == GUIDE else 0.93)


@torch.no_grad()
def test_another_input_size_interpolates_positions() -> None:
    model, wide = (
        timm.create_model(GUIDE, pretrained=True),
        timm.create_model(GUIDE, pretrained=True, img_size=(112, 168)),
    )
    assert wide.patch_embed.grid_size == (14, 21)
    assert torch.equal(wide.patch_embed.proj.weight, model.patch_embed.proj.weight)
    own, stretched = model.pos_embed[0, 1:].view(14, 14, -1), wide.pos_embed[0, 1:].view(14, 21, -1)
    assert torch.allclose(stretched[:, 10], own[:, 6:8].mean(dim=1), atol=0.15)  # the middle stays the middle
    assert not torch.allclose(stretched[:, 20], own[:, 6:8].mean(dim=1), atol=0.15)


def test_all_weights_together_are_small() -> None:
    files = list(WEIGHTS.glob("*.safetensors"))
    assert sorted(file.stem for file in files) == sorted(MODEL_NAMES)
    assert sum(file.stat().st_size for file in files) <= 6e6


def test_the_transform_of_timm_is_the_one_of_training() -> None:
    model = timm.create_model(GUIDE)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    image = transform(Image.fromarray(make_scene("test", 0, 0).image))
    assert torch.allclose(image, train.Scenes.make("test", 0, range(1)).inputs()[0], atol=1e-6)


def test_shown_patches_hold_whole_digits_or_are_random() -> None:
    torch.manual_seed(0)
    largest, digits = torch.zeros(2, 4, 196, dtype=torch.bool)
    largest[:, 50:70] = digits[:, 50:70] = digits[:, 100:110] = True
    scenes = train.Scenes(torch.empty(0), torch.empty(0), largest, digits)

    def shown(*stage: int | str) -> torch.Tensor:
        return train.shown_patches(scenes, train.Stage(1, *stage))

    assert shown(32, 32, "largest").shape == (4, 32)
    assert (largest.gather(1, shown(32, 32, "largest")).sum(1) == 20).all()
    assert (digits.gather(1, shown(32, 32, "digits")).sum(1) == 30).all()
    drawn = [shown(20, 196) for _ in range(2000)]
    counts = {patches.shape[1] for patches in drawn}
    assert (min(counts), max(counts)) == (20, 196)
    share = sum(largest.gather(1, patches).sum() for patches in drawn) / sum(patches.numel() for patches in drawn)
    assert abs(share - 20 / 196) < 0.005


def test_scenes_to_train_on_know_the_patches_of_the_largest_and_of_all_digits() -> None:
    made, scenes = make_scene("train", 0, 5), train.Scenes.make("train", 0, range(5, 6))
    cells = [digit.mask.reshape(14, 8, 14, 8).any((1, 3)).ravel() for digit in made.digits]
    assert len(cells) > 1
    assert scenes.largest[0].tolist() == cells[0].tolist()
    assert scenes.digits[0].tolist() == np.any(cells, axis=0).tolist()


def test_heads_begin_with_reaches_of_their_own() -> None:
    """Heads with the strongest pull to what is like themselves look nearest; uniform attention looks 58 pixels far."""
    torch.manual_seed(0)
    model, images = train.new_model(GUIDE, None), train.Scenes.make("train", 0, range(4)).inputs()
    reach = attention_distances(model, images).mean(0)
    assert reach[:, 2:].max() < 35 < reach[:, 1].min()
    assert reach[:, 1].max() < 45 < reach[:, 0].min()


def test_factors_multiply_to_the_nearest_product_of_their_rank() -> None:
    product = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    left, right = train.factors(product, 1)
    assert torch.allclose(left @ right, torch.tensor([[3.0, 0.0], [0.0, 0.0]]), atol=1e-6)
    assert torch.allclose(torch.matmul(*train.factors(product, 2)), product, atol=1e-6)


class Killed(Exception):
    pass


@pytest.mark.slow
def test_training_goes_on_after_a_kill_as_if_nothing_happened(tmp_path, monkeypatch) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    train.train(GUIDE, 0, tmp_path / "whole", TINY)
    train_epoch, epochs = train.train_epoch, []

    def killed_in_second_epoch(*args):
        epochs.append(args[3])
        if len(epochs) == 2:
            raise Killed
        train_epoch(*args)

    monkeypatch.setattr(train, "train_epoch", killed_in_second_epoch)
    with pytest.raises(Killed):
        train.train(GUIDE, 0, tmp_path / "killed", TINY)
    train.train(GUIDE, 0, tmp_path / "killed", TINY)
    assert epochs == [0, 1, 1]
    whole, killed = (load_file(tmp_path / run / f"{GUIDE}.safetensors") for run in ("whole", "killed"))
    assert all(torch.equal(whole[key], killed[key]) for key in whole)
    assert not list(tmp_path.rglob("*.part*"))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("method", TEACHERS)
def test_embedded_students_find_the_digit(architecture: str, method: str) -> None:
    """On scenes that nobody was trained on; a patch at random touches the digit in about 12 %."""
    student = load_student(f"digits-{architecture}-{method}")
    scenes = train.Scenes.make("test", 11, range(200))
    saliency = student.saliency(downsample(scenes.images.permute(0, 3, 1, 2) / 255, student.input_size))
    assert pointing_game(saliency, scenes.largest.view(-1, 14, 14)).float().mean() > 0.9


def test_embedded_students_are_small() -> None:
    files = list(EMBEDDED_STUDENTS.glob("*/model.safetensors"))
    assert len(files) == len(ARCHITECTURES) * len(TEACHERS)
    assert sum(file.stat().st_size for file in files) <= 2e6


@pytest.mark.slow
def test_an_embedded_student_can_be_taught_again(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(teach.RECIPES, "convnet", TrainingSettings(epochs=1))
    folder = teach.teach("convnet", "rollout", tmp_path, scenes=80)
    student, shipped = load_student(folder), load_student("digits-convnet-rollout")
    assert student.summary == shipped.summary
    assert load_file(folder / "model.safetensors")["position"].dtype == torch.float16
    assert student(torch.rand(1, 3, 56, 56)).isfinite().all()
