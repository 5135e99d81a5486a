"""Files of tensors that are whole, or refused."""

import pytest
import torch
from safetensors.torch import save_file

from vitsal.jobs.tensors import DamagedError, read_tensors, write_tensors


@pytest.fixture
def tensors():
    """A transposed, a whole-number and an empty one."""
    return {"a": torch.rand(3, 2).mT, "b": torch.arange(4), "c": torch.zeros(0, 5)}


def test_what_was_written_is_read(tensors, tmp_path):
    write_tensors(tmp_path / "file", tensors, {"of": "x"})
    again, about = read_tensors(tmp_path / "file")
    assert about == {"of": "x"}
    assert again.keys() == tensors.keys()
    assert all(
        torch.equal(value, tensors[name]) and value.dtype == tensors[name].dtype for name, value in again.items()
    )


def test_any_flipped_bit_is_damage(tensors, tmp_path):
    write_tensors(tmp_path / "file", tensors, {"of": "x"})
    content = (tmp_path / "file").read_bytes()
    for place in range(len(content)):
        changed = bytes([content[place] ^ 1 << place % 8])
        (tmp_path / "file").write_bytes(content[:place] + changed + content[place + 1 :])
        with pytest.raises(DamagedError):
            read_tensors(tmp_path / "file")


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(DamagedError):
        read_tensors(tmp_path / "missing")
    (tmp_path / "notes").write_text("these are my notes")
    with pytest.raises(DamagedError):
        read_tensors(tmp_path / "notes")


def test_files_without_a_checksum_are_taken_where_asked(tensors, tmp_path):
    save_file({"b": tensors["b"]}, tmp_path / "file")
    with pytest.raises(DamagedError, match="its checksum does not fit"):
        read_tensors(tmp_path / "file")
    again, about = read_tensors(tmp_path / "file", unsigned=True)
    assert torch.equal(again["b"], tensors["b"])
    assert not about
