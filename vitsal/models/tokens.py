"""What others need to know of a model's input and its tokens."""

from __future__ import annotations

from timm.data import create_transform, resolve_model_data_config
from timm.models.beit import Beit
from torch import Tensor, nn


def model_transform(model: nn.Module) -> object:
    """The model's own evaluation transform: PIL image -> (3, H, W), with its size, crop, mean and deviation."""
    return create_transform(**resolve_model_data_config(model) | {"input_size": (3, *input_size(model))})


def input_size(model: nn.Module) -> tuple[int, int]:
    """(H, W) of the images that this model takes, which `img_size` may have set apart from its name's own."""
    size = getattr(model.patch_embed, "img_size", None)
    return tuple(size or resolve_model_data_config(model)["input_size"][-2:])


def grid_size(model: nn.Module, images: Tensor | None = None) -> tuple[int, int]:
    """(gh, gw), the patch grid of the model, or of these images (B, 3, H, W) where the model takes any size."""
    if images is None:
        return tuple(model.patch_embed.grid_size)
    return tuple(model.patch_embed.dynamic_feat_size(images.shape[-2:]))


def position_kind(model: nn.Module) -> str:
    """How a model knows where patches lie: "absolute", from their tokens alone; "relative" or "rotary", from more."""
    if isinstance(model, Beit):
        return "relative"
    return "absolute" if getattr(model, "rope", None) is None else "rotary"


def default_readout(model: nn.Module) -> str:
    """Where the model reads its answer: "class" token, or "patches" for average-pooled models."""
    has_class_token = getattr(model, "cls_token", None) is not None
    return "class" if has_class_token and model.global_pool in ("token", "") else "patches"


def readout_options(model: nn.Module) -> dict[str, int | str]:
    """What the arithmetic of rollouts needs to know of a model's tokens: `num_prefix_tokens` and `readout`."""
    return {"num_prefix_tokens": model.num_prefix_tokens, "readout": default_readout(model)}
