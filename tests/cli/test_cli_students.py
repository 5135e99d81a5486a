"""Students on the command line: trained, used as guides, killed, on two processes; one paragraph for what is wrong."""

import json
import subprocess
import sys
import time
from functools import partial

import pandas as pd
import pytest
import torch
from helpers import failing_command, start_command
from safetensors.torch import load_file
from typer.testing import CliRunner

from vitsal import cli
from vitsal.jobs.files import locked
from vitsal.students.student import load_student

TARGET = "vitsal_digits_target_drop"
TINY = {"teacher": "vitsal_digits_guide", "data": "digits", "limit": 41, "width": 4, "cell": 2}
TINY |= {"epochs": 2, "batch-size": 12, "learning-rate": 1e-2}  # of 41 images 36 are for training: 3 steps an epoch
PLAIN = "students.TrainingSettings = partial(students.TrainingSettings, colours=0.0)"


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def train_student(output, maps, **options):
    """Arguments of a small training; options are named as on the command line, with underscores."""
    options = {name.replace("_", "-"): value for name, value in options.items()}
    options = TINY | {"output": output, "maps": maps} | options
    return ["train-student", *(str(part) for name, value in options.items() for part in (f"--{name}", value))]


def drop_curve(student, output, **options):
    options = {"target": TARGET, "data": "digits", "split": "test", "guide": "student", "student": student} | options
    options = {"keep": "0.5,0.2", "limit": 20, "device": "cpu", "output": output} | options
    given = {name: value for name, value in options.items() if value is not None}
    return ["drop-curve", *(str(part) for name, value in given.items() for part in (f"--{name}", value))]


def succeed(arguments):
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result.stdout


def lessons(folder):
    return pd.read_csv(folder / "history.csv").drop(columns="seconds")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of a student, of its teacher's maps, and what the command line said."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        shown = succeed(train_student(folder / "student", folder / "maps", epochs=4))
    return folder / "student", folder / "maps", shown


def test_train_student_writes_a_student_that_has_learnt(trained):
    output, _, shown = trained
    history = lessons(output)
    assert history.epoch.tolist() == [1, 2, 3, 4]
    assert history.kl.iloc[-1] < 0.8 * history.kl.iloc[0]
    assert f"{history.kl.iloc[-1]:.4f}" in shown
    assert shown.endswith(f"{output}\n")
    student = load_student(output)
    assert (student.architecture, student.grid_size, student.input_size) == ("convnet", (14, 14), (28, 28))
    teacher = {"teacher": "vitsal_digits_guide", "method": "rollout", "data": "digits", "loss": "kl"}
    assert student.lesson.items() >= teacher.items()


def test_drop_curve_with_the_student_as_guide(trained, tmp_path):
    shown = succeed(drop_curve(trained[0], tmp_path / "table.csv"))
    table = pd.read_csv(tmp_path / "table.csv")
    assert table.keep_ratio.tolist() == [0.5, 0.2]
    assert set(table.guide) == {"student student"}  # the folder's name
    assert set(table.n) == {20}
    assert str(tmp_path / "table.csv") in shown
    succeed(drop_curve(None, tmp_path / "center.csv", guide="center"))
    best, other = (pd.read_csv(tmp_path / f"{name}.csv").correct.iloc[1] for name in ("table", "center"))
    assert best > other  # at a fifth of the patches


@pytest.mark.slow
def test_drop_curve_with_several_students(trained, tmp_path):
    """Beside random and rollout, each is told the share of the gap that it recovers."""
    names = f"{trained[0]}, digits-convnet-rollout"
    shown = succeed(drop_curve(names, tmp_path / "t.csv", guide="random,rollout,student", limit=10, keep="1.0,0.2"))
    table = pd.read_csv(tmp_path / "t.csv")
    assert list(dict.fromkeys(table.guide)) == [
        "random",
        "rollout",
        "student student",
        "student digits-convnet-rollout",
    ]
    assert [line.split(":")[0] for line in shown.splitlines() if "recovered" in line] == [
        "student student, keep 0.2",
        "student digits-convnet-rollout, keep 0.2",
    ]


