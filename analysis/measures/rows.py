"""Measurements of many points, kept on disk one by one: rows that survive whatever stops the sweep.

A file of rows belongs to one checkpoint, one set of images and one way to evaluate them: its name carries a hash of
all three, so rows are never read for anything else. It is text, one JSON object a line: first what the rows belong to,
then one row a finished point,

    {"key": {"target": "decoder", "sigma": 0.1, ...}, "right": [...], "predicted": [...], "labelled": [...],
     "images": "..."}

with the pixels of each class over all images, and in ``images`` the same for each image (int32, (N, 3, K), zlib,
base64), from which intervals over images follow. A row is written in one go and flushed to the disk; what a killed
process left of one at the end of the file is cut off when the sweep goes on.

Of several processes each has a file of its own; all of them read all of these, and the main one merges them.

Shapes: N images, K classes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from numpy.typing import NDArray

from analysis.record import RecordError
from whitebox.engine.distributed import gathered, on_main
from whitebox.errors import OutputError, WhiteboxError
from whitebox.foreign import parse_json
from whitebox.lock import Lock

SCHEMA = 1
_PARTS = ("right", "predicted", "labelled")

Key = Mapping[str, Any]  # of a row: JSON's own types
Counts = NDArray[np.int64]


class Rows:
    """The finished rows of a sweep; a context manager that holds their file open.

    Args:
        folder: made if need be.
        name: how the file's name begins.
        belongs_to: checkpoint, data and settings; JSON's own types.
        shape: (N, 3, K) of a row's counts.

    Raises:
        InUseError: another process writes the file.
        RecordError: a line in it is no row.
        OutputError: it cannot be written.
    """

    def __init__(self, folder: Path, name: str, belongs_to: Mapping[str, Any], shape: tuple[int, int, int]) -> None:
        self.header = {"schema": SCHEMA, "belongs_to": dict(belongs_to), "shape": list(shape)}
        self.shape = shape
        safe, identity = re.sub(r"[^\w.-]+", "_", name), hashlib.sha256(_text(self.header).encode()).hexdigest()[:12]
        process = PartialState().process_index
        self.path = folder / f"{safe}-{identity}{f'.{process}' if process else ''}.jsonl"
        self._pattern = f"{safe}-{identity}*.jsonl"
        self._rows: dict[str, bytes] = {}  # key -> compressed counts
        self._file = -1
        self._lock = Lock(
            self.path.with_name(f".{self.path.name}.lock"), str(self.path), "choose another folder with -o"
        )

    def __enter__(self) -> Rows:
        failed: WhiteboxError | None = None
        try:
            self._open()
        except WhiteboxError as error:
            failed = error
        for failure in gathered(failed):  # else the others would wait for this process for ever
            if failure is not None:
                self.__exit__()
                raise failure
        return self

    def _open(self) -> None:
        self._lock.__enter__()
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            for path in [*self._others(), self.path]:
                rows, whole = self._read(path)
                self._rows.update((text, packed) for text, (_, packed) in rows.items())
            os.ftruncate(self._file, whole)
            if whole == 0:
                self._append(_text(self.header))
        except OSError as error:
            raise OutputError(f"Cannot write {self.path}: {error.strerror}; choose another folder with -o.") from error

    def __exit__(self, *_: object) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1
        self._lock.__exit__()

    def __contains__(self, key: Key) -> bool:
        return _text(key) in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def counts(self, key: Key) -> Counts:
        """The counts of a finished row, (N, 3, K)."""
        return _unpacked(self._rows[_text(key)], self.shape)

    def add(self, key: Key, counts_N3K: Counts) -> None:
        """Store a row.

        Raises:
            OutputError: it cannot be written.
        """
        packed = zlib.compress(counts_N3K.astype("<i4").tobytes())
        self._store(key, packed)
        self._rows[_text(key)] = packed

    def complete(
        self, keys: Sequence[Key], measure: Callable[[Key], Counts], advance: Callable[[int, int], None]
    ) -> None:
        """Have a row for each of ``keys``: those missing are measured, shared over the processes, each by one.

        Args:
            measure: the counts of a row, the same on whatever process.
            advance: called with how many rows this process has measured, of how many.

        Raises:
            WhiteboxError: what ``measure`` raises in one process is raised in all.
        """
        state = PartialState()
        # what is missing is agreed on before anybody writes: a slow process might read what a fast one has just written
        missing = gathered(list({_text(key): key for key in keys if key not in self}.values()))[0]
        own = missing[state.process_index :: state.num_processes]
        failed: WhiteboxError | None = None
        for done, key in enumerate(own):
            advance(done, len(own))
            try:
                self.add(key, measure(key))
            except WhiteboxError as error:
                if state.num_processes == 1:
                    raise
                failed = error
                break
        if own and failed is None:
            advance(len(own), len(own))
        measured = {text: self._rows[text] for text in map(_text, own) if text in self._rows}
        for failure, rows in gathered((failed, measured)):
            if failure is not None:
                raise failure
            self._rows.update(rows)

    def merge(self) -> None:
        """Move what other processes wrote into the file of the main one; when all have finished."""

        def move() -> None:
            mine = set(self._read(self.path)[0])
            for other in self._others():
                for text, (key, packed) in self._read(other)[0].items():
                    if text not in mine:
                        self._store(key, packed)
                        mine.add(text)
                other.unlink()

        on_main(move)

    def _others(self) -> list[Path]:
        return [path for path in sorted(self.path.parent.glob(self._pattern)) if path != self.path]

    def _store(self, key: Key, packed: bytes) -> None:
        sums = _unpacked(packed, self.shape).sum(0).tolist()
        row = {"key": dict(key), **dict(zip(_PARTS, sums, strict=True)), "images": base64.b64encode(packed).decode()}
        try:
            self._append(json.dumps(row))
        except OSError as error:
            raise OutputError(f"Cannot write {self.path}: {error.strerror}; the rows before this are kept.") from error

    def _append(self, line: str) -> None:
        self._lock.check()
        data = line.encode() + b"\n"
        while data:
            data = data[os.write(self._file, data) :]
        os.fsync(self._file)

    def _read(self, path: Path) -> tuple[dict[str, tuple[Key, bytes]], int]:
        """Key and compressed counts of the rows of a file, by the key's text; how many of its bytes are whole lines."""
        rows: dict[str, tuple[Key, bytes]] = {}
        whole = 0
        lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last line end is a line cut short, or nothing
        for number, line in enumerate(lines, start=1):
            try:
                loaded = parse_json(line)
                if number == 1:
                    if loaded != self.header:
                        raise RecordError(f"{path} holds rows of something else: move it away.")
                else:
                    packed = base64.b64decode(loaded["images"], validate=True)
                    if [loaded[part] for part in _PARTS] != _unpacked(packed, self.shape).sum(0).tolist():
                        raise ValueError("the sums are not those of the images")
                    rows[_text(loaded["key"])] = loaded["key"], packed
            except (ValueError, KeyError, TypeError, zlib.error) as error:
                if number == len(lines):  # a disk that lost power may leave anything there
                    break
                raise RecordError(f"{path}, line {number} is damaged: remove that line, or the file.") from error
            whole += len(line) + 1
        return rows, whole


def _text(key: Key) -> str:
    return json.dumps(dict(key), sort_keys=True)


def _unpacked(packed: bytes, shape: tuple[int, int, int]) -> Counts:
    unpacked = zlib.decompressobj().decompress(packed, 4 * math.prod(shape) + 1)  # no more than there should be
    return np.frombuffer(unpacked, "<i4").reshape(shape).astype(np.int64)
