"""The explorer: every control does something, and nothing is computed twice."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from helpers import assert_close

from vitsal.errors import UserError
from vitsal.guides import METHODS, make_guide
from vitsal.models import load_model
from vitsal.widgets import LiveCurve, RolloutExplorer


@pytest.fixture
def explorer(tiny_vit, images):
    return RolloutExplorer(tiny_vit, images[:2], ["one", "two"], classes=[f"class {i}" for i in range(10)])


def test_every_control_changes_the_picture(explorer):
    seen = {bytes(explorer.picture.value)}
    assert bytes(explorer.picture.value).startswith(b"\x89PNG")
    changes = [
        (explorer.image, 1),
        (explorer.head_fusion, "mean"),
        (explorer.discard_ratio, 0.3),
        (explorer.drop_ratio, 0.8),
        (explorer.method, "last-attention"),
        (explorer.method, "grad-rollout"),
        (explorer.method, "grad-attention"),
        (explorer.method, "flow"),
    ]
    for number, (control, value) in enumerate(changes, start=2):
        control.value = value
        seen.add(bytes(explorer.picture.value))
        assert len(seen) == number, f"{control.description} = {value} changed nothing"


def test_attention_is_recorded_once_per_image(tiny_vit, images):
    with_gradient = []
    tiny_vit.register_forward_hook(lambda module, args, output: with_gradient.append(output.requires_grad))
    explorer = RolloutExplorer(tiny_vit, images[:2], ["one", "two"])
    assert sum(with_gradient) == 1
    explorer.discard_ratio.value = 0.5
    explorer.head_fusion.value = "min"
    explorer.method.value = "grad-rollout"
    assert sum(with_gradient) == 1
    explorer.image.value = 1
    assert sum(with_gradient) == 2


@pytest.mark.parametrize("method", METHODS)
def test_map_is_that_of_the_guide(explorer, tiny_vit, images, method):
    explorer.image.value, explorer.method.value = 1, method
    explorer.head_fusion.value, explorer.discard_ratio.value = "max", 0.6
    if method == "last-attention":  # that guide knows the mean over heads only
        explorer.head_fusion.value = "mean"
    guide = make_guide(method, tiny_vit, head_fusion="max", discard_ratio=0.6)
    assert_close(explorer.saliency(), guide(images[1:2])[0])


def test_model_without_a_classifier(images):
    model = load_model("vit_tiny_patch16_224", pretrained=False, img_size=64, depth=1, num_classes=0)
    with pytest.raises(UserError, match="no classifier"):
        RolloutExplorer(model, images, ["a", "b", "c", "d"])


def test_titles_tell_what_the_model_sees(explorer, tiny_vit, images):
    figure = explorer.draw()
    logits = tiny_vit(images[:1])
    name, percent = logits.argmax().item(), 100 * logits.softmax(dim=1).max().item()
    assert figure.axes[0].get_title() == f"image: class {name} ({percent:.0f} %)"
    assert figure.axes[2].get_title().startswith("kept 8 patches: class ")
    torch.testing.assert_close(
        torch.tensor(figure.axes[0].images[0].get_array()), (images[0].permute(1, 2, 0) * 0.5 + 0.5).clamp(0, 1)
    )


def test_live_curve_shows_once_and_is_then_updated(monkeypatch):
    shown = []

    class Handle:
        def update(self, figure):
            shown.append(figure)

    def display(figure, display_id):
        shown.append(figure)
        return Handle()

    monkeypatch.setattr("vitsal.widgets.display", display)
    curve, open_before = LiveCurve(), plt.get_fignums()
    history = pd.DataFrame({"epoch": [1, 2], "kl": [0.5, 0.3], "loss": [0.6, 0.4]})
    curve.of("one")(history[:1])
    curve.of("one")(history)
    curve.of("two")(history[:1])
    points = [[len(line.get_xdata()) for line in figure.axes[0].get_lines()] for figure in shown]
    assert points == [[1, 1], [2, 2], [2, 2, 1, 1]]
    assert plt.get_fignums() == open_before
