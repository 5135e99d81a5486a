"""The drop experiment: right counts, right intervals, and nothing lost or mixed when a run is killed."""

import copy
import os
import random
import time

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState
from helpers import (
    MadeImages,
    in_two_processes,
    noise_image,
    randomise,
    save_image,
    start_command,
    traces,
    write_shards,
)
from PIL import Image
from safetensors.torch import save_file
from torchvision import transforms
from typer.testing import CliRunner

from vitsal.analysis.intervals import wilson_interval
from vitsal.cli import app
from vitsal.data.images import IndexedImages, StreamedImages, describe_transform
from vitsal.data.labels import check_labels
from vitsal.data.opening import open_data
from vitsal.data.pictures import to_rgb
from vitsal.errors import UserError
from vitsal.experiments.evaluation import _Work, drop_curve
from vitsal.experiments.outcomes import SUMMARY_COLUMNS, summarize
from vitsal.experiments.question import ANY_GUIDE, Question
from vitsal.experiments.scale import cheap_images, cheap_target
from vitsal.guides import GradientRolloutGuide, RolloutGuide
from vitsal.guides.accelerated import AcceleratedViT
from vitsal.guides.adapters import AdaptedGuide, StudentGuide
from vitsal.guides.baselines import CenterGuide, RandomGuide
from vitsal.jobs import processes
from vitsal.jobs.identity import describe, weights_fingerprint
from vitsal.jobs.memory import Halving
from vitsal.models.loading import load_model
from vitsal.models.tokens import model_transform
from vitsal.reduction.drop import forward_kept
from vitsal.reduction.keep import top_k_patches
from vitsal.reduction.reduction import Reduction
from vitsal.students.student import Student

RATIOS = (1.0, 0.5, 0.1)


@pytest.fixture
def dataset(tiny_vit, tmp_path):
    """Thirteen images of random pixels in ten folders, for the ten classes of `tiny_vit`."""
    for index in range(13):
        noise_image(tmp_path / "images" / f"{index % 10}" / f"{index:02d}.png", seed=index)
    return open_data(str(tmp_path / "images"), model_transform(tiny_vit))


@pytest.fixture
def guides(tiny_vit):
    return {"rollout": RolloutGuide(tiny_vit), "center": CenterGuide((4, 4)), "random": RandomGuide((4, 4))}


@torch.no_grad()
def test_predictions_equal_a_plain_loop_over_single_images(tiny_vit, dataset, guides):
    outcomes = drop_curve(tiny_vit, guides, dataset, RATIOS, batch_size=5, progress=False)
    samples = [dataset[index] for index in range(13)]
    assert outcomes.names == [dataset.name(sample.index) for sample in samples]
    assert outcomes.labels.tolist() == [sample.label for sample in samples] == [0, 0, 1, 1, 2, 2, *range(3, 10)]
    assert list(outcomes.predictions) == [(guide, ratio) for guide in guides for ratio in RATIOS]
    for (guide, ratio), predicted in outcomes.predictions.items():
        for sample, prediction in zip(samples, predicted, strict=True):
            image = sample.image[None]
            keep = top_k_patches(guides[guide](image), ratio)
            assert prediction == forward_kept(tiny_vit, image, keep).argmax().item()
    assert len({tuple(predicted) for predicted in outcomes.predictions.values()}) > 3  # the guides do differ


LEVERS = (Reduction(0.5, "2"), Reduction(1.0, "3-"), Reduction(0.5, "0", (48, 48)), Reduction(1.0, "0", (32, 64)))


@pytest.mark.slow
@torch.no_grad()
def test_reductions_equal_a_plain_loop_over_single_images(tiny_vit, dataset, guides):
    outcomes = drop_curve(tiny_vit, guides, dataset, (0.5, *LEVERS), batch_size=5, progress=False)
    assert list(outcomes.predictions) == [(guide, reduction) for guide in guides for reduction in (0.5, *LEVERS)]
    for (guide, reduction), predicted in outcomes.predictions.items():
        fast = AcceleratedViT(tiny_vit, guides[guide], reduction)
        assert predicted.tolist() == [fast(dataset[index].image[None]).argmax().item() for index in range(13)]
    assert len({tuple(predicted) for predicted in outcomes.predictions.values()}) > 2  # the reductions do differ


def test_reductions_are_kept_in_the_journal_beside_keep_ratios(tiny_vit, dataset, guides, tmp_path, monkeypatch):
    first = drop_curve(tiny_vit, guides, dataset, (0.5, LEVERS[0]), folder=tmp_path, progress=False)
    whole = drop_curve(tiny_vit, guides, dataset, (0.5, *LEVERS), folder=tmp_path, progress=False)
    monkeypatch.setattr(_Work, "predict", lambda *args: pytest.fail("computed again"))
    again = drop_curve(tiny_vit, guides, dataset, (*LEVERS, 0.5), folder=tmp_path, progress=False)
    for (guide, reduction), predicted in again.predictions.items():
        assert predicted.tolist() == whole.predictions[guide, reduction].tolist()
        assert predicted.tolist() == first.predictions.get((guide, reduction), predicted).tolist()


