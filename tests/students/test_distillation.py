"""Training students: they learn, the same from the same seed, and go on after a stop as if nothing had been."""

import copy
import json
import math
import pickle
import shutil
import time
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import pytest
import timm
import torch
from helpers import randomise
from scipy.stats import spearmanr
from torch.optim.optimizer import register_optimizer_step_pre_hook

from vitsal.choices import TrainingSettings
from vitsal.data.opening import open_data
from vitsal.errors import UserError
from vitsal.guides import RolloutGuide
from vitsal.jobs.files import locked
from vitsal.jobs.identity import question_hash
from vitsal.models.loading import load_model
from vitsal.models.tokens import model_transform
from vitsal.students import checkpoints, distillation
from vitsal.students.checkpoints import Checkpoints
from vitsal.students.distillation import DivergedError, describe_training, distill
from vitsal.students.losses import LOSS_FUNCTIONS
from vitsal.students.maps import CachedMaps, MapSettings, cache_maps
from vitsal.students.student import load_student, new_student, save_student

RECIPE = TrainingSettings(
    epochs=5, batch_size=36, learning_rate=1e-2
)  # of 161 images 144 are for training: 4 steps an epoch
PLAIN = replace(RECIPE, epochs=2, geometry=False, colours=0.0)  # images as they are


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """What the embedded guide looks at in 161 digit scenes."""
    model, folder = load_model("vitsal_digits_guide"), tmp_path_factory.mktemp("maps")
    dataset = open_data("digits", model_transform(model), split="train")
    settings = MapSettings((56, 56), limit=161)
    cache_maps(RolloutGuide(model, "max", 0.9), dataset, folder, settings, progress=False)
    return folder


def new(architecture="convnet", seed=0, **options):
    torch.manual_seed(seed)
    return new_student(architecture, **{"grid_size": (14, 14), "width": 4, "input_size": (28, 28)} | options)


def train(maps, output, recipe=RECIPE, student=None, **options):
    return distill(student or new(), maps, output, recipe, progress=False, **options)


