"""JSON that says itself whether it is whole."""

import hashlib
import json

import pytest

from vitsal.errors import UserError
from vitsal.jobs.sealed import read_sealed, write_sealed

CONTENT = {"b": [1, None, "\u00fc"], "a": {"kl": 0.1}}


def test_the_checksum_is_of_all_else_in_any_order(tmp_path):
    """So files of before this module are read: theirs was computed so."""
    path = tmp_path / "a" / "state.json"
    write_sealed(path, CONTENT)
    there = json.loads(path.read_text())
    text = '{"a": {"kl": 0.1}, "b": [1, null, "\\u00fc"]}'
    assert there == CONTENT | {"checksum": hashlib.sha256(text.encode()).hexdigest()[:10]}
    assert list(there) == ["b", "a", "checksum"]
    path.write_text(json.dumps(dict(reversed(there.items()))))
    assert read_sealed(path, "Go on.") == CONTENT


@pytest.mark.parametrize(
    ("old", "new"), [("0.1", "0.2"), ('"b"', '"c"'), ('"checksum"', '"sum"'), ("null", "true"), (":", ":1")]
)
def test_whatever_is_changed_is_noticed(tmp_path, old, new):
    path = tmp_path / "state.json"
    write_sealed(path, CONTENT)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=r"state\.json (is damaged: its checksum|cannot be read \().* Go on\.$"):
        read_sealed(path, "Go on.")