@pytest.mark.slow
def test_options_reach_the_student(trained, tmp_path):
    options = {"architecture": "transformer", "loss": "rank", "seed": 3, "accumulate": 2, "cell": 4, "epochs": 1}
    options |= {"method": "grad-rollout", "category_index": 3, "discard_ratio": 0.5, "views": 2, "limit": 20}
    succeed(train_student(tmp_path / "student", tmp_path / "maps", **options))
    about = json.loads((tmp_path / "student" / "checkpoint.json").read_text())["about"]
    wanted = {"loss": "rank", "epochs": 1, "batch_size": 12, "learning_rate": 0.01, "accumulate": 2, "seed": 3}
    assert about["recipe"].items() >= (wanted | {"geometry": False}).items()
    assert about["student"].items() >= {"architecture": "transformer", "input_size": [56, 56]}.items()
    assert about["maps"].items() >= {"limit": 20, "views": 2, "seed": 3, "image_size": [112, 112]}.items()
    teacher = {"kind": "GradientRolloutGuide", "category_index": 3, "discard_ratio": 0.5}
    assert about["maps"]["teacher"].items() >= teacher.items()


@pytest.mark.slow
def test_killed_training_goes_on_and_ends_as_if_nothing_had_been(tmp_path):
    """SIGKILL in the middle, as when a machine goes down; the same command again; no map is computed twice."""
    arguments = train_student(tmp_path / "disturbed", tmp_path / "maps", epochs=20)
    pointer = tmp_path / "disturbed" / "checkpoint.json"
    run = start_command(arguments, tmp_path / "log")
    deadline = time.monotonic() + 120
    while not pointer.exists() and time.monotonic() < deadline:
        assert run.exitcode is None, (tmp_path / "log").read_text()
        time.sleep(0.005)
    run.kill()
    run.join()
    assert 1 <= len(json.loads(pointer.read_text())["history"]) < 20  # in the middle of its work
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "maps").iterdir()}
    assert len(shards) == 2  # one, and the settings

    succeed(arguments)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "maps").iterdir()} == shards
    succeed(train_student(tmp_path / "undisturbed", tmp_path / "maps", epochs=20))
    pd.testing.assert_frame_equal(lessons(tmp_path / "disturbed"), lessons(tmp_path / "undisturbed"))
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("disturbed", "undisturbed"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.slow
def test_two_processes_teach_what_one_does(tmp_path, monkeypatch):
    """Two processes jitter colours by other factors than one, so here nothing is jittered; the rest is the command's.

    A transformer has no batch statistics, so both halves of a batch together have its gradient. The five validation
    images are no multiple of two: none may count twice. The maps are two shards, one for each process.
    """
    script = tmp_path / "train.py"
    script.write_text(
        f"from functools import partial\nfrom vitsal import cli\nfrom vitsal.cli import students\n{PLAIN}\ncli.main()\n"
    )
    plain = partial(cli.students.TrainingSettings, colours=0.0)
    monkeypatch.setattr(cli.students, "TrainingSettings", plain)
    options = {"architecture": "transformer", "views": 2, "epochs": 3}
    two = train_student(tmp_path / "two", tmp_path / "maps two", **options)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, *two]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    succeed(train_student(tmp_path / "one", tmp_path / "maps one", **options))
    ours, theirs = lessons(tmp_path / "two"), lessons(tmp_path / "one")
    assert ours.step.tolist() == [6, 12, 18]
    # They differed by 2e-7 at most. Adam could enlarge that where a gradient is nearly 0, hence the margin.
    pd.testing.assert_frame_equal(ours, theirs, rtol=0, atol=1e-4)
    names = [path.name for path in sorted((tmp_path / "maps one").glob("*.safetensors"))]
    assert names == ["view0-000000000.safetensors", "view1-000000000.safetensors"]
    for name in names:
        one, other = (load_file(tmp_path / folder / name) for folder in ("maps one", "maps two"))
        assert all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.fixture