def test_reductions_that_the_target_does_not_allow(tiny_vit, dataset, guides):
    for reduction, said in [
        (Reduction(1.0, "9 9"), "Tokens to merge"),
        (Reduction(1.0, "0", (30, 30)), "no whole number"),
        (Reduction(0.5, "0", (48, 48), rest="coarse"), "3 x 3 patches here, and only even numbers"),
    ]:
        with pytest.raises(UserError, match=said):
            drop_curve(tiny_vit, guides, dataset, (reduction,), progress=False)


@torch.no_grad()
def test_table(tiny_vit, dataset, guides):
    outcomes = drop_curve(tiny_vit, guides, dataset, RATIOS, progress=False)
    table = summarize(outcomes, "tiny")
    assert (
        list(table.columns)
        == SUMMARY_COLUMNS
        == [
            "target",
            "guide",
            "keep_ratio",
            "merge",
            "input_size",
            "soften",
            "rest",
            "n",
            "correct",
            "top1",
            "ci_low",
            "ci_high",
        ]
    )
    assert len(table) == 9
    assert set(table.target) == {"tiny"}
    assert set(table.n) == {13}
    samples = [dataset[index] for index in range(13)]
    plain = sum(tiny_vit(sample.image[None]).argmax().item() == sample.label for sample in samples)
    assert set(table[table.keep_ratio == 1.0].correct) == {plain}
    for row in table.itertuples():
        pairs = zip(outcomes.predictions[row.guide, row.keep_ratio], outcomes.labels, strict=True)
        assert row.correct == sum(predicted == label for predicted, label in pairs)
        assert row.top1 == row.correct / 13
        assert (row.ci_low, row.ci_high) == wilson_interval(row.correct, 13)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 20, 0.0, 0.1611), (20, 20, 0.8389, 1.0), (387, 500, 0.7353, 0.8085)],
)
def test_wilson_interval(correct, n, low, high):
    assert wilson_interval(correct, n) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
    p, z = correct / n, 1.959964  # Wilson 1927, written out
    center, half = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    assert wilson_interval(correct, n)[0] == pytest.approx((center - half) / (1 + z**2 / n), abs=1e-6)
    assert wilson_interval(correct, n)[1] == pytest.approx((center + half) / (1 + z**2 / n), abs=1e-6)


def test_skipped_images_are_named_and_not_counted(tiny_vit, dataset, guides, tmp_path):
    whole = drop_curve(tiny_vit, guides, dataset, RATIOS, progress=False)
    (tmp_path / "images" / "1" / "01.png").write_text("these are my notes")
    with pytest.warns(UserWarning, match=r"^1 images could not be read and were skipped: 1/01.png"):
        outcomes = drop_curve(tiny_vit, guides, dataset, RATIOS, batch_size=1, progress=False)
    assert list(outcomes.skipped) == ["1/01.png"]
    assert set(summarize(outcomes, "tiny").n) == {12}
    broken = whole.names.index("1/01.png")
    for key, predicted in whole.predictions.items():
        assert outcomes.predictions[key].tolist() == np.delete(predicted, broken).tolist()


def test_limit(tiny_vit, dataset, guides):
    whole = drop_curve(tiny_vit, guides, dataset, RATIOS, progress=False)
    part = drop_curve(tiny_vit, guides, dataset, RATIOS, limit=4, progress=False)
    assert part.names == [whole.names[index] for index in (0, 3, 6, 9)]


def test_label_outside_the_targets_classes(dataset, guides):
    five = load_model("vit_tiny_patch16_224", pretrained=False, img_size=64, depth=1, num_classes=5)
    with pytest.raises(UserError, match=r"has 10 classes \(0, 1, 2, 3, 4 and 5 more\), and the target tells 5 apart"):
        drop_curve(five, {"center": CenterGuide((4, 4))}, dataset, [0.5], progress=False)
    dataset.num_classes = None  # as of a stream
    with pytest.raises(UserError, match=r"The data has class 9, but the target knows classes 0 to 4"):
        drop_curve(five, {"center": CenterGuide((4, 4))}, dataset, [0.5], progress=False)


def test_target_without_a_classifier(dataset):
    model = load_model("vit_tiny_patch16_224", pretrained=False, img_size=64, depth=1, num_classes=0)
    with pytest.raises(UserError, match="no classifier"):
        drop_curve(model, {"center": CenterGuide((4, 4))}, dataset, [0.5], progress=False)


