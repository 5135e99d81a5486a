"""One picture as one model sees it: recorded once, then explained in any way, and looked at without some patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from vitsal.guides.attention import AttentionRecord
from vitsal.guides.explainers import ModelGuide
from vitsal.guides.factory import Guide
from vitsal.models.classes import Prediction, class_names, top_classes
from vitsal.models.pixels import to_pixels
from vitsal.models.tokens import model_transform
from vitsal.reduction.drop import forward_kept
from vitsal.reduction.keep import top_k_patches


@dataclass(frozen=True)
class View:
    """What a guide says of a picture, and what the model makes of the patches that the guide keeps."""

    saliency: Tensor  # the guide's map, (gh, gw), raw
    keep: Tensor  # numbers of the patches kept, (K,), ascending
    predictions: list[Prediction]  # likeliest classes on these patches alone; empty for a model without a classifier


class Exploration:
    """A picture in a model: one forward pass is recorded at the start, each guide's map is computed once.

    Args:
        model: a timm ViT in eval mode.
        picture: RGB, of any size.

    Attributes:
        pixels: what the model sees of the picture, (H, W, 3) in [0, 1].
        predictions: likeliest classes on all patches, ten at most; empty for a model without a classifier.
    """

    def __init__(self, model: nn.Module, picture: Image.Image) -> None:
        device = next(model.parameters()).device
        self.model = model
        self.images = model_transform(model)(picture)[None].to(device)
        self.pixels = to_pixels(self.images, model)[0]
        self.record = AttentionRecord(model, self.images)
        self.names = class_names(model)
        self.predictions = self._top(self.record.logits, 10)
        self._maps: dict[Guide, Tensor] = {}

    def saliency(self, guide: Guide) -> Tensor:
        """A guide's map of the picture, (gh, gw); of the model's own guides without another pass through it."""
        if guide not in self._maps:
            own = isinstance(guide, ModelGuide) and guide.model is self.model
            self._maps[guide] = (guide.explain(self.record) if own else guide(self.images))[0].cpu()
        return self._maps[guide]

    def look(self, guide: Guide, drop_ratio: float) -> View:
        """Drop the least salient patches, this share of them, and ask the model again."""
        saliency = self.saliency(guide)
        keep = top_k_patches(saliency[None], 1 - drop_ratio)
        with torch.inference_mode():
            logits = forward_kept(self.model, self.images, keep.to(self.images.device))
        return View(saliency, keep[0], self._top(logits, 5))

    def prediction(self, category_index: int | None = None) -> Prediction:
        """What the model thinks of one class on all patches; of the likeliest, where none is given."""
        if category_index is None:
            return self.predictions[0]
        probabilities = self.record.logits[0].softmax(dim=0)
        return Prediction(category_index, self.names[category_index], probabilities[category_index].item())

    def _top(self, logits: Tensor, count: int) -> list[Prediction]:
        return top_classes(logits[0].float().cpu(), self.names, count) if self.model.num_classes else []


def map_table(pictures: Mapping[str, Image.Image], model: nn.Module, guides: Mapping[str, Guide]) -> pd.DataFrame:
    """What guides say of pictures, name -> picture in RGB, in numbers: one row per picture, guide and patch.

    Columns: image, predicted (the likeliest class, and how likely), guide, head (from 1; 0 where the guide gives one
    map), row, column, saliency (raw, float32).
    """
    tables = []
    for name, picture in tqdm(pictures.items(), desc="images", mininterval=1, delay=2):
        seen = Exploration(model, picture)
        told = {"image": name, "predicted": str(seen.predictions[0]) if seen.predictions else ""}
        for guide_name, guide in guides.items():
            maps = seen.saliency(guide).numpy()
            head, row, column = np.indices((1, *maps.shape) if maps.ndim == 2 else maps.shape).reshape(3, -1)
            place = {"head": head + (maps.ndim == 3), "row": row, "column": column, "saliency": maps.ravel()}
            tables.append(pd.DataFrame(told | {"guide": guide_name, **place}))
    return pd.concat(tables, ignore_index=True).astype({"head": "int16", "row": "int16", "column": "int16"})
