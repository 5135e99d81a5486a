"""Tuning: one step by hand, what is left untouched, kills, and what it is for."""

import copy

import pandas as pd
import pytest
import torch
from helpers import KillError, assert_close, in_two_processes, killed_once, noise_folder, traces
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms import ToTensor

from vitsal.choices import TuningSettings
from vitsal.data.opening import open_data
from vitsal.errors import UserError
from vitsal.guides import GradientRolloutGuide, RolloutGuide
from vitsal.guides.accelerated import AcceleratedViT
from vitsal.guides.baselines import CenterGuide, RandomGuide
from vitsal.jobs.processes import make_accelerator
from vitsal.models.loading import load_model
from vitsal.models.tokens import model_transform
from vitsal.students.distillation import DivergedError
from vitsal.students.student import Student, save_student
from vitsal.tuning import lessons, steps, tolerance
from vitsal.tuning.lessons import Lessons
from vitsal.tuning.mixture import MixedImages
from vitsal.tuning.parameters import load_difference
from vitsal.tuning.tolerance import tune_target


@pytest.fixture
def folder(tmp_path):
    """24 images of noise."""
    return noise_folder(tmp_path / "images", 24)


def tune(model, folder, output, guides=None, transform=None, **options):
    settings = TuningSettings(**{"batch_size": 6, "steps": 5, **options})
    dataset = open_data(str(folder), transform or model_transform(model))
    guides = guides or {"rollout": RolloutGuide(model, "max", 0.5), "random": RandomGuide((4, 4))}
    return tune_target(model, [dataset], guides, output, settings, progress=False)


@pytest.fixture
def mirrored(tmp_path):
    """24 images that a mirror leaves as they are, so that whether they were mirrored makes no difference."""
    for path in noise_folder(tmp_path / "mirrored", 24, classes=1).glob("*/*.png"):
        image = Image.open(path)
        image.paste(image.crop((0, 0, 32, 64)).transpose(Image.Transpose.FLIP_LEFT_RIGHT), (32, 0))
        image.save(path)
    return tmp_path / "mirrored"


def test_steps_by_hand(tiny_vit, mirrored, tmp_path, monkeypatch):
    """Two steps, image by image, with torch's AdamW: at the second, whole images count as well."""
    monkeypatch.setattr(lessons, "NOISE", (0.0,))
    options = {"steps": 2, "whole": 3.0, "parameters": ("norm.*",), "learning_rate": 0.01, "shares": (1, 0, 0)}
    tune(tiny_vit, mirrored, tmp_path / "out", {"center": CenterGuide((4, 4))}, ToTensor(), **options)
    history = pd.read_csv(tmp_path / "out" / "history.csv")

    images = MixedImages([open_data(str(mirrored), ToTensor())])
    model, drawn = copy.deepcopy(tiny_vit), Lessons.for_model(tiny_vit, ["center"], TuningSettings(shares=(1, 0, 0)))
    optimizer = torch.optim.AdamW(model.norm.parameters(), weight_decay=0.0)
    for step, row in enumerate(history.itertuples()):
        optimizer.param_groups[0]["lr"] = row.learning_rate
        reduced = AcceleratedViT(model, CenterGuide((4, 4)), drawn.draw(step).reduction)
        batch = [images[number].image[None] for number in images.numbers_of(step, 6)]
        losses = [slow_divergence(reduced(image), tiny_vit(image)) for image in batch]
        whole = [slow_divergence(model(image), tiny_vit(image)) for image in batch[::2]]
        whole += [slow_distance(model(image), tiny_vit(image)) for image in batch[::2]]
        assert row.reduced == pytest.approx(sum(losses).item() / 6, rel=1e-4)
        assert row.whole == pytest.approx(sum(whole).item() / 3, rel=1e-3, abs=1e-6)
        optimizer.zero_grad()
        (sum(losses) / 6 + 3 * sum(whole) / 3).backward()
        torch.nn.utils.clip_grad_norm_(model.norm.parameters(), 1.0)
        optimizer.step()
    assert history.whole[1] > 1e-4
    tuned = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in model.state_dict().items():
        assert_close(tuned[name], value, 1e-5)


