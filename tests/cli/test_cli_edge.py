"""The command line's edge: whatever goes wrong, one paragraph and status 2; no input is ever written over."""

import errno
import json
import os
import shutil
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from helpers import failing_command, noise_image, write_notebook
from typer.testing import CliRunner

from vitsal import cli
from vitsal.cli.options import parse_image_size, parse_ratios, parse_run_arguments, parse_value
from vitsal.errors import UserError, check_number, check_whole, tell
from vitsal.jobs.devices import find_device
from vitsal.jobs.paths import LONGEST_NAME, check_output, check_output_folder

MODEL = "vitsal_digits_guide"


@pytest.fixture(autouse=True)
def _no_figure_left():
    yield
    plt.close("all")


@pytest.fixture
def fail(monkeypatch, capsys):
    """Run the command line, which must end with status 2 and one paragraph on stderr."""
    return lambda *arguments: failing_command(monkeypatch, capsys, arguments, bars=("images:", "attention distance:"))


@pytest.fixture
def usage_error(monkeypatch, capsys):
    """Run the command line, which must find fault with an option before anything else."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["vitsal", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        return " ".join(capsys.readouterr().err.replace("│", " ").split())

    return run


@pytest.fixture
def picture(tmp_path):
    return noise_image(tmp_path / "photos" / "cat.png", seed=1, size=(112, 112))


def succeed(*arguments):
    result = CliRunner().invoke(cli.app, [str(part) for part in arguments])
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result.stdout


def stop_with(monkeypatch, error):
    """Let `explain` raise this as soon as it loads its model."""

    def load(*arguments, **options):
        raise error

    monkeypatch.setattr("vitsal.models.load_sized_model", load)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "The operating system refused: No space left on device."),
        (PermissionError(errno.EACCES, "Permission denied", "out.png"), "refused: Permission denied (out.png)."),
        (MemoryError(), "The memory does not suffice for this. Try a smaller batch"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "memory does not suffice",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "memory does not suffice"),
        (KeyError("depth"), "This did not work: KeyError: 'depth'. If it should have worked, --debug shows where"),
        (AssertionError(), "This did not work: AssertionError. If"),
        (RecursionError("too deep"), "RecursionError: too deep"),
        (UserError("First,\nsecond."), "Error: First, second."),
    ],
)
def test_errors_become_one_paragraph(fail, picture, monkeypatch, error, said):
    stop_with(monkeypatch, error)
    assert said in fail("explain", picture, "-o", picture.with_name("out.png"))


def test_an_error_out_of_a_process_that_reads_images():
    """torch hands on the traceback as text."""
    handed = "Caught UserError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File x\n"
    assert tell(UserError(f"{handed}vitsal.errors.UserError: There is no shard 3.\n")) == "There is no shard 3."
    assert "ValueError: bad. If" in tell(ValueError(f"{handed}ValueError: bad\n"))


@pytest.mark.parametrize("place", [0, 1, 4])
def test_debug_shows_the_traceback_from_anywhere(picture, monkeypatch, capsys, place):
    stop_with(monkeypatch, KeyError("depth"))
    words = ["explain", str(picture), "-o", str(picture.with_name("out.png"))]
    monkeypatch.setattr(sys, "argv", ["vitsal", *words[:place], "--debug", *words[place:]])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr().err
    assert ended.value.code == 2
    assert shown.startswith("Traceback (most recent call last)")
    assert shown.splitlines()[-1].startswith("Error: This did not work: KeyError")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [(KeyboardInterrupt(), 130, "Interrupted.\n"), (BrokenPipeError(errno.EPIPE, ""), 1, "")],
)
@pytest.mark.parametrize("inside", [True, False])
def test_interrupted_or_no_longer_read(picture, monkeypatch, capsys, error, status, said, inside):
    """In a command, where typer stands between, and around it."""

    def app(words):
        raise error

    stop_with(monkeypatch, error) if inside else monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr(sys, "argv", ["vitsal", "explain", str(picture), "-o", str(picture.with_name("out.png"))])
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, getattr(sys, stream))  # typer exchanges them where nobody reads
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (ended.value.code, capsys.readouterr().err) == (status, said)


def test_a_full_disk_under_the_output(fail, picture, monkeypatch):
    """Nothing half is left."""

    def write(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", write)
    output = picture.with_name("out.png")
    assert "No space left on device" in fail("explain", picture, "--model", MODEL, "-o", output)
    assert os.listdir(picture.parent) == ["cat.png"]


def outputs(command, output, tmp_path):
    """Arguments of a command that is to write there, and would fail later, since its data is not there."""
    if command == "run":
        return ["run", "--notebooks", tmp_path / "gone", "-o", output]
    if command == "video":
        return ["video", tmp_path / "gone.mp4", output]
    if command == "explain":
        return ["explain", tmp_path / "gone.png", "-o", output]
    name = {"drop-curve": "--target", "train-student": "--teacher", "probe": "--model"}[command]
    return [command, name, MODEL, "--data", tmp_path / "gone", "-o", output]


@pytest.mark.parametrize(
    ("command", "ending"),
    [("explain", ".png"), ("video", ".mp4"), ("drop-curve", ".csv"), ("probe", ""), ("train-student", ""), ("run", "")],
)
def test_outputs_are_checked_before_work_begins(fail, tmp_path, monkeypatch, command, ending):
    """Each of these commands would find no data, but its output is looked at first."""
    (tmp_path / "notes").write_text("these are my notes")
    (tmp_path / f"folder{ending}").mkdir()
    output = "x" * (LONGEST_NAME + 1) + ending
    assert "is too long for the name of a file" in fail(*outputs(command, tmp_path / output, tmp_path))
    deep = tmp_path.joinpath(*["deep"] * 1000, f"out{ending}")
    assert "is too long for the name of a file" in fail(*outputs(command, deep, tmp_path))
    below = tmp_path / "notes" / f"out{ending}"
    assert "notes is a file, and a folder is needed" in fail(*outputs(command, below, tmp_path))
    if ending:
        assert "is a folder; name a file." in fail(*outputs(command, tmp_path / f"folder{ending}", tmp_path))
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for link in ("dangling", "loop"):
        nowhere = tmp_path / link / f"out{ending}"
        assert f"{link} is a link that leads nowhere" in fail(*outputs(command, nowhere, tmp_path))
    assert "which only a shell turns into a folder" in fail(*outputs(command, f"~/out{ending}", tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "cannot be written to" in fail(*outputs(command, tmp_path / f"out{ending}", tmp_path))


def test_a_folder_that_may_not_be_written_to(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written to"):
        check_output(tmp_path / "new" / "table.csv")


def test_an_output_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    for path in (tmp_path / "pipe.csv", os.devnull):
        with pytest.raises(UserError, match="is no file that can be written"):
            check_output(path)
    check_output(tmp_path / "new" / "folders" / "table.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["pipe.csv"]  # nothing is made by the check


def ways_to_say(path, folder):
    """Other names of one file."""
    (folder / "soft.png").symlink_to(path)
    (folder / "hard.png").hardlink_to(path)
    (folder / "way").symlink_to(path.parent)
    return [path, path.parent / ".." / path.parent.name / path.name, folder / "soft.png", folder / "hard.png",
            folder / "way" / path.name]  # fmt: skip


def test_explain_never_writes_over_its_picture(fail, picture, tmp_path):
    before = picture.read_bytes()
    (tmp_path / "other").mkdir()
    for output in ways_to_say(picture, tmp_path / "other"):
        for source in (picture, picture.parent):
            assert "is the source itself" in fail("explain", source, "--model", MODEL, "-o", output)
    assert picture.read_bytes() == before
    (picture.parent / "link.png").symlink_to(noise_image(tmp_path / "elsewhere.png", seed=2))
    assert "is the source itself" in fail("explain", picture.parent, "--model", MODEL, "-o", tmp_path / "elsewhere.png")
    succeed("explain", picture, "--model", MODEL, "--device", "cpu", "-o", picture.with_name("new.png"))


def test_video_never_writes_over_its_source(fail, tmp_path):
    (tmp_path / "in.mp4").write_bytes(b"film")
    (tmp_path / "out.mp4").hardlink_to(tmp_path / "in.mp4")
    said = fail("video", tmp_path / "in.mp4", tmp_path / "out.mp4", "--model", "gone")
    assert "in.mp4); name another file." in said


@pytest.mark.parametrize("option", ["--checkpoint", "--guide-checkpoint", "--data", "--student"])
def test_drop_curve_never_writes_over_what_it_reads(fail, tmp_path, option):
    (tmp_path / "pupil").mkdir()
    (tmp_path / "pupil" / "model.safetensors").write_bytes(b"weights")
    source = tmp_path / "pupil" / ("" if option == "--student" else "model.safetensors")
    (tmp_path / "table.csv").hardlink_to(tmp_path / "pupil" / "model.safetensors")
    options = {
        "--target": MODEL,
        "--data": "digits",
        "--guide": "rollout,student",
        "--student": "digits-convnet-rollout",
    }
    options |= {option: source, "-o": tmp_path / "table.csv"}
    assert "The output" in fail("drop-curve", *(word for pair in options.items() for word in pair))
    assert (tmp_path / "table.csv").read_bytes() == b"weights"


def test_train_student_never_writes_over_what_it_reads(fail, picture, tmp_path):
    data, (teacher, output) = picture.parent.parent, (tmp_path / "teacher", tmp_path / "student")
    teacher.mkdir()
    (teacher / "model.safetensors").write_bytes(b"weights")
    good = {"--teacher": MODEL, "--data": "digits", "-o": output}
    for changes, said in [
        ({"--data": data, "-o": data}, "is"),
        ({"--data": data, "--maps": data}, "is"),
        ({"--data": f"wds/{data}", "-o": data}, "is"),
        ({"--maps": output}, "is"),
        ({"--teacher": f"local-dir:{teacher}", "-o": teacher}, "is"),
    ]:
        words = [word for pair in (good | changes).items() for word in pair]
        assert f" {said} " in fail("train-student", *words).partition(", which is read; name another folder.")[0]
    good |= {"--checkpoint": teacher / "model.safetensors", "-o": teacher}
    assert "model.safetensors is the source itself" in fail(
        "train-student", *(w for pair in good.items() for w in pair)
    )
    assert [path.name for path in teacher.iterdir()] == ["model.safetensors"]


def test_probe_and_run_never_write_into_what_they_read(fail, picture, tmp_path):
    data = picture.parent.parent
    assert "which is read" in fail("probe", "--model", MODEL, "--data", data, "-o", picture.parent)
    write_notebook(tmp_path / "notebooks" / "01_n.ipynb", 'output_dir = ""')
    before = (tmp_path / "notebooks" / "01_n.ipynb").read_bytes()
    assert "which is read" in fail("run", "--notebooks", tmp_path / "notebooks", "-o", tmp_path / "notebooks")
    assert (tmp_path / "notebooks" / "01_n.ipynb").read_bytes() == before
    check_output_folder(tmp_path / "notebooks" / "made", tmp_path / "notebooks", within=True)


DROP = ["drop-curve", "--target", MODEL, "--data", "gone"]
TRAIN = ["train-student", "--teacher", MODEL, "--data", "gone", "-o", "out"]
EXPLAIN = ["explain", "gone.png", "--model", MODEL]


@pytest.mark.parametrize(
    "number", ["1e20", "99999999999999999999", "9" * 400, "9" * 5000, "-99999999999", "nan", "1.5"]
)
@pytest.mark.parametrize(
    ("command", "option"),
    [
        *[(DROP, option) for option in ("--seed", "--limit", "--batch-size", "--num-workers")],
        *[(TRAIN, option) for option in ("--seed", "--limit", "--batch-size", "--num-workers", "--views", "--width")],
        *[(TRAIN, option) for option in ("--cell", "--epochs", "--accumulate", "--patience")],
        (EXPLAIN, "--limit"),
        (["video", "gone.mp4", "out.mp4"], "--width"),
        (["video", "gone.mp4", "out.mp4"], "--batch-size"),
        (["probe", "--data", "gone"], "--limit"),
        (["benchmark", "rollout"], "--batch-size"),
        (["benchmark", "rollout"], "--repeats"),
    ],
)
def test_numbers_beyond_all_bounds(usage_error, command, option, number):
    assert f"Invalid value for '{option}'" in usage_error(*command, option, number)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*DROP, "--guide", "random", "--seed", "-1"], "Invalid value for '--seed'"),
        ([*DROP, "--guide", "random", "--seed", 2**32], "Invalid value for '--seed'"),
        ([*TRAIN, "--learning-rate", "inf"], "learning"),
        ([*TRAIN, "--learning-rate", "nan"], "learning"),
        ([*TRAIN, "--discard-ratio", "nan"], "The discard ratio must be a number in [0, 1); got nan."),
        ([*EXPLAIN, "--category-index", "9" * 400], "is not a class of this model"),
    ],
)
def test_numbers_that_are_none_or_start_no_generator(usage_error, picture, arguments, said):
    assert said in usage_error(*(picture if part == "gone.png" else part for part in arguments))


NO_RATIOS = [
    "{[]:1}",
    "9" * 400,
    "9" * 5000,
    "[" * 100_000,
    "-" * 100_000 + "1",
    "1" + "+1" * 9_000,
    "1e400",
    "1j",
    "\0",
]


@pytest.mark.parametrize("text", NO_RATIOS, ids=lambda text: text[:20])
def test_keep_ratios_that_are_none(text):
    with pytest.raises(UserError, match="The keep ratio must") as error:
        parse_ratios(text)
    assert len(str(error.value)) < 300


def test_values_that_python_cannot_read_are_text():
    for text in ("{[]:1}", "-" * 100_000 + "1", "1" + "+1" * 9_000, "'" * 3, "0x", "9" * 5000):
        assert parse_value(f" {text} ") == text
    assert parse_value("9" * 400) == int("9" * 400)


@pytest.mark.parametrize("text", ["99999999", "8193", "9" * 5000, "64,99999999", "²", "٣٢", "1e3", "", ","])
def test_image_sizes_that_are_none(text):
    with pytest.raises(UserError, match="image size must be") as error:
        parse_image_size(text)
    assert len(str(error.value)) < 400


def test_notebooks_of_impossible_numbers():
    for word in ("99999999999", "9" * 5000, "²", "-1"):
        with pytest.raises(UserError, match="is neither a notebook's number nor a parameter"):
            parse_run_arguments([word])


def test_numbers_in_messages_are_short():
    with pytest.raises(UserError, match=r"must lie in \(0, 1\]; got 9{100} \.\.\. 9{100}\."):
        check_number("keep ratio", int("9" * 400), 0, 1, open_end="low")
    for value in (1.0, True, "3", None, 11, -1):
        with pytest.raises(UserError, match="The seed must be a whole number from 0 to 10; got"):
            check_whole("seed", value, 0, 10)
    assert check_whole("seed", 10, 0, 10) == 10


@pytest.mark.parametrize("name", ["meta", "", "cuda:99", "tpu9", "é", "x" * 10_000])
def test_devices_that_cannot_compute(name):
    with pytest.raises(UserError, match="cannot be used") as error:
        find_device(name)
    assert len(str(error.value)) < 1_000


@pytest.mark.parametrize(
    ("command", "options", "said"),
    [
        (DROP, ["--guide", "random", "--head-fusion", "max"], "--head-fusion says nothing to random: it is for"),
        (DROP, ["--guide", "random,center", "--discard-ratio", "0"], "--discard-ratio says nothing to random, center"),
        (DROP, ["--category-index", "3"], "--category-index says nothing to rollout: it is for grad-"),
        (DROP, ["--student", "digits-convnet-rollout"], "--student says nothing to rollout: it is for student."),
        (DROP, ["--guide", "center", "--guide-model", MODEL], "--guide-model says nothing to center"),
        (DROP, ["--guide", "student", "--guide-checkpoint", "gone"], "--guide-model says nothing to student"),
        (DROP, ["--block", "1"], "--block says nothing to rollout: it is for class-attention, norm-change."),
        (DROP, ["--network", "resnet18"], "--network says nothing to rollout: it is for activation."),
        (DROP, ["--seed", "3"], "--seed says nothing to rollout: it is for random."),
        (EXPLAIN, ["--method", "last-attention", "--discard-ratio", "0.5"], "--discard-ratio says nothing to last-at"),
        (EXPLAIN, ["--method", "heads", "--head-fusion", "max"], "--head-fusion says nothing to heads"),
        (EXPLAIN, ["--category-index", "3", "--head-fusion", "max"], "--head-fusion says nothing to grad-rollout"),
        (["video", "a.mp4", "b.mp4"], ["--category-index", "1"], "--category-index says nothing to rollout"),
        (TRAIN, ["--method", "grad-rollout", "--head-fusion", "max"], "--head-fusion says nothing to grad-rollout"),
        (TRAIN, ["--category-index", "3"], "--category-index says nothing to rollout"),
        (TRAIN, ["--views", "2", "--geometry"], "--geometry says nothing to a training with --views"),
        (TRAIN, ["--architecture", "resnet18", "--width", "16"], "--width says nothing to resnet18"),
        (["recipes", "base16"], ["--device", "cpu"], "--device says nothing to a single recipe: it is for the list of"),
        (["benchmark", "rollout"], ["--keep", "0.5"], "--keep says nothing to rollout: it is for dropping, pipeline."),
        (["benchmark", "dropping"], ["--student", "x"], "--student says nothing to dropping: it is for student"),
        (["benchmark", "student"], ["--precision", "float32"], "--precision says nothing to student"),
    ],
)  # fmt: skip
def test_options_that_nobody_takes_are_refused(fail, tmp_path, monkeypatch, command, options, said):
    monkeypatch.chdir(tmp_path)
    assert said in fail(*command, *options)


def test_an_option_that_one_of_several_guides_takes(fail):
    options = ["--guide", "random,rollout,grad-rollout", "--head-fusion", "max", "--category-index", "3", "--seed", "1"]
    assert "There is no data at 'gone'" in fail(*DROP, *options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a$b$c", "$\\frac$", "$x_{", "$$", "\\$a$", "a^b_c"])
def test_names_are_no_mathematics(tmp_path, name):
    """Typeset as mathematics `$\\frac$` is an error, and `a$b$c` loses its dollar signs."""
    photo = noise_image(tmp_path / f"{name}.png", seed=1, size=(112, 112))
    succeed("explain", photo, "--model", MODEL, "--device", "cpu", "-o", tmp_path / "out.svg")
    assert f">{name}</text>" in (tmp_path / "out.svg").read_text()


def test_a_name_that_is_no_text(tmp_path, capsys, monkeypatch):
    """Not UTF-8, with a line break and a terminal's escape in it."""
    photo = noise_image(tmp_path / "photo.png", seed=1, size=(112, 112))
    odd = os.fsdecode(os.fsencode(str(tmp_path)) + b"/\xff\n\x1b[31m.png")
    with suppress(OSError):  # some file systems take text only
        shutil.copy(photo, odd)
        monkeypatch.setattr(sys, "argv", ["vitsal", "explain", odd, "--model", MODEL, "-o", str(tmp_path / "out.svg")])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        assert capsys.readouterr().out.startswith(r"\udcff\n\x1b[31m.png: class ")
        assert r">\udcff\n\x1b[31m</text>" in (tmp_path / "out.svg").read_text()


