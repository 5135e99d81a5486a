"""Files that are whole or not there, and one writer at a time."""

import os
import subprocess
import sys
import time

import pytest

from vitsal.errors import UserError
from vitsal.jobs.files import ABANDONED, locked, write_whole

HOLD = """
import sys, time
from vitsal.jobs.files import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_failed_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_whole(path, lambda part: part.write_text("old"))

    def fail(part):
        part.write_text("half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_whole(path, fail)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.txt", "old")]


def test_what_killed_runs_left_is_removed_once_nobody_can_be_at_work_on_it(tmp_path):
    path, old, young = tmp_path / "a[1].txt", tmp_path / "a[1].txt.part17", tmp_path / "a[1].txt.part18"
    other = tmp_path / "a1.txt.part17"
    for part in (old, young, other):
        part.write_text("half")
    for part in (old, other):
        os.utime(part, times=(time.time() - ABANDONED - 60,) * 2)
    write_whole(path, lambda part: part.write_text("whole"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a1.txt.part17", "a[1].txt", "a[1].txt.part18"]


@pytest.mark.slow
def test_a_lock_is_waited_for_or_refused_and_a_killed_run_holds_none(tmp_path, capsys):
    path = tmp_path / "table.csv"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=r"^busy now$"), locked(path, busy="busy now"):
        raise AssertionError("two hold it")
    holder.kill()
    holder.wait()
    with locked(path, busy="busy now"):
        pass
    with locked(path):
        assert capsys.readouterr().err == ""


def test_a_lock_is_one_by_whatever_name(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path / "real")
    for name in (tmp_path / "link", ".", "../real"):
        with locked(tmp_path / "real"), pytest.raises(UserError, match="taken"), locked(name, busy="taken"):
            raise AssertionError("two hold it")


@pytest.mark.slow
def test_a_folder_that_takes_no_files(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((UserError, OSError)), locked(tmp_path / "file" / "table.csv"):
        raise AssertionError("held")
    with pytest.raises(UserError, match="takes no new files"), locked("/proc/table.csv"):
        raise AssertionError("held")
