"""Whether a model says of reduced images what another says of whole ones."""

import math

import pytest
import torch
from helpers import assert_close

from vitsal.data.images import Batch
from vitsal.errors import UserError
from vitsal.guides.accelerated import AcceleratedViT
from vitsal.guides.baselines import CenterGuide
from vitsal.reduction.reduction import Reduction
from vitsal.tuning.answers import compare_answers, divergence, judge_answers, logit_distance
from vitsal.tuning.lessons import Lessons
from vitsal.tuning.parameters import tunable_twin


def test_divergence_by_hand():
    """Wanted 3/4 and 1/4, given 1/2 and 1/2: 3/4 ln(3/2) + 1/4 ln(1/2)."""
    wanted, given = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
    assert_close(divergence(given, wanted), [0.75 * math.log(1.5) + 0.25 * math.log(0.5)])
    assert_close(divergence(wanted + 7, wanted), [0.0])


def test_distance_by_hand():
    """Differences 1, 2 and 6, less their mean 3: squares 4, 1 and 9; what all classes share makes none."""
    given = torch.tensor([[1.0, 2.0, 6.0], [7.0, 7.0, 7.0]])
    assert_close(logit_distance(given, torch.zeros(2, 3)), [14 / 3, 0.0])


def batch_of(images):
    return Batch(images, torch.zeros(len(images)), [str(number) for number in range(len(images))])


@torch.no_grad()
def test_report_is_what_one_image_after_the_other_gives(tiny_vit):
    twin = tunable_twin(tiny_vit, ["norm.bias"])
    twin.norm.bias.add_(torch.randn_like(twin.norm.bias))
    guides, lessons = {"center": CenterGuide((4, 4))}, Lessons(("center",), ((32, 32),), ("2",))
    images = torch.randn(7, 3, 64, 64)
    batches = [
        batch_of(images[:4]),
        Batch(torch.empty(0), torch.empty(0), [], {"x.png": "broken"}),
        batch_of(images[4:]),
    ]
    with pytest.warns(UserWarning, match=r"1 images? could not be read and .* skipped: x\.png"):
        report = compare_answers(tiny_vit, twin, guides, lessons, batches)
    told = ["n", "same_before", "same_after", "kl_before", "kl_after"]
    assert list(report) == ["guide", *Reduction().columns, *told]
    assert report.guide.tolist() == ["", "center", "center", "", ""]
    assert report.keep_ratio.tolist() == [1, 0.5, 0.2, 1, 1]
    assert set(report.n) == {7}
    for row in report.itertuples():
        reduction = Reduction.from_columns(row.keep_ratio, row.merge, row.input_size)
        for model, same, kl in ((tiny_vit, row.same_before, row.kl_before), (twin, row.same_after, row.kl_after)):
            reduced = AcceleratedViT(model, guides["center"], reduction)
            answers = [(reduced(image[None])[0], tiny_vit(image[None])[0]) for image in images]
            assert same == pytest.approx(sum(int(ours.argmax() == whole.argmax()) for ours, whole in answers) / 7)
            parts = [whole.softmax(0) * (whole.log_softmax(0) - ours.log_softmax(0)) for ours, whole in answers]
            assert kl == pytest.approx(sum(part.sum().item() for part in parts) / 7, abs=1e-5)
    assert (report.same_before[0], report.kl_before[0]) == (1, pytest.approx(0, abs=1e-6))


def test_no_image_that_can_be_read(tiny_vit):
    batch = Batch(torch.empty(0), torch.empty(0), [], {"x.png": "broken"})
    with pytest.raises(UserError, match="None of 1 images could be read"):
        judge_answers(tiny_vit, {"same": tiny_vit}, [(None, Reduction())], {}, [batch])