@pytest.fixture(scope="module")
def undisturbed(maps, tmp_path_factory):
    """Student, history and output of a training that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        student, output = new(), tmp_path_factory.mktemp("undisturbed")
        return student, train(maps, output, student=student), output


def lessons(history):
    return history.drop(columns="seconds")


def assert_same_weights(student, other):
    assert student.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in student.state_dict().items())


def validation(maps):
    images, saliency = zip(*CachedMaps(maps, "validation"), strict=True)
    pixels = torch.stack(images).view(-1, 3, 28, 2, 28, 2).float().mean(dim=(3, 5)) / 255
    return pixels, torch.stack(saliency).float()


def divergence_by_hand(logits, saliency):
    shares = saliency.flatten(1) / saliency.flatten(1).sum(dim=1, keepdim=True)
    predicted = logits.flatten(1) - logits.flatten(1).logsumexp(dim=1, keepdim=True)
    return torch.special.xlogy(shares, shares).sub(shares * predicted).sum(dim=1).mean().item()


@pytest.mark.slow
def test_student_learns_more_than_where_digits_mostly_are(maps, tmp_path):
    history = train(maps, tmp_path / "student", replace(RECIPE, epochs=20))
    _, saliency = validation(maps)
    mean = torch.stack([saliency.float() for _, saliency in CachedMaps(maps, "train")]).mean(dim=0)
    even = divergence_by_hand(torch.zeros_like(saliency), saliency)
    always_the_same = divergence_by_hand(mean.log().expand_as(saliency), saliency)
    assert history.kl.min() < 0.6 * always_the_same < 0.6 * even
    assert history.loss.iloc[-1] < 0.5 * history.loss.iloc[0]
    assert history.iou_10.iloc[-1] > 0.5  # chance: 0.05


@pytest.mark.slow
def test_a_student_that_sees_nothing_learns_the_mean_map(maps, tmp_path):
    recipe = TrainingSettings(epochs=80, learning_rate=0.05, geometry=False)
    train(maps, tmp_path / "student", recipe, new("position"))
    logits = load_student(tmp_path / "student")(torch.rand(3, 3, 28, 28))
    assert torch.equal(logits[0], logits[2])
    lessons = torch.stack([saliency.float().flatten() for _, saliency in CachedMaps(maps, "train")])
    mean = (lessons / lessons.sum(dim=1, keepdim=True)).mean(dim=0)
    assert (logits[0].flatten().softmax(dim=0) - mean).abs().sum() < 0.1  # of 2 that are possible


def test_best_student_is_saved_and_history_is_what_it_does(maps, undisturbed):
    _, history, output = undisturbed
    pixels, saliency = validation(maps)
    with torch.no_grad():
        logits = load_student(output)(pixels)
    best = history.loc[history.kl.idxmin()]
    ranks = [spearmanr(*pair).statistic for pair in zip(logits.flatten(1), saliency.flatten(1), strict=True)]
    assert best.kl == pytest.approx(divergence_by_hand(logits, saliency), abs=1e-4)
    assert best.spearman == pytest.approx(sum(ranks) / len(ranks), abs=1e-4)


def test_history(undisturbed):
    _, history, output = undisturbed
    overlaps = ["iou_50", "iou_30", "iou_20", "iou_10"]
    columns = ["epoch", "step", "learning_rate", "loss", "kl", "spearman", *overlaps, "seconds"]
    assert list(history.columns) == columns
    assert history.epoch.tolist() == [1, 2, 3, 4, 5]
    assert history.step.tolist() == [4, 8, 12, 16, 20]
    pd.testing.assert_frame_equal(pd.read_csv(output / "history.csv"), history, check_dtype=False)
    for step, rate in zip(history.step - 1, history.learning_rate, strict=True):  # one of 20 steps is warm-up
        assert rate == pytest.approx(1e-2 * (1 + math.cos(math.pi * (step - 1) / 19)) / 2)


def test_time_is_kept_without_a_bar_too(undisturbed):
    seconds = undisturbed[1].seconds
    assert seconds.min() > 0


def test_same_seed_same_history_other_seed_another(maps, undisturbed, tmp_path):
    student, history, _ = undisturbed
    again = new()
    pd.testing.assert_frame_equal(lessons(train(maps, tmp_path / "again", student=again)), lessons(history))
    assert_same_weights(again, student)
    other = train(maps, tmp_path / "other", replace(RECIPE, seed=1, epochs=1))
    assert abs(other.loss[0] - history.loss[0]) > 1e-4


class Stopped(Exception):
    """As a machine that goes down stops a training, but for this process."""


def stop_after(epochs):
    def stop(history):
        if len(history) == epochs:
            raise Stopped

    return stop


def test_stopped_training_goes_on_as_if_nothing_was(maps, undisturbed, tmp_path):
    student, history, _ = undisturbed
    with pytest.raises(Stopped):
        train(maps, tmp_path, on_epoch=stop_after(2))
    assert len(pd.read_csv(tmp_path / "history.csv")) == 2
    torch.rand(100)  # other random numbers in between
    resumed, seen = new(seed=5), []
    pd.testing.assert_frame_equal(
        lessons(train(maps, tmp_path, student=resumed, on_epoch=seen.append)), lessons(history)
    )
    assert [len(shown) for shown in seen] == [2, 3, 4, 5]  # what there was, at once, and each epoch
    assert_same_weights(resumed, student)
    assert [path.name for path in tmp_path.glob("epoch-*")] == ["epoch-0005"]


def test_half_written_checkpoint_is_written_again(maps, undisturbed, tmp_path):
    """Killed while saving epoch 3: its folder is there, the pointer is still at epoch 2."""
    with pytest.raises(Stopped):
        train(maps, tmp_path, on_epoch=stop_after(2))
    (tmp_path / "epoch-0003").mkdir()
    (tmp_path / "epoch-0003" / "model.safetensors").write_text("half")
    pd.testing.assert_frame_equal(lessons(train(maps, tmp_path)), lessons(undisturbed[1]))


def test_finished_training_trains_nothing(maps, undisturbed):
    student, history, output = undisturbed
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    again, seen = new(seed=5), []
    pd.testing.assert_frame_equal(train(maps, output, student=again, on_epoch=seen.append), history)
    assert [len(shown) for shown in seen] == [5]
    assert_same_weights(again, student)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patience", "epochs", "best"), [(None, 5, 3), (2, 5, 3), (1, 3, 1)], ids=["never", "late", "at once"]
)
def test_patience_and_best_student(maps, tmp_path, monkeypatch, patience, epochs, best):
    """Validation divergences 3, 1, 2, 0.5, 0.7 of epochs 0 to 4: `best` counts from 0."""
    divergences, states, student = iter([3.0, 1.0, 2.0, 0.5, 0.7]), [], new()
    monkeypatch.setattr(distillation._Training, "validate", lambda self: {"kl": next(divergences)})
    history = train(
        maps,
        tmp_path,
        replace(RECIPE, patience=patience),
        student,
        on_epoch=lambda history: states.append(copy.deepcopy(student)),
    )
    assert len(history) == len(states) == epochs
    assert_same_weights(load_student(tmp_path), states[best])


@pytest.mark.slow
def test_accumulated_parts_learn_like_the_whole_batch(maps, tmp_path):
    """A transformer has no batch norm, and nothing is drawn: two halves have the gradient of the whole."""
    histories = []
    for parts in (1, 2):
        student = new("transformer")
        recipe = replace(PLAIN, epochs=1, accumulate=parts)
        histories.append(train(maps, tmp_path / str(parts), recipe, student))
    # They differed by 1e-7 at most; patches of equal rank, had there been some, could have changed places.
    pd.testing.assert_frame_equal(*map(lessons, histories), rtol=0, atol=1e-4)


def test_parts_make_no_more_steps_than_whole_batches_do(maps, tmp_path):
    """144 images are four batches of 32; sixteen images are left over, whichever way they are parted."""
    recipe = replace(PLAIN, epochs=1, batch_size=32)
    steps = [train(maps, tmp_path / str(n), replace(recipe, accumulate=n)).step[0] for n in (1, 2, 4)]
    assert steps == [4, 4, 4]


def test_one_single_step(maps, tmp_path):
    history = train(maps, tmp_path, replace(RECIPE, epochs=1, batch_size=500))
    assert history.step.tolist() == [1]


def test_gradients_are_clipped_to_a_norm_of_1(maps, tmp_path, monkeypatch):
    norms, kl = [], LOSS_FUNCTIONS["kl"]
    monkeypatch.setitem(LOSS_FUNCTIONS, "kl", lambda logits, maps: 1000 * kl(logits, maps))

    def measure(optimizer, *_):
        gradients = [parameter.grad.flatten() for group in optimizer.param_groups for parameter in group["params"]]
        norms.append(torch.cat(gradients).norm().item())

    hook = register_optimizer_step_pre_hook(measure)
    train(maps, tmp_path, replace(PLAIN, epochs=1))
    hook.remove()
    assert norms == pytest.approx([1.0] * 4, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSS_FUNCTIONS)
def test_every_loss_teaches(maps, tmp_path, loss):
    history = train(maps, tmp_path, replace(RECIPE, loss=loss, epochs=3))
    assert history.loss.is_monotonic_decreasing
    assert history.spearman.iloc[-1] > 0.3


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"loss": "kll"}, "Unknown loss 'kll'. Did you mean 'kl'"),
        ({"accumulate": 5}, "A batch of 36 images cannot be split evenly into 5 parts; choose"),
        ({"batch_size": 200, "accumulate": 5}, "A batch of 144 images cannot be split evenly into 5 parts on 1 proc"),
        ({"learning_rate": -1.0}, "learning rate"),
        ({"learning_rate": float("nan")}, "learning rate"),
    ],
)
def test_recipe_that_cannot_be_followed(maps, tmp_path, changed, said):
    with pytest.raises(UserError, match=said):
        train(maps, tmp_path, replace(RECIPE, **changed))
    assert not list(tmp_path.iterdir())


def test_grid_of_another_teacher(maps, tmp_path):
    with pytest.raises(UserError, match=r"The student's grid is \(7, 14\), the teacher's maps are \(14, 14\)"):
        train(maps, tmp_path, student=new(grid_size=(7, 14)))


def test_another_training_is_refused_and_left_alone(maps, undisturbed):
    output = undisturbed[2]
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    with pytest.raises(
        UserError, match=r"holds another training \(recipe: .*'epochs': 5.* there, .*'epochs': 6.* now\)"
    ):
        train(maps, output, replace(RECIPE, epochs=6))
    with pytest.raises(
        UserError, match=r"holds another training \(student: .*'convnet'.* there, .*'transformer'.* now\)"
    ):
        train(maps, output, student=new("transformer"))
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


class Hostile:
    """Pickled, it would write a file; whoever unpickles it without care does so."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.write_text, (self.marker, "executed")