@pytest.mark.slow
def test_probe_names_and_counts(tmp_path):
    """Of four images one is no image."""
    for number in range(4):
        noise_image(tmp_path / "data" / "a" / f"{number}.png", seed=number, size=(112, 112))
    (tmp_path / "data" / "a" / "2.png").write_text("these are my notes")
    with pytest.warns(UserWarning, match=r"^1 images could not be read and were skipped: a/2.png"):
        shown = succeed(
            "probe", "--model", MODEL, "--data", tmp_path / "data", "--device", "cpu", "-o", tmp_path / "out"
        )
    assert "in pixels, over 3 images\n" in shown
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        options = ["--data", "digits", "--split", "test", "--limit", 5, "--batch-size", 2]
        assert "over 5 images\n" in succeed("probe", "--model", MODEL, *options, "-o", tmp_path / "out")


def test_damaged_headlines_are_named(fail, tmp_path, monkeypatch):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "headlines.json").write_text(json.dumps({"one": 3}))
    monkeypatch.setattr("vitsal.course.run_notebooks", lambda *_: tmp_path / "made")
    write_notebook(tmp_path / "notebooks" / "01_n.ipynb", 'output_dir = ""')
    assert "headlines.json holds no headline numbers; remove it" in fail("run", "--notebooks", tmp_path / "notebooks")


