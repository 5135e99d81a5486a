"""Pictures that are odd or broken, none of which may stop a command that is handed a folder of them."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
from helpers import noise_image
from PIL import Image

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 112, 3), np.uint8))
DAMAGED = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP",
           "DDS", "BLP", "PCX", "SGI")  # fmt: skip
ENDINGS = {"JPEG2000": "jp2", "TIFF": "tif"}
MODES = ("1", "L", "LA", "P", "CMYK", "YCbCr", "I;16", "I", "F", "RGBA", "LAB")


def encoded(kind: str, picture: Image.Image = PHOTO) -> bytes:
    """A picture as the bytes of a file of this kind."""
    content = io.BytesIO()
    picture.convert("P" if kind in ("BLP", "GIF") else "RGB").save(content, kind)
    return content.getvalue()


def damaged(folder: Path) -> None:
    """Each kind of picture, cut in three places and with bits flipped in three."""
    for kind in DAMAGED:
        try:
            content = encoded(kind)
        except (OSError, KeyError):  # this Pillow cannot write it
            continue
        ending, rng = ENDINGS.get(kind, kind.lower()), np.random.default_rng(len(content))
        for number in range(3):
            (folder / f"{kind}-cut{number}.{ending}").write_bytes(content[: rng.integers(4, len(content))])
            flipped = bytearray(content)
            for place in rng.integers(0, min(len(content), 200), 3):
                flipped[place] ^= 1 << rng.integers(8)
            (folder / f"{kind}-flipped{number}.{ending}").write_bytes(flipped)


def named(folder: Path) -> None:
    """Good pictures whose names are odd."""
    odd = ("$x^2$.png", "$\\frac{a$.png", "a\nb.png", "a\tb.png", "%s{}.png", "-.png", "<b>&.png", "\u202egnp.png",
           "🙂.png", " .png", "x" * 200 + ".png", "_{}^.png")  # fmt: skip
    for name in odd:
        PHOTO.save(folder / name)
    (folder / "bytes.png").touch()
    os.rename(folder / "bytes.png", os.fsencode(folder) + b"/caf\xe9.png")
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")).write_bytes(encoded("PNG"))


def shaped(folder: Path) -> None:
    """Sizes, modes and contents that few programs expect."""
    for height, width in [(1, 1), (1, 1_000_000), (1_000_000, 1), (2, 30_000), (1, 7)]:
        Image.new("RGB", (width, height), (9, 99, 199)).save(folder / f"size{height}x{width}.png")
    for mode in MODES:
        ending = "png" if mode in ("1", "L", "LA", "P", "I;16", "RGBA") else "tif"
        picture = Image.fromarray(np.full((40, 40), 300, np.uint16)) if mode == "I;16" else PHOTO
        (picture if mode == "I;16" else picture.convert("L" if mode in "IF" else "RGB").convert(mode)).save(
            folder / f"mode{mode.replace(';', '')}.{ending}"
        )
    Image.fromarray(np.full((40, 40), np.nan, np.float32)).save(folder / "nan.tif")
    PHOTO.save(folder / "frames.gif", save_all=True, append_images=[PHOTO.rotate(90)] * 3)
    (folder / "wrong.png").write_bytes(encoded("JPEG"))
    (folder / "zeros.jpg").write_bytes(bytes(5000))
    (folder / "empty.jpg").touch()
    (folder / "text.bmp").write_text("these are my notes")
    head = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54, 0, 0, 54, 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0)
    (folder / "huge.bmp").write_bytes(head)


def placed(folder: Path) -> None:
    """What is no file, or leads nowhere."""
    (folder / "dangling.png").symlink_to("gone.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "folder.png").mkdir()
    (folder / "null.png").symlink_to("/dev/null")
    (folder / "endless.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "fifo.png")


KINDS = (damaged, named, shaped, placed)


def furnish(folder: Path) -> None:
    """All of them, and a good picture."""
    folder.mkdir(parents=True)
    for kind in KINDS:
        kind(folder)
    noise_image(folder / "good.png", seed=0, size=(112, 112))
