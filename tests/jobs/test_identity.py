"""What identifies a piece of work: checksums against published values, and refusals that say where things differ."""

import zlib

import pytest
import torch

from vitsal.errors import UserError
from vitsal.jobs.identity import checksum, file_hash, refuse_other, tensors_checksum


def test_checksums_are_the_published_ones(tmp_path):
    assert checksum("123456789") == checksum("1234", b"56789") == "cbf43926"  # the check value of CRC-32
    (tmp_path / "file").write_bytes(b"bc")
    assert file_hash(tmp_path / "file", "a") == "ba7816bf8f01cfea"  # of "abc": FIPS 180-2, appendix B
    assert file_hash(tmp_path / "file") != file_hash(tmp_path / "file", "a")


def test_checksum_of_tensors_tells_values_names_and_words():
    tensors = {"b": torch.tensor([1, 2], dtype=torch.uint8), "a": torch.tensor([3], dtype=torch.uint8)}
    text = '[[["a", "torch.uint8", 1], ["b", "torch.uint8", 2]], [["x", "y"]]]'
    assert tensors_checksum(tensors, {"x": "y"}) == f"{zlib.crc32(text.encode() + bytes([3, 1, 2])):08x}"
    assert tensors_checksum(tensors) != tensors_checksum(tensors | {"a": torch.tensor([4], dtype=torch.uint8)})


def test_what_is_about_something_else_is_refused_with_both_values():
    refuse_other({"size": [1, 2]}, {"size": (1, 2)}, "x holds y", "Move it.")  # as JSON has it, the same
    with pytest.raises(UserError) as refused:
        refuse_other({"b": 1, "c": 2, "d": 3}, {"a": None, "b": "1", "c": 2}, "x holds y", "Move it.")
    assert str(refused.value) == "x holds y (b: 1 there, '1' now; d: 3 there, None now). Move it."
