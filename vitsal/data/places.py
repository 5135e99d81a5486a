"""What names data, and whether it is there: told without torch."""

from __future__ import annotations

import os

from vitsal.errors import UserError, check_choice, printable

OWN_DATA = ("digits", "imagenette")
LIBRARY_DATA = ("hfds/", "hfids/", "wds/", "tfds/")  # how names of data sets begin that other libraries open
SPLITS = ("train", "validation", "val", "test")  # of our own data, which has two parts: all but "train" is the other


def check_data(source: str, split: str) -> None:
    """Raise UserError if data, as `vitsal.data.open_data` takes it, is not here, or has no such part.

    What only a library can tell is not asked.
    """
    if source.startswith(LIBRARY_DATA):
        return
    check_choice("split", split, SPLITS)
    if source not in OWN_DATA and not os.path.isdir(source) and not os.path.isfile(source):
        raise UserError(
            f"There is no data at {printable(source)!r}. Give a folder with one folder of images per class, a tar "
            "file, 'digits', 'imagenette', or a timm data set name that begins with hfds/, hfids/ or wds/."
        )
