"""A target made tolerant, and made faster, on the command line."""

import re
import time

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import failing_command, start_command
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from vitsal import cli
from vitsal.cli.targets import _warn_of_limits
from vitsal.experiments import acceleration, frontier
from vitsal.guides.accelerated import AcceleratedViT
from vitsal.models.loading import load_model, load_network
from vitsal.reduction.reduction import Reduction
from vitsal.students.student import Student
from vitsal.tuning.parameters import load_difference

TARGET = "vitsal_digits_guide"


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.chdir(tmp_path)


def words(command, **options):
    given = {"target": TARGET, "data": "digits", **options}
    return [command, *(word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", str(value)))]


def succeed(arguments):
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result.stdout


def test_tuned_checkpoint_and_difference(tmp_path):
    said = succeed(words("tune-target", limit=30, steps=3, batch_size=4, output=tmp_path / "tuned"))
    assert "kl_before" in said
    assert said.endswith(f"{tmp_path / 'tuned'}\n")
    history = pd.read_csv(tmp_path / "tuned" / "history.csv")
    assert history.step.tolist() == [0, 1, 2]
    target = load_model(TARGET)
    by_name = load_model(TARGET, tmp_path / "tuned" / "model.safetensors")
    by_difference = load_difference(target, tmp_path / "tuned" / "difference.safetensors")
    images = torch.rand(2, 3, 112, 112)
    with torch.no_grad():
        assert torch.equal(by_name(images), by_difference(images))
        assert not torch.equal(by_name(images), target(images))
    options = {"checkpoint": tmp_path / "tuned" / "model.safetensors", "limit": 4, "keep": 0.5, "output": "curve.csv"}
    assert "rollout" in succeed(words("drop-curve", **options))


@pytest.mark.slow
def test_tuning_with_a_convnet_that_chooses(tmp_path, monkeypatch):
    save_file(load_network("test_resnet", pretrained=False).state_dict(), tmp_path / "test_resnet.safetensors")
    monkeypatch.setenv("VITSAL_WEIGHTS_DIR", str(tmp_path))
    chosen = {"guide": "activation", "network": "test_resnet"}
    said = succeed(words("tune-target", **chosen, limit=10, steps=2, batch_size=2, output=tmp_path / "tuned"))
    assert "activation" in said


@pytest.mark.slow
def test_killed_tuning_goes_on_and_ends_as_if_nothing_had_been(tmp_path):
    """SIGKILL in the middle; the same command again."""
    options = {"limit": 60, "steps": 120, "batch_size": 2}
    arguments = words("tune-target", **options, output=tmp_path / "disturbed")
    state = tmp_path / "disturbed" / "state.safetensors"
    run, deadline = start_command(arguments, tmp_path / "log"), time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline:
        assert run.exitcode is None, (tmp_path / "log").read_text()
        time.sleep(0.005)
    run.kill()
    run.join()
    assert not (tmp_path / "disturbed" / "model.safetensors").exists()  # in the middle of its work
    succeed(arguments)
    succeed(words("tune-target", **options, output=tmp_path / "undisturbed"))
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("disturbed", "undisturbed"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.slow
def test_accelerated_model_from_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(acceleration, "RATIOS", (0.6,))
    monkeypatch.setattr(acceleration, "ALONE", (0.5,))
    monkeypatch.setattr(acceleration, "FINE", (0.4,))
    monkeypatch.setattr(acceleration, "SIDES", (10 / 14,))
    options = {"student": "digits-convnet-rollout", "speed_up": 2, "limit": 20, "output": tmp_path / "fast"}
    said = succeed(words("accelerate", **options, test_data="digits", test_limit=20))
    for word in ("kl", "speedup", "top1"):
        assert word in said
    fast = AcceleratedViT.from_pretrained(tmp_path / "fast")
    assert fast.reduction != Reduction()
    assert fast(torch.rand(3, 3, 112, 112)).shape == (3, 10)
    card = (tmp_path / "fast" / "README.md").read_text()
    assert "On images that it was not chosen on" in card


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param(
            {"speed_up": 100},
            "Nothing that is tried makes vitsal_digits_guide 100 times cheaper",
            marks=pytest.mark.slow,
        ),
        ({"speed_up": 0}, r"The speed-up must lie in \(1, 1000\]; got 0"),
        ({"student": "none"}, "'none' is no student"),
        ({"data": "gone"}, "There is no data at 'gone'"),
        ({"test_data": "gone"}, "There is no data at 'gone'"),
    ],
)
def test_what_cannot_be_accelerated(options, said, monkeypatch, capsys, tmp_path):
    arguments = words("accelerate", **{"speed_up": 2, "limit": 4, "output": tmp_path / "fast"} | options)
    error = failing_command(monkeypatch, capsys, arguments, bars=("operations:", "answers:"))
    assert re.search(said, error)
    assert not (tmp_path / "fast").exists()


@pytest.mark.slow
def test_frontier_is_the_same_when_its_points_and_answers_are_there_already(tmp_path, monkeypatch):
    monkeypatch.setattr(acceleration, "RATIOS", (0.6,))
    monkeypatch.setattr(acceleration, "ALONE", (0.5,))
    monkeypatch.setattr(acceleration, "FINE", (0.4,))
    monkeypatch.setattr(acceleration, "SIDES", (10 / 14,))
    options = {
        "student": "digits-convnet-rollout",
        "test_data": "digits",
        "limit": 20,
        "test_limit": 30,
        "speeds": "2,3",
    }
    monkeypatch.setattr(frontier, "time_alternating", lambda tasks, *_: dict.fromkeys(tasks, np.ones(1)))
    arguments = words("frontier", **options, output=tmp_path / "front")
    said = succeed(arguments)
    first = pd.read_csv(tmp_path / "front" / "frontier.csv")
    assert {"student digits-convnet-rollout", "random"} <= set(first.way)
    assert set(first.speed) == {2, 3}
    assert first.groupby("speed").best.sum().tolist() == [1, 1]
    assert (first.n == 30).all()
    assert (first[["speedup_1", "speedup_32"]] == 1).all(axis=None)
    assert Image.open(tmp_path / "front" / "frontier.png").size == (2666, 1500)
    monkeypatch.setattr(frontier, "frontier_points", lambda *_: pytest.fail("chosen again"))
    assert succeed(arguments) == said
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "front" / "frontier.csv"), first)


def test_a_frontier_is_not_reported_on_what_it_was_chosen_on(monkeypatch, capsys, tmp_path):
    arguments = words("frontier", test_data="digits", test_split="train", guide="random", output=tmp_path / "front")
    assert "is what the operating point is chosen on" in failing_command(monkeypatch, capsys, arguments, bars=())


def test_levers_that_are_not_to_be_had_are_told():
    """A student of another grid, and a target whose tokens cannot be merged."""
    with pytest.warns(UserWarning, match="The student's grid is 7 x 7, its maps are laid on the target's 14 x 14"):
        _warn_of_limits(load_model(TARGET), Student(grid_size=(7, 7), width=4))
    beit = load_model("beit_base_patch16_224", pretrained=False, depth=1)
    with pytest.warns(UserWarning, match="The target's tokens cannot be merged: that lever is left out"):
        _warn_of_limits(beit, None)
