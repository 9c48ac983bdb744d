"""Rows of bytes on disk, made once and read by all who ask the same question.

A store is a folder below `stores_folder`, named after the hash of its question:

    store.json              format, question, number of rows
    rows-WRITER.bin         rows one after another, as this writer made them
    index-WRITER.bin        one entry a row: which, where, how long, checksum

Files only grow, and an entry is written when its row is on the disk; so a store that was left half made is gone on
with, row by row, and several processes make one together, each with files of its own. A row is checked when it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from whitebox.errors import ConfigError, OutputError, StoreError
from whitebox.files import cache_folder, write_text
from whitebox.lock import LOCK, Lock

FORMAT = 1
FLUSHED = 32  # rows between two flushes to the disk
GIB = 2**30

_ENTRY = np.dtype([("row", "<u8"), ("offset", "<u8"), ("length", "<u8"), ("checksum", "<u8")])


def stores_folder() -> Path:
    """``tokens`` in `cache_folder`."""
    return cache_folder() / "tokens"


class RowStore:
    """Rows of bytes, by number, that answer a question.

    Args:
        question: all that the rows depend on, in JSON's types.
        rows: how many there are to be, numbered from 0; None: nobody knows, and numbers may be any of 64 bits.
        folder: of all stores; None: see `stores_folder`.

    Raises:
        StoreError: what is there was written by another version, is damaged, or is shorter than it says.
    """

    def __init__(self, question: Mapping[str, Any], rows: int | None, folder: Path | None = None) -> None:
        self.question, self.rows = dict(question), rows
        text = json.dumps([FORMAT, self.question, rows], sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder = (stores_folder() if folder is None else folder) / self.key
        self._files: dict[str, int] = {}  # writer -> descriptor
        self._owner = os.getpid()
        if (self.folder / "store.json").exists():
            about = _read_about(self.folder)
            if about["question"] != self.question or about["rows"] != rows:
                raise StoreError(f"The store {self.folder} is not what its name says; {_cure(self.key)}")
        self.refresh()

    def refresh(self) -> None:
        """See what other processes have added."""
        self._entries: dict[int, tuple[str, int, int, int]] = {}  # row -> writer, offset, length, checksum
        for path in sorted(self.folder.glob("index-*.bin")):
            writer = path.stem.removeprefix("index-")
            data = path.read_bytes()
            entries = np.frombuffer(data[: len(data) // _ENTRY.itemsize * _ENTRY.itemsize], _ENTRY)
            rows_file = self.folder / f"rows-{writer}.bin"
            size = rows_file.stat().st_size if rows_file.exists() else 0
            if len(entries) == 0:
                continue
            beyond = self.rows is not None and entries["row"].max() >= self.rows
            if beyond or (entries["offset"] + entries["length"]).max() > size:
                raise StoreError(f"The store {self.folder} is cut short ({rows_file.name}); {_cure(self.key)}")
            self._entries |= {row: (writer, *place) for row, *place in entries.tolist()}

    def missing(self) -> list[int]:
        """Rows that are still to be made, where it is known how many there are."""
        return [row for row in range(self.rows or 0) if row not in self._entries]

    def __contains__(self, row: int) -> bool:
        return row in self._entries

    def begin(self) -> None:
        """Make the folder, with the question in it; once, before anybody writes.

        Raises:
            OutputError: it cannot be written.
        """
        about = {"format": FORMAT, "rows": self.rows, "question": self.question}
        if not (self.folder / "store.json").exists():
            write_text(self.folder / "store.json", json.dumps(about, indent=1, sort_keys=True) + "\n")

    def write(self, rows: Iterable[tuple[int, bytes]], writer: str = "0") -> Iterator[int]:
        """Add rows (number, content), giving each number back when it is written; it counts when it is flushed.

        Several may write at once, each under a name of its own.

        Raises:
            OutputError: the disk is full or the folder cannot be written; what was flushed stays.
        """
        waiting: list[tuple[int, int, int, int]] = []
        try:
            with (
                open(self.folder / f"rows-{writer}.bin", "ab") as data,
                open(self.folder / f"index-{writer}.bin", "ab") as index,
            ):
                index.truncate(index.tell() // _ENTRY.itemsize * _ENTRY.itemsize)
                try:
                    for row, content in rows:
                        waiting.append((row, data.tell(), len(content), zlib.crc32(content)))
                        data.write(content)
                        if len(waiting) == FLUSHED:
                            self._flush(data, index, waiting, writer)
                        yield row
                finally:  # also where the maker of the rows was told to stop
                    self._flush(data, index, waiting, writer)
        except OSError as error:
            raise OutputError(
                f"Cannot write the store {self.folder}: {error.strerror}; free some space, or set WHITEBOX_CACHE to "
                "another folder. What is there is gone on with."
            ) from error

    def _flush(self, data: Any, index: Any, waiting: list[tuple[int, int, int, int]], writer: str) -> None:
        """Rows first, then the entries that say that they are there."""
        data.flush()
        os.fsync(data.fileno())
        index.write(np.array(waiting, _ENTRY).tobytes())
        index.flush()
        os.fsync(index.fileno())
        self._entries |= {row: (writer, offset, length, checksum) for row, offset, length, checksum in waiting}
        waiting.clear()

    def read(self, row: int) -> bytes:
        """One row.

        Raises:
            StoreError: it was never made, or is damaged.
        """
        if row not in self._entries:
            raise StoreError(f"Row {row} of the store {self.folder} was never made; start the command again.")
        writer, offset, length, checksum = self._entries[row]
        content = os.pread(self._file(writer), length, offset)
        if zlib.crc32(content) != checksum:
            raise StoreError(f"Row {row} of the store {self.folder} is damaged; {_cure(self.key)}")
        return content

    def _file(self, writer: str) -> int:
        if os.getpid() != self._owner:  # a loading process: descriptors of its own
            self._files, self._owner = {}, os.getpid()
        if writer not in self._files:
            try:
                self._files[writer] = os.open(self.folder / f"rows-{writer}.bin", os.O_RDONLY)
            except OSError as error:
                raise StoreError(
                    f"The store {self.folder} cannot be read: {error.strerror}; {_cure(self.key)}"
                ) from error
        return self._files[writer]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def __del__(self) -> None:
        for descriptor in getattr(self, "_files", {}).values() if os.getpid() == self._owner else ():
            os.close(descriptor)


@dataclass(frozen=True)
class Stored:
    """What `stores` says of a store: rows that are there, of how many (None: of any number), and bytes on the disk."""

    key: str
    folder: Path
    question: dict[str, Any]
    done: int
    rows: int | None
    bytes: int
    used: float  # seconds since 1970, of the last change


def stores(folder: Path | None = None) -> list[Stored]:
    """All stores, newest first; those that cannot be read have an empty question and no rows."""
    found = []
    for path in (stores_folder() if folder is None else folder).glob("*"):
        if not path.is_dir():
            continue
        files = [file.stat() for file in path.iterdir()]
        entries = sum(file.stat().st_size for file in path.glob("index-*.bin")) // _ENTRY.itemsize
        try:
            about = _read_about(path)
        except StoreError:
            about = {"question": {}, "rows": 0}
        size, used = sum(file.st_size for file in files), max((file.st_mtime for file in files), default=0.0)
        found.append(Stored(path.name, path, about["question"], entries, about["rows"], size, used))
    return sorted(found, key=lambda stored: -stored.used)


def remove(stored: Stored) -> None:
    """Delete a store.

    Raises:
        OutputError: the folder cannot be changed.
        InUseError: a command is making it.
    """
    try:
        with Lock(stored.folder / LOCK, f"The store of tokens {stored.folder}", "stop that command"):
            shutil.rmtree(stored.folder)
    except OSError as error:
        raise OutputError(f"Cannot delete {stored.folder}: {error.strerror}.") from error


def require_room(needed: int, budget_gib: float, folder: Path, what: str, cure: str) -> None:
    """Refuse to fill more than the budget, or more than the disk has.

    Args:
        needed: bytes that are still to be written.
        what: is to be stored, for the message. cure: what would make it less.

    Raises:
        ConfigError: it would not fit.
    """
    if needed > budget_gib * GIB:
        raise ConfigError(f"{what} would take {needed / GIB:.3g} GiB, more than store.gib={budget_gib:g}: {cure}.")
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise ConfigError(
            f"{what} would take {needed / GIB:.3g} GiB, and {there} has {free / GIB:.3g} GiB left: {cure}, or set "
            "WHITEBOX_CACHE to another disk."
        )


def _read_about(folder: Path) -> dict[str, Any]:
    path = folder / "store.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"The store {folder} cannot be read ({path.name}); {_cure(folder.name)}") from error
    version = about.get("format") if isinstance(about, dict) else None
    if version != FORMAT:
        raise StoreError(
            f"The store {folder} is of version {version!r}, this whitebox has {FORMAT}; {_cure(folder.name)}"
        )
    if not isinstance(about.get("question"), dict) or not isinstance(about.get("rows"), int | None):
        raise StoreError(f"The store {folder} does not say what it holds; {_cure(folder.name)}")
    return about


def _cure(key: str) -> str:
    return f"delete it with `whitebox cache rm {key}`, and it is made anew."
