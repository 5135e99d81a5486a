"""Faithfulness: against plain loops over patches, on a model whose truth is known, and image by image."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import noise_image, randomise, traces
from quantus import PixelFlipping
from quantus.helpers.model.pytorch_model import PyTorchModel
from torch import nn

from vitsal.analysis.faithfulness import METRICS, NUM_SUBSETS, curve_table, score_guides, score_table
from vitsal.analysis.occlusion import PatchSwitches, hide_smoothly
from vitsal.data.opening import open_data
from vitsal.errors import UserError
from vitsal.guides import RolloutGuide
from vitsal.guides.baselines import CenterGuide, RandomGuide
from vitsal.guides.factory import make_guide
from vitsal.models.loading import load_model
from vitsal.models.tokens import grid_size, input_size, model_transform
from vitsal.reduction.keep import top_k_patches


def hide(image, saliency, number, patch=16, largest=True):
    """The image with this number of patches set to 0, one after the other as a person would; all values distinct."""
    image, left = image.clone(), saliency.clone().double()
    for _ in range(number):
        index = (left.argmax() if largest else left.argmin()).item()
        row, column = divmod(index, saliency.shape[1])
        image[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = 0
        left[row, column] = -torch.inf if largest else torch.inf
    return image


def ask(metric, model, image, saliency, category=0):
    """One metric about one image (1, 3, H, W) and one map (gh, gw); and the switches that it asked with."""
    switches = PatchSwitches(model, image, METRICS[metric].fill)
    return METRICS[metric].ask(switches, category, np.asarray(saliency, dtype=float)), switches


@pytest.fixture
def wide_model():
    """2 x 4 patches, no class token: the answer is read from the patches."""
    name = "vit_base_patch16_siglip_224"
    size = {"img_size": (32, 64), "depth": 1, "embed_dim": 96, "num_heads": 2, "num_classes": 5}
    return randomise(load_model(name, pretrained=False, **size))


@pytest.mark.parametrize("metric", ["deletion", "insertion"])
@pytest.mark.parametrize("kind", ["square", "wide"])
@torch.no_grad()
def test_pixel_flipping_is_a_plain_loop_over_patches(tiny_vit, wide_model, metric, kind):
    model = {"square": tiny_vit, "wide": wide_model}[kind]
    image = torch.randn(1, 3, *input_size(model))
    saliency = torch.randn(grid_size(model))
    curve, _ = ask(metric, model, image, saliency, category=3)
    steps = range(4, saliency.numel() + 1, 4)  # four patches in a row
    hidden = [hide(image, saliency, number, largest=metric == "deletion") for number in steps]
    expected = [model(seen).softmax(dim=1)[0, 3].item() for seen in hidden]
    assert list(curve) == [number / saliency.numel() for number in steps]
    assert list(curve.values()) == pytest.approx(expected, abs=1e-5)
    assert np.ptp(expected) > 0.01


def test_switches_give_what_the_library_gives_on_pixels(tiny_vit, images):
    """Each patch's saliency repeated for all its pixels and colours; every twelfth step ends with whole patches."""
    saliency = torch.randn(4, 4)
    repeated = saliency.repeat_interleave(16, 0).repeat_interleave(16, 1).expand(1, 3, -1, -1).contiguous()
    library = PixelFlipping(features_in_step=16 * 16, perturb_baseline=0.0, normalise=False, disable_warnings=True)
    options = {"channel_first": True, "softmax": True}
    expected = library(tiny_vit, images[:1].numpy(), np.array([2]), repeated.numpy(), **options)[0][11::12]
    assert list(ask("deletion", tiny_vit, images[:1], saliency, 2)[0].values()) == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_correlation_by_an_independent_loop(tiny_vit, images):
    """Pearson's coefficient over the subsets that the library asked about."""
    saliency, image = torch.randn(4, 4), images[:1]
    np.random.seed(0)  # noqa: NPY002, the library's own; no subset comes twice
    answer, switches = ask("correlation", tiny_vit, image, saliency, category=1)
    asked = [np.frombuffer(key, np.float32).reshape(4, 4) == 0 for key in switches.answers]
    subsets = [hidden for hidden in asked if hidden.any()]
    assert len(subsets) == NUM_SUBSETS == len(asked) - 1  # and the whole image
    assert {int(hidden.sum()) for hidden in subsets} == {4}
    whole, sums, falls = tiny_vit(image)[0, 1], [], []
    for hidden in subsets:
        part = hide(image, torch.from_numpy(hidden) + torch.rand(4, 4) / 2, int(hidden.sum()))
        sums.append(saliency[torch.from_numpy(hidden)].sum().item())
        falls.append((whole - tiny_vit(part)[0, 1]).item())
    assert answer[0.25] == pytest.approx(np.corrcoef(sums, falls)[0, 1], abs=1e-4)


