"""Files appear whole or not at all, also after a power cut."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from whitebox.errors import OutputError
from whitebox.files import remove_leftovers, write_atomically, write_text


def test_flushed_before_the_rename_and_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename may reach the disk before the content; and a folder is flushed by itself (fsync(2), rename(2))."""
    done: list[tuple[str, int, int]] = []
    flush, rename = os.fsync, os.replace

    def fsync(handle: int) -> None:
        found = os.fstat(handle)
        done.append(("flush", found.st_ino, found.st_size))
        flush(handle)

    def replace(source: str, target: Path) -> None:
        done.append(("rename", os.stat(source).st_ino, os.stat(source).st_size))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    path = write_text(tmp_path / "record.json", "twelve bytes")
    file, folder = path.stat().st_ino, tmp_path.stat().st_ino
    assert done[:2] == [("flush", file, 12), ("rename", file, 12)]
    assert [(what, of) for what, of, _ in done[2:]] == [("flush", folder)]


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    living = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = [f".run.json.{number}-x1y2" for number in (living.pid, dead.pid, os.getpid(), 10**30)]
    for name in [*names, ".run.json.abcd", ".other.json.abcd"]:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path, "run.json")
    living.communicate(b"\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.json.abcd", names[0]]


def test_leftovers_say_whose_they_are(tmp_path: Path) -> None:
    def stop(target: Path) -> None:
        assert re.fullmatch(rf"\.run\.json\.{os.getpid()}-[^.]+", target.name)
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"Cannot write .*run.json: No space left on device"):
        write_atomically(tmp_path / "run.json", stop)
    assert list(tmp_path.iterdir()) == []


def test_the_working_folder_may_go(tmp_path: Path) -> None:
    """What belongs into a folder that was deleted meanwhile is written into a new one of that name."""
    (tmp_path / "here").mkdir()
    code = (
        "import os, pathlib; from whitebox.files import write_text;"
        "os.rmdir(os.getcwd()); write_text(pathlib.Path('results/run.json'), 'kept')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "here", check=True)
    assert (tmp_path / "here" / "results" / "run.json").read_text() == "kept"