def test_answers_and_a_map_of_one_pass_are_those_of_two(tiny_vit, folder, images):
    for name, guide in {
        "rollout": RolloutGuide(tiny_vit, "max", 0.5),
        "grad-rollout": GradientRolloutGuide(tiny_vit),
        "another's": RolloutGuide(copy.deepcopy(tiny_vit), "max", 0.5),
        "center": CenterGuide((4, 4)),
    }.items():
        data, settings = MixedImages([open_data(str(folder), model_transform(tiny_vit))]), TuningSettings()
        tuning = tolerance._Tuning(tiny_vit, data, {name: guide}, settings, make_accelerator())
        with torch.no_grad():
            answers, saliency = tuning.ask(images, name)
            assert_close(answers, tiny_vit(images))
        assert_close(saliency, guide(images))


def slow_distance(logits, wanted):
    differences = logits[0] - wanted[0].detach()
    return sum((value - differences.mean()) ** 2 for value in differences) / len(differences)


def slow_divergence(logits, wanted):
    wanted = wanted.detach().softmax(dim=1)
    return (wanted * (wanted.log() - logits.log_softmax(dim=1))).sum()


def test_target_is_left_as_it_is_and_only_what_was_named_changes(tiny_vit, folder, tmp_path):
    before = copy.deepcopy(tiny_vit.state_dict())
    flags = {name: value.requires_grad for name, value in tiny_vit.named_parameters()}
    left = traces(tiny_vit)
    tune(tiny_vit, folder, tmp_path / "out", parameters=("*norm*", "cls_token"))
    assert all(torch.equal(value, before[name]) for name, value in tiny_vit.state_dict().items())
    assert flags == {name: value.requires_grad for name, value in tiny_vit.named_parameters()}
    assert traces(tiny_vit) == left
    tuned = load_file(tmp_path / "out" / "model.safetensors")
    changed = {name for name, value in tuned.items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "norm" in name or name == "cls_token"}


def test_output_is_a_checkpoint_and_a_small_difference(tiny_vit, folder, images, tmp_path):
    report = tune(tiny_vit, folder, tmp_path / "out")
    options = {"img_size": 64, "depth": 3}
    tuned = load_model("vit_tiny_patch16_224", tmp_path / "out" / "model.safetensors", **options)
    again = load_difference(tiny_vit, tmp_path / "out" / "difference.safetensors")
    with torch.no_grad():
        assert torch.equal(tuned(images), again(images))
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / "report.csv", keep_default_na=False), report)
    assert set(report.n) == {3}  # a tenth of 24, rounded up


@pytest.mark.slow
def test_killed_it_goes_on_to_equal_weights(tiny_vit, folder, tmp_path, monkeypatch):
    """A kill in the middle of the third part of two steps: what it had begun is done again."""
    monkeypatch.setattr(steps, "PART", 2)
    tune(tiny_vit, folder, tmp_path / "whole", steps=7)
    with killed_once(tolerance._Tuning, 5) as taken:
        with pytest.raises(KillError):
            tune(tiny_vit, folder, tmp_path / "killed", steps=7)
        tune(tiny_vit, folder, tmp_path / "killed", steps=7)
    assert taken == [0, 1, 2, 3, 4, 5, 4, 5, 6]
    for name in ("model.safetensors", "difference.safetensors"):
        ours, theirs = (load_file(tmp_path / folder / name) for folder in ("killed", "whole"))
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert (tmp_path / "killed" / "report.csv").read_text() == (tmp_path / "whole" / "report.csv").read_text()
    ours, theirs = (pd.read_csv(tmp_path / name / "history.csv") for name in ("killed", "whole"))
    pd.testing.assert_frame_equal(ours.drop(columns="seconds"), theirs.drop(columns="seconds"))


