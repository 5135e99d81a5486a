"""The published experiments: that recipes and published curves belong together, and that every recipe runs."""

import dataclasses
import os
import re
import shlex
import tomllib
from functools import partial
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import timm
import torch
import typer
from helpers import noise_image
from timm.data import ImageNetInfo

import vitsal
from vitsal import cli
from vitsal.analysis.cost import count_operations
from vitsal.course import cast, published, recipes, requirements
from vitsal.course.cast import load_targets, make_guides
from vitsal.course.presets import KEEP_RATIOS
from vitsal.course.published import compare_with_published, published_curves
from vitsal.course.recipes import (
    GUIDE_SPECS,
    RECIPES,
    TARGETS,
    Curve,
    GuideSpec,
    ModelSpec,
    PublishedExperiment,
    choose_recipe,
)
from vitsal.course.requirements import count_recipe, describe_recipes, measure_speed, needs
from vitsal.course.runs import run_notebooks
from vitsal.data.opening import open_data
from vitsal.errors import UserError
from vitsal.experiments.evaluation import drop_curve
from vitsal.experiments.outcomes import summarize
from vitsal.guides import RolloutGuide
from vitsal.guides.adapters import AdaptedGuide, StudentGuide
from vitsal.guides.baselines import RandomGuide
from vitsal.models.loading import load_model
from vitsal.models.tokens import grid_size, model_transform
from vitsal.reduction.drop import forward_kept
from vitsal.reduction.keep import num_kept
from vitsal.students.student import load_student, new_student, save_student

SLOW = os.environ.get("VITSAL_SLOW_TESTS") == "1"


def read_reference():
    """The published points, read without the module under test: (figure, guide) -> {drop percent: top1}."""
    points = {}
    for line in published.PUBLISHED.read_text().splitlines()[1:]:
        figure, _, guide, percent, top1 = line.split(",")
        points.setdefault((figure, guide), {})[int(percent)] = float(top1)
    return points


def test_every_published_curve_belongs_to_a_recipe_and_every_recipe_to_published_curves():
    reference = read_reference()
    assert {curve.published for recipe in RECIPES.values() for curve in recipe.curves} == set(reference)
    assert all(len(points) == 10 for points in reference.values())


@pytest.mark.parametrize("name", RECIPES)
def test_published_points(name):
    recipe, reference = RECIPES[name], read_reference()
    table = published_curves(recipe)
    assert len(table) == 10 * len(recipe.curves)
    for curve in recipe.curves:
        points = table[(table["target"] == curve.target) & (table["guide"] == curve.label)]
        assert points["keep_ratio"].tolist() == list(KEEP_RATIOS)
        assert points["published_top1"].tolist() == [reference[curve.published][drop] for drop in range(0, 100, 10)]


def test_published_curves_are_those_of_the_target():
    """The chart of a recipe's curve shows the recipe's target."""
    shown = {
        "base16": "ViT-B/16",
        "large16": "ViT-L/16",
        "mae_base": "MAE ViT-B/16",
        "mae_huge": "MAE ViT-H/14",
        "resnet_students": "ViT-B/16",
    }
    for recipe in RECIPES.values():
        for curve in recipe.curves:
            assert (shown[curve.published[0]], curve.published[1]) == (curve.target, curve.label)


def test_labels_say_how_the_guide_is_made():
    rollouts = {label: spec for label, spec in GUIDE_SPECS.items() if spec.guide == "rollout"}
    assert {label: spec.model.split("_patch")[0] for label, spec in rollouts.items()} == {
        "own rollout": "",
        "deit_tiny rollout": "deit_tiny",
        "eva02_tiny rollout": "eva02_tiny",
    }
    assert {(spec.head_fusion, spec.discard_ratio) for spec in rollouts.values()} == {("max", 0.9)}
    students = [
        (spec.student, spec.model, spec.head_fusion) for spec in GUIDE_SPECS.values() if spec.guide == "student"
    ]
    assert students == [
        ("resnet-deit-max", "deit_tiny_patch16_224.fb_in1k", "max"),
        ("resnet-deit-min", "deit_tiny_patch16_224.fb_in1k", "min"),
        ("resnet-mae-max", "vit_base_patch16_224.mae", "max"),
    ]


def test_models_exist_in_timm_with_weights():
    names = {spec.name for spec in TARGETS.values()} | {spec.model for spec in GUIDE_SPECS.values() if spec.model}
    assert names <= set(timm.list_pretrained())
    assert all(timm.is_model(name) for name in names)


