"""Students on disk: what is written, what comes back, and one clear message for whatever is no student."""

import json
import pickle
import shutil
from contextlib import suppress
from multiprocessing import get_context

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_distillation import Hostile
from test_students import make_student

from vitsal import students
from vitsal.errors import UserError
from vitsal.students.student import Student, load_student, load_students, save_student


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["convnet", "transformer", "mobilenetv3_small_050"])
def test_saved_and_loaded_student_gives_equal_outputs(architecture, tmp_path):
    options = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "lesson": {"teacher": "tiny"}, "input_size": [32, 40]}
    student = make_student(architecture, (4, 5), **options)
    student.save_pretrained(tmp_path / "one")
    save_student(student, tmp_path / "other")
    pixels = torch.rand(2, 3, 32, 40)
    for folder in ("one", "other"):
        loaded = load_student(tmp_path / folder)
        assert not loaded.training
        assert loaded.lesson == {"teacher": "tiny"}
        assert loaded.summary == student.summary
        assert torch.equal(loaded(pixels), student(pixels))
        config = json.loads((tmp_path / folder / "config.json").read_text())
        assert config == {"architecture": architecture, "grid_size": [4, 5], "width": 8, **options}


def test_saving_replaces_the_files_and_leaves_nothing_else(tmp_path, monkeypatch):
    for _ in range(2):
        last = make_student(grid_size=(2, 2))
        save_student(last, tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert torch.equal(load_student(tmp_path).position, last.position)
    monkeypatch.setattr(students.Student, "save_pretrained", lambda self, folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_student(make_student(grid_size=(2, 2)), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_a_killed_writer_left_is_removed(tmp_path):
    (tmp_path / ".unfinished").mkdir()
    (tmp_path / ".unfinished" / "model.safetensors").write_text("half")
    student = make_student(grid_size=(2, 2))
    save_student(student, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert torch.equal(load_student(tmp_path).position, student.position)


def save_often(width, folder):
    for _ in range(20):
        save_student(Student("convnet", (2, 2), width=width), folder)


@pytest.mark.slow
def test_two_writers_leave_one_students_files(tmp_path):
    """And never the config of one with the weights of the other, which no student could be made of."""
    writers = [get_context("fork").Process(target=save_often, args=(width, tmp_path / "s")) for width in (4, 8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert load_student(tmp_path / "s").configuration["width"] in (4, 8)
    assert not (tmp_path / "s" / ".unfinished").exists()


def test_configuration_is_all_of_the_config_but_the_lesson(tmp_path):
    options = {"mean": [0.125, 0.25, 0.5], "std": [0.5, 0.75, 0.25], "input_size": [32, 40], "width": 6}
    student = Student("transformer", [4, 5], lesson={"teacher": "tiny"}, **options)
    wanted = {"architecture": "transformer", "grid_size": [4, 5], **options}
    assert student.configuration == json.loads(json.dumps(wanted))
    save_student(student, tmp_path)
    assert load_student(tmp_path).configuration == wanted
    assert json.loads((tmp_path / "config.json").read_text()) == wanted | {"lesson": {"teacher": "tiny"}}


NOTHING_THERE = "is no student .*Give a folder or a hub name that holds config.json and model.safetensors"


@pytest.mark.parametrize("name", ["gone", "gone/there", "./gone", "/gone/there", "not a name", "a/b/c"])
def test_no_student_of_this_name(name):
    with pytest.raises(UserError, match=f"'{name}' {NOTHING_THERE}"):
        load_student(name)


def test_file_and_folder_that_are_no_student(tmp_path):
    (tmp_path / "notes.txt").write_text("these are my notes")
    with pytest.raises(UserError, match=r"notes.txt is a file. A student is a folder with config.json"):
        load_student(tmp_path / "notes.txt")
    with pytest.raises(UserError, match=r"is no student: it holds no config.json"):
        load_student(tmp_path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    for architecture in ("transformer", "convnet"):
        save_student(make_student(architecture, (2, 2), width=4), folder / architecture)
    return folder


CONFIG = '{"architecture": "transformer", "grid_size": [%s]}'


@pytest.mark.parametrize(
    "changed",
    [
        "{broken",
        "",
        "[1, 2]",
        "null",
        '{"model_type": "bert"}',
        '{"architecture": "transformr", "grid_size": [2, 2]}',
        '{"architecture": "transformer", "grid_size": [2, 3]}',
        '{"architecture": "transformer", "grid_size": [0, 0]}',
        '{"architecture": "transformer", "grid_size": [2]}',
        '{"architecture": "transformer", "grid_size": [2, 2], "width": "wide"}',
        "[" * 100_000,
        '{"architecture": "transformer", "grid_size": [2, 2], "width": ' + "9" * 5000 + "}",
        CONFIG % "100000000, 100000000",
        CONFIG % "2.0, 2",
        CONFIG % "2, 2, 2",
        (CONFIG % "2, 2")[:-1] + ', "width": 1000000000}',
        (CONFIG % "2, 2")[:-1] + ', "width": 4, "input_size": [80000, 80000]}',
        (CONFIG % "2, 2")[:-1] + ', "width": 4, "std": [0, 0, 0]}',
        (CONFIG % "2, 2")[:-1] + ', "width": 4, "mean": [NaN, 0, 0]}',
        (CONFIG % "2, 2")[:-1] + ', "width": 4, "mean": [1e400, 0, 0]}',
        (CONFIG % "2, 2")[:-1] + ', "width": 4, "std": [0.5]}',
        '{"architecture": "hf-hub:somebody/something", "grid_size": [2, 2]}',
        '{"architecture": "local-dir:/", "grid_size": [2, 2]}',
    ],
)
def test_config_of_something_else(saved, tmp_path, changed):
    """Right away, too: no memory is asked for that a student cannot need."""
    shutil.copytree(saved / "transformer", tmp_path / "copy")
    (tmp_path / "copy" / "config.json").write_text(changed)
    with pytest.raises(UserError, match=r"copy' is no student") as said:
        load_student(tmp_path / "copy")
    assert "Give a folder or a hub name that holds config.json and model.safetensors" in str(said.value)


def rewrite(folder, change):
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors")


@pytest.mark.slow
def test_no_flipped_bit_of_the_weights_is_used(saved, tmp_path):
    shutil.copytree(saved / "transformer", tmp_path / "copy")
    weights, used = tmp_path / "copy" / "model.safetensors", []
    content = weights.read_bytes()
    for place in range(0, len(content), 61):
        weights.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        with suppress(UserError):
            load_student(tmp_path / "copy")
            used.append(place)
    assert used == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["position", "network.stem.1.running_var"])
def test_weights_that_are_not_finite_are_refused(saved, tmp_path, name, value):
    shutil.copytree(saved / "convnet", tmp_path / "copy")

    def change(weights):
        weights[name].view(-1)[1] = value
        return weights

    rewrite(tmp_path / "copy", change)
    with pytest.raises(UserError, match=rf"copy' is no student \(its weights {name} are not finite\)"):
        load_student(tmp_path / "copy")


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.int64])
def test_weights_that_are_no_fractions_are_refused(saved, tmp_path, dtype):
    """They would be taken for 0 and 1 without a word."""
    shutil.copytree(saved / "transformer", tmp_path / "copy")
    rewrite(tmp_path / "copy", lambda weights: {name: values.to(dtype) for name, values in weights.items()})
    said = str(dtype).removeprefix("torch.")
    with pytest.raises(UserError, match=rf"copy' is no student \(its weights .* are of the type {said}\)"):
        load_student(tmp_path / "copy")


def test_weights_of_half_the_precision_are_taken(saved, tmp_path):
    shutil.copytree(saved / "transformer", tmp_path / "copy")
    rewrite(tmp_path / "copy", lambda weights: {name: values.half() for name, values in weights.items()})
    pixels = torch.rand(1, 3, 8, 8)
    ours, theirs = (load_student(folder)(pixels) for folder in (saved / "transformer", tmp_path / "copy"))
    torch.testing.assert_close(ours, theirs, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json"])
def test_no_code_of_a_student_is_executed(saved, tmp_path, name):
    shutil.copytree(saved / "transformer", tmp_path / "copy")
    (tmp_path / "copy" / "model.safetensors").unlink()
    with (tmp_path / "copy" / name).open("wb") as file:
        pickle.dump({"position": Hostile(tmp_path / "marker")}, file)
    with pytest.raises(UserError, match=r"copy' is no student"):
        load_student(tmp_path / "copy")
    assert not (tmp_path / "marker").exists()


def test_damaged_or_wrong_weights(saved, tmp_path):
    shutil.copytree(saved / "transformer", tmp_path / "copy")
    weights = tmp_path / "copy" / "model.safetensors"
    for content in (weights.read_bytes()[:-50], weights.read_bytes()[:30], b"", b"these are my notes"):
        weights.write_bytes(content)
        with pytest.raises(UserError, match=r"copy' is no student \(.*model.safetensors is damaged.*header"):
            load_student(tmp_path / "copy")
    weights.unlink()
    with pytest.raises(UserError, match=r"copy' is no student .*model.safetensors"):
        load_student(tmp_path / "copy")


@pytest.mark.parametrize("other", ["convnet", "nothing"])
def test_weights_of_another_architecture_are_told_by_a_name(saved, tmp_path, other):
    shutil.copytree(saved / "transformer", tmp_path / "copy")
    if other == "convnet":
        shutil.copy(saved / "convnet" / "model.safetensors", tmp_path / "copy" / "model.safetensors")
    else:
        save_file({"position": torch.zeros(2, 2)}, tmp_path / "copy" / "model.safetensors")
    with pytest.raises(UserError, match=r"copy' is no student .*network\."):
        load_student(tmp_path / "copy")


def test_several_students_by_name_and_by_folder(tmp_path):
    for name in ("b", "a"):
        save_student(Student("convnet", (4, 4), width=4), tmp_path / "all" / name)
    students = load_students(f"digits-convnet-rollout, {tmp_path}/all")
    assert list(students) == ["digits-convnet-rollout", "a", "b"]
    assert students["a"].grid_size == (4, 4)
    assert list(load_students(f"{tmp_path}/all/b")) == ["b"]
    with pytest.raises(UserError, match="two are alike"):
        load_students(f"{tmp_path}/all, {tmp_path}/all/a")
    with pytest.raises(UserError, match="'gone' is no student"):
        load_students("digits-convnet-rollout, gone")
