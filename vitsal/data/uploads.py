"""Pictures that people hand to a page: read whatever they are, with a word on what was done to them."""

from __future__ import annotations

import warnings
from io import BytesIO

from PIL import Image, UnidentifiedImageError

from vitsal.data.pictures import BrokenImage, decoding, upright
from vitsal.errors import UserError, printable

LONGEST_SIDE = 2_048  # pixels; more than any model reads, little enough to keep many


def read_upload(content: bytes, name: str) -> tuple[Image.Image, str]:
    """Read a picture from the bytes of a file, which messages call by this name.

    Returns:
        The picture, RGB, upright, no side longer than LONGEST_SIDE; and a sentence: its size, what was done to it.

    Raises:
        UserError: the file is empty, no picture, damaged, or too big to be decoded safely.
    """
    name = printable(name)
    if not content:
        raise UserError(f"{name} is empty (0 bytes). Choose a picture: PNG, JPEG, GIF, WebP, TIFF, ...")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the picture is scaled down below
            with decoding(BytesIO(content)) as image:
                remarks = _remarks(image)
                image.draft(None, (LONGEST_SIDE, LONGEST_SIDE))  # JPEG is decoded at a fraction of its size at once
                picture = upright(image)
    except BrokenImage as error:
        raise UserError(f"{name} {_refusal(error)}") from error
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return picture, "; ".join([f"{name}: {picture.width} x {picture.height} pixels", *remarks]) + "."


def _refusal(error: Exception) -> str:
    """Why a picture cannot be read, and what to do."""
    if isinstance(error.__cause__, Image.DecompressionBombError):
        most = f"{2 * Image.MAX_IMAGE_PIXELS / 1e6:.0f} megapixels"
        return f"has too many pixels to be decoded safely: {most} at most. Scale it down."
    if isinstance(error.__cause__, UnidentifiedImageError):
        return "is no picture that can be read. Choose PNG, JPEG, GIF, WebP, TIFF, ..."
    return f"cannot be read as a picture: {error}."


def _remarks(image: Image.Image) -> list[str]:
    """What people may not expect to be done to this picture; nothing is decoded for it."""
    remarks = []
    if getattr(image, "is_animated", False) and image.format != "MPO":  # cameras' JPEG with a preview
        remarks.append(f"the first of {image.n_frames} frames")
    if image.mode == "CMYK":
        remarks.append("turned from CMYK into RGB")
    if image.mode.startswith(("I", "F")):
        remarks.append(f"scaled from {16 if '16' in image.mode else 32} bits to 8")
    if max(image.size) > LONGEST_SIDE:
        remarks.append(f"scaled down from {image.width} x {image.height}")
    return remarks