def test_folders_named_like_what_is_read_by_name(tmp_path, monkeypatch):
    """A second run into them is no writing over: the data and the model come out of the package."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vitsal.load_model", lambda *_, **__: pytest.fail("got that far", pytrace=False))
    for name in ("digits", MODEL):
        Path(name).mkdir()
        with pytest.raises(pytest.fail.Exception, match="got that far"):
            CliRunner().invoke(cli.app, ["train-student", "--teacher", MODEL, "--data", "digits", "-o", name])


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "README.md", "history.csv"])
def test_a_training_replaces_no_files_of_others(fail, tmp_path, name):
    """A folder with somebody's own model, say; nothing is computed for it."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("mine")
    train = ["train-student", "--teacher", MODEL, "--data", "digits", "--limit", 20, "--maps", tmp_path / "maps"]
    assert f"holds {name}, and no checkpoint.json" in fail(*train, "-o", tmp_path / "mine")
    assert (tmp_path / "mine" / name).read_text() == "mine"
    assert not (tmp_path / "maps").exists()


def test_a_parquet_file_of_others_is_not_replaced(fail, tmp_path):
    (tmp_path / "t.parquet").write_text("mine")
    curve = ["drop-curve", "--target", MODEL, "--data", "digits", "--limit", 2, "-o", tmp_path / "t.csv"]
    assert "t.parquet without its table" in fail(*curve)
    assert (tmp_path / "t.parquet").read_text() == "mine"


