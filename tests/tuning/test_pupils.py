"""Students taught by answers: steps by hand, what is left untouched, kills, and what it is for."""

import copy

import pandas as pd
import pytest
import torch
from helpers import KillError, assert_close, in_two_processes, killed_once, noise_folder, traces
from safetensors.torch import load_file

from vitsal.choices import AnswerSettings
from vitsal.data.opening import open_data
from vitsal.errors import UserError
from vitsal.guides import RolloutGuide
from vitsal.guides.accelerated import AcceleratedViT
from vitsal.guides.adapters import StudentGuide
from vitsal.guides.baselines import CenterGuide
from vitsal.jobs.identity import seed_of
from vitsal.models.loading import load_model
from vitsal.models.pixels import denormalize, downsample
from vitsal.models.tokens import model_transform
from vitsal.reduction.reduction import Reduction
from vitsal.students.student import Student, load_student, new_student, save_student
from vitsal.tuning import pupils, steps
from vitsal.tuning.lessons import Lessons
from vitsal.tuning.mixture import MixedImages
from vitsal.tuning.pupils import teach_by_answers


@pytest.fixture
def folder(tmp_path):
    """20 images of noise, of which two are held out."""
    return noise_folder(tmp_path / "images", 20)


@pytest.fixture
def pupil():
    return new_student("convnet", (4, 4), width=4, seed=3).eval()


def teach(pupil, model, folder, output, guide=None, **options):
    settings = AnswerSettings(**{"batch_size": 6, "epochs": 1, **options})
    dataset = open_data(str(folder), model_transform(model))
    guide = guide or RolloutGuide(model, "max", 0.5)
    return teach_by_answers(pupil, model, guide, [dataset], output, settings, progress=False)


def test_steps_by_hand(pupil, tiny_vit, folder, tmp_path):
    """Three steps, image by image, the gradient with respect to the logits written down, with torch's AdamW."""
    teach(pupil, tiny_vit, folder, tmp_path / "out", soften="1", keep_ratios=(0.3, 0.6), learning_rate=0.01)
    history = pd.read_csv(tmp_path / "out" / "history.csv")
    assert len(history) == 3

    images = MixedImages([open_data(str(folder), model_transform(tiny_vit))])
    drawn = Lessons(("guide",), (), (), (0.3, 0.6), (1, 0, 0), "1")
    learner, guide = copy.deepcopy(pupil), RolloutGuide(tiny_vit, "max", 0.5)
    optimizer = torch.optim.AdamW(learner.parameters(), weight_decay=0.0)
    for step, row in enumerate(history.itertuples()):
        optimizer.param_groups[0]["lr"] = row.learning_rate
        generator = torch.Generator().manual_seed(seed_of(0, "step", step))
        mirrored = torch.rand((), generator=generator) < 0.5
        batch = torch.stack([images[number].image for number in images.numbers_of(step, 6)])
        batch = batch.flip(3) if mirrored else batch
        noise = 0.7 * torch.randn(6, 4, 4, generator=generator)
        optimizer.zero_grad()
        tried, leashes = [], []
        for image, one in zip(batch.split(1), noise.split(1), strict=True):
            logits = learner(denormalize(downsample(image, (16, 16)), tiny_vit))
            scores = {way: logits.detach() + way * one for way in (1, -1)}
            answers = [
                AcceleratedViT(tiny_vit, lambda _, s=s: s, drawn.draw(step).reduction)(image) for s in scores.values()
            ]
            up, down = (slow_divergence(answer, tiny_vit(image)) for answer in answers)
            leash = slow_divergence(logits.flatten(1), guide(image).flatten(1).log())
            tried += [up, down]
            leashes.append(leash.item())
            own = torch.autograd.grad(leash / 6, logits)[0]
            learner(denormalize(downsample(image, (16, 16)), tiny_vit)).backward(
                (up - down) / (2 * 0.7) * (one / 0.7) / 6 + pupils.LEASH * own
            )
        assert row.kl == pytest.approx(sum(tried).item() / 12, rel=1e-4)
        assert row.leash == pytest.approx(sum(leashes) / 6, rel=1e-4)
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
    taught = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in learner.state_dict().items():
        assert_close(taught[name], value, 1e-4)


def slow_divergence(logits, wanted):
    wanted = wanted.detach().softmax(dim=1)
    return (wanted * (wanted.clamp_min(1e-12).log() - logits.log_softmax(dim=1))).sum()


