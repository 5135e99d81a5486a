"""Students' networks: a convnet, a transformer, any timm model that gives feature maps, or none, a baseline."""

from __future__ import annotations

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from vitsal.choices import ARCHITECTURES, CELL, POSITION
from vitsal.errors import UserError, suggestion
from vitsal.models.pixels import fit_grid

OWN = (*ARCHITECTURES, POSITION)


def make_network(architecture: str, grid_size: tuple[int, int], input_size: tuple[int, int], width: int) -> nn.Module:
    """The network of this name: images (B, 3, h, w) -> (B, gh, gw).

    Raises:
        UserError: unknown architecture, or sizes that it cannot take.
    """
    if architecture == "convnet":
        return ConvNet(grid_size, width)
    if architecture == "transformer":
        return Transformer(grid_size, input_size, width)
    if architecture == POSITION:
        return Blind(grid_size)
    return TimmNet(architecture, grid_size, input_size)


def _normed(channels_in: int, channels_out: int, size: int, stride: int = 1) -> nn.Sequential:
    """A convolution with its batch normalisation."""
    convolution = nn.Conv2d(channels_in, channels_out, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out))


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a short cut (He et al. 2016, arXiv:1512.03385, figure 2)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        first, second = _normed(channels_in, channels_out, 3, stride), _normed(channels_out, channels_out, 3)
        self.convolutions = nn.Sequential(*first, nn.ReLU(), *second)
        projection = _normed(channels_in, channels_out, 1, stride)
        self.shortcut = nn.Identity() if stride == 1 and channels_in == channels_out else projection

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h / stride, w / stride)."""
        return F.relu(self.convolutions(features) + self.shortcut(features))


class ConvNet(nn.Module):
    """A ResNet-like convnet: three stages of strides 2, 4 and 8, the last laid over the middle one.

    The coarse stage sees most of the image at once; adding it to the finer one, as feature pyramids do (Lin et al.
    2017, arXiv:1612.03144), tells each cell what else there is.
    """

    def __init__(self, grid_size: tuple[int, int], width: int) -> None:
        super().__init__()
        fine, middle, coarse = width, 2 * width, 4 * width
        self.grid_size = grid_size
        self.stem = _normed(3, fine, 3, stride=2).append(nn.ReLU())
        self.middle = nn.Sequential(ResidualBlock(fine, fine, 1), ResidualBlock(fine, middle, 2))
        self.coarse = nn.Sequential(ResidualBlock(middle, coarse, 2), nn.Conv2d(coarse, middle, 1))
        self.fuse = _normed(middle, middle, 3).append(nn.ReLU())
        self.head = nn.Conv2d(middle, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, gh, gw)."""
        middle = self.middle(self.stem(images))
        context = F.interpolate(self.coarse(middle), middle.shape[-2:])
        return fit_grid(self.head(self.fuse(middle + context)), self.grid_size)[:, 0]


class Transformer(nn.Module):
    """A small ViT without class token: its tokens are the cells of the grid."""

    def __init__(self, grid_size: tuple[int, int], input_size: tuple[int, int], width: int) -> None:
        super().__init__()
        if any(pixels % cells for pixels, cells in zip(input_size, grid_size, strict=True)):
            raise UserError(
                f"A transformer student's input, {input_size}, must be a multiple of its grid, {grid_size}: "
                f"{tuple(CELL * cells for cells in grid_size)}, for example."
            )
        if width % 2:
            raise UserError(f"A transformer student's width must be even, for four heads; got {width}.")
        self.grid_size = grid_size
        patch_size = tuple(pixels // cells for pixels, cells in zip(input_size, grid_size, strict=True))
        sizes = {"embed_dim": 2 * width, "depth": 3, "num_heads": 4, "num_classes": 0}
        self.tokens = VisionTransformer(input_size, patch_size, class_token=False, global_pool="", **sizes)
        self.head = nn.Linear(2 * width, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, gh, gw)."""
        return self.head(self.tokens(images))[..., 0].unflatten(1, self.grid_size)


class Blind(nn.Module):
    """Sees nothing: all that is left of its student is where objects mostly are, a baseline for those that look."""

    def __init__(self, grid_size: tuple[int, int]) -> None:
        super().__init__()
        self.grid_size = grid_size

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) -> zeros (B, gh, gw)."""
        return images.new_zeros(len(images), *self.grid_size)


class TimmNet(nn.Module):
    """Any timm model that gives feature maps: each is projected and laid on the grid, and their sum read out."""

    def __init__(self, name: str, grid_size: tuple[int, int], input_size: tuple[int, int], channels: int = 64) -> None:
        super().__init__()
        self.grid_size = grid_size
        self.backbone = make_backbone(name, input_size)
        self.projections = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in self.backbone.feature_info.channels())
        self.head = nn.Conv2d(channels, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, gh, gw)."""
        laid = 0
        for features, projection in zip(self.backbone(images), self.projections, strict=True):
            if features.shape[1] != projection.in_channels:  # Swin and its kin give (B, h, w, C)
                features = features.movedim(-1, 1)
            laid = laid + fit_grid(projection(features), self.grid_size)
        return self.head(F.relu(laid))[:, 0]


def make_backbone(name: str, input_size: tuple[int, int], pretrained: bool = False) -> nn.Module:
    """A timm model that gives feature maps, for images of `input_size`, (h, w).

    Raises:
        UserError: timm has none of this name, it gives no feature maps, or its weights cannot be had.
    """
    check_known(name)
    for options in ({"img_size": input_size}, {}):  # ViTs must be told, convnets refuse to be
        try:
            backbone = timm.create_model(name, features_only=True, pretrained=pretrained, **options).eval()
            with torch.no_grad():
                backbone(torch.zeros(1, 3, *input_size))  # now, and not after all maps are computed
            return backbone.train()
        except TypeError:
            continue
        except Exception as error:  # each family of timm's has its own way to refuse a size
            reason = str(error) or type(error).__name__
            refused = f"timm's {name!r} cannot be a student's backbone for images of {input_size}: {reason}"
            raise UserError(refused) from error
    raise UserError(f"timm's {name!r} cannot be a student's backbone: it gives no feature maps.")


def check_known(name: str) -> None:
    """Raise UserError if neither we nor timm have an architecture of this name."""
    if name not in OWN and not timm.is_model(name):
        raise UserError(
            f"Unknown architecture {name!r}.{suggestion(name, [*OWN, *timm.list_models()])} "
            f"Known: {', '.join(OWN)}, and the names of timm's models."
        )