STATES = ["model.safetensors", "optimizer.bin", "random_states_0.pkl"]


def assert_refused_and_left_alone(maps, folder, said):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=rf"{said}.* Remove .* to train from the start, or name another output"):
        train(maps, folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("damage", ["bit", "cut", "gone", "hostile"])
def test_damaged_checkpoint_is_named_and_not_gone_on_from(maps, undisturbed, tmp_path, name, damage):
    shutil.copytree(undisturbed[2], tmp_path / "copy")
    state, marker = tmp_path / "copy" / "epoch-0005" / name, tmp_path / "marker"
    content = state.read_bytes()
    middle = len(content) // 2
    if damage == "gone":
        state.unlink()
    elif damage == "hostile":
        torch.save({"state": Hostile(marker)}, state)
    else:
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        state.write_bytes({"bit": flipped, "cut": content[:middle]}[damage])
    said = "missing" if damage == "gone" else "damaged"
    assert_refused_and_left_alone(maps, tmp_path / "copy", f"epoch-0005/{name} is {said}")
    assert not marker.exists()


@pytest.mark.parametrize("name", STATES[1:])
@pytest.mark.parametrize("plain", [True, False], ids=["plain pickle", "torch's"])
def test_no_code_of_a_checkpoint_is_executed(maps, undisturbed, tmp_path, name, plain):
    """Even where somebody has made the checksums anew: accelerate gets the file, and must not execute it."""
    pickle.loads(pickle.dumps(Hostile(tmp_path / "marker")))
    (tmp_path / "marker").unlink()  # so it would
    shutil.copytree(undisturbed[2], tmp_path / "copy")
    state, path = tmp_path / "copy" / "epoch-0005", tmp_path / "copy" / "checkpoint.json"
    with (state / name).open("wb") as file:
        (pickle.dump if plain else torch.save)({"state": Hostile(tmp_path / "marker")}, file)
    pointer = json.loads(path.read_text())
    pointer["files"] = checkpoints._checksums(state)
    del pointer["checksum"]
    path.write_text(json.dumps(pointer | {"checksum": question_hash(pointer)}))
    with suppress(UserError):
        train(maps, tmp_path / "copy")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("content", ["", "{half", "[1]", "[" * 100_000, "{}", '{"history": ' + "9" * 5000 + "}"])
def test_damaged_pointer_is_named(maps, undisturbed, tmp_path, content):
    shutil.copytree(undisturbed[2], tmp_path / "copy")
    (tmp_path / "copy" / "checkpoint.json").write_text(content)
    assert_refused_and_left_alone(maps, tmp_path / "copy", "checkpoint.json (cannot be read|is damaged)")


def test_no_flipped_bit_of_the_pointer_is_used(maps, undisturbed, tmp_path):
    """A history with another divergence would choose another student; not one bit in twenty goes unnoticed."""
    shutil.copytree(undisturbed[2], tmp_path / "copy")
    path = tmp_path / "copy" / "checkpoint.json"
    accelerator, content = distillation.accelerator_for(RECIPE), path.read_bytes()
    about = json.loads(content)["about"]
    read = Checkpoints(tmp_path / "copy", about, accelerator)._read_pointer
    whole, unnoticed = read(), []
    for place in range(0, len(content), 20):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        with suppress(UserError):
            unnoticed += [place] if read() != whole else []  # of a space between two values nothing depends
    assert unnoticed == []


def test_missing_and_foreign_files_of_a_checkpoint(maps, undisturbed, tmp_path):
    shutil.copytree(undisturbed[2], tmp_path / "copy")
    (tmp_path / "copy" / "epoch-0005" / "custom_checkpoint_0.pkl").write_text("these are my notes")
    assert_refused_and_left_alone(maps, tmp_path / "copy", "custom_checkpoint_0.pkl is damaged, or none of this")
    shutil.rmtree(tmp_path / "copy" / "epoch-0005")
    assert_refused_and_left_alone(maps, tmp_path / "copy", "epoch-0005/.* is missing")


def test_damaged_history_is_written_again(maps, undisturbed, tmp_path):
    shutil.copytree(undisturbed[2], tmp_path / "copy")
    (tmp_path / "copy" / "history.csv").write_text("these are my notes")
    train(maps, tmp_path / "copy")
    assert (tmp_path / "copy" / "history.csv").read_bytes() == (undisturbed[2] / "history.csv").read_bytes()


def test_second_training_in_one_folder_is_refused(maps, undisturbed, tmp_path):
    refused = []

    def train_too(history):
        with pytest.raises(UserError, match=rf"Another run is training in {tmp_path}. Wait for it, or name another"):
            train(maps, tmp_path)
        refused.append(len(history))

    history = train(maps, tmp_path, on_epoch=train_too)
    assert refused == [1, 2, 3, 4, 5]
    pd.testing.assert_frame_equal(lessons(history), lessons(undisturbed[1]))


def hold(folder, ready):
    with locked(folder):
        ready.set()
        time.sleep(60)


def test_lock_of_a_killed_training_is_free_at_once(maps, tmp_path):
    context = get_context("fork")
    ready = context.Event()
    other = context.Process(target=hold, args=(tmp_path, ready))
    other.start()
    ready.wait(30)
    with pytest.raises(UserError, match="Another run is training"):
        train(maps, tmp_path, replace(RECIPE, epochs=1))
    other.kill()
    other.join()
    assert len(train(maps, tmp_path, replace(RECIPE, epochs=1))) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"input_size": (56, 56)}, r"'input_size': \[28, 28\].* there, .*'input_size': \[56, 56\].* now"),
        ({"mean": [0.5, 0.5, 0.5]}, r"'mean': \[0.48.* there, .*'mean': \[0.5, 0.5, 0.5\].* now"),
        ({"width": 8}, r"'width': 4.* there, .*'width': 8.* now"),
    ],
)
def test_training_goes_on_with_no_other_student(maps, undisturbed, options, said):
    with pytest.raises(UserError, match=rf"holds another training \(student: .*{said}"):
        train(maps, undisturbed[2], student=new(**options))


