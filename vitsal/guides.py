"""Guides: callables that map images (B, 3, H, W) to a saliency map (B, gh, gw), whatever is behind them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from vitsal.attention import attention_gradients, record_attention
from vitsal.errors import UserError, check_choice, check_number
from vitsal.flow import attention_flow
from vitsal.legacy import legacy_gradient_rollout, legacy_rollout
from vitsal.models import convert_images, default_readout, denormalize, grid_size
from vitsal.rollout import (
    HEAD_FUSIONS,
    attention_relevance,
    attention_rollout,
    fuse_gradient,
    fuse_heads,
    fuse_positive_gradient,
    last_attention,
)
from vitsal.students import Student, downsample, fit_grid

Guide = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _ModelGuide:
    """What guides with a ViT inside share: `model` sees the images, the map is laid on its own patch grid.

    `images` are in the model's own normalisation and size, as `model_transform(model)` makes them; `AdaptedGuide` takes
    images prepared for another model.
    """

    model: nn.Module

    @property
    def readout(self) -> str:
        return default_readout(self.model)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Saliency of a batch: (B, 3, H, W) -> (B, gh, gw)."""
        return self._saliency(images).unflatten(1, grid_size(self.model, images))

    def _saliency(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, P)."""
        raise NotImplementedError


@dataclass(frozen=True)
class _FusedGuide(_ModelGuide):
    """What guides share that fuse the heads of each block and discard its lowest attention."""

    head_fusion: str = "mean"
    discard_ratio: float = 0.0

    def __post_init__(self) -> None:
        check_choice("head fusion", self.head_fusion, HEAD_FUSIONS)
        check_number("discard ratio", self.discard_ratio, 0, 1, open_end="high")

    def _fused(self, images: Tensor) -> list[Tensor]:
        """Attention with its heads fused, first block first: (B, 3, H, W) -> L matrices (B, N, N)."""
        with record_attention(self.model, partial(fuse_heads, head_fusion=self.head_fusion)) as fused:
            self.model(images)
        return fused


@dataclass(frozen=True)
class RolloutGuide(_FusedGuide):
    """Attention rollout of `model` (`vitsal.rollout.attention_rollout`).

    Args:
        model: a timm ViT in eval mode.
        head_fusion: "mean", "max" or "min".
        discard_ratio: fraction of each block's attention to drop, in [0, 1).
        legacy: vit-explain's published arithmetic instead (`vitsal.legacy`), for comparison only.

    Raises:
        UserError: unknown head fusion, discard ratio outside [0, 1).
    """

    legacy: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.legacy:
            _check_legacy(self.model)

    def _saliency(self, images: Tensor) -> Tensor:
        fused = self._fused(images)
        if self.legacy:
            return legacy_rollout(fused, discard_ratio=self.discard_ratio)
        return attention_rollout(
            fused,
            num_prefix_tokens=self.model.num_prefix_tokens,
            discard_ratio=self.discard_ratio,
            readout=self.readout,
        )


@dataclass(frozen=True)
class GradientRolloutGuide(_ModelGuide):
    """Gradient rollout of `model`: each head's attention weighed by the gradient of a class logit to it.

    Args:
        model: a timm ViT in eval mode, with a classifier.
        category_index: the class to explain; None explains the class that the model predicts, image by image.
        discard_ratio: fraction of each block's weighted attention to drop, in [0, 1).
        legacy: vit-explain's published arithmetic instead (`vitsal.legacy`), for comparison only.

    Raises:
        UserError: no classifier, a class that the model does not have, discard ratio outside [0, 1).
    """

    category_index: int | None = None
    discard_ratio: float = 0.0
    legacy: bool = False

    def __post_init__(self) -> None:
        check_number("discard ratio", self.discard_ratio, 0, 1, open_end="high")
        check_category(self.model, self.category_index)
        if self.legacy:
            _check_legacy(self.model)

    @torch.inference_mode(False)
    def _saliency(self, images: Tensor) -> Tensor:
        images = images.clone() if images.is_inference() else images
        attentions, gradients = attention_gradients(self.model, images, self.category_index)
        if self.legacy:
            return legacy_gradient_rollout(attentions, gradients, discard_ratio=self.discard_ratio)
        return attention_rollout(
            [fuse_gradient(a, g) for a, g in zip(attentions, gradients, strict=True)],
            num_prefix_tokens=self.model.num_prefix_tokens,
            discard_ratio=self.discard_ratio,
            readout=self.readout,
        )


@dataclass(frozen=True)
class GradientAttentionGuide(_ModelGuide):
    """Gradient times attention of `model`, after Chefer et al. 2021 (`vitsal.rollout.attention_relevance`).

    Args:
        model: a timm ViT in eval mode, with a classifier.
        category_index: the class to explain; None explains the class that the model predicts, image by image.

    Raises:
        UserError: no classifier, or a class that the model does not have.
    """

    category_index: int | None = None

    def __post_init__(self) -> None:
        check_category(self.model, self.category_index)

    @torch.inference_mode(False)
    def _saliency(self, images: Tensor) -> Tensor:
        images = images.clone() if images.is_inference() else images
        attentions, gradients = attention_gradients(self.model, images, self.category_index)
        return attention_relevance(
            [fuse_positive_gradient(a, g) for a, g in zip(attentions, gradients, strict=True)],
            num_prefix_tokens=self.model.num_prefix_tokens,
            readout=self.readout,
        )


def check_category(model: nn.Module, category_index: int | None) -> None:
    """Raise UserError if `model` has no classifier or does not have this class (None: any)."""
    if not model.num_classes:
        raise UserError("Gradient rollout explains a class, and this model has no classifier; use attention rollout.")
    if category_index is not None and not 0 <= category_index < model.num_classes:
        raise UserError(
            f"Category index {category_index} is not a class of this model: it has {model.num_classes} classes, "
            f"0 to {model.num_classes - 1}."
        )


def _check_legacy(model: nn.Module) -> None:
    if model.num_prefix_tokens != 1 or default_readout(model) != "class":
        raise UserError(
            "vit-explain's rollout (legacy) knows models with one class token and no other prefix token only."
        )


@dataclass(frozen=True)
class FlowGuide(_FusedGuide):
    """Attention flow of `model` (`vitsal.flow.attention_flow`): one maximum flow per patch, seconds for an image.

    Args:
        model: a timm ViT in eval mode.
        head_fusion: "mean", "max" or "min".
        discard_ratio: fraction of each block's attention to drop, in [0, 1).

    Raises:
        UserError: unknown head fusion, discard ratio outside [0, 1).
    """

    def _saliency(self, images: Tensor) -> Tensor:
        return attention_flow(
            self._fused(images),
            num_prefix_tokens=self.model.num_prefix_tokens,
            discard_ratio=self.discard_ratio,
            readout=self.readout,
        )


@dataclass(frozen=True)
class LastAttentionGuide(_ModelGuide):
    """Last block's attention, mean over heads, from the class token (or the mean patch) to the patches."""

    def _saliency(self, images: Tensor) -> Tensor:
        with record_attention(self.model, fuse_heads, blocks=[-1]) as fused:
            self.model(images)
        return last_attention(fused[0], num_prefix_tokens=self.model.num_prefix_tokens, readout=self.readout)