def test_correlation_does_not_depend_on_scale_and_offset(tiny_vit, images):
    saliency, answers = np.random.default_rng(0).random((4, 4)), []
    for changed in (saliency, 50 * saliency - 1000):
        np.random.seed(0)  # noqa: NPY002
        answers.append(ask("correlation", tiny_vit, images[:1], changed)[0][0.25])
    assert answers[0] == pytest.approx(answers[1])


class Sum(nn.Module):
    """Logits of a 64 x 64 image: the weighted sum of its 4 x 4 patches' means, and 0.4. So the truth is known."""

    num_classes = 2
    patch_embed = load_model("vit_tiny_patch16_224", pretrained=False, img_size=64, depth=1).patch_embed

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(torch.as_tensor(weights, dtype=torch.float32), requires_grad=False)

    def forward(self, images):
        means = nn.functional.avg_pool2d(images.mean(dim=1), 16)
        return torch.stack([(means * self.weights).sum((1, 2)), torch.full((len(images),), 0.4)], dim=1)


@pytest.mark.parametrize("metric", ["deletion", "insertion", "correlation"])
def test_the_truth_scores_best_and_its_reverse_worst(metric):
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(4, 4))
    model, image = Sum(weights).eval(), torch.ones(1, 3, 64, 64)

    def score(saliency):
        return METRICS[metric].sign * np.mean(list(ask(metric, model, image, saliency)[0].values()))

    others = [score(generator.random((4, 4))) for _ in range(20)]
    truth, reverse = score(weights), score(-weights)
    assert reverse < min(others) < max(others) < truth
    if metric == "correlation":
        assert (truth, reverse) == pytest.approx((1, -1))


def test_road_on_a_model_whose_truth_is_known():
    """The class rests on one bright patch, whose hole is filled from its dark surroundings."""
    weights = torch.zeros(4, 4)
    weights[1, 2] = 1
    image = weights.repeat_interleave(16, 0).repeat_interleave(16, 1).expand(1, 3, -1, -1)
    saliency = np.random.default_rng(0).random((4, 4))
    saliency[1, 2] = 2
    model = Sum(weights).eval()
    assert ask("ROAD", model, image, saliency)[0] == {0.1: 0, 0.3: 0, 0.5: 0}
    assert ask("ROAD", model, image, -saliency)[0] == {0.1: 1, 0.3: 1, 0.5: 1}
    bright = torch.ones_like(image)  # what can be guessed from around is not hidden
    assert ask("ROAD", model, bright, saliency)[0] == {0.1: 1, 0.3: 1, 0.5: 1}


def test_filling_by_hand():
    """One hidden pixel is the mean of its neighbours, those at its sides twice as heavy as those at its corners."""
    image = torch.arange(27.0).view(1, 3, 3, 3) ** 2
    there = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    there[0, 0, 1, 1] = False
    weights = torch.tensor([[1, 2, 1], [2, 0, 2], [1, 2, 1]]) / 12
    filled = hide_smoothly(image, there)
    assert filled[0, :, 1, 1].tolist() == pytest.approx((image[0] * weights).sum((1, 2)).tolist(), abs=0.05)
    assert torch.equal(filled[..., there[0, 0]], image[..., there[0, 0]])
    assert torch.equal(hide_smoothly(image, torch.ones_like(there)), image)


@pytest.mark.parametrize("guide", [CenterGuide((4, 4)), lambda images: (images[:, 0, :4, :4] > 0).float()])
def test_of_equal_patches_the_first_stays(tiny_vit, images, guide):
    """So insertion asks about exactly the patches that `top_k_patches` keeps."""
    saliency = guide(images[:1])
    _, switches = ask("insertion", tiny_vit, images[:1], saliency[0])
    shown = [set(np.flatnonzero(np.frombuffer(key, np.float32))) for key in switches.answers]
    assert shown == [*(set(top_k_patches(saliency, ratio)[0].tolist()) for ratio in (0.75, 0.5, 0.25)), set()]


@pytest.fixture
def folder(tmp_path, tiny_vit):
    for index in range(5):
        noise_image(tmp_path / "0" / f"{index}.png", index)
    return open_data(str(tmp_path), model_transform(tiny_vit))


def guides_of(model):
    return {"random": RandomGuide(grid_size(model)), "rollout": RolloutGuide(model), "center": CenterGuide((4, 4))}


@pytest.mark.slow
def test_each_image_for_itself(tiny_vit, folder):
    """Neither the batch, nor the other guides and metrics, nor numpy's state change a value; nothing is left behind."""
    before, state = traces(tiny_vit), np.random.get_state()[1].copy()  # noqa: NPY002
    guides = guides_of(tiny_vit)
    together = score_guides(tiny_vit, guides, folder, limit=3, batch_size=3, progress=False)
    assert traces(tiny_vit) == before
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    assert PyTorchModel._get_last_softmax_layer_index.cache_info().currsize == 0
    np.random.seed(9)  # noqa: NPY002
    rollout = {"rollout": guides["rollout"]}
    metrics = ["correlation", "ROAD", "insertion", "deletion"]
    alone = score_guides(tiny_vit, rollout, folder, metrics=metrics, limit=3, batch_size=1, progress=False)
    key = ["image", "guide", "metric", "hidden"]
    both = together[together.guide == "rollout"].merge(alone, on=key, validate="one_to_one")
    assert len(both) == len(alone) == 3 * (4 + 4 + 3 + 1)
    assert both.value_x.to_numpy() == pytest.approx(both.value_y.to_numpy(), abs=1e-4)


