"""Classifiers that are no ViT: the feature map that they make last."""

from __future__ import annotations

from torch import Tensor, nn

from vitsal.errors import UserError


def feature_map(network: nn.Module, images: Tensor) -> Tensor:
    """Last feature map of a timm convnet, before it is pooled: (B, 3, H, W) -> (B, C, h, w).

    Raises:
        UserError: the network gives none, but tokens, say, as a ViT does, or has its channels last, as Swin has.
    """
    features = network.forward_features(images)
    shape = tuple(getattr(features, "shape", ()))
    if len(shape) != 4 or shape[1] != network.num_features:
        raise UserError(
            f"{network.pretrained_cfg.get('architecture')!r} is a {type(network).__name__}, whose last features, "
            f"{shape}, are no map of {network.num_features} channels, (B, C, h, w). Choose a convnet, such as "
            "mobileone_s0 or resnet18."
        )
    return features
