"""Files appear whole or not at all, also after a power cut."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from whitebox.files import write_text


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
