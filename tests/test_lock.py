"""One writer a folder, whoever died or stood still."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from whitebox import lock as module
from whitebox.errors import InUseError, OutputError
from whitebox.lock import Lock

FORK = multiprocessing.get_context("fork")


def locked(folder: Path) -> Lock:
    return Lock(folder / ".lock", "The run", "choose another name")


def change(folder: Path, **values: object) -> dict[str, Any]:
    """The lock as if another had made it."""
    holder = json.loads((folder / ".lock").read_text()) | values
    (folder / ".lock").write_text(json.dumps(holder))
    return holder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.05)
    monkeypatch.setattr(module, "PATIENCE", 0.5)


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """The lock of a process that was killed."""

    def die() -> None:
        locked(tmp_path).__enter__()
        os._exit(9)

    process = FORK.Process(target=die)
    process.start()
    process.join()
    assert (tmp_path / ".lock").exists()
    return tmp_path


def test_the_second_is_told_who_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/whitebox", "train", "my model"])
    with locked(tmp_path):
        with pytest.raises(InUseError) as refused, locked(tmp_path):
            pass
        words = str(refused.value)
        assert words.startswith(f"The run is being written by process {os.getpid()} on {module.socket.gethostname()} (")
        assert "whitebox train 'my model', since 2" in words
        assert words.endswith("): wait until it ends, or choose another name.")
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):  # and after it the next
        pass


def test_folders_that_stay_empty_are_not_left_behind(tmp_path: Path) -> None:
    with locked(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / ".lock").is_file()
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "kept").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "kept"]


def test_a_killed_process_does_not_hold_it(left: Path) -> None:
    began = time.monotonic()
    with locked(left) as mine:
        mine.check()
    assert time.monotonic() - began < 5  # it is not waited for


def test_nor_does_another_process_with_its_number(left: Path) -> None:
    change(left, process=os.getpid())  # it lives, but began at another time
    with locked(left) as mine:
        mine.check()


def test_nor_a_zombie(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, but its number is still taken
    with locked(tmp_path):
        content = (tmp_path / ".lock").read_text()
    (tmp_path / ".lock").write_text(content)
    change(tmp_path, process=child.pid, started=Path(f"/proc/{child.pid}/stat").read_text().split()[21])
    with locked(tmp_path):
        pass
    child.wait()


@pytest.mark.parametrize("elsewhere", [{"host": "node7"}, {"machine": "another container"}])
def test_a_holder_elsewhere_is_watched(elsewhere: dict[str, str], left: Path, quick: None) -> None:
    """The number of its process means nothing here, whether or not one has it."""
    for process in (os.getpid(), 2**22 + 1):
        change(left, process=process, **elsewhere)
        with locked(left) as mine:
            mine.check()
        (left / ".lock").write_bytes(mine._content)


def test_who_is_watched_is_said(left: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.8)
    change(left, process=12, host="node7", command="x\x1b[2J")
    with locked(left):
        pass
    assert re.search(r"The run: locked by process 12 on node7 \(x\?\[2J, .*a sign of life, up to 0.8 s", caplog.text)


def test_a_process_killed_while_it_took_over(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REMOVING", 0.1)
    (left / ".lock.removing").touch()
    with locked(left) as mine:
        mine.check()
    assert list(left.iterdir()) == []


def test_a_holder_elsewhere_that_lives(tmp_path: Path, quick: None) -> None:
    with locked(tmp_path) as theirs:
        change(tmp_path, host="node7")
        theirs._content = (tmp_path / ".lock").read_bytes()
        with pytest.raises(InUseError, match=r"on node7 \("), locked(tmp_path):
            pass


def test_a_holder_elsewhere_that_ends_is_not_waited_for(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(left, host="node7")
    monkeypatch.setattr(module.time, "sleep", lambda _: (left / ".lock").unlink(missing_ok=True))
    with locked(left) as mine:
        mine.check()


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff\0", b"3", b"[" * 4000, b'{"process": "x\\u001b[2J", "host": 1}']
)
def test_a_lock_that_is_none(content: bytes, tmp_path: Path, quick: None) -> None:
    (tmp_path / ".lock").write_bytes(content)
    with locked(tmp_path) as mine:
        mine.check()


def test_of_many_at_once_one_wins(left: Path) -> None:
    """All of them find the lock of a dead process at the same time."""
    start, won = FORK.Event(), FORK.Queue()

    def race() -> None:
        start.wait()
        try:
            locked(left).__enter__()
            won.put(1)
            time.sleep(1)
        except InUseError:
            won.put(0)
        won.close()
        won.join_thread()
        os._exit(0)

    processes = [FORK.Process(target=race) for _ in range(8)]
    for process in processes:
        process.start()
    start.set()
    assert sorted(won.get(timeout=30) for _ in processes) == [0] * 7 + [1]
    for process in processes:
        process.join()
    assert [path.name for path in left.iterdir()] == [".lock"]


def removed(folder: Path) -> None:
    (folder / ".lock").unlink()
    folder.rmdir()


def taken(folder: Path) -> None:
    change(folder, token="another", process=12, host="node7")


@pytest.mark.parametrize(
    ("accident", "message"),
    [
        (removed, r"run was removed or cannot be written any more \(No such file or directory\)"),
        (taken, r"^process 12 on node7 \(.*\) took over The run while this process stood still: it stops"),
    ],
)
def test_a_holder_that_lost_it_stops(accident: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    with locked(tmp_path / "run") as mine:
        mine.check()
        accident(tmp_path / "run")
        with pytest.raises(OutputError, match=message):
            mine.check()
    assert (tmp_path / "run" / ".lock").exists() == (accident is taken)  # that of another is left alone


def test_a_lock_removed_by_hand_is_made_again(tmp_path: Path) -> None:
    with locked(tmp_path) as mine:
        (tmp_path / ".lock").unlink()
        mine.check()
        with pytest.raises(InUseError), locked(tmp_path):
            pass


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"Cannot write .*run: Not a directory; choose another name"):
        locked(tmp_path / "file" / "run").__enter__()
