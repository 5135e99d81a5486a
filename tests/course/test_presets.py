"""Presets, and parameters that papermill would take without a word."""

import pytest

from vitsal.course.presets import PRESETS, check_parameters, choose_preset, read_parameters
from vitsal.errors import UserError
from vitsal.models.loading import load_model
from vitsal.reduction.keep import num_kept


def test_parts_are_replaced_singly():
    plain = choose_preset("digits")
    assert choose_preset("digits", {"limit": 100, "target": None}).limit == 100
    changed = choose_preset("imagenet", {"target": "vit_large_patch16_224", "keep_ratios": (1.0, 0.2)})
    assert (changed.target, changed.keep_ratios) == ("vit_large_patch16_224", (1.0, 0.2))
    assert changed.guide_model == choose_preset("imagenet").guide_model
    assert choose_preset("digits") == plain  # a change of one is no change of all


def test_guides_are_compared_at_a_keep_ratio_that_there_is():
    with pytest.raises(UserError, match=r"compare_at, of 0.1, which is none of the keep_ratios 1, 0.5. Add it"):
        choose_preset("digits", {"keep_ratios": (1.0, 0.5)})
    assert choose_preset("digits", {"keep_ratios": [1, 0.5], "compare_at": 0.5}).compare_at == 0.5


def test_zero_and_empty_replace_too():
    assert choose_preset("digits", {"discard_ratio": 0.0, "drop_target": ""}).discard_ratio == 0.0
    assert choose_preset("digits", {"drop_target": ""}).drop_target == ""


def test_unknown_preset_and_part():
    with pytest.raises(UserError, match=r"Unknown preset 'digit'. Did you mean 'digits'\? Known: digits, imagenette"):
        choose_preset("digit")
    with pytest.raises(UserError, match=r"A preset has no 'targt'. Did you mean 'target' or .* It has target, guide"):
        choose_preset("digits", {"targt": "vit_tiny_patch16_224"})


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_names_models_that_there_are(name):
    preset = PRESETS[name]
    for model in filter(None, (preset.target, preset.guide_model, preset.drop_target)):
        assert load_model(model, pretrained=False, depth=1).num_classes == (10 if name == "digits" else 1000)
    assert all(num_kept(196, ratio) for ratio in preset.keep_ratios)
    assert 1.0 in preset.keep_ratios


def test_parameters_of_a_notebook():
    namespace = {"preset": "digits", "limit": 100, "target": None, "seed": 3}
    assert read_parameters(namespace, seed=int) == choose_preset("digits", {"limit": 100})


def test_mistyped_parameter():
    with pytest.raises(UserError, match=r"Unknown parameter 'limt'. Did you mean 'limit' .* Known: preset, .*, seed"):
        read_parameters({"preset": "digits", "limt": 5, "seed": 0}, seed=int)


def test_mistyped_preset():
    with pytest.raises(UserError, match=r"Unknown preset 'imagenete'. Did you mean 'imagenet"):
        read_parameters({"preset": "imagenete"})


@pytest.mark.parametrize(
    ("name", "value", "takes"),
    [
        ("limit", "100", "int"),
        ("limit", 1.5, "int"),
        ("limit", True, "int"),  # for Python a bool is an int
        ("preset", None, "str"),
        ("discard_ratio", "0.9", "float"),
        ("target", 5, "str"),
        ("seed", None, "int"),  # None leaves a preset's own part; a notebook's own parameter has none
        ("seed", "3", "int"),
    ],
)
def test_wrong_type(name, value, takes):
    with pytest.raises(UserError, match=rf"Parameter '{name}' cannot be {value!r}: it takes .*{takes}"):
        read_parameters({"preset": "digits", name: value}, seed=int)


def test_what_a_notebook_holds_besides_parameters_is_passed_over():
    """`globals()` of a notebook: modules, functions, what the shell keeps."""
    shell = {"_": 3, "_oh": {}, "__name__": "__main__", "In": ["import pytest"], "Out": {}, "pytest": pytest, "f": len}
    assert read_parameters({"preset": "digits"} | shell) == choose_preset("digits")


def test_whole_number_where_a_fraction_is_meant():
    """`-p discard_ratio 0` arrives as an int."""
    assert read_parameters({"preset": "digits", "discard_ratio": 0}).discard_ratio == 0


def test_parameters_of_a_notebook_without_presets():
    types = {"recipe": str, "limit": (int, type(None))}
    assert check_parameters({"recipe": "base16", "limit": None, "_": 1}, **types) == {"recipe": "base16", "limit": None}
    with pytest.raises(UserError, match=r"Parameter 'limit' cannot be 'all': it takes int or None."):
        check_parameters({"recipe": "base16", "limit": "all"}, **types)
    with pytest.raises(UserError, match=r"Unknown parameter 'recip'. Did you mean 'recipe'\? Known: recipe, limit."):
        check_parameters({"recip": "base16"}, **types)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1),
        ("seed", 2**32),
        ("limit", 0),
        ("limit", -5),
        ("limit", 10**20),
        ("epochs", 0),
        ("batch_size", 10**20),
    ],
)
def test_numbers_out_of_range(name, value):
    with pytest.raises(UserError, match=rf"The parameter '{name}' must be a whole number from . to \d+; got {value}\."):
        read_parameters({"preset": "digits", name: value}, seed=int, batch_size=int)


def test_ends_of_the_ranges():
    for seed in (0, 2**32 - 1):
        assert read_parameters({"preset": "digits", "limit": 1, "seed": seed}, seed=int).limit == 1
