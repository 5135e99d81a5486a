"""The command line: what it writes, and one clear paragraph for every bad input."""

import pickle
import re
import subprocess
import sys
from itertools import product

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import COUNT, PARAMETERS, Malicious, failing_command, noise_image, randomise, save_image, write_notebook
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from vitsal import cli
from vitsal.analysis.exploration import Exploration
from vitsal.analysis.probing import mean_attention_distance
from vitsal.cli.options import parse_image_size
from vitsal.course import recipes
from vitsal.data.images import batches
from vitsal.data.opening import open_data
from vitsal.errors import UserError
from vitsal.experiments.outcomes import SUMMARY_COLUMNS, read_outcomes, summarize
from vitsal.guides.accelerated import AcceleratedViT
from vitsal.guides.baselines import CenterGuide, RandomGuide
from vitsal.guides.explainers import GradientRolloutGuide, HeadGuide, RolloutGuide
from vitsal.guides.factory import make_guide, picture_guide
from vitsal.models.classes import class_names, top_classes
from vitsal.models.loading import load_model, load_network, load_sized_model
from vitsal.models.pixels import to_pixels
from vitsal.models.tokens import model_transform
from vitsal.pictures.overlays import overlay
from vitsal.pictures.sheets import draw_sample
from vitsal.reduction.reduction import Reduction

MODEL = "vitsal_digits_guide"


