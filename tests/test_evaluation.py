"""The drop experiment: right counts, right intervals, and nothing lost or mixed when a run is killed."""

import copy
import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from helpers import noise_image, randomise
from safetensors.torch import save_file
from typer.testing import CliRunner

from vitsal.cli import app
from vitsal.data import open_data
from vitsal.dropping import forward_kept, top_k_patches
from vitsal.errors import UserError
from vitsal.evaluation import (
    check_labels,
    describe,
    drop_curve,
    question_of,
    write_table,
)
from vitsal.guides import AdaptedGuide, CenterGuide, RandomGuide, RolloutGuide
from vitsal.identity import data_fingerprint, weights_fingerprint
from vitsal.models import load_model, model_transform
from vitsal.outcomes import COLUMNS, Outcomes, outcomes_file, summarize, wilson_interval

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
    assert outcomes.names == [sample.name for sample in samples]
    assert outcomes.labels == [sample.label for sample in samples] == [0, 0, 1, 1, 2, 2, *range(3, 10)]
    assert list(outcomes.predictions) == [(guide, ratio) for guide in guides for ratio in RATIOS]
    for (guide, ratio), predicted in outcomes.predictions.items():
        for sample, prediction in zip(samples, predicted, strict=True):
            image = sample.image[None]
            keep = top_k_patches(guides[guide](image), ratio)
            assert prediction == forward_kept(tiny_vit, image, keep).argmax().item()
    assert len({tuple(predicted) for predicted in outcomes.predictions.values()}) > 3  # the guides do differ


@torch.no_grad()
def test_table(tiny_vit, dataset, guides):
    outcomes = drop_curve(tiny_vit, guides, dataset, RATIOS, progress=False)
    table = summarize(outcomes, "tiny")
    assert (
        list(table.columns) == COLUMNS == ["target", "guide", "keep_ratio", "n", "correct", "top1", "ci_low", "ci_high"]
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
    centre, half = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    assert wilson_interval(correct, n)[0] == pytest.approx((centre - half) / (1 + z**2 / n), abs=1e-6)
    assert wilson_interval(correct, n)[1] == pytest.approx((centre + half) / (1 + z**2 / n), abs=1e-6)


def test_skipped_images_are_named_and_not_counted(tiny_vit, dataset, guides, tmp_path):
    whole = drop_curve(tiny_vit, guides, dataset, RATIOS, progress=False)
    (tmp_path / "images" / "1" / "01.png").write_text("these are my notes")
    with pytest.warns(UserWarning, match=r"^1 images could not be read and were skipped: 1/01.png"):
        outcomes = drop_curve(tiny_vit, guides, dataset, RATIOS, batch_size=1, progress=False)
    assert outcomes.num_samples == 13
    assert set(summarize(outcomes, "tiny").n) == {12}
    broken = whole.names.index("1/01.png")
    for key, predicted in whole.predictions.items():
        assert outcomes.predictions[key] == predicted[:broken] + predicted[broken + 1 :]


def test_limit(tiny_vit, dataset, guides):
    whole = drop_curve(tiny_vit, guides, dataset, RATIOS, progress=False)
    part = drop_curve(tiny_vit, guides, dataset, RATIOS, limit=4, progress=False)
    assert part.names == [whole.names[index] for index in (0, 3, 6, 9)]


def test_label_outside_the_targets_classes(dataset, guides):
    five = load_model("vit_tiny_patch16_224", pretrained=False, img_size=64, depth=1, num_classes=5)
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


def test_nothing_to_sum_up():
    with pytest.raises(UserError, match="No image could be evaluated"):
        summarize(Outcomes(), "tiny")


def test_any_callable_is_a_guide(tiny_vit, dataset):
    def top_left(images):
        return -torch.arange(16.0).view(1, 4, 4).expand(len(images), -1, -1)

    outcomes = drop_curve(tiny_vit, {"mine": top_left}, dataset, [0.25], progress=False)
    image = dataset[0].image[None]
    expected = forward_kept(tiny_vit, image, torch.tensor([[0, 1, 2, 3]])).argmax().item()
    assert outcomes.predictions["mine", 0.25][0] == expected


def test_goes_on_from_a_file(tiny_vit, dataset, guides, tmp_path):
    path, question = tmp_path / "outcomes.jsonl", {"target": "tiny", "keep": list(RATIOS)}
    whole = drop_curve(
        tiny_vit, guides, dataset, RATIOS, batch_size=3, outcomes=Outcomes(path, question), progress=False
    )
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 1 + 5  # the question, and five batches

    for kept, torn in [(1, ""), (3, ""), (3, lines[3][:40]), (6, "")]:
        path.write_text("".join(lines[:kept]) + torn)
        resumed = Outcomes(path, question)
        assert resumed.num_samples == min(3 * (kept - 1), 13)
        drop_curve(tiny_vit, guides, dataset, RATIOS, batch_size=3, outcomes=resumed, progress=False)
        assert (resumed.names, resumed.labels, resumed.predictions) == (whole.names, whole.labels, whole.predictions)
        assert path.read_text() == "".join(lines)


def test_goes_on_after_skipped_images(tiny_vit, dataset, guides, tmp_path):
    for name in ("0/00.png", "2/12.png"):
        (tmp_path / "images" / name).write_text("these are my notes")
    path = tmp_path / "outcomes.jsonl"
    with pytest.warns(UserWarning, match="2 images could not be read"):
        whole = drop_curve(tiny_vit, guides, dataset, RATIOS, batch_size=2, outcomes=Outcomes(path), progress=False)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:4]))
    with pytest.warns(UserWarning, match="2 images could not be read"):
        resumed = drop_curve(tiny_vit, guides, dataset, RATIOS, batch_size=2, outcomes=Outcomes(path), progress=False)
    assert resumed == whole