@pytest.mark.parametrize("ratio", [0, 1.5, "half", float("nan")])
def test_bad_ratio_stops_before_the_first_image(tiny_vit, dataset, ratio):
    def fail(images):
        raise AssertionError("the guide was asked")

    with pytest.raises(UserError, match="keep ratio"):
        drop_curve(tiny_vit, {"mine": fail}, dataset, [0.5, ratio], progress=False)


def test_nothing_to_sum_up(tiny_vit, dataset, guides, tmp_path):
    for path in tmp_path.glob("images/*/*.png"):
        path.write_text("these are my notes")
    with pytest.warns(UserWarning, match="^13 images could not be read"):
        outcomes = drop_curve(tiny_vit, guides, dataset, RATIOS, progress=False)
    with pytest.raises(UserError, match="No image could be evaluated"):
        summarize(outcomes, "tiny")


@pytest.mark.parametrize(("guides", "ratios"), [({}, [0.5]), ({"center": CenterGuide((4, 4))}, [])])
def test_nothing_asked(tiny_vit, dataset, guides, ratios):
    with pytest.raises(UserError, match="at least one guide and one keep ratio"):
        drop_curve(tiny_vit, guides, dataset, ratios, progress=False)


def test_any_callable_is_a_guide(tiny_vit, dataset):
    def top_left(images):
        return -torch.arange(16.0).view(1, 4, 4).expand(len(images), -1, -1)

    outcomes = drop_curve(tiny_vit, {"mine": top_left}, dataset, [0.25], progress=False)
    image = dataset[0].image[None]
    expected = forward_kept(tiny_vit, image, torch.tensor([[0, 1, 2, 3]])).argmax().item()
    assert outcomes.predictions["mine", 0.25][0] == expected


class Counting:
    """A guide that counts the images it sees."""

    def __init__(self):
        self.seen = 0

    def __call__(self, images):
        self.seen += len(images)
        return images.mean(dim=1)[:, ::16, ::16]


def same(one, other):
    """Whether two outcomes hold the same names, labels and predictions."""
    keys = one.predictions.keys() == other.predictions.keys()
    values = all(np.array_equal(one.predictions[key], other.predictions[key]) for key in one.predictions)
    return one.names == other.names and np.array_equal(one.labels, other.labels) and keys and values


def test_every_image_is_embedded_once_and_seen_once_by_each_guide(tiny_vit, dataset):
    """Sixteen passes of the target, one of its patch embedding; and the model is left as it was."""
    passes = {"embedding": 0, "target": 0}
    tiny_vit.patch_embed.proj.register_forward_hook(lambda *_: passes.update(embedding=passes["embedding"] + 1))
    tiny_vit.norm.register_forward_hook(lambda *_: passes.update(target=passes["target"] + 1))
    before, guides = traces(tiny_vit), {"a": Counting(), "b": Counting()}
    drop_curve(tiny_vit, guides, dataset, [0.1 * tenths for tenths in range(2, 10)], batch_size=13, progress=False)
    assert passes == {"embedding": 1, "target": 16}
    assert guides["a"].seen == guides["b"].seen == 13
    assert traces(tiny_vit) == before


def test_a_guide_with_gradients_beside_the_targets_own(tiny_vit, dataset):
    """It runs the target itself, outside inference mode, between the target's own passes."""
    guides = {"gradient": GradientRolloutGuide(tiny_vit), "rollout": RolloutGuide(tiny_vit)}
    together = drop_curve(tiny_vit, guides, dataset, RATIOS, progress=False)
    for name, guide in guides.items():
        alone = drop_curve(tiny_vit, {name: guide}, dataset, RATIOS, progress=False)
        for ratio in RATIOS:
            assert np.array_equal(together.predictions[name, ratio], alone.predictions[name, ratio])


def test_what_is_known_is_not_computed_again(tiny_vit, dataset, guides, tmp_path, monkeypatch):
    """New guides, ratios and images are added to what is there; the answers are those of one run in one go."""
    parts = [
        ({"center": guides["center"]}, (0.5,), 4),
        ({"center": guides["center"], "rollout": guides["rollout"]}, (0.5,), 4),
        ({"rollout": guides["rollout"]}, RATIOS, None),
        (guides, RATIOS, None),
    ]
    for some, ratios, limit in parts:
        piecewise = drop_curve(
            tiny_vit, some, dataset, ratios, limit=limit, folder=tmp_path, batch_size=5, progress=False
        )
    assert same(piecewise, drop_curve(tiny_vit, guides, dataset, RATIOS, progress=False))
    (journal,) = tmp_path.glob("outcomes-*.jsonl")
    before = journal.read_bytes()

    monkeypatch.setattr(_Work, "predict", None)
    assert same(drop_curve(tiny_vit, guides, dataset, RATIOS, folder=tmp_path, progress=False), piecewise)
    assert journal.read_bytes() == before