@pytest.fixture(autouse=True)
def _no_figure_left():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_file(randomise(load_model(MODEL, pretrained=False)).state_dict(), path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Ten class folders with one image of random colours each."""
    for index in range(10):
        noise_image(tmp_path / "images" / f"{index}" / "image.png", seed=index, size=(112, 112))
    return tmp_path / "images"


@pytest.fixture
def picture(folder):
    return folder / "3" / "image.png"


def succeed(*arguments):
    result = CliRunner().invoke(cli.app, [str(part) for part in arguments])
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--method", "grad-rollout", "--discard-ratio", "0.5"],
        ["--category-index", "3"],
        ["--method", "last-attention"],
        ["--head-fusion", "min"],
        ["--method", "flow"],
        ["--method", "grad-attention"],
        ["--method", "heads"],
    ],
)
def test_explain_writes_a_picture(picture, checkpoint, tmp_path, options):
    output = tmp_path / "new" / "out.png"
    assert str(output) in succeed(
        "explain", picture, "--model", MODEL, "--checkpoint", checkpoint, *options, "-o", output
    )
    with Image.open(output) as image:
        assert image.size == pytest.approx((2667, 1500), abs=1)
        assert np.asarray(image).std() > 1


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_explain_writes_the_numbers_of_the_maps(folder, checkpoint, tmp_path, kind):
    output, pictures = tmp_path / f"maps.{kind}", folder / "3"
    noise_image(pictures / "other.png", seed=11, size=(112, 112))
    options = ["--model", MODEL, "--checkpoint", checkpoint, "--method", "rollout,heads"]
    assert str(output) in succeed("explain", pictures, *options, "-o", output)
    table = {"csv": pd.read_csv, "parquet": pd.read_parquet}[kind](output)
    vit = load_model(MODEL, checkpoint)
    for name in ("image.png", "other.png"):
        image = model_transform(vit)(Image.open(pictures / name))[None]
        for guide, head, expected in (
            ("rollout", 0, RolloutGuide(vit, "max", 0.9)),
            ("heads", 3, HeadGuide(vit, -1, 2)),
        ):
            rows = table[(table.image == name) & (table.guide == guide) & (table["head"] == head)]
            shown = torch.from_numpy(rows.pivot_table("saliency", "row", "column").to_numpy()).float()
            torch.testing.assert_close(shown, expected(image)[0])
            (likeliest,) = top_classes(vit(image)[0], class_names(vit), 1)
            assert set(rows.predicted) == {str(likeliest)}
    assert len(table) == 2 * (1 + 4) * 196


@pytest.mark.slow
def test_explain_draws_what_was_asked_for(picture, checkpoint, tmp_path):
    """Other options, other pictures; a category index asks for gradient rollout."""
    seen = {}
    for name, options in {
        "default": [],
        "as default": ["--method", "rollout", "--head-fusion", "max", "--discard-ratio", "0.9"],
        "mean": ["--head-fusion", "mean"],
        "class 3": ["--category-index", "3"],
        "class 3, named": ["--category-index", "3", "--method", "grad-rollout"],
        "class 4": ["--category-index", "4"],
    }.items():
        output = tmp_path / "out.png"
        succeed("explain", picture, "--model", MODEL, "--checkpoint", checkpoint, *options, "-o", output)
        seen[name] = output.read_bytes()
    assert seen["default"] == seen["as default"]
    assert seen["class 3"] == seen["class 3, named"]
    assert len(set(seen.values())) == 4


@pytest.mark.slow
def test_a_folder_gives_a_contact_sheet(folder, checkpoint, tmp_path):
    for number in range(3):
        noise_image(tmp_path / "photos" / f"{number}.png", seed=number, size=(112, 112))
    (tmp_path / "photos" / "3.jpg").write_text("these are my notes")
    (tmp_path / "photos" / "notes.txt").write_text("these are my notes")
    options = ["--model", MODEL, "--checkpoint", checkpoint, "--method", "rollout,flow,grad-attention"]
    with pytest.warns(UserWarning, match="^1 images could not be read and were skipped: 3.jpg"):
        succeed("explain", tmp_path / "photos", *options, "-o", tmp_path / "all.svg")
    svg = (tmp_path / "all.svg").read_text()
    words = ("0", "1", "2", "rollout", "flow", "grad-attention:", MODEL)
    assert all(f">{word}</text>" in svg for word in words)
    succeed("explain", tmp_path / "photos", *options, "--limit", 2, "-o", tmp_path / "two.svg")
    assert ">1</text>" not in (tmp_path / "two.svg").read_text()


def test_explain_prints_the_likeliest_classes(folder, checkpoint, tmp_path):
    """Three for each image, with their indices, then the picture's path."""
    vit = load_model(MODEL, checkpoint)
    noise_image(tmp_path / "photos" / "a.png", seed=1, size=(112, 112))
    noise_image(tmp_path / "photos" / "b.png", seed=2, size=(112, 112))
    options = ["--model", MODEL, "--checkpoint", checkpoint, "--device", "cpu"]
    lines = succeed("explain", tmp_path / "photos", *options, "-o", tmp_path / "out.png").splitlines()
    for line, name in zip(lines, ("a.png", "b.png"), strict=False):
        with torch.no_grad(), Image.open(tmp_path / "photos" / name) as image:
            probabilities = vit(model_transform(vit)(image)[None])[0].softmax(dim=0)
        order = probabilities.argsort(descending=True)[:3].tolist()
        said = ", ".join(f"class {index}: {index} ({100 * probabilities[index]:.0f} %)" for index in order)
        assert line == f"{name}: {said}"
    assert lines[2:] == [str(tmp_path / "out.png")]


@pytest.fixture
def seen(tiny_vit, tmp_path):
    """A picture in a model whose ten classes are called class a to class j."""
    tiny_vit.pretrained_cfg = {**tiny_vit.pretrained_cfg, "label_names": [f"class {letter}" for letter in "abcdefghij"]}
    with Image.open(noise_image(tmp_path / "cat.png", seed=5)) as image:
        return Exploration(tiny_vit, image.convert("RGB"))


def test_headings_name_what_is_shown(seen, tiny_vit):
    """The class that the model takes the picture for; that which a gradient explains, predicted or asked for."""
    with torch.no_grad():
        probabilities = tiny_vit(seen.images)[0].softmax(dim=0)
    names = [f"class {'abcdefghij'[i]} ({100 * p:.0f} %)" for i, p in enumerate(probabilities.tolist())]
    best = names[probabilities.argmax()]
    other = int(probabilities.argsort()[-4])
    for category, explained in [(None, best), (other, names[other])]:
        options = {"head_fusion": "max", "discard_ratio": 0.5, "category_index": category}
        guides = {name: picture_guide(name, tiny_vit, **options) for name in ("rollout", "grad-rollout", "heads")}
        sample = draw_sample("cat", seen, guides, category)
        gradient = f"grad-rollout:\n{explained}"
        assert list(sample) == [f"cat\n{best}", "rollout", gradient, "head 1", "head 2", "head 3"]
        assert np.array_equal(sample[f"cat\n{best}"], seen.pixels)
        maps = {
            "rollout": RolloutGuide(tiny_vit, "max", 0.5)(seen.images)[0],
            gradient: GradientRolloutGuide(tiny_vit, category, 0.5)(seen.images)[0],
            "head 2": HeadGuide(tiny_vit)(seen.images)[0, 1],
        }
        for heading, saliency in maps.items():
            assert np.allclose(sample[heading], overlay(seen.pixels, saliency), atol=1e-4), heading


def test_explain_a_model_without_classes(picture, tmp_path, monkeypatch):
    """There is nothing to name."""
    model = randomise(load_model("vit_tiny_patch16_224", pretrained=False, img_size=32, depth=2, num_classes=0))
    monkeypatch.setattr("vitsal.models.load_sized_model", lambda *_, **__: model)
    shown = succeed("explain", picture, "--method", "rollout,heads", "-o", tmp_path / "out.svg")
    assert shown == f"{tmp_path / 'out.svg'}\n"
    words = re.findall(r">([^<>]+)</text>", (tmp_path / "out.svg").read_text())
    headings = [word for word in words if word not in ("least salient", "most salient", "patch of", "each map")]
    assert sorted(headings) == ["deit_tiny_patch16_224", "head 1", "head 2", "head 3", "image", "rollout"]


def test_explain_at_another_size(picture, checkpoint, tmp_path, monkeypatch):
    """8 x 14 patches of 8 pixels: the model sees the middle of the picture, cut to this shape and not squeezed."""
    drawn = []
    monkeypatch.setattr("vitsal.pictures.contact_sheet", lambda samples, _: drawn.extend(samples) or plt.figure())
    options = ["--model", MODEL, "--checkpoint", checkpoint, "--method", "rollout", "-o", tmp_path / "out.png"]
    succeed("explain", picture, *options, "--image-size", "64, 112")
    pixels, explained = drawn[0].values()
    vit = load_model(MODEL, checkpoint, img_size=(64, 112))
    with Image.open(picture) as image:
        images = model_transform(vit)(image.convert("RGB"))[None]
    saliency = RolloutGuide(vit, "max", 0.9)(images)[0]
    assert saliency.shape == (8, 14)
    assert np.allclose(pixels, to_pixels(images, vit)[0], atol=1e-6)
    assert np.allclose(explained, overlay(pixels, saliency), atol=1e-4)


def test_video_at_another_size(checkpoint, tmp_path, monkeypatch):
    """Whole frames, on a grid of 6 x 10 patches of 8 pixels."""
    (tmp_path / f"{MODEL}.safetensors").write_bytes(checkpoint.read_bytes())
    monkeypatch.setenv("VITSAL_WEIGHTS_DIR", str(tmp_path))
    asked = []
    monkeypatch.setattr("vitsal.pictures.draw_on_video", lambda *arguments, **_: asked.append(arguments[2]))
    (tmp_path / "in.mp4").touch()
    for method, panels in [("rollout", 1), ("heads", 4)]:
        succeed(
            "video",
            tmp_path / "in.mp4",
            tmp_path / "out.mp4",
            "--model",
            MODEL,
            "--method",
            method,
            "--image-size",
            "48,80",
        )
        frame = np.zeros((90, 160, 3), np.uint8)
        assert asked.pop()[MODEL].maps([frame]).shape == (1, panels, 6, 10)


def test_image_sizes():
    assert parse_image_size("288, 512") == (288, 512)
    assert parse_image_size("384") == (384, 384)


def drop_curve(folder, checkpoint, output, *more):
    options = ["--target", MODEL, "--checkpoint", checkpoint, "--data", folder, "--device", "cpu", "--output", output]
    return succeed("drop-curve", *options, *more)


@pytest.mark.parametrize("guide", ["random", "center", "rollout", "grad-rollout", "last-attention"])
def test_drop_curve_writes_one_row_per_ratio(folder, checkpoint, tmp_path, guide):
    output = tmp_path / "new" / "table.csv"
    shown = drop_curve(folder, checkpoint, output, "--guide", guide, "--keep", "1.0,0.7,0.5", "--limit", "6")
    assert output.read_text().startswith(
        "target,guide,keep_ratio,merge,input_size,soften,rest,n,correct,top1,ci_low,ci_high,minus,difference,"
    )
    table = pd.read_csv(output)
    assert table.keep_ratio.tolist() == [1.0, 0.7, 0.5]
    assert set(table.target) == {MODEL}
    assert set(table.guide) == {guide}
    assert set(table.n) == {6}
    assert str(output) in shown


def test_drop_curve_writes_what_is_predicted_for_each_image(folder, checkpoint, tmp_path, fail):
    output, each = tmp_path / "table.csv", tmp_path / "new" / "outcomes.parquet"
    drop_curve(folder, checkpoint, output, "--guide", "random,center", "--keep", "1.0,0.5", "--outcomes", each)
    pd.testing.assert_frame_equal(summarize(read_outcomes(each), MODEL), pd.read_csv(output)[SUMMARY_COLUMNS])
    before = output.read_bytes()
    said = fail("drop-curve", "--data", folder, "--target", MODEL, "--outcomes", output)
    assert "cannot be read as outcomes" in said
    assert output.read_bytes() == before


@pytest.mark.slow
def test_drop_curve_with_every_lever(folder, checkpoint, tmp_path):
    output, each = tmp_path / "table.csv", tmp_path / "outcomes.parquet"
    options = ["--guide", "random,center", "--keep", "1.0,0.5", "--merge", "0,8@1", "--input-size", "112,64x80"]
    options += ["--soften", "0,1-", "--rest", "dropped,coarse"]
    shown = drop_curve(folder, checkpoint, output, *options, "--outcomes", each)
    known, model = read_outcomes(each), load_model(MODEL, checkpoint)
    data = open_data(str(folder), model_transform(model))
    for guide, chooser in {"random": RandomGuide((14, 14)), "center": CenterGuide((14, 14))}.items():
        for levers in product([1.0, 0.5], ["0", "8@1"], [None, (64, 80)], ["0", "1-"], ["dropped", "coarse"]):
            fast = AcceleratedViT(model, chooser, Reduction(*levers))
            with torch.no_grad():
                expected = torch.cat([fast(batch.images).argmax(dim=1) for batch in batches(data, 4)])
            assert known.predictions[guide, Reduction(*levers).key].tolist() == expected.tolist()
    table = pd.read_csv(output)
    assert table.groupby(["keep_ratio", "rest"]).size().to_dict() == {
        (1.0, "dropped"): 16,  # nothing else is left
        (0.5, "dropped"): 16,
        (0.5, "coarse"): 16,
    }
    assert "64 x 80" in shown
    plain = drop_curve(folder, checkpoint, tmp_path / "plain.csv", "--guide", "center", "--keep", "0.5")
    assert "merge" not in plain
    assert "rest" not in plain


@pytest.mark.parametrize(("size", "side"), [("104", 13), ("112,72", 9)])
def test_drop_curve_where_patches_cannot_be_shown_coarsely(folder, checkpoint, tmp_path, fail, size, side):
    """Said before any image is seen; where all patches are kept there is nothing to be shown so."""
    options = ["--target", MODEL, "--checkpoint", checkpoint, "--data", folder, "--output", tmp_path / "table.csv"]
    options += ["--guide", "center", "--rest", "coarse", "--input-size", size]
    said = fail("drop-curve", *options, "--keep", "1.0,0.5")
    assert f"has {side} x {side} patches here, and only even numbers" in said
    assert not list(tmp_path.glob("*.jsonl"))
    succeed("drop-curve", *options, "--keep", "1.0", "--device", "cpu")
    assert set(pd.read_csv(tmp_path / "table.csv").rest) == {"dropped"}


def test_drop_curve_by_what_neighbours_choose_by(folder, checkpoint, tmp_path, monkeypatch):
    network, model = randomise(load_network("test_resnet", pretrained=False)), load_model(MODEL, checkpoint)
    save_file(network.state_dict(), tmp_path / "test_resnet.safetensors")
    monkeypatch.setenv("VITSAL_WEIGHTS_DIR", str(tmp_path))
    names, each = ("class-attention", "norm-change", "activation"), tmp_path / "outcomes.parquet"
    options = ["--guide", ",".join(names), "--block", "-2", "--network", "test_resnet", "--keep", "0.2"]
    drop_curve(folder, checkpoint, tmp_path / "table.csv", *options, "--outcomes", each)
    known, data = read_outcomes(each), open_data(str(folder), model_transform(model))
    for name in names:
        fast = AcceleratedViT(model, make_guide(name, model, network=network, block=1), 0.2)
        with torch.no_grad():
            expected = torch.cat([fast(batch.images).argmax(dim=1) for batch in batches(data, 4)])
        assert known.predictions[name, 0.2].tolist() == expected.tolist()


def test_drop_curve_on_a_smaller_image(folder, checkpoint, tmp_path):
    """64 x 64 pixels of the model's 112 are 8 x 8 patches; the positions are interpolated."""
    each = tmp_path / "outcomes.parquet"
    options = ["--guide", "center", "--keep", "1.0", "--image-size", "64", "--outcomes", each]
    drop_curve(folder, checkpoint, tmp_path / "table.csv", *options)
    small = load_sized_model(MODEL, (64, 64), checkpoint)
    data = open_data(str(folder), model_transform(small))
    with torch.no_grad():
        expected = torch.cat([small(batch.images).argmax(dim=1) for batch in batches(data, 4)])
    assert small.patch_embed.grid_size == (8, 8)
    assert read_outcomes(each).predictions["center", 1.0].tolist() == expected.tolist()


@pytest.mark.slow
def test_drop_curve_with_another_guide_model_and_batch_size(folder, checkpoint, tmp_path):
    options = ["--guide-model", "vitsal_digits_target", "--guide-checkpoint", tmp_path / "guide.safetensors"]
    save_file(randomise(load_model("vitsal_digits_target", pretrained=False)).state_dict(), options[-1])
    options += ["--head-fusion", "max", "--discard-ratio", "0.9", "--keep", "0.3,0.1"]
    for size in (1, 4):
        drop_curve(folder, checkpoint, tmp_path / f"{size}" / "t.csv", *options, "--batch-size", size)
    assert (tmp_path / "1" / "t.csv").read_bytes() == (tmp_path / "4" / "t.csv").read_bytes()


def test_drop_curve_again_only_reads_what_is_kept(folder, checkpoint, tmp_path, monkeypatch):
    """And what one table needs, another in the same folder has already."""
    drop_curve(folder, checkpoint, tmp_path / "table.csv", "--keep", "0.5")
    before = (tmp_path / "table.csv").read_bytes()
    monkeypatch.setattr("vitsal.experiments.evaluation._Work.predict", None)
    for name in ("table.csv", "other.csv"):
        drop_curve(folder, checkpoint, tmp_path / name, "--keep", "0.5")
        assert (tmp_path / name).read_bytes() == before


@pytest.mark.slow
def test_drop_curve_names_its_own_file(folder, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for ratio, limit in [("0.5", 4), ("0.3", 4), ("0.5", 4), ("0.5", 5)]:
        options = ["--target", MODEL, "--checkpoint", checkpoint, "--data", folder, "--keep", ratio, "--limit", limit]
        succeed("drop-curve", *options)
    tables = [pd.read_csv(path) for path in (tmp_path / "runs").glob("*.csv")]
    assert sorted(sorted(table.keep_ratio) for table in tables) == [[0.3, 0.5], [0.5]]
    assert len(list((tmp_path / "runs").glob("outcomes-*.jsonl"))) == 1  # what is known serves both


def test_drop_curve_names_broken_images(folder, checkpoint, tmp_path, picture):
    picture.write_text("these are my notes")
    with pytest.warns(UserWarning, match=r"^1 images could not be read and were skipped: 3/image.png"):
        drop_curve(folder, checkpoint, tmp_path / "table.csv", "--keep", "1.0")
    assert set(pd.read_csv(tmp_path / "table.csv").n) == {9}


@pytest.mark.slow
def test_run_executes_notebooks_with_parameters(tmp_path):
    for number in (1, 2):
        write_notebook(
            tmp_path / "notebooks" / f"0{number}_n.ipynb",
            PARAMETERS,
            COUNT.replace('"count"', f'"notebook {number}"'),
        )
    options = ["--notebooks", tmp_path / "notebooks", "-o", tmp_path / "made"]
    shown = succeed("run", "2", "-p", "limit", "5", "-p", "name", "b", *options)
    assert "notebook 2\n  twice the limit: 10\n  name: b\n" in shown
    assert "notebook 1" not in shown
    assert str(tmp_path / "made") in shown
    assert nbformat.read(tmp_path / "made" / "02_n.ipynb", as_version=4)


def test_run_arguments():
    words = "1 3 -p preset digits -p limit 5 -p keep [1.0,0.5] -p x None"
    numbers, parameters = cli.options.parse_run_arguments(words.split(" "))
    assert numbers == [1, 3]
    assert parameters == {"preset": "digits", "limit": 5, "keep": [1.0, 0.5], "x": None}
    for bad in (["one"], ["-p", "limit"], ["-p"]):
        with pytest.raises(UserError, match="neither a notebook's number nor a parameter"):
            cli.options.parse_run_arguments(bad)


@pytest.mark.parametrize("what", ["rollout", "dropping"])
def test_benchmark(what):
    shown = succeed("benchmark", what, "--model", MODEL, "--batch-size", "2", "--repeats", "1")
    assert f"{MODEL}, batch 2, torch {torch.__version__}, 1 rounds" in shown
    assert ("ratio_to_forward" if what == "rollout" else "share_of_limit") in shown


def test_keep_ratios():
    assert cli.options.parse_ratios("1.0, 0.7,0.5,0.7") == [1.0, 0.7, 0.5]


@pytest.fixture
def fail(monkeypatch, capsys):
    """Run the command line, which must end with status 2, one paragraph on stderr, and nothing on stdout."""

    return lambda *arguments: failing_command(monkeypatch, capsys, arguments, bars=("drop curve:", "rounds:"))


@pytest.fixture
def curve(folder, checkpoint, tmp_path):
    """Arguments of a good drop curve; an option given again replaces it."""
    return [
        *["drop-curve", "--target", MODEL, "--checkpoint", checkpoint, "--data", folder, "--keep", "0.5"],
        *["--output", tmp_path / "table.csv"],
    ]


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        ("0", r"keep ratio must lie in (0, 1]; got 0."),
        ("1.5", r"keep ratio must lie in (0, 1]; got 1.5."),
        ("half", r"keep ratio must be a number in (0, 1]; got 'half'."),
        ("0.5,", r"keep ratio must be a number in (0, 1]; got ''."),
        ("True", r"keep ratio must be a number in (0, 1]; got True."),
    ],
)
def test_bad_keep_ratio(fail, curve, tmp_path, keep, said):
    assert said in fail(*curve, "--keep", keep)
    assert not (tmp_path / "table.csv").exists()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--discard-ratio", "1.0", "discard ratio must lie in [0, 1); got 1."),
        ("--head-fusion", "maxx", "Unknown head fusion 'maxx'. Did you mean 'max'? Known: mean, max, min."),
        ("--guide", "rolout", "Unknown guide 'rolout'. Did you mean 'rollout'"),
        ("--target", "vitsal_digits_gide", "Did you mean 'vitsal_digits_guide'"),
        ("--target", "swin_tiny_patch4_window7_224", "is a SwinTransformer, which has no sequence of patch tokens"),
        ("--data", "gone", "There is no data at 'gone'"),
        ("--device", "tpu9", "Device 'tpu9' cannot be used"),
    ],
)
def test_bad_drop_curve(fail, curve, option, value, said):
    assert said in fail(*curve, option, value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--limit", "5"], "table.csv holds other results (limit: all there, 5 now), and is left as it is."),
        (["--discard-ratio", "0.5"], "table.csv holds other results (guide_id of vitsal_digits_guide, rollout: "),
        (["--checkpoint", "other"], "table.csv holds other results (target_id of vitsal_digits_guide: "),
        (["--data", "other"], "table.csv holds other results (data_id: "),
    ],
)
def test_a_table_of_other_things_is_left_alone(fail, curve, folder, checkpoint, tmp_path, options, said):
    """Told before anything is computed."""
    drop_curve(folder, checkpoint, tmp_path / "table.csv", "--keep", "0.5")
    before = {path: path.read_bytes() for path in tmp_path.glob("*.*")}
    if options[1] == "other":
        options[1] = other_of(options[0], folder, tmp_path / "elsewhere")
    assert said in fail(*curve, *options)
    assert {path: path.read_bytes() for path in tmp_path.glob("*.*")} == before


