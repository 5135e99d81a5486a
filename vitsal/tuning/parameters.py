"""Which of a target's parameters are tuned, and the small file of what became of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from copy import deepcopy
from fnmatch import fnmatchcase
from pathlib import Path

from timm.layers import resample_abs_pos_embed
from torch import nn

from vitsal.choices import TUNABLE
from vitsal.errors import UserError, check_file, first_few, quoted
from vitsal.jobs.identity import weights_fingerprint
from vitsal.jobs.tensors import DamagedError, read_tensors, write_tensors
from vitsal.models.sizes import resized

HEAD = ("head.", "head_dist.")  # the classifier: what answers mean is not up for tuning


def tuned_names(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of the parameters that one of the patterns fits, "*.bias" say; those of the classifier never are.

    Raises:
        UserError: a pattern that fits none, of others than the usual ones.
    """
    names = [name for name, _ in model.named_parameters() if not name.startswith(HEAD)]
    fitting = {pattern: [name for name in names if fnmatchcase(name, pattern)] for pattern in patterns}
    if patterns != TUNABLE and (empty := [pattern for pattern, found in fitting.items() if not found]):
        raise UserError(f"No parameter of the model fits {quoted(empty[0])}; its names are such as {first_few(names)}.")
    return [name for name in names if any(name in found for found in fitting.values())]


def tunable_twin(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """A twin of a model with parameters of its own under these names; all others share the model's memory, frozen."""
    names = set(names)
    fixed = (value for name, value in model.named_parameters() if name not in names)
    twin = deepcopy(model, {id(value): nn.Parameter(value.detach(), requires_grad=False) for value in fixed})
    for name in names:
        twin.get_parameter(name).requires_grad_(True)
    return twin


def resized_with_gradient(tuned: nn.Module, size: tuple[int, int] | None) -> nn.Module:
    """`vitsal.models.resized`, with positions made from the model's own so that a gradient goes through to these."""
    twin = resized(tuned, size)
    if twin is tuned or getattr(tuned, "pos_embed", None) is None:
        return twin
    own, old, new = tuned.pos_embed, tuned.patch_embed.grid_size, twin.patch_embed.grid_size
    del twin.pos_embed  # a parameter, which cannot follow from another
    twin.pos_embed = resample_abs_pos_embed(own, list(new), list(old), own.shape[1] - math.prod(old))
    return twin


def save_difference(model: nn.Module, tuned: nn.Module, path: str | Path) -> None:
    """Write the tensors in which a tuned model differs from `model`, and of which weights they are a tuning."""
    before = model.state_dict()
    own = {name: value for name, value in tuned.state_dict().items() if not value.equal(before[name])}
    write_tensors(path, own, {"of": weights_fingerprint(model)})


def load_difference(model: nn.Module, path: str | Path) -> nn.Module:
    """A twin of a model, tuned as the file says that `save_difference` wrote: what is not in it is the model's.

    Raises:
        UserError: no such file, a damaged one, or one of other weights than this model's.
    """
    check_file("file of differences", path)
    try:
        own, about = read_tensors(path)
    except DamagedError as damage:
        raise UserError(f"{path} is no file of differences, or a damaged one: {damage}.") from damage
    if about.get("of") != (found := weights_fingerprint(model)):
        raise UserError(
            f"{path} tunes other weights ({about.get('of')}) than these ({found}): load it onto the target that was "
            f"tuned."
        )
    twin = tunable_twin(model, own)
    twin.load_state_dict(own, strict=False)
    return twin.requires_grad_(False)