def test_only_what_is_missing_is_asked_for(tiny_vit, dataset, tmp_path, monkeypatch):
    guides = {"a": Counting()}
    monkeypatch.setattr(Question, "guide_ids", {"a": "the same"})  # a guide that counts is another one each time
    for ratios, limit, seen in [
        ((0.5,), 4, 4),
        ((0.5,), 4, 4),
        ((1.0, 0.5), 4, 4),
        ((0.5, 0.3), 4, 8),
        ((0.5,), 13, 17),
    ]:
        drop_curve(tiny_vit, guides, dataset, ratios, limit=limit, folder=tmp_path, progress=False)
        assert guides["a"].seen == seen


def test_goes_on_after_a_kill_at_any_byte(tiny_vit, dataset, guides, tmp_path):
    whole = drop_curve(tiny_vit, guides, dataset, RATIOS, batch_size=3, folder=tmp_path, progress=False)
    (journal,) = tmp_path.glob("outcomes-*.jsonl")
    content = journal.read_bytes()
    first_line = content.index(b"\n") + 1
    for length in [first_line, first_line + 40, len(content) // 2, len(content) - 1, len(content)]:
        journal.write_bytes(content[:length])
        resumed = drop_curve(tiny_vit, guides, dataset, RATIOS, batch_size=3, folder=tmp_path, progress=False)
        assert same(resumed, whole)
        assert journal.read_bytes() == content


def fingerprint(dataset):
    """Of all its samples."""
    return dataset.fingerprint(dataset.keys(dataset.numbers()))


def test_fingerprints_tell_weights_and_data_apart(tiny_vit, dataset, tmp_path):
    before = weights_fingerprint(tiny_vit)
    assert weights_fingerprint(tiny_vit) == before
    with torch.no_grad():
        tiny_vit.head.bias[3] += 1e-6
    assert weights_fingerprint(tiny_vit) != before
    same_again = fingerprint(open_data(str(tmp_path / "images"), dataset.transform))
    assert fingerprint(dataset) == same_again
    noise_image(tmp_path / "images" / "0" / "00.png", seed=99)
    other_pixels = fingerprint(dataset)
    noise_image(tmp_path / "images" / "9" / "more.png", seed=1)
    more = fingerprint(open_data(str(tmp_path / "images"), dataset.transform))
    assert len({same_again, other_pixels, more}) == 3


def students_alike():
    """Four students of the same weights: as it is, reading more pixels, or pixels of another mean or deviation."""
    first = Student("convnet", (4, 4), width=4).eval()
    changes = [{"input_size": (32, 32)}, {"mean": (0.5, 0.5, 0.5)}, {"std": (0.5, 0.5, 0.5)}]
    others = [Student("convnet", (4, 4), width=4, **change).eval() for change in changes]
    for other in others:
        other.load_state_dict(first.state_dict())
    return [first, *others]


def test_cells_change_with_all_that_could_change_the_answer(tiny_vit, dataset):
    """And with nothing else: the same question, asked again, finds its answer."""

    def cell(guide):
        return Question(tiny_vit, {"mine": guide}, dataset, (0.5,)).cells["mine", 0.5]

    other_model = copy.deepcopy(tiny_vit)
    with torch.no_grad():
        other_model.blocks[0].attn.qkv.bias[0] += 0.1
    guides = [
        RolloutGuide(tiny_vit, "max", 0.9),
        RolloutGuide(tiny_vit, "mean", 0.9),
        RolloutGuide(tiny_vit, "max", 0.8),
        RolloutGuide(other_model, "max", 0.9),
        AdaptedGuide(RolloutGuide(other_model, "max", 0.9), tiny_vit),
        RandomGuide((4, 4), seed=0),
        RandomGuide((4, 4), seed=1),
        *(StudentGuide(student, tiny_vit) for student in students_alike()),
    ]
    assert len({cell(guide) for guide in guides}) == 11
    assert cell(RolloutGuide(copy.deepcopy(tiny_vit), "max", 0.9)) == cell(guides[0])
    whole = Question(tiny_vit, {"mine": guides[0]}, dataset, (1.0,)).cells
    assert whole == {("mine", 1.0): (ANY_GUIDE, 1.0)}


@torch.no_grad()
def test_out_of_memory_halves_the_batch_and_says_so(tiny_vit, dataset, guides, monkeypatch):
    """A target that takes three images at most, as a small GPU would; the answers are the same."""
    whole = drop_curve(tiny_vit, guides, dataset, RATIOS, progress=False)
    forward = type(tiny_vit).forward

    def small(model, images):
        if len(images) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return forward(model, images)

    monkeypatch.setattr(type(tiny_vit), "forward", small)
    with pytest.warns(UserWarning, match="Out of memory: going on with") as warned:
        halved = drop_curve(tiny_vit, guides, dataset, RATIOS, batch_size=13, progress=False)
    said = [str(warning.message) for warning in warned if str(warning.message).startswith("Out")]
    assert said == [f"Out of memory: going on with {size} images at a time." for size in (6, 3)]
    assert same(halved, whole)


def test_other_errors_and_single_images_are_not_retried():
    def fail(images):
        raise RuntimeError(message)

    for message, images in [("shapes differ", torch.zeros(4)), ("CUDA out of memory. Tried", torch.zeros(1))]:
        with pytest.raises(RuntimeError, match=message):
            Halving(fail)(images)


@pytest.mark.parametrize("limit", [None, 7])
def test_a_stream_goes_on_and_is_not_read_again(tiny_vit, dataset, guides, tmp_path, limit):
    pytest.importorskip("webdataset", reason="needs vitsal[hub]")
    paths = sorted(tmp_path.glob("images/*/*.png"))
    write_shards([(path, index % 10) for index, path in enumerate(paths)], tmp_path / "shards", shard_size=5)
    stream = open_data(f"wds/{tmp_path}/shards", dataset.transform, split="val-{0..2}.tar")
    drop_curve(tiny_vit, guides, stream, (0.5,), limit=6, folder=tmp_path, progress=False)
    outcomes = drop_curve(tiny_vit, guides, stream, RATIOS, limit=limit, folder=tmp_path, progress=False)
    assert outcomes.labels.tolist() == [index % 10 for index in range(limit or 13)]
    whole = drop_curve(tiny_vit, guides, dataset, RATIOS, progress=False)
    for key, predicted in outcomes.predictions.items():
        assert np.array_equal(predicted, whole.predictions[key][: limit or 13])
    for path in tmp_path.glob("shards/*.tar"):
        path.unlink()
    assert same(drop_curve(tiny_vit, guides, stream, RATIOS, limit=limit, folder=tmp_path, progress=False), outcomes)


def count_the_same(images, shards, checkpoint, made):
    made.mkdir(exist_ok=True)
    target = cheap_target()
    guide = {"a function": lambda images: images.mean(dim=1)[:, ::8, ::8]}
    for ratio in (1.0, 0.5):
        outcomes = drop_curve(target, guide, cheap_images(13, target), [ratio], folder=made, batch_size=3)
        assert len(outcomes.names) == 13
    curve = ["drop-curve", "--target", "vitsal_digits_guide", "--checkpoint", str(checkpoint)]
    curve += ["--guide", "random,rollout", "--keep", "1.0,0.5,0.2", "--batch-size", "3"]
    for name, data in {"folder": [str(images)], "shards": [f"wds/{shards}", "--split", "val-{0..2}.tar"]}.items():
        app([*curve, "--data", *data, "-o", f"{made}/{name}.csv"], standalone_mode=False)


@pytest.mark.slow
def test_two_processes_count_as_one(tmp_path, monkeypatch):
    """Thirteen images in batches of two times three: the last step is padded, and nothing counts twice.

    In the folder there is one more that cannot be read.
    """
    pytest.importorskip("webdataset", reason="needs vitsal[hub]")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    paths = [tmp_path / "images" / f"{index % 10}" / f"{index:02d}.png" for index in range(13)]
    for index, path in enumerate(paths):
        noise_image(path, seed=index, size=(112, 112))
    write_shards([(path, int(path.parent.name)) for path in sorted(paths)], tmp_path / "shards", shard_size=5)
    (tmp_path / "images" / "4" / "99.png").write_text("these are my notes")
    checkpoint = tmp_path / "small.safetensors"
    save_file(randomise(load_model("vitsal_digits_guide", pretrained=False)).state_dict(), checkpoint)
    one, two = tmp_path / "one", tmp_path / "two"
    count_the_same(tmp_path / "images", tmp_path / "shards", checkpoint, one)
    in_two_processes(count_the_same, tmp_path / "images", tmp_path / "shards", checkpoint, two)
    for data in ("folder", "shards"):
        assert (one / f"{data}.csv").read_text() == (two / f"{data}.csv").read_text()
    counts = [pd.read_csv(two / f"{data}.csv")[SUMMARY_COLUMNS] for data in ("folder", "shards")]
    assert set(counts[0].n) == {13}
    pd.testing.assert_frame_equal(*counts)


def drop_curve_arguments(checkpoint, folder, output):
    options = {"target": "vitsal_digits_guide", "checkpoint": checkpoint, "data": folder, "output": output}
    options |= {"guide": "rollout", "keep": "1.0,0.5,0.2", "batch-size": 1, "device": "cpu"}
    return ["drop-curve", *[str(part) for name, value in options.items() for part in (f"--{name}", value)]]


@pytest.mark.slow
def test_killed_run_goes_on_and_ends_with_the_same_table(tmp_path):
    """SIGKILL at a random moment, as when a machine goes down, three times; then the table of an undisturbed run."""
    for index in range(60):
        noise_image(tmp_path / "images" / f"{index % 10}" / f"{index:02d}.png", seed=index, size=(112, 112))
    checkpoint = tmp_path / "small.safetensors"
    save_file(randomise(load_model("vitsal_digits_guide", pretrained=False)).state_dict(), checkpoint)
    disturbed, undisturbed = tmp_path / "disturbed" / "t.csv", tmp_path / "undisturbed" / "t.csv"

    def lines():
        return sum(path.read_text().count("\n") for path in disturbed.parent.glob("outcomes-*.jsonl"))

    arguments, dice = drop_curve_arguments(checkpoint, tmp_path / "images", disturbed), random.Random(0)
    for kill in range(3):
        enough = lines() + dice.randint(2, 12)
        run = start_command(arguments, tmp_path / f"log{kill}")
        deadline = time.monotonic() + 120
        while lines() < enough and time.monotonic() < deadline:
            assert run.exitcode is None, (tmp_path / f"log{kill}").read_text()
            time.sleep(0.005)
        run.kill()
        run.join()
        assert enough <= lines() < 61  # in the middle of its work
        assert not disturbed.exists()

    for output in (disturbed, undisturbed):
        result = CliRunner().invoke(app, drop_curve_arguments(checkpoint, tmp_path / "images", output))
        assert result.exit_code == 0, result.output
    assert disturbed.read_bytes() == undisturbed.read_bytes()
    assert disturbed.with_suffix(".parquet").read_bytes() == undisturbed.with_suffix(".parquet").read_bytes()
    assert set(pd.read_csv(disturbed).n) == {60}


def test_unlabelled_data_is_refused(tiny_vit):
    with pytest.raises(UserError, match="label -1"):
        check_labels(torch.tensor([3, -1]), tiny_vit)


def test_strict_stops_at_the_first_broken_image(tiny_vit, dataset, guides, tmp_path):
    (tmp_path / "images" / "1" / "01.png").write_text("these are my notes")
    with pytest.raises(UserError, match=r"1/01.png cannot be read as an image"):
        drop_curve(tiny_vit, guides, dataset, RATIOS, strict=True, progress=False)


def test_a_guide_that_cannot_be_told_apart_is_never_taken_for_another(tiny_vit, dataset, tmp_path):
    """Two functions of one name, as whoever edits a cell of a notebook has them."""

    def curve(saliency):
        guides = {"mine": lambda images: saliency.expand(len(images), -1, -1)}
        return drop_curve(tiny_vit, guides, dataset, [0.25], folder=tmp_path, progress=False)

    top, bottom = torch.arange(16.0).view(1, 4, 4).flip(1, 2), torch.arange(16.0).view(1, 4, 4)
    assert not same(curve(top), curve(bottom))
    assert describe(curve) != describe(curve)
    assert describe({"x": 1}) == {"x": 1}


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(("count", "limit"), [(2_500, None), (40_000, 24), (3_000, 2_999)])
def test_more_samples_than_any_array_begins_with(tmp_path, count, limit):
    """Sparse and dense numbers of samples, asked twice: the answers are those of one pass over the same images."""
    target, guides = cheap_target(), {"center": CenterGuide((4, 4))}
    dataset = cheap_images(count, target)
    asked = [index * count // (limit or count) for index in range(limit or count)]
    options = {"limit": limit, "folder": tmp_path, "batch_size": 250, "progress": False}
    first = drop_curve(target, guides, dataset, (1.0, 0.25), **options)
    images = torch.stack([dataset[index].image for index in asked])
    expected = {1.0: target(images), 0.25: forward_kept(target, images, top_k_patches(guides["center"](images), 0.25))}
    assert first.labels.tolist() == [index % 10 for index in asked]
    for ratio, logits in expected.items():
        assert first.predictions["center", ratio].tolist() == logits.argmax(dim=1).tolist()
    assert same(drop_curve(target, guides, dataset, (1.0, 0.25), **options), first)


def curve_of(target, folder, journals, **options):
    """A drop curve over a folder of images, its journal kept; and how many of them the target saw."""
    seen = []
    handle = target.norm.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    dataset = open_data(str(folder), options.pop("transform", model_transform(target)))
    outcomes = drop_curve(
        target, {"c": CenterGuide((4, 4))}, dataset, [0.5], folder=journals, progress=False, **options
    )
    handle.remove()
    return outcomes, sum(seen)


@pytest.mark.slow
def test_an_image_that_changed_is_computed_again_alone(tiny_vit, dataset, tmp_path):
    """Replaced under the same name; broken, then repaired; back as it was; one more; one less."""
    folder, image = tmp_path / "images", tmp_path / "images" / "3" / "03.png"

    def check(seen):
        outcomes, number = curve_of(tiny_vit, folder, tmp_path)
        assert number == seen
        assert same(outcomes, drop_curve(tiny_vit, {"c": CenterGuide((4, 4))}, data(), [0.5], progress=False))

    def data():
        return open_data(str(folder), model_transform(tiny_vit))

    check(seen=13)
    check(seen=0)
    before = image.read_bytes(), os.stat(image).st_mtime_ns
    noise_image(image, seed=77)
    check(seen=1)
    image.write_bytes(b"torn")
    with pytest.warns(UserWarning, match="3/03.png"):
        assert len(curve_of(tiny_vit, folder, tmp_path)[0].names) == 12
    noise_image(image, seed=78)
    check(seen=1)
    image.write_bytes(before[0])
    os.utime(image, ns=(before[1], before[1]))
    check(seen=0)  # as it was at first
    noise_image(folder / "0" / "000.png", seed=5)
    check(seen=1)  # and all numbers shift
    (folder / "0" / "10.png").unlink()
    check(seen=0)


def test_two_folders_reached_by_the_same_relative_path(tiny_vit, tmp_path, monkeypatch):
    """Even of files alike in name, size and time."""
    for number in (1, 2):
        path = save_image(tmp_path / f"{number}" / "images" / "c" / "x.png", colour=(80 * number, 30, 90))
        path.write_bytes(path.read_bytes().ljust(2_000))  # readers stop at the image's end
        os.utime(path, ns=(10**18, 10**18))
    answers = []
    model = load_model("vit_tiny_patch16_224", pretrained=False, img_size=64, depth=1, num_classes=1)
    for number in (1, 2):
        monkeypatch.chdir(tmp_path / f"{number}")
        answers.append(curve_of(model, "images", tmp_path)[1])
    assert answers == [1, 1]


def test_another_transform_is_another_question(tiny_vit, dataset, tmp_path):
    def half(image):
        return model_transform(tiny_vit)(image) / 2

    counts = [
        curve_of(tiny_vit, tmp_path / "images", tmp_path, transform=transform)[1]
        for transform in (model_transform(tiny_vit), model_transform(tiny_vit), half, half)
    ]
    assert counts == [13, 0, 13, 13]  # a function does not tell what it does: nothing is ever taken for it


def test_an_image_that_changes_during_the_work_stops_it(tiny_vit, dataset, tmp_path):
    """Its answer would be kept under what it was before."""
    image, seen = tmp_path / "images" / "6" / "06.png", []

    def guide(images):
        seen.append(images)
        if len(seen) == 2:
            noise_image(image, seed=55)
        return images.mean(dim=1)[:, ::16, ::16]

    with pytest.raises(UserError, match=r"6/06.png was changed during the work"):
        drop_curve(tiny_vit, {"mine": guide}, dataset, [0.5], folder=tmp_path, batch_size=3, progress=False)
    (journal,) = tmp_path.glob("outcomes-*.jsonl")
    assert len(journal.read_text().splitlines()) == 4  # subject, and the three batches before


def test_an_image_that_could_not_be_read_once_is_tried_again(tiny_vit, dataset, guides, tmp_path, monkeypatch):
    """Too many open files, say: it is left out, told, and no class is noted for it; the next run has it."""
    whole, source = drop_curve(tiny_vit, guides, dataset, RATIOS, progress=False), dataset.images
    tries = []

    def fail_once(index):
        tries.append(index)
        image, label = source.read(index)
        return (tmp_path / "none.png" if tries.count(4) == 1 and index == 4 else image), label

    monkeypatch.setattr(dataset, "images", MadeImages(fail_once, len(source), source.name, source.stamp))
    with pytest.warns(UserWarning, match=r"\(there is no such file, or it is no regular one\)"):
        first = drop_curve(tiny_vit, guides, dataset, RATIOS, folder=tmp_path, progress=False)
    assert sorted(tries) == list(range(13))  # the reason is told without another try
    assert len(first.names) == 12
    assert all((predicted >= 0).all() for predicted in first.predictions.values())
    assert same(drop_curve(tiny_vit, guides, dataset, RATIOS, folder=tmp_path, progress=False), whole)


def test_a_stream_that_breaks_off_while_known_cells_are_filled_is_not_ended(tiny_vit, tmp_path):
    """More cells are asked of what is known, and then the data fails: it must not count as ended there."""
    samples = [(torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(n)), n % 10) for n in range(12)]

    class Breaking(torch.utils.data.IterableDataset):
        mended = False

        def __iter__(self):
            yield from samples[:8]
            if not self.mended:
                raise UserError("broken shard")
            yield from samples[8:]

    source, guides = Breaking(), {"c": CenterGuide((4, 4))}
    stream = StreamedImages(source, "made", transform=model_transform(tiny_vit))
    options = {"folder": tmp_path, "batch_size": 2, "progress": False}
    drop_curve(tiny_vit, guides, stream, [0.5], limit=8, **options)
    for _ in range(2):
        with pytest.raises(UserError, match="broken shard"):
            drop_curve(tiny_vit, guides, stream, [0.5, 0.3], **options)
    source.mended = True
    assert len(drop_curve(tiny_vit, guides, stream, [0.5, 0.3], **options).names) == 12


def test_samples_that_nothing_tells_apart_are_refused(tiny_vit):
    image = Image.new("RGB", (64, 64))
    same_name = MadeImages(lambda index: (image, 0), 3, lambda index: "one name", lambda index: "one content")
    dataset = IndexedImages(same_name, model_transform(tiny_vit))
    with pytest.raises(UserError, match="Two samples of the data have one name and one content"):
        drop_curve(tiny_vit, {"c": CenterGuide((4, 4))}, dataset, [0.5], progress=False)


def test_transforms_tell_what_they_do_or_are_new_each_time(tiny_vit):
    to_tensor = transforms.ToTensor()
    told = [model_transform(tiny_vit), transforms.Compose([to_tensor]), transforms.Compose([to_tensor] * 2)]
    assert len({describe_transform(each) for each in told + told}) == 3
    untold = [transforms.Compose([to_tensor, transforms.Lambda(abs)]), to_rgb, torch.nn.Identity()]
    assert len({describe_transform(each) for each in untold + untold}) == 6


def test_strict_stops_at_an_image_known_to_be_broken(tiny_vit, dataset, guides, tmp_path):
    (tmp_path / "images" / "1" / "01.png").write_text("these are my notes")
    with pytest.warns(UserWarning, match="1/01.png"):
        drop_curve(tiny_vit, guides, dataset, RATIOS, folder=tmp_path, progress=False)
    with pytest.raises(UserError, match=r"1/01.png cannot be read as an image"):
        drop_curve(tiny_vit, guides, dataset, RATIOS, folder=tmp_path, strict=True, progress=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_answers_that_are_not_finite_are_refused(tiny_vit, dataset, guides, tmp_path, value):
    with torch.no_grad():
        tiny_vit.head.bias[3] = value
    with pytest.raises(UserError, match="answers are not finite for 5 of 5 images"):
        drop_curve(tiny_vit, guides, dataset, RATIOS, folder=tmp_path, batch_size=5, progress=False)
    (journal,) = tmp_path.glob("outcomes-*.jsonl")
    assert len(journal.read_text().splitlines()) == 1


def test_a_model_in_training_mode_is_refused(tiny_vit, dataset):
    other = copy.deepcopy(tiny_vit)
    other.blocks[1].train()
    inside = {"rollout": AdaptedGuide(RolloutGuide(other), tiny_vit)}
    for target, guides, name in [(other, {"c": CenterGuide((4, 4))}, "target"), (tiny_vit, inside, "rollout")]:
        with pytest.raises(UserError, match=f"The {name} is in training mode"):
            Question(target, guides, dataset, (0.5,))


@pytest.mark.parametrize("shape", [(5, 5), (16,), (4, 3), (1, 4, 4)])
def test_a_map_that_is_not_on_the_targets_grid_is_refused(tiny_vit, dataset, shape):
    def guide(images):
        return torch.rand(len(images), *shape)

    with pytest.raises(UserError, match=r"guide 'mine' gives maps \(13, .* the target has \(13, 4, 4\)"):
        drop_curve(tiny_vit, {"mine": guide}, dataset, [0.5], progress=False)


@pytest.mark.parametrize(("asked", "computed"), [("no", "float32"), ("bf16", "bfloat16"), ("fp16", "float32")])
def test_precision_is_what_is_computed_in(tiny_vit, dataset, monkeypatch, asked, computed):
    """fp16 on a CPU is float32, and its answers are float32's."""
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    dtypes = set()
    handle = tiny_vit.head.register_forward_hook(lambda module, args, output: dtypes.add(output.dtype))
    outcomes = drop_curve(tiny_vit, {"c": CenterGuide((4, 4))}, dataset, [0.5], progress=False)
    handle.remove()
    AcceleratorState._reset_state(reset_partial_state=True)
    assert dtypes == {getattr(torch, computed)}
    assert outcomes.about["precision"] == computed


def test_an_unknown_precision_is_refused(monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp3")
    with pytest.raises(UserError, match=r"Unknown mixed precision 'fp3'\..*Known: no, bf16, fp16"):
        processes.make_accelerator()
    AcceleratorState._reset_state(reset_partial_state=True)
