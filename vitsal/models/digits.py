"""Three small ViTs for the digit scenes, registered with timm; their weights lie in `vitsal/embedded`.

All take images (B, 3, 112, 112) as 14 x 14 patches of 8 pixels, and tell the largest digit from their class token.
Trained by ``python -m vitsal.embedded.train`` on ``vitsal.data.scenes``; after ``import vitsal.models.digits``,
``timm.create_model("vitsal_digits_target", pretrained=True)`` gives one, without a download.
"""

from pathlib import Path
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

WEIGHTS = Path(__file__).parents[1] / "embedded"
MODEL_NAMES = ("vitsal_digits_target", "vitsal_digits_target_drop", "vitsal_digits_guide")
TARGET = {"embed_dim": 96, "depth": 6, "num_heads": 4}
GUIDE = {"embed_dim": 64, "depth": 3, "num_heads": 4}

CFG = {
    "num_classes": 10,
    "input_size": (3, 112, 112),
    "crop_pct": 1.0,
    "fixed_input_size": True,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "first_conv": "patch_embed.proj",
    "classifier": "head",
    "license": "mit",
}
_files = {name: {"file": str(WEIGHTS / f"{name}.safetensors")} for name in MODEL_NAMES}
default_cfgs = generate_default_cfgs({f"{name}.digit_scenes": file | CFG for name, file in _files.items()})


def _create(name: str, pretrained: bool, size: dict[str, int], options: dict[str, Any]) -> VisionTransformer:
    options = {"img_size": 112, "patch_size": 8, "num_classes": 10} | size | options
    options["pretrained_filter_fn"] = checkpoint_filter_fn  # interpolates positions where another img_size is asked for
    return build_model_with_cfg(VisionTransformer, name, pretrained, **options)


@register_model
def vitsal_digits_target(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """The target: six blocks of width 96."""
    return _create("vitsal_digits_target", pretrained, TARGET, options)


@register_model
def vitsal_digits_target_drop(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """The target, fine-tuned with up to 90 % of each scene's patches dropped at random, a stand-in for MAE models."""
    return _create("vitsal_digits_target_drop", pretrained, TARGET, options)


@register_model
def vitsal_digits_guide(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """The guide: three blocks of width 64, about a quarter of the target's operations."""
    return _create("vitsal_digits_guide", pretrained, GUIDE, options)