def test_start_and_target_stay_and_the_report_tells_of_both(pupil, tiny_vit, folder, images, tmp_path):
    kept, before = copy.deepcopy(pupil.state_dict()), copy.deepcopy(tiny_vit.state_dict())
    left = traces(tiny_vit)
    report = teach(pupil, tiny_vit, folder, tmp_path / "out", epochs=2)
    assert all(torch.equal(value, kept[name]) for name, value in pupil.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in tiny_vit.state_dict().items())
    assert traces(tiny_vit) == left
    taught = load_student(tmp_path / "out")
    changed = {name for name, value in taught.state_dict().items() if not torch.equal(value, kept[name])}
    assert changed
    assert not any("running" in name for name in changed)  # its normalisation stays
    assert len(pd.read_csv(tmp_path / "out" / "history.csv")) == 6  # two passes over 18 images, six at once

    data = MixedImages([open_data(str(folder), model_transform(tiny_vit))])
    held = torch.stack([data[number].image for number in data.held_out])
    for name, student in {"before": pupil, "after": taught}.items():
        fast = AcceleratedViT(tiny_vit, StudentGuide(student, tiny_vit), Reduction(0.3, soften="1-"))
        with torch.no_grad():
            found = [slow_divergence(fast(image[None]), tiny_vit(image[None])).item() for image in held]
        row = report[(report.guide == name) & (report.keep_ratio == 0.3)]
        assert row.kl.item() == pytest.approx(sum(found) / 2, rel=1e-3)
        assert row.n.item() == 2


@pytest.mark.slow
def test_killed_it_goes_on_to_an_equal_student(pupil, tiny_vit, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "PART", 2)
    teach(pupil, tiny_vit, folder, tmp_path / "whole", epochs=2)
    with killed_once(pupils._Teaching, 3) as taken:
        with pytest.raises(KillError):
            teach(pupil, tiny_vit, folder, tmp_path / "killed", epochs=2)
        teach(pupil, tiny_vit, folder, tmp_path / "killed", epochs=2)
    assert taken == [0, 1, 2, 3, 2, 3, 4, 5]
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("killed", "whole"))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert (tmp_path / "killed" / "report.csv").read_text() == (tmp_path / "whole" / "report.csv").read_text()


def test_what_cannot_be_taught_is_refused(pupil, tiny_vit, folder, tmp_path):
    with pytest.raises(UserError, match=r"The student's grid is \(3, 4\), the target's is \(4, 4\)"):
        teach(Student(grid_size=(3, 4), width=4), tiny_vit, folder, tmp_path / "out")
    save_student(pupil, tmp_path / "another")
    with pytest.raises(UserError, match=r"holds .*, and no state\.safetensors: name another"):
        teach(pupil, tiny_vit, folder, tmp_path / "another")
    teach(pupil, tiny_vit, folder, tmp_path / "out")
    with pytest.raises(UserError, match=r"holds another .*student: 'convnet [0-9a-f]{12}' there"):
        teach(new_student("convnet", (4, 4), width=4, seed=4).eval(), tiny_vit, folder, tmp_path / "out")


def test_a_target_without_answers_is_refused_before_anything_is_written(pupil, tiny_vit, folder, tmp_path):
    with pytest.raises(UserError, match="The target is in training mode"):
        teach(pupil, tiny_vit.train(), folder, tmp_path / "out", CenterGuide((4, 4)))
    tiny_vit.eval().reset_classifier(0)
    with pytest.raises(UserError, match="The target has no classifier"):
        teach(pupil, tiny_vit, folder, tmp_path / "out", CenterGuide((4, 4)))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_it_learns_what_matters_to_the_target(tmp_path, monkeypatch):
    """From random weights and without a leash, on scenes: choices change the answers far less."""
    monkeypatch.setattr(pupils._Teaching, "weights", (1.0, 0.0))
    target = load_model("vitsal_digits_target")
    dataset = open_data("digits", model_transform(target), split="train")
    settings = AnswerSettings(epochs=6, batch_size=12, learning_rate=1e-3, limit=200)
    pupil = new_student("convnet", (14, 14), width=16, seed=0).eval()
    report = teach_by_answers(pupil, target, CenterGuide((14, 14)), [dataset], tmp_path, settings, progress=False)
    kl = report.set_index(["guide", "keep_ratio"]).kl
    assert kl["after", 0.5] < 0.5 * kl["before", 0.5]
    assert kl["after", 0.5] < kl["guide", 0.5] < kl["random", 0.5]


@pytest.mark.slow
def test_two_processes_teach_as_one(tiny_vit, folder, tmp_path):
    def teach_the_same(output):
        teach(new_student("convnet", (4, 4), width=4, seed=3).eval(), tiny_vit, folder, output, batch_size=8)

    teach_the_same(tmp_path / "one")
    in_two_processes(teach_the_same, tmp_path / "two")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        assert_close(two[name], value, 1e-4)