@pytest.mark.slow
def test_other_starting_weights_are_another_training(maps, tmp_path, monkeypatch):
    """timm's hub stands still: what would be fetched is made here, twice."""
    plain = timm.create_model
    for seed in (1, 2):
        fetch = lambda name, pretrained=False, **options: randomise(plain(name, **options), seed)  # noqa: E731, B023
        monkeypatch.setattr(timm, "create_model", fetch)
        student = new_student("resnet10t", (14, 14), pretrained=True, input_size=(28, 28))
        save_student(student, tmp_path / f"{seed}")
    descriptions = []
    for start in (1, 1, 2):
        descriptions.append(describe_training(load_student(tmp_path / f"{start}"), maps, RECIPE)["student"]["start"])
    assert descriptions[0] == descriptions[1] != descriptions[2]
    assert describe_training(new(seed=1), maps, RECIPE) == describe_training(new(seed=2), maps, RECIPE)
    assert student.start != "" != load_student(tmp_path / "1").start
    assert new().start == ""


def test_maps_that_are_damaged_after_all_are_not_learnt(maps, tmp_path):
    shutil.copytree(maps, tmp_path / "maps")
    shard = tmp_path / "maps" / "view0-000000000.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1000] + bytes([content[-1000] ^ 1]) + content[-999:])
    with pytest.raises(UserError, match=f"{shard.name} is damaged: cache the maps again"):
        train(tmp_path / "maps", tmp_path / "student")


