"""Files of `data/measured` are found from wherever notebooks run."""

import pytest

from vitsal.course import measured
from vitsal.course.measured import measured_file
from vitsal.errors import UserError


def test_it_is_found_above_the_working_folder(tmp_path, monkeypatch):
    """As after `pip install ./vitsal`, where the package's own folder has none."""
    (tmp_path / "data" / "measured").mkdir(parents=True)
    (tmp_path / "data" / "measured" / "x.parquet").write_bytes(b"x")
    (tmp_path / "runs" / "now").mkdir(parents=True)
    monkeypatch.setattr(measured, "__file__", str(tmp_path / "site-packages" / "vitsal" / "course" / "measured.py"))
    for folder in (tmp_path, tmp_path / "runs" / "now"):
        monkeypatch.chdir(folder)
        assert measured_file("x.parquet") == tmp_path / "data" / "measured" / "x.parquet"


def test_what_is_not_there_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^There is no data/measured/none\.parquet here or above: .* clone"):
        measured_file("none.parquet")