def other_of(option, folder, path):
    """Other weights, or the same names with other pixels."""
    path.mkdir()
    if option == "--checkpoint":
        save_file(randomise(load_model(MODEL, pretrained=False), seed=9).state_dict(), path / "w.safetensors")
        return path / "w.safetensors"
    for number, image in enumerate(sorted(folder.glob("*/*.png"))):
        noise_image(path / image.relative_to(folder), seed=100 + number)
    return path


def test_no_gpu_here(fail, curve):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert "Device 'cuda' cannot be used" in fail(*curve, "--device", "cuda")


def test_empty_folder(fail, curve, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty holds no images" in fail(*curve, "--data", tmp_path / "empty")


def test_strict_stops_at_a_broken_image(fail, curve, picture):
    picture.write_text("these are my notes")
    assert "3/image.png cannot be read as an image" in fail(*curve, "--strict")


def test_only_broken_images(fail, curve, tmp_path):
    for name in "0123456789":
        (tmp_path / "notes" / name).mkdir(parents=True)
        (tmp_path / "notes" / name / "image.jpg").write_text("these are my notes")
    with pytest.warns(UserWarning, match="10 images could not be read"):
        assert "No image could be evaluated" in fail(*curve, "--data", tmp_path / "notes")


def test_data_with_more_classes_than_the_target(fail, curve, folder):
    save_image(folder / "another" / "image.png")
    assert "has 11 classes (0, 1, 2, 3, 4 and 6 more), and the target tells 10 apart" in fail(*curve)


def test_checkpoint_of_another_model(fail, curve, tmp_path):
    other = tmp_path / "other.safetensors"
    save_file(load_model("vitsal_digits_target", pretrained=False).state_dict(), other)
    said = fail(*curve, "--checkpoint", other)
    assert "other.safetensors does not fit VisionTransformer vitsal_digits_guide: " in said
    assert "not in the model" in said
    assert "of another shape" in said


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickle_that_would_execute_code(fail, curve, tmp_path):
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Malicious(tmp_path / "executed")))
    assert "nothing in it was executed" in fail(*curve, "--checkpoint", tmp_path / "evil.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--category-index", "5000"], "Category index 5000 is not a class of this model: it has 10 classes, 0 to 9."),
        (["--category-index", "-1"], "Category index -1 is not a class of this model"),
        (["--method", "gradrollout"], "Unknown method 'gradrollout'. Did you mean 'grad-rollout'"),
        (["--head-fusion", "median"], "Unknown head fusion 'median'"),
        (["--discard-ratio", "1.0"], "discard ratio must lie in [0, 1); got 1."),
        (["--model", "convnext_tiny"], "is a ConvNeXt"),
        (["--checkpoint", "gone.safetensors"], "There is no checkpoint file at gone.safetensors."),
        (["-o", "out.docx"], "docx"),
        (["--image-size", "64x"], "image size must be HEIGHTxWIDTH in pixels, such as 288x512, or one number; got"),
        (["--image-size", "1,2,3"], "or one number; got '1,2,3'."),
        (["--image-size", "0,64"], "or one number; got '0,64'."),
        (["--image-size", "-64"], "or one number; got '-64'."),
        (["--image-size", "64,"], "or one number; got '64,'."),
        (["--image-size", "64,100"], "64,100 is no whole number of patches: vitsal_digits_guide takes 8 x 8."),
    ],
)
def test_bad_explain(fail, picture, checkpoint, tmp_path, options, said):
    good = ["explain", picture, "--model", MODEL, "--checkpoint", checkpoint, "-o", tmp_path / "out.png"]
    assert said in fail(*good, *options)
    assert not (tmp_path / "out.png").exists()