def test_loss_that_is_no_number_stops_and_leaves_what_was_learnt(maps, undisturbed, tmp_path, monkeypatch):
    losses, kl = [], LOSS_FUNCTIONS["kl"]

    def broken(logits, maps):
        losses.append(kl(logits, maps))
        return losses[-1] * (math.nan if len(losses) == 11 else 1)

    with monkeypatch.context() as patch:
        patch.setitem(LOSS_FUNCTIONS, "kl", broken)
        rate = 1e-2 * (1 + math.cos(math.pi * 9 / 19)) / 2  # at step 10, counted from 0: in the third epoch
        with pytest.raises(
            DivergedError, match=rf"loss became nan at step 10, learning rate {rate:.2g}\..* 2 whole epochs"
        ):
            train(maps, tmp_path)
    assert torch.isfinite(load_student(tmp_path)(torch.rand(1, 3, 28, 28))).all()
    pd.testing.assert_frame_equal(lessons(train(maps, tmp_path)), lessons(undisturbed[1]))


@pytest.mark.parametrize("batch_size", [36, 144], ids=["in an epoch", "at an epoch's end"])
def test_learning_rate_that_is_far_too_high(maps, tmp_path, batch_size):
    with pytest.raises(DivergedError, match=r"step \d, learning rate .*e\+(29|30).*try a lower learning rate"):
        train(maps, tmp_path, replace(RECIPE, learning_rate=1e30, batch_size=batch_size))