@dataclass(frozen=True)
class RandomGuide:
    """Uniformly random saliency, (B, gh, gw).

    Each image's map is drawn from `seed` and the image's own values, so that it does not depend on the batch, on the
    order, or on where a run was resumed.
    """

    grid_size: tuple[int, int]
    seed: int = 0

    def __call__(self, images: Tensor) -> Tensor:
        """Saliency of a batch: (B, 3, H, W) -> (B, gh, gw)."""
        maps = [self._map(image) for image in images.detach().cpu()]
        return torch.stack(maps).to(images.device)

    def _map(self, image: Tensor) -> Tensor:
        seed = zlib.crc32(image.contiguous().view(torch.uint8).numpy(), self.seed)  # torch takes 32 bits, not more
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(self.grid_size, generator=generator)


@dataclass(frozen=True)
class CenterGuide:
    """The nearer to the image's centre, the more salient: minus the distance, in patches, (B, gh, gw)."""

    grid_size: tuple[int, int]

    def __call__(self, images: Tensor) -> Tensor:
        """Saliency of a batch: (B, 3, H, W) -> (B, gh, gw)."""
        height, width = self.grid_size
        y = torch.arange(height, device=images.device) - (height - 1) / 2
        x = torch.arange(width, device=images.device) - (width - 1) / 2
        return -torch.hypot(y[:, None], x[None, :]).expand(len(images), -1, -1)