def test_explain_a_folder_without_images(fail, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "There is no image that can be read in the folder" in fail("explain", tmp_path / "empty", "--model", MODEL)


def test_explain_a_text_file_named_jpg(fail, checkpoint, tmp_path):
    (tmp_path / "notes.jpg").write_text("these are my notes")
    good = ["--model", MODEL, "--checkpoint", checkpoint]
    assert "notes.jpg cannot be read as an image" in fail("explain", tmp_path / "notes.jpg", *good)
    assert "There is no image file at" in fail("explain", tmp_path / "gone.jpg", *good)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["9"], "There is no notebook 9. There are: 1."),
        (["one"], "'one' is neither a notebook's number nor a parameter"),
        (["-p", "limt", "5"], "No notebook has a parameter 'limt'. Did you mean 'limit'? Known: limit, output_dir."),
    ],
)
def test_bad_run(fail, tmp_path, arguments, said):
    write_notebook(tmp_path / "notebooks" / "01_n.ipynb", 'limit = 1\noutput_dir = ""')
    assert said in fail("run", *arguments, "--notebooks", tmp_path / "notebooks", "-o", tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.mark.slow
def test_block_that_rollout_cannot_record(fail):
    model = "vit_tiny_patch16_224"
    assert "Unknown benchmark 'roll'" in fail("benchmark", "roll", "--model", model)
    said = fail("benchmark", "rollout", "--model", "vit_small_patch16_18x2_224", "--batch-size", "1", "--repeats", "1")
    assert "ParallelThingsBlock" in said


@pytest.mark.slow
def test_unknown_preset_in_a_notebook(tmp_path):
    """The notebooks' own first cell: the error of `read_parameters` is what the failed run shows."""
    notebook = write_notebook(
        tmp_path / "01_n.ipynb",
        'preset = "digits"\noutput_dir = ""',
        "from vitsal.course.presets import read_parameters\nread_parameters(globals(), output_dir=str)",
    )
    arguments = ["run", "-p", "preset", "digit", "--notebooks", str(tmp_path), "-o", str(tmp_path / "made")]
    command = [sys.executable, "-m", "vitsal.cli", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2
    assert f"Error: Notebook {notebook} failed in cell" in ended.stderr
    assert "Unknown preset 'digit'. Did you mean 'digits'" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_recipes_are_listed_with_what_they_need():
    shown = succeed("recipes", "mae-huge")
    assert "- target mae_finetuned_vit_huge.pth, 2528.2 MB: not here; https://" in shown
    assert "- guide eva02_tiny_patch14_224.mim_in22k, 22.0 MB: not here; hub" in shown
    assert "papermill 03_ideal_drop_experiment.ipynb mae-huge.ipynb -p recipe mae-huge -p limit 50000" in shown
    assert "- data hfids/ILSVRC/imagenet-1k, split validation, 50,000 images; or your own folder" in shown
    assert "vitsal train-student --teacher deit_tiny" in succeed("recipes", "final")


@pytest.mark.slow
def test_all_recipes(monkeypatch):
    monkeypatch.setattr("vitsal.course.measure_speed", lambda device: 1e13)
    lines = succeed("recipes").splitlines()
    names = [line.split(":")[0] for line in lines if line and not line.startswith(" ")]
    assert names[:8] == list(recipes.RECIPES)
    assert "50,000 images, 19.3 PFLOP, about 32 minutes on this machine" in lines[2]  # 19.3e15 / 1e13 / 60
    assert "50,000 images, 166 PFLOP, about 5 hours on this machine" in lines[14]


def test_unknown_recipe(fail):
    assert "Unknown recipe 'base_16'. Did you mean 'base16'" in fail("recipes", "base_16")


@pytest.mark.slow
def test_pipeline_benchmark():
    options = ["--model", "vit_tiny_patch16_224", "--batch-size", 1, "--repeats", 1]
    shown = succeed("benchmark", "pipeline", "--keep", "0.5", *options)
    assert "vit_tiny_patch16_224, batch 1" in shown
    rows = [line.split()[:2] for line in shown.splitlines()[2:]]
    assert rows == [["none", "1.0000"], ["convnet", "0.5000"], ["transformer", "0.5000"]]
    assert "bfloat16" in succeed("benchmark", "dropping", "--precision", "bfloat16", *options)


def test_video_side_by_side(tmp_path):
    import av

    with av.open(str(tmp_path / "in.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(5):
            pixels = np.random.default_rng(number).integers(256, size=(48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    models = "vitsal_digits_guide, vitsal_digits_target"
    succeed("video", tmp_path / "in.mp4", tmp_path / "out.mp4", "--model", models, "--device", "cpu")
    with av.open(str(tmp_path / "out.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 5
    assert frames[0].shape == (48, 3 * 64, 3)
    assert np.abs(frames[0][:, 64:128].astype(int) - frames[0][:, 128:]).mean() > 1  # two models, two maps


def test_bad_video(fail, tmp_path):
    assert "There is no video file at gone.mp4." in fail("video", "gone.mp4", tmp_path / "out.mp4", "--model", MODEL)
    assert "Unknown method 'rolout'" in fail("video", "gone.mp4", "out.mp4", "--method", "rolout")


@pytest.mark.slow
def test_probe_writes_a_table_and_a_figure(tmp_path):
    """The table's means are those of the module, over the same images."""
    options = ["--data", "digits", "--split", "test", "--limit", 6, "--batch-size", 4, "--device", "cpu"]
    succeed("probe", "--model", "vitsal_digits_guide, vitsal_digits_target", *options, "-o", tmp_path / "p")
    table = pd.read_csv(tmp_path / "p" / "attention_distance.csv")
    vit = load_model(MODEL)
    stream = (batch.images for batch in batches(open_data("digits", model_transform(vit), split="test"), 6, limit=6))
    expected, _ = mean_attention_distance(vit, stream)
    ours = table[table.model == MODEL].pivot_table("mean_px", "block", "head").to_numpy()
    assert np.allclose(ours, expected.numpy(), rtol=1e-5)
    assert set(table.model) == {MODEL, "vitsal_digits_target"}
    assert (tmp_path / "p" / "probe.png").stat().st_size > 10_000