@pytest.mark.parametrize("other", [{"target": "big", "keep": [0.5]}, {"target": "tiny", "keep": [0.5, 0.3]}, {}])
def test_outcomes_of_another_question_are_refused_and_left_alone(tmp_path, other):
    path = tmp_path / "outcomes.jsonl"
    Outcomes(path, {"target": "tiny", "keep": [0.5]})
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"outcomes.jsonl holds outcomes of another question \(.*(target|keep): .*now"):
        Outcomes(path, other)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content", ["these are my notes", "notes\n", "[1, 2]\n", '{"names": []}\n', '{"question": {}}\nx\n']
)
def test_file_that_holds_no_outcomes_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(UserError, match=r"notes.txt is no outcomes file"):
        Outcomes(path)
    assert path.read_text() == content


def test_fingerprints_tell_weights_and_data_apart(tiny_vit, dataset, tmp_path):
    before = weights_fingerprint(tiny_vit)
    assert weights_fingerprint(tiny_vit) == before
    with torch.no_grad():
        tiny_vit.head.bias[3] += 1e-6
    assert weights_fingerprint(tiny_vit) != before
    names = data_fingerprint(dataset)
    noise_image(tmp_path / "images" / "9" / "more.png", seed=1)
    assert data_fingerprint(open_data(str(tmp_path / "images"), dataset.transform)) != names


def test_question_changes_with_all_that_could_change_the_answer(tiny_vit, dataset):
    """And with nothing else: the same question, asked again, finds its file."""

    def question(guide=None, ratios=(1.0, 0.5), limit=None):
        guides = {"mine": guide or RolloutGuide(tiny_vit, "max", 0.9)}
        return question_of(tiny_vit, guides, dataset, ratios, limit=limit)

    first = question()
    assert question() == first
    other_model = copy.deepcopy(tiny_vit)
    with torch.no_grad():
        other_model.blocks[0].attn.qkv.bias[0] += 0.1
    others = [
        question(RolloutGuide(tiny_vit, "mean", 0.9)),
        question(RolloutGuide(tiny_vit, "max", 0.8)),
        question(RolloutGuide(other_model, "max", 0.9)),
        question(AdaptedGuide(RolloutGuide(other_model, "max", 0.9), tiny_vit)),
        question(RandomGuide((4, 4), seed=0)),
        question(RandomGuide((4, 4), seed=1)),
        question(ratios=(1.0, 0.4)),
        question(limit=5),
    ]
    files = {outcomes_file("runs", asked) for asked in [first, *others]}
    assert len(files) == 9
    assert outcomes_file("runs", question()) == outcomes_file("runs", first)


def test_table_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "new" / "table.csv"
    write_table(pd.DataFrame({"n": [1, 2]}), path)
    write_table(pd.DataFrame({"n": [3]}), path)
    assert path.read_text() == "n\n3\n"
    assert [file.name for file in path.parent.iterdir()] == ["table.csv"]


def drop_curve_arguments(checkpoint, folder, output):
    options = {"target": "vitsal_digits_guide", "checkpoint": checkpoint, "data": folder, "output": output}
    options |= {"guide": "rollout", "keep": "1.0,0.5,0.2", "batch-size": 1, "device": "cpu"}
    return ["drop-curve", *[str(part) for name, value in options.items() for part in (f"--{name}", value)]]


def test_killed_run_goes_on_and_ends_with_the_same_table(tmp_path):
    """SIGKILL in the middle, as when a machine goes down; the same command again; the table of an undisturbed run."""
    for index in range(60):
        noise_image(tmp_path / "images" / f"{index % 10}" / f"{index:02d}.png", seed=index, size=(112, 112))
    checkpoint = tmp_path / "small.safetensors"
    save_file(randomise(load_model("vitsal_digits_guide", pretrained=False)).state_dict(), checkpoint)
    disturbed, undisturbed = tmp_path / "disturbed.csv", tmp_path / "undisturbed.csv"
    kept = tmp_path / "disturbed.outcomes.jsonl"

    arguments = drop_curve_arguments(checkpoint, tmp_path / "images", disturbed)
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen([sys.executable, "-m", "vitsal.cli", *arguments], stdout=log, stderr=log)
    deadline = time.monotonic() + 120
    while (not kept.exists() or kept.read_text().count("\n") < 5) and time.monotonic() < deadline:
        assert run.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.005)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    lines = kept.read_text().count("\n")
    assert 5 <= lines < 61  # in the middle of its work
    assert not disturbed.exists()

    for output in (disturbed, undisturbed):
        result = CliRunner().invoke(app, drop_curve_arguments(checkpoint, tmp_path / "images", output))
        assert result.exit_code == 0, result.output
    assert disturbed.read_bytes() == undisturbed.read_bytes()
    assert set(pd.read_csv(disturbed).n) == {60}
    names = [name for line in kept.read_text().splitlines()[1:] for name in json.loads(line)["names"]]
    assert len(names) == len(set(names)) == 60


def test_unlabelled_data_is_refused(tiny_vit):
    with pytest.raises(UserError, match="label -1"):
        check_labels(torch.tensor([3, -1]), tiny_vit)


def test_a_plain_function_is_described_by_its_name(tiny_vit):
    described = describe({"x": 1}), describe(random_like)
    assert described == ({"x": 1}, f"{__name__}.random_like")


def random_like(images):
    return torch.rand(len(images), 4, 4)