def test_class_is_the_one_that_the_target_predicts(tiny_vit, folder):
    guide = {"rollout": RolloutGuide(tiny_vit)}
    values = score_guides(tiny_vit, guide, folder, metrics=["deletion"], progress=False)
    image = folder[2].image[None]
    with torch.no_grad():
        category = tiny_vit(image).argmax().item()
    expected, _ = ask("deletion", tiny_vit, image, guide["rollout"](image)[0], category)
    assert values[values.image == folder.name(2)].value.tolist() == pytest.approx(list(expected.values()), abs=1e-5)


def table_of(**scores):
    """Values of one step for each guide's images."""
    rows = [
        (str(i), guide, "deletion", 0.5, value) for guide, values in scores.items() for i, value in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=["image", "guide", "metric", "hidden", "value"])


def test_scores_by_hand():
    values = table_of(random=[0.5, 0.5, 0.8], ours=[0.1, 0.3, 0.2])
    more = values.assign(hidden=1.0, value=values.value / 2)
    table = score_table(pd.concat([values, more])).set_index("guide")
    assert table.loc["ours", ["n", "mean"]].tolist() == pytest.approx([3, 0.15])  # of both steps
    better = score_table(values, over="random")
    assert better.guide.tolist() == ["ours"]
    assert better["mean"].item() == pytest.approx(0.4)  # lower is better
    assert (better.low.item(), better.high.item()) == pytest.approx((0.2, 0.6))
    curves = curve_table(pd.concat([more, values])).set_index(["guide", "hidden"])
    assert list(curves.index) == [("random", 0.5), ("ours", 0.5), ("random", 1.0), ("ours", 1.0)]
    assert curves.loc[("random", 1.0), "mean"] == pytest.approx(0.3)


def test_interval_is_that_of_resampled_images():
    """Against the bootstrap as textbooks write it; paired, so what both guides share does not widen it."""
    rng = np.random.default_rng(1)
    shared = rng.random(60)
    values = table_of(random=shared, ours=shared - 0.2 * rng.random(60))
    row = score_table(values, over="random").iloc[0]
    gain = (values.value[:60].to_numpy() - values.value[60:].to_numpy())[rng.integers(60, size=(4000, 60))].mean(axis=1)
    assert (row.low, row.high) == pytest.approx(tuple(np.percentile(gain, [2.5, 97.5])), abs=0.003)


def test_what_cannot_be_used(tiny_vit, folder):
    guides = guides_of(tiny_vit)
    with pytest.raises(UserError, match=r"Unknown metric 'deletio'. Did you mean 'deletion'"):
        score_guides(tiny_vit, guides, folder, metrics=["deletio"])
    with pytest.raises(UserError, match="at least one guide"):
        score_guides(tiny_vit, {}, folder)
    with pytest.raises(UserError, match="at least two of them; got 1"):
        score_guides(tiny_vit, guides, folder, metrics=["deletion"], limit=1, progress=False)
    with pytest.raises(UserError, match=r"guide 'flat' gives for .*png is not finite, or the same everywhere"):
        score_guides(tiny_vit, {"flat": lambda images: torch.ones(len(images), 4, 4)}, folder, progress=False)
    with pytest.raises(UserError, match=r"guide 'fine' gives for .*png is \(8, 8\), the target's grid \(4, 4\)"):
        score_guides(tiny_vit, {"fine": lambda images: torch.rand(len(images), 8, 8)}, folder, progress=False)
    with pytest.raises(UserError, match="The target is in training mode"):
        score_guides(copy.deepcopy(tiny_vit).train(), guides, folder)
    broken = copy.deepcopy(tiny_vit)
    broken.head.bias.data[3] = torch.nan
    with pytest.raises(UserError, match=r"target's answer to .*png is not finite"):
        score_guides(broken, {"random": RandomGuide((4, 4))}, folder, progress=False)
    with pytest.raises(UserError, match="Unknown guide 'chance'"):
        score_table(table_of(random=[0, 1]), over="chance")
    headless = load_model("vit_tiny_patch16_224", pretrained=False, img_size=64, depth=1, num_classes=0)
    with pytest.raises(UserError, match="no classifier"):
        score_guides(headless, {"random": make_guide("random", headless)}, folder)


def test_images_that_cannot_be_read_are_named(tiny_vit, folder, tmp_path):
    (tmp_path / "0" / "2.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"1 images could not be read and were skipped: .*2\.png"):
        values = score_guides(tiny_vit, guides_of(tiny_vit), folder, metrics=["deletion"], batch_size=1, progress=False)
    assert values.image.nunique() == 4