def test_unknown_recipe_and_target():
    assert choose_recipe("mae-base") is RECIPES["mae-base"]
    with pytest.raises(UserError, match=r"Unknown recipe 'base-16'. Did you mean 'base16'.*Known: base16, base16-deit"):
        choose_recipe("base-16")
    with pytest.raises(UserError, match=r"Unknown target of 'base16' 'ViT-L/16'.*Known: ViT-B/16"):
        RECIPES["base16"].of_target("ViT-L/16")


def test_installed_without_the_repository():
    """The published curves come with the package."""
    assert published.PUBLISHED.parent == Path(vitsal.__file__).parent / "course"
    with (Path(vitsal.__file__).parents[1] / "pyproject.toml").open("rb") as file:
        assert "*.csv" in tomllib.load(file)["tool"]["setuptools"]["package-data"]["vitsal.course"]


# ---- ours beside the published


def measured(*rows):
    return pd.DataFrame(rows, columns=["target", "guide", "keep_ratio", "n", "top1", "ci_low", "ci_high"])


def test_comparison_by_hand():
    """Published: 0.7741 at random, half dropped; 0.8416 by its own rollout, a tenth dropped."""
    ours = measured(
        ["ViT-B/16", "random", 0.5, 1000, 0.78, 0.75, 0.81],
        ["ViT-B/16", "random", 0.55, 1000, 0.79, 0.76, 0.82],  # never published
        ["ViT-B/16", "own rollout", 1 - 0.1, 1000, 0.84, 0.81, 0.86],
    )
    compared = compare_with_published(RECIPES["base16"], ours)
    assert compared["guide"].tolist() == ["random", "own rollout"]
    assert compared["published_top1"].tolist() == [0.7741, 0.8416]
    assert compared["difference"].tolist() == pytest.approx([0.0059, -0.0016])
    assert compared["difference_low"].tolist() == pytest.approx([-0.0241, -0.0316])
    assert compared["difference_high"].tolist() == pytest.approx([0.0359, 0.0184])
    assert compared["n"].tolist() == [1000, 1000]


def test_comparison_matches_ratios_but_for_rounding():
    ratios = [1 - drop / 10 for drop in range(10)]
    assert ratios != list(KEEP_RATIOS)
    compared = compare_with_published(
        RECIPES["mae-huge"], measured(*(["MAE ViT-H/14", "random", ratio, 9, 0, 0, 1] for ratio in ratios))
    )
    assert compared["published_top1"].tolist() == list(read_reference()["mae_huge", "random"].values())
    near = measured(["MAE ViT-H/14", "random", 0.897, 9, 0, 0, 1])  # another experiment
    assert compare_with_published(RECIPES["mae-huge"], near).empty


@pytest.mark.parametrize(
    ("target", "guide", "said"),
    [
        ("ViT-B/16", "rolout", r"Unknown guide of 'ViT-B/16' 'rolout'. Did you mean 'own rollout'"),
        ("ViT-B/32", "random", r"Unknown target of 'base16' 'ViT-B/32'. Did you mean 'ViT-B/16'"),
    ],
)
def test_comparison_of_what_the_recipe_does_not_have(target, guide, said):
    with pytest.raises(UserError, match=said):
        compare_with_published(RECIPES["base16"], measured([target, guide, 0.5, 9, 0, 0, 1]))


# ---- what recipes need