@dataclass(frozen=True)
class AdaptedGuide:
    """Lets a guide work for another model: it sees the target's images in its own model's normalisation and size.

    Its map is laid on the target's grid, interpolated bilinearly where the grids differ.
    """

    guide: _ModelGuide
    target: nn.Module

    def __call__(self, images: Tensor) -> Tensor:
        """Saliency of a batch: (B, 3, H, W) -> (B, gh, gw) of the target."""
        saliency = self.guide(convert_images(images, self.target, self.guide.model))
        return _lay_on(saliency, grid_size(self.target, images))


@dataclass(frozen=True)
class StudentGuide:
    """A student's prediction from a downsampled copy of the target's images, laid on the target's grid."""

    student: Student
    target: nn.Module

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Saliency of a batch: (B, 3, H, W) -> (B, gh, gw) of the target, each map with sum 1 before it is laid."""
        small = downsample(images, self.student.input_size)
        return _lay_on(self.student.saliency(denormalize(small, self.target)), grid_size(self.target, images))


def _lay_on(saliency: Tensor, size: tuple[int, int]) -> Tensor:
    return fit_grid(saliency[:, None], size)[:, 0]


METHODS = ("rollout", "grad-rollout", "last-attention", "grad-attention", "flow")  # those that explain a model
GUIDES = (*METHODS, "student", "random", "center")


def make_guide(
    name: str,
    target: nn.Module,
    *,
    model: nn.Module | None = None,
    student: Student | None = None,
    head_fusion: str = "mean",
    discard_ratio: float = 0.0,
    category_index: int | None = None,
    seed: int = 0,
) -> Guide:
    """Make a guide for images prepared for `target`.

    Args:
        name: one of GUIDES.
        target: the ViT whose patches will be dropped.
        model: the ViT inside the guide; the target itself by default.
        student: the student, as `vitsal.students.load_student` gives it.
        head_fusion, discard_ratio, category_index, seed: what that guide takes; see its class.

    Raises:
        UserError: unknown guide, no student for "student", or one of the values cannot be used.
    """
    if name == "student" and student is None:
        raise UserError("The guide 'student' needs a student: a folder or a hub name that holds one (--student).")
    inner = target if model is None else model
    makers: dict[str, Callable[[], Guide]] = {
        "rollout": lambda: RolloutGuide(inner, head_fusion, discard_ratio),
        "grad-rollout": lambda: GradientRolloutGuide(inner, category_index, discard_ratio),
        "last-attention": lambda: LastAttentionGuide(inner),
        "grad-attention": lambda: GradientAttentionGuide(inner, category_index),
        "flow": lambda: FlowGuide(inner, head_fusion, discard_ratio),
        "student": lambda: StudentGuide(student, target),
        "random": lambda: RandomGuide(grid_size(target), seed),
        "center": lambda: CenterGuide(grid_size(target)),
    }
    guide = makers[check_choice("guide", name, GUIDES)]()
    needs_adapting = isinstance(guide, _ModelGuide) and inner is not target
    return AdaptedGuide(guide, target) if needs_adapting else guide