def fail(monkeypatch, capsys):
    """Run the command line, which must end with status 2, one paragraph on stderr, and nothing on stdout."""

    return lambda arguments: failing_command(monkeypatch, capsys, arguments, bars=("teacher's maps:", "student:"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss": "kll"}, "Unknown loss 'kll'. Did you mean 'kl'? Known: kl, bce, mse, rank."),
        ({"architecture": "convnt"}, "Unknown architecture 'convnt'. Did you mean 'convnet'"),
        ({"architecture": "resnet188"}, "Unknown architecture 'resnet188'. Did you mean 'resnet18'"),
        ({"architecture": "transformer", "width": 5}, "width"),
        ({"method": "rolout"}, "Unknown method 'rolout'. Did you mean 'rollout'"),
        ({"method": "last-attention"}, "Unknown method 'last-attention'. Known: rollout, grad-rollout."),
        ({"teacher": "resnet18"}, "is a ResNet, which has no sequence of patch tokens"),
        ({"data": "gone"}, "There is no data at 'gone'"),
        ({"discard_ratio": 1.0}, "discard ratio must lie in [0, 1); got 1."),
        ({"method": "grad-rollout", "category_index": 10}, "Category index 10 is not a class of this model"),
        ({"learning_rate": -1}, "learning rate"),
        ({"limit": 1}, "holds too few cached maps for a train split"),
        ({"accumulate": 5}, "A batch of 12 images cannot be split evenly into 5 parts"),
    ],
)
def test_bad_train_student(fail, tmp_path, options, said):
    assert said in fail(train_student(tmp_path / "student", tmp_path / "maps", **options))
    assert not (tmp_path / "student").exists()


def test_pretrained_student_of_unknown_or_own_architecture(fail, tmp_path):
    good = train_student(tmp_path / "student", tmp_path / "maps")
    assert "A convnet student has no pretrained weights" in fail([*good, "--pretrained"])
    said = fail([*good, "--pretrained", "--architecture", "resnet188"])
    assert "Unknown architecture 'resnet188'. Did you mean 'resnet18'" in said


def test_empty_folder(fail, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty holds no images" in fail(train_student(tmp_path / "s", tmp_path / "maps", data=tmp_path / "empty"))


@pytest.mark.slow
def test_folders_that_hold_something_else(fail, trained, tmp_path):
    output, maps, _ = trained
    assert "holds another training (recipe: " in fail(train_student(output, maps, epochs=5))
    assert "limit: 41 there, 40 now). Name another folder" in fail(train_student(output, maps, limit=40))
    other_size = fail(train_student(output, maps, cell=4, epochs=4))
    assert "holds maps made by other settings (image_size: [56, 56] there, [112, 112] now)" in other_size
    assert "holds another training (maps: " in fail(train_student(output, tmp_path / "maps", cell=4, epochs=4))
    (tmp_path / "notes").write_text("these are my notes")
    assert "notes" in fail(train_student(output, tmp_path / "notes"))
    assert "notes" in fail(train_student(tmp_path / "notes", maps))
    assert (tmp_path / "notes").read_text() == "these are my notes"


def test_folder_that_another_run_is_training_in(fail, trained):
    output, maps, _ = trained
    with locked(output):
        assert f"Another run is training in {output}. Wait for it" in fail(train_student(output, maps, epochs=4))


@pytest.mark.slow
def test_student_taught_by_answers_is_a_student_like_others(fail, trained, tmp_path):
    start, taught = trained[0], tmp_path / "taught"
    given = {"student": start, "target": TARGET, "data": "digits", "limit": 41, "batch-size": 12, "output": taught}
    arguments = ["teach-student", *(str(part) for name, value in given.items() for part in (f"--{name}", value))]
    said = succeed(arguments)
    assert said.endswith(f"{taught}\n")
    assert set(pd.read_csv(taught / "report.csv").guide) == {"random", "guide", "before", "after"}
    student = load_student(taught)
    assert student.configuration == load_student(start).configuration
    assert student.lesson["teacher"] == TINY["teacher"]  # what it had learnt before, and where it went on
    assert (student.lesson["start"], student.lesson["target"]) == (str(start), TARGET)
    assert f"student {taught.name}" in succeed(drop_curve(taught, tmp_path / "table.csv"))
    assert "holds another training" in fail([*arguments, "--seed", "1"])


def test_learning_rate_that_is_far_too_high(fail, trained, tmp_path):
    said = fail(train_student(tmp_path / "student", trained[1], learning_rate=1e30))
    assert "The loss became nan at step 2, learning rate " in said


def test_drop_curve_without_a_student(fail, tmp_path):
    table = tmp_path / "table.csv"
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").write_text("these are my notes")
    for student, said in {
        tmp_path / "gone": "gone' is no student",
        tmp_path / "empty": "empty is no student: it holds no config.json",
        tmp_path / "notes": "notes is a file. A student is a folder",
    }.items():
        assert said in fail(drop_curve(student, table))
    bare = ["drop-curve", "--target", TARGET, "--data", "digits", "--guide", "student", "--output", str(table)]
    assert "The guide 'student' needs a student: a folder or a hub name that holds one (--student)." in fail(bare)
    assert not table.exists()
