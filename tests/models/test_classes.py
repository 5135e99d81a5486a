"""Names of classes come from the model, from ImageNet, or are numbers."""

import warnings

import pytest
import torch

from vitsal.errors import UserError
from vitsal.models.classes import Prediction, check_answering, class_names, top_classes
from vitsal.models.loading import outline


def test_names_of_imagenets_classes():
    names = class_names(outline("vit_tiny_patch16_224"))
    assert len(names) == 1000
    assert (names[0], names[281], names[999]) == ("tench", "tabby", "toilet tissue")


def test_numbers_where_nothing_is_known():
    assert class_names(outline("vit_tiny_patch16_224", num_classes=3)) == ["0", "1", "2"]


def test_names_that_the_model_brings_along():
    model = outline("vit_tiny_patch16_224", num_classes=2)
    model.pretrained_cfg["label_names"] = ["cat", "dog"]
    assert class_names(model) == ["cat", "dog"]


def test_top_classes_by_hand():
    logits = torch.log(torch.tensor([0.1, 0.6, 0.3]))
    top = top_classes(logits, ["a", "b", "c"], count=2)
    assert [(p.index, p.name) for p in top] == [(1, "b"), (2, "c")]
    assert [p.probability for p in top] == pytest.approx([0.6, 0.3])
    assert str(Prediction(1, "b", 0.6)) == "b (60 %)"
    assert len(top_classes(logits, ["a", "b", "c"], count=9)) == 3


def test_top_classes_of_logits_that_have_a_gradient():
    """As a model gives them outside `no_grad`: torch warns where such a number is read."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert top_classes(torch.tensor([0.0, 2.0], requires_grad=True), ["a", "b"], 1)[0].name == "b"


def test_targets_without_answers(tiny_vit):
    check_answering(tiny_vit)
    with pytest.raises(UserError, match="is in training mode"):
        check_answering(tiny_vit.train())
    tiny_vit.reset_classifier(0)
    with pytest.raises(UserError, match="has no classifier"):
        check_answering(tiny_vit.eval())