def test_another_tuning_and_a_damaged_one_are_refused(tiny_vit, folder, tmp_path):
    tune(tiny_vit, folder, tmp_path / "out", steps=2)
    state = tmp_path / "out" / "state.safetensors"
    content = state.read_bytes()
    with pytest.raises(UserError, match=r"holds another training \(settings: .*'learning_rate': 0.001"):
        tune(tiny_vit, folder, tmp_path / "out", steps=2, learning_rate=0.01)
    state.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"state\.safetensors is damaged \(its checksum does not fit\)\. Remove"):
        tune(tiny_vit, folder, tmp_path / "out", steps=2)
    state.write_bytes(content[:50])
    with pytest.raises(UserError, match="is damaged"):
        tune(tiny_vit, folder, tmp_path / "out", steps=2)


def test_folders_of_others_are_left_alone(tiny_vit, folder, tmp_path):
    save_student(Student(grid_size=(4, 4), width=4), tmp_path / "student")
    before = (tmp_path / "student" / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"holds model\.safetensors, and no state\.safetensors: name another"):
        tune(tiny_vit, folder, tmp_path / "student")
    assert (tmp_path / "student" / "model.safetensors").read_bytes() == before


def test_broken_images_are_named_and_passed_over(tiny_vit, folder, tmp_path):
    for index in range(0, 24, 2):
        (folder / "0" / f"{index:02d}.png").write_text("these are my notes")
    with pytest.warns(UserWarning, match="could not be read and were skipped"):
        report = tune(tiny_vit, folder, tmp_path / "out", steps=8, batch_size=1, seed=2)
    assert len(pd.read_csv(tmp_path / "out" / "history.csv")) == 8
    images = MixedImages([open_data(str(folder), model_transform(tiny_vit))], seed=2)
    assert report.n[0] == sum(images[number].image is not None for number in images.held_out) < len(images.held_out)


def test_a_loss_that_is_not_finite(tiny_vit, folder, tmp_path):
    with torch.no_grad():
        tiny_vit.norm.bias.fill_(float("nan"))
    with pytest.raises(
        DivergedError, match=r"The loss became nan, .* at step 0 .* try a lower learning rate than 0.001"
    ):
        tune(tiny_vit, folder, tmp_path / "out", {"center": CenterGuide((4, 4))})


def test_a_target_without_answers_is_refused_before_anything_is_written(tiny_vit, folder, tmp_path):
    guides = {"center": CenterGuide((4, 4))}
    with pytest.raises(UserError, match="The target is in training mode"):
        tune(tiny_vit.train(), folder, tmp_path / "out", guides)
    tiny_vit.eval().reset_classifier(0)
    with pytest.raises(UserError, match="The target has no classifier"):
        tune(tiny_vit, folder, tmp_path / "out", guides)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_it_makes_a_target_more_tolerant(tmp_path):
    """The embedded target, on scenes: it comes nearer to its answers on whole images, and keeps those."""
    target = load_model("vitsal_digits_target")
    dataset = open_data("digits", model_transform(target), split="train")
    settings = TuningSettings(steps=30, batch_size=12, limit=200)
    guides = {"random": RandomGuide((14, 14))}
    report = tune_target(target, [dataset], guides, tmp_path / "out", settings, progress=False)
    dropped = report[report.guide == "random"]
    assert (dropped.kl_after < dropped.kl_before).all()
    assert dropped.kl_after.iloc[0] < 0.9 * dropped.kl_before.iloc[0]
    assert report.same_after[0] > 0.9


@pytest.mark.slow
def test_two_processes_tune_as_one(tiny_vit, folder, tmp_path):
    def tune_the_same(output):
        tune(copy.deepcopy(tiny_vit), folder, output, batch_size=8, parameters=("*norm*", "cls_token"))

    tune_the_same(tmp_path / "one")
    in_two_processes(tune_the_same, tmp_path / "two")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        assert_close(two[name], value, 1e-4)