def test_a_picture_is_never_drawn_into_the_folder_of_pictures(fail, tmp_path):
    """Or it would be one of them the next time."""
    noise_image(tmp_path / "photos" / "a.png", seed=1)
    for place in ("sheet.png", "new/sheet.png"):
        assert ", which is read; name another folder" in fail(
            "explain", tmp_path / "photos", "-o", tmp_path / "photos" / place
        )
    assert [path.name for path in tmp_path.glob("photos/*")] == ["a.png"]


@pytest.mark.parametrize("words", [["explain", ""], ["train-student", "--output", ""], ["probe", "--data", ""]])
def test_empty_words_are_not_the_current_folder(fail, words):
    assert "One of the words is empty" in fail(*words)


def test_a_stray_comma_takes_no_other_students(fail, tmp_path):
    curve = ["drop-curve", "--target", MODEL, "--data", "digits", "--limit", 2, "-o", tmp_path / "t.csv"]
    said = fail(*curve, "--guide", "student", "--student", "digits-convnet-rollout,")
    assert "The name of a student is missing between the commas" in said


def test_labels_that_cannot_be_told_matter_to_those_who_need_them(tmp_path, monkeypatch):
    """A probe needs none; a drop curve is refused."""
    for wnid in ("n01440764", "n99999999"):
        noise_image(tmp_path / "data" / wnid / "a.png", seed=1, size=(112, 112))
    data = ["--data", tmp_path / "data", "--device", "cpu"]
    assert "over 2 images" in succeed("probe", "--model", MODEL, *data, "-o", tmp_path / "out")