def test_needs_of_models(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VITSAL_WEIGHTS_DIR", str(tmp_path))
    before = needs(RECIPES["vit-vs-mae"])
    deit, base = "deit_tiny_patch16_224.fb_in1k", "vit_base_patch16_224.augreg2_in21k_ft_in1k"
    assert before["model"].tolist() == [base, "mae_finetuned_vit_base.pth", deit]
    assert before["role"].tolist() == ["target", "target", "guide"]
    assert before["megabytes"].round(1).tolist() == [346.3, 346.3, 22.9]
    assert before["where"].tolist() == ["", "", ""]
    assert before["source"][1] == "https://dl.fbaipublicfiles.com/mae/finetune/mae_finetuned_vit_base.pth"
    (tmp_path / "mae_finetuned_vit_base.pth").touch()
    (tmp_path / f"{deit}.safetensors").touch()
    assert needs(RECIPES["vit-vs-mae"])["where"].tolist() == ["", "weights folder", "weights folder"]


def test_needs_of_students(tmp_path):
    (tmp_path / "resnet-mae-max" / "checkpoints").mkdir(parents=True)  # still in training
    (tmp_path / "resnet-deit-min").mkdir()
    (tmp_path / "resnet-deit-min" / "config.json").touch()
    students = needs(RECIPES["resnet-students"], students=tmp_path).set_index("model").query("role == 'student'")
    assert students["where"].to_dict() == {
        "resnet-deit-max": "",
        "resnet-deit-min": "students folder",
        "resnet-mae-max": "",
    }
    parameters = sum(values.numel() for values in new_student("resnet18", (14, 14)).parameters())
    assert students["megabytes"].tolist() == [parameters * 4 / 1e6] * 3


@pytest.fixture
def digits(monkeypatch):
    """A recipe of the embedded models: random patches, the target's own rollout, the small guide's."""
    monkeypatch.setitem(recipes.TARGETS, "digits", ModelSpec("vitsal_digits_target"))
    monkeypatch.setitem(recipes.GUIDE_SPECS, "small rollout", GuideSpec("rollout", "vitsal_digits_guide", "min", 0.5))
    labels = ("random", "own rollout", "small rollout")
    return PublishedExperiment("digits", "", tuple(Curve("digits", label, ("base16", label)) for label in labels))


def test_embedded_models_are_here(digits):
    assert set(needs(digits)["where"]) == {"embedded"}


@pytest.mark.slow
def test_operations_of_a_whole_recipe_on_a_real_model(digits):
    """Counted run by run on the CPU, without the meta device and without a polynomial."""
    target, guide = (load_model(f"vitsal_digits_{name}") for name in ("target", "guide"))
    image = torch.zeros(1, 3, 112, 112)
    whole, of_guide = (count_operations(partial(model, image)) for model in (target, guide))
    kept = [
        count_operations(partial(forward_kept, target, image, torch.arange(count)[None]))
        for count in (176, 157, 137, 118, 98, 78, 59, 39, 20)  # of 196 patches
    ]
    # random costs nothing, the target's own rollout a forward pass of the target, the guide's one of the guide
    assert count_recipe(digits) == 50_000 * (whole + (0 + sum(kept)) + (whole + sum(kept)) + (of_guide + sum(kept)))


@pytest.mark.slow
def test_operations_of_a_base_target():
    """ViT-B/16 takes 17.6 billion multiply-adds for an image."""
    spec, image = TARGETS["ViT-B/16"], torch.zeros(1, 3, 224, 224)
    model = load_model(spec.name, pretrained=False)
    for ratio, kept in ((1.0, 196), (0.3, 59)):
        keep = torch.arange(kept)[None]
        assert requirements._count_kept(spec, ratio) == count_operations(partial(forward_kept, model, image, keep))
    assert requirements._count_kept(spec, 1.0) / 1e9 == pytest.approx(35.1, abs=0.1)


@pytest.mark.slow
def test_description():
    table = describe_recipes(speed=1e12).set_index("name")
    assert list(table.index) == list(RECIPES)
    assert "vit_base_patch16_224.augreg2_in21k_ft_in1k (346.3 MB" in table["models"]["base16"]
    assert set(table["images"]) == {50_000}
    # the whole once and 4.5 wholes for each guide's smaller ratios, and its own rollout: a little less, for attention
    # shrinks with the square
    assert table["pflop"]["base16"] == pytest.approx(50_000 * 35.1e9 * (1 + 2 * 4.5 + 1) / 1e15, rel=0.01)
    assert (table["hours"] * 3600 * 1e12).tolist() == pytest.approx([count_recipe(r) for r in RECIPES.values()])
    assert "hours" not in describe_recipes()


@pytest.mark.slow
def test_speed():
    """Two measurements of one machine, at work besides: the same order of magnitude, and one that machines have."""
    one, other = (measure_speed("cpu", seconds=0.2, batch_size=2) for _ in range(2))
    assert 1e8 < one < 1e15
    assert 1 / 5 < one / other < 5


# ---- models and guides


def test_missing_file_of_the_authors(tmp_path, monkeypatch):
    said = r"MAE ViT-H/14 needs .* download https://dl.fbaipublicfiles.com/mae/finetune/mae_finetuned_vit_huge.pth"
    with pytest.raises(UserError, match=said + r" \(2528 MB\) .* VITSAL_WEIGHTS_DIR, which is not set"):
        load_targets(RECIPES["mae-huge"])
    monkeypatch.setenv("VITSAL_WEIGHTS_DIR", str(tmp_path))
    with pytest.raises(UserError, match=rf"VITSAL_WEIGHTS_DIR, which is {tmp_path}"):
        load_targets(RECIPES["mae-huge"])


def test_file_of_the_authors_is_taken(tmp_path, monkeypatch):
    """How such a file is read, `test_models.py` tests."""
    source = load_model("vit_base_patch16_224.mae", pretrained=False, num_classes=1000, global_pool="avg", depth=1)
    torch.save({"model": source.state_dict()}, tmp_path / "mae_finetuned_vit_base.pth")
    monkeypatch.setenv("VITSAL_WEIGHTS_DIR", str(tmp_path))
    monkeypatch.setattr(cast, "load_model", partial(load_model, depth=1))
    (target,) = load_targets(RECIPES["mae-base"]).values()
    images = torch.randn(1, 3, 224, 224)
    assert torch.equal(target(images), source(images))
    assert not target.training


def test_missing_student_tells_the_command(tmp_path):
    recipe = dataclasses.replace(RECIPES["resnet-students"], curves=RECIPES["resnet-students"].curves[1:2])
    target = load_model("vit_base_patch16_224", pretrained=False, depth=1)
    with pytest.raises(
        UserError, match=r"no student at .*resnet-deit-min. This trains it: vitsal train-student"
    ) as told:
        make_guides(recipe, "ViT-B/16", target, students=tmp_path)
    command = shlex.split(str(told.value).partition("This trains it: ")[2])
    assert command == [
        *("vitsal", "train-student", "--teacher", "deit_tiny_patch16_224.fb_in1k"),
        *("--head-fusion", "min", "--discard-ratio", "0.9", "--architecture", "resnet18"),
        *("--data", "hfids/ILSVRC/imagenet-1k", "--limit", "100000"),
        *("--output", str(tmp_path / "resnet-deit-min")),
    ]


def test_the_command_is_one_that_the_command_line_takes():
    words = recipes.training_command(GUIDE_SPECS["resnet student of mae rollout"]).split()
    command = typer.main.get_command(cli.app).commands[words[1]]
    context = command.make_context(words[1], words[2:])
    assert context.params["teacher"] == "vit_base_patch16_224.mae"
    assert (context.params["architecture"], context.params["limit"]) == ("resnet18", 100_000)


def test_students_are_found_by_their_folder(tmp_path):
    student = new_student("resnet18", (14, 14))
    save_student(student, tmp_path / "resnet-deit-max")
    recipe = dataclasses.replace(RECIPES["final"], curves=RECIPES["final"].curves[3:])
    target = load_model("vit_base_patch16_224", pretrained=False, depth=1)
    (guide,) = make_guides(recipe, "ViT-B/16", target, students=tmp_path).values()
    expected = StudentGuide(load_student(tmp_path / "resnet-deit-max"), target)
    images = torch.randn(2, 3, 224, 224)
    assert torch.equal(guide(images), expected(images))


def test_guides_of_a_recipe(digits):
    inner = load_model("vitsal_digits_guide")
    (target,) = load_targets(digits).values()
    guides = make_guides(digits, "digits", target, seed=3)
    expected = {
        "random": RandomGuide((14, 14), 3),
        "own rollout": RolloutGuide(target, "max", 0.9),
        "small rollout": AdaptedGuide(RolloutGuide(inner, "min", 0.5), target),
    }
    images = torch.randn(2, 3, 112, 112)
    assert list(guides) == list(expected)
    assert all(torch.equal(guides[label](images), expected[label](images)) for label in guides)


def test_a_guides_model_is_loaded_once(monkeypatch):
    recipe, models, loaded = RECIPES["vit-vs-mae"], {}, []

    def load(name, **options):
        loaded.append(name)
        return load_model(name, depth=1, **options)

    monkeypatch.setattr(cast, "load_model", load)
    guides = [
        make_guides(recipe, label, target, pretrained=False, models=models)["deit_tiny rollout"]
        for label, target in load_targets(recipe, pretrained=False).items()
    ]
    assert loaded == ["vit_base_patch16_224.augreg2_in21k_ft_in1k", "vit_base_patch16_224.mae", *models]
    assert guides[0].guide.model is guides[1].guide.model is models["deit_tiny_patch16_224.fb_in1k"]


# ---- dry runs: the real architectures, random weights


@pytest.fixture(scope="session")
def noise(tmp_path_factory):
    """A folder of ten images, of ten of ImageNet's classes."""
    folder = tmp_path_factory.mktemp("noise")
    for number, wnid in enumerate(ImageNetInfo().label_names()[:10]):
        noise_image(folder / wnid / "image.png", seed=number)
    return folder


def watch(target, seen):
    """Note how many tokens each pass gives to the first block, and whether its logits are finite."""
    target.blocks[0].register_forward_pre_hook(lambda block, args: seen["tokens"].append(args[0].shape[1]))
    target.register_forward_hook(lambda model, args, logits: seen["finite"].append(bool(logits.isfinite().all())))


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_dry_run(name, noise):
    """Every architecture at full size. VITSAL_SLOW_TESTS=1: all eight images and all keep ratios, MAE-huge as well."""
    if name == "mae-huge" and not SLOW:
        pytest.skip("632 million parameters take minutes on a CPU: set VITSAL_SLOW_TESTS=1")
    limit, ratios = (8, KEEP_RATIOS) if SLOW else (2, (1.0, 0.5, 0.1))
    recipe, tables, models = RECIPES[name], [], {}
    for label, target in load_targets(recipe, pretrained=False).items():
        seen = {"tokens": [], "finite": []}
        watch(target, seen)
        guides = make_guides(recipe, label, target, pretrained=False, models=models)
        dataset = open_data(str(noise), model_transform(target))
        outcomes = drop_curve(target, guides, dataset, ratios, batch_size=8, limit=limit, progress=False)
        tables.append(summarize(outcomes, label))
        rows, columns = grid_size(target)
        patches = [token - 1 for token in seen["tokens"]]
        assert sorted(set(patches)) == sorted(num_kept(rows * columns, ratio) for ratio in ratios)
        for ratio in set(ratios) - {1.0}:  # one pass for each guide
            assert patches.count(num_kept(rows * columns, ratio)) == len(guides)
        assert seen["finite"]
        assert all(seen["finite"])
    table = pd.concat(tables)
    assert (table["n"] == limit).all()
    compared = compare_with_published(recipe, table)
    assert compared.groupby(["target", "guide"]).size().tolist() == [len(ratios)] * len(recipe.curves)
    assert compared["difference"].tolist() == pytest.approx((compared["top1"] - compared["published_top1"]).tolist())


# ---- the notebook that runs them

CUT = """
from vitsal.course import cast
load = cast.load_model

def load_cut(name, pretrained, **options):
    model = load(name, pretrained=False, depth=1, **options)
    model.head.bias.data[0] = 1e6
    return model

cast.load_model = load_cut
"""


@pytest.fixture
def notebook(tmp_path):
    """Notebook 3, its models cut to one block, with random weights and one answer, the first class."""
    whole = nbformat.read(Path(__file__).parents[2] / "notebooks" / "03_ideal_drop_experiment.ipynb", as_version=4)
    whole.cells.insert(2, nbformat.v4.new_code_cell(CUT))
    path = tmp_path / "03_ideal_drop_experiment.ipynb"
    nbformat.write(whole, path)
    return path


@pytest.mark.slow
def test_notebook_runs_a_recipe_in_place_of_its_preset(notebook, noise, tmp_path):
    made = run_notebooks([notebook], tmp_path / "made", {"recipe": "base16-deit", "data": str(noise), "limit": 2})
    assert (made / "03_base16-deit.svg").is_file()
    cells = nbformat.read(made / notebook.name, as_version=4).cells
    (told,) = [output.data["text/plain"] for cell in cells if "compared[" in cell.source for output in cell.outputs]
    assert {"ViT-B/16", "random", "deit_tiny"} <= set(told.split())
    assert re.search(r"0 % +-34.0 \[-74.6, \+6.5\] +-33.4 \[-74.0, \+7.1\]", told)  # one right of two, 84.0 and 83.4
    assert len(re.findall(r"^\d+ % ", told, re.MULTILINE)) == 10


@pytest.mark.slow
def test_notebook_refuses_what_a_recipe_brings(notebook, tmp_path):
    with pytest.raises(UserError, match="A recipe has its own models and rollouts"):
        run_notebooks([notebook], tmp_path / "made", {"recipe": "base16", "head_fusion": "mean"})
