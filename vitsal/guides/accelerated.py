"""One module for the whole way: image, guide, patches to keep, target, tokens to merge."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from huggingface_hub import snapshot_download
from timm.models import save_for_hf
from torch import Tensor, nn
from torch.types import Device

from vitsal.data.images import describe_transform
from vitsal.errors import UserError
from vitsal.guides.adapters import StudentGuide
from vitsal.guides.factory import Guide, models_in
from vitsal.jobs.files import check_own_folder, locked
from vitsal.jobs.identity import weights_fingerprint
from vitsal.jobs.sealed import read_sealed, write_sealed
from vitsal.models.loading import load_model
from vitsal.models.pixels import resize
from vitsal.models.sizes import resized
from vitsal.models.tokens import grid_size, model_transform
from vitsal.reduction.keep import shuffle_of
from vitsal.reduction.reduction import Reduction, as_reduction, check_reduction, num_ranked, reduced
from vitsal.students.student import Student, load_student, write_student

CONFIG, CARD, TARGET, STUDENT = "accelerated.json", "README.md", "target", "student"  # what its folder holds


class Explanation(NamedTuple):
    """What a target made of images, and of which of their patches.

    Attributes:
        logits: (B, classes).
        saliency: the guide's map, (B, gh, gw); None where all patches are kept and no guide is asked.
        tokens: number of the token that each patch of the target's grid has become part of, (B, gh', gw'): patches of
            one number were merged, or shown as one, -1 was dropped. Numbers count prefix tokens, which come first.
    """

    logits: Tensor
    saliency: Tensor | None
    tokens: Tensor


class AcceleratedViT(nn.Module):
    """A ViT that costs less: it sees only the patches that a guide finds most salient: images (B, 3, H, W) -> logits.

    An ordinary module: its parameters are those of target and student (or of whatever models are in the guide), in the
    target's mode; it may be moved, halved, compiled and exported. It is for inference: positions of another input size
    are made once, from those of the target.

    Args:
        target: a timm ViT in eval mode.
        guide: a student, or any guide: maps the target's images to saliency, (B, 3, H, W) -> (B, gh, gw). None where
            all patches are kept.
        reduction: fraction of patches kept, in (0, 1]; or a `vitsal.Reduction`, which can also show the others
            coarsely, merge tokens and show the target smaller images. Where all patches are kept no guide is asked.
        merge: tokens that each block merges away, beside a keep ratio (`vitsal.reduction.merge_schedule`).

    Raises:
        UserError: a keep ratio that is no number in (0, 1], a reduction that the target does not allow, or one without
            a guide that it takes; on running, saliency that is not finite.
    """

    def __init__(
        self,
        target: nn.Module,
        guide: Guide | Student | None,
        reduction: float | Reduction = 1.0,
        merge: int | str | None = None,
    ) -> None:
        super().__init__()
        plain = as_reduction(reduction)
        self.reduction = plain if merge is None else replace(plain, merge=str(merge))
        if guide is None and self.reduction.guided:
            raise UserError(f"To keep {self.reduction.keep_ratio:g} of the patches takes a guide, such as a student.")
        self.target = target
        self.guide = StudentGuide(guide, target) if isinstance(guide, Student) else guide
        self.inner = nn.ModuleList(model for model in models_in(self.guide) if model is not target)
        size = self.reduction.input_size
        twin = resized(target, size)
        self.twin = None if twin is target else twin  # of another input size, with the very weights of the target
        check_reduction(self._seen, self.reduction)
        shuffle_of(num_ranked(self._seen, self.reduction))  # now, and not while the module is traced
        self.training = self.inner.training = target.training

    @property
    def _seen(self) -> nn.Module:
        return self.target if self.twin is None else self.twin

    @property
    def transform(self) -> object:
        """PIL image -> (3, H, W), as the target takes it."""
        return model_transform(self.target)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch: (B, 3, H, W) -> (B, classes)."""
        with reduced(self._seen, images_seen := self._resize(images), self.reduction, self._ask(images)):
            return self._seen(images_seen)

    def forward_features(self, images: Tensor) -> Tensor:
        """Tokens of a batch after the last block and norm, as timm has it: (B, 3, H, W) -> (B, N, C).

        Prefix tokens come first; of the patches those that are kept, the coarse ones, and merged ones as one.
        """
        with reduced(self._seen, images_seen := self._resize(images), self.reduction, self._ask(images)):
            return self._seen.forward_features(images_seen)

    @torch.no_grad()
    def explain(self, images: Tensor) -> Explanation:
        """Logits of a batch (B, 3, H, W), and what became of each patch on the way to them."""
        saliency, seen = self._ask(images), self._resize(images)
        with reduced(self._seen, seen, self.reduction, saliency) as shown:
            logits = self._seen(seen)
        grid = grid_size(self._seen, seen)
        tokens = seen.new_full((len(seen), grid[0] * grid[1]), -1, dtype=torch.long)
        return Explanation(logits, saliency, shown.laid_on(tokens, self._seen.num_prefix_tokens).view(-1, *grid))

    def _resize(self, images: Tensor) -> Tensor:
        return resize(images, self.reduction.input_size)

    def _ask(self, images: Tensor) -> Tensor | None:
        return self.guide(images) if self.reduction.guided else None

    def save_pretrained(self, folder: str | Path, card: str = "") -> None:
        """Write a folder that `from_pretrained` reads.

        It holds `target`, which timm reads as well (local-dir:...), `student`, `accelerated.json`, which says how they
        work together, and a card, README.md. An older one there is replaced when all of the new one is written.

        Raises:
            UserError: a guide that is no student, which cannot be saved, or `folder` holds what is no accelerated ViT.
        """
        if self.reduction.guided and not isinstance(self.guide, StudentGuide):
            raise UserError(f"Only students are saved with a target; the guide is a {type(self.guide).__name__}.")
        check_accelerated_folder(folder := Path(folder))
        with locked(folder):
            self._write(
                unfinished := folder / ".unfinished", card or f"An accelerated ViT of vitsal: {self.reduction}."
            )
            for part in (TARGET, STUDENT, CARD, CONFIG):
                shutil.rmtree(folder / part, ignore_errors=True)
                if (unfinished / part).exists():
                    os.replace(unfinished / part, folder / part)
            shutil.rmtree(unfinished)

    def _write(self, folder: Path, card: str) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        save_for_hf(self.target, folder / TARGET, safe_serialization=True)
        if self.reduction.guided:
            write_student(self.guide.student, folder / STUDENT)
        (folder / CARD).write_text(f"{card}\n", encoding="utf-8", errors="backslashreplace")
        write_sealed(folder / CONFIG, self._configuration)

    @property
    def _configuration(self) -> dict[str, Any]:
        parts = {TARGET: self.target} | ({STUDENT: self.guide.student} if self.reduction.guided else {})
        return {
            "reduction": self.reduction.columns,
            "weights": {name: weights_fingerprint(model) for name, model in parts.items()},
            "type": str(next(self.target.parameters()).dtype).removeprefix("torch."),
            "transform": describe_transform(self.transform),
        }

    @classmethod
    def from_pretrained(cls, name: str | Path, *, device: Device = "cpu") -> Self:
        """Load what `save_pretrained` wrote, from a folder or by its name on the hub.

        Raises:
            UserError: nothing there, or it is none, or damaged.
        """
        folder = _find(name)
        config = read_sealed(folder / CONFIG, "It should be a folder that AcceleratedViT.save_pretrained has written.")
        target = load_model(f"local-dir:{folder / TARGET}", device=device)
        student = load_student(folder / STUDENT, device) if STUDENT in config["weights"] else None
        loaded = cls(target, student, Reduction.from_columns(**config["reduction"])).to(getattr(torch, config["type"]))
        if loaded._configuration != config | {"reduction": loaded.reduction.columns}:  # an older one tells fewer levers
            raise UserError(f"{folder} is damaged: target and student are not those that {CONFIG} tells of.")
        return loaded


def check_accelerated_folder(folder: Path) -> None:
    """Raise UserError if an accelerated ViT in this folder would replace what is none."""
    check_own_folder(folder, (TARGET, STUDENT, CARD, "config.json"), CONFIG)


def _find(name: str | Path) -> Path:
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(str(name)))
    except Exception as error:  # whatever the hub's library says of names, or of no network
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"There is no accelerated ViT at {str(name)!r}, and the hub gave: {reason}") from error
