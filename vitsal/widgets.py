"""Interactive explorers for the notebooks. Each has a static picture beside it in the notebook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO

import ipywidgets as widgets
import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython.display import DisplayHandle, display
from matplotlib.figure import Figure
from torch import Tensor, nn

from vitsal.attention import attention_gradients
from vitsal.dropping import forward_kept, top_k_patches
from vitsal.flow import attention_flow
from vitsal.guides import METHODS, check_category
from vitsal.models import default_readout, grid_size
from vitsal.plotting import hide_dropped, overlay, plot_learning_curves, show_pictures, to_pixels
from vitsal.rollout import (
    HEAD_FUSIONS,
    attention_relevance,
    attention_rollout,
    fuse_gradient,
    fuse_heads,
    fuse_positive_gradient,
    last_attention,
)


class RolloutExplorer(widgets.VBox):
    """Choose image, method, head fusion, discard ratio and drop ratio; see the map, the kept patches, the prediction.

    Attention and its gradient are recorded once per image, and each map is computed once; flow takes seconds, then.

    Args:
        model: a timm ViT in eval mode.
        images: prepared for it, (B, 3, H, W).
        names: one per image.
        classes: names of the model's classes; their numbers by default.

    Raises:
        UserError: the model has no classifier.
    """

    def __init__(
        self, model: nn.Module, images: Tensor, names: Sequence[str], classes: Sequence[str] | None = None
    ) -> None:
        check_category(model, None)
        self.model, self.images, self.classes = model, images, classes
        self._recorded: tuple[int, list[Tensor], list[Tensor]] | None = None
        self._maps: dict[tuple, Tensor] = {}
        self.image = widgets.Dropdown(options=[(name, i) for i, name in enumerate(names)], description="image")
        self.method = widgets.Dropdown(options=METHODS, description="method")
        self.head_fusion = widgets.Dropdown(options=list(HEAD_FUSIONS), value="max", description="fusion")
        self.discard_ratio = _slider(0.9, 0, 0.98, "discard")
        self.drop_ratio = _slider(0.5, 0, 0.95, "drop")
        self.picture = widgets.Image(format="png", layout=widgets.Layout(width="100%", max_width="960px"))
        controls = [self.image, self.method, self.head_fusion, self.discard_ratio, self.drop_ratio]
        for control in controls:
            control.observe(lambda change: self.update(), names="value")
        super().__init__([widgets.HBox(controls, layout=widgets.Layout(flex_flow="row wrap")), self.picture])
        self.update()

    def update(self) -> None:
        """Draw the picture that belongs to the controls' values."""
        figure = self.draw()
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=72)
        plt.close(figure)
        self.picture.value = buffer.getvalue()

    def draw(self) -> Figure:
        """Image, saliency and kept patches side by side, with what the model sees in each."""
        image = self.images[self.image.value][None]
        pixels = to_pixels(image, self.model)[0]
        saliency = self.saliency()
        keep = top_k_patches(saliency[None], 1 - self.drop_ratio.value)
        with torch.inference_mode():
            whole, kept = self.model(image), forward_kept(self.model, image, keep)
        pictures = [pixels, overlay(pixels, saliency), hide_dropped(pixels, keep[0], grid_size(self.model))]
        titles = [f"image: {self._top(whole)}", self.method.value, f"kept {keep.shape[1]} patches: {self._top(kept)}"]
        return show_pictures([pictures], titles)

    def saliency(self) -> Tensor:
        """The map of the chosen image and method, (gh, gw); computed once for each setting."""
        setting = (self.image.value, self.method.value, self.head_fusion.value, self.discard_ratio.value)
        if setting not in self._maps:
            self._maps[setting] = self._explain().unflatten(1, grid_size(self.model))[0]
        return self._maps[setting]

    def _explain(self) -> Tensor:
        """(1, P)."""
        attentions, gradients = self._record()
        pairs = list(zip(attentions, gradients, strict=True))
        method, fusion = self.method.value, self.head_fusion.value
        read = {"num_prefix_tokens": self.model.num_prefix_tokens, "readout": default_readout(self.model)}
        if method == "last-attention":
            return last_attention(fuse_heads(attentions[-1], fusion), **read)
        if method == "grad-attention":
            return attention_relevance([fuse_positive_gradient(*pair) for pair in pairs], **read)
        if method == "grad-rollout":
            fused = [fuse_gradient(*pair) for pair in pairs]
        else:
            fused = [fuse_heads(attention, fusion) for attention in attentions]
        explain = attention_flow if method == "flow" else attention_rollout
        return explain(fused, discard_ratio=self.discard_ratio.value, **read)

    def _record(self) -> tuple[list[Tensor], list[Tensor]]:
        if self._recorded is None or self._recorded[0] != self.image.value:
            image = self.images[self.image.value][None]
            self._recorded = self.image.value, *attention_gradients(self.model, image)
        return self._recorded[1:]

    def _top(self, logits: Tensor) -> str:
        probability, index = logits.softmax(dim=1).max(dim=1)
        name = self.classes[index.item()] if self.classes else str(index.item())
        return f"{name} ({100 * probability.item():.0f} %)"


def _slider(value: float, low: float, high: float, description: str) -> widgets.FloatSlider:
    return widgets.FloatSlider(value, min=low, max=high, step=0.01, description=description, continuous_update=False)


class LiveCurve:
    """Learning curves that are drawn anew after every epoch; the last drawing stays in the notebook.

    Example:
        >>> curve = LiveCurve()
        >>> distill(student, maps, output, recipe, on_epoch=curve.of("convnet"))  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self.histories: dict[str, pd.DataFrame] = {}
        self.handle: DisplayHandle | None = None

    def of(self, name: str) -> Callable[[pd.DataFrame], None]:
        """What to call with one student's history after each epoch."""

        def update(history: pd.DataFrame) -> None:
            self.histories[name] = history
            figure = self.draw()
            if self.handle is None:
                self.handle = display(figure, display_id=True)
            else:
                self.handle.update(figure)
            plt.close(figure)

        return update

    def draw(self) -> Figure:
        """The curves so far."""
        figure, axis = plt.subplots()
        plot_learning_curves(axis, self.histories)
        return figure
