"""Whether two measurements saw the same data: one checksum over the bytes of images and labels.

Reading many files takes seconds, so checksums are kept in a folder of the user's, by path, size and time of change:
``$WHITEBOX_CACHE``, else ``whitebox`` in ``$XDG_CACHE_HOME`` or ``~/.cache``. Nothing depends on it being there.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from whitebox.config import DataConfig
from whitebox.data.readers import FileSource, Source
from whitebox.errors import DataError, OutputError
from whitebox.files import write_text

Known = dict[str, list[Any]]  # name of a file -> size, time of change (ns), sha256

_THREADS = 8  # hashing leaves Python alone, and disks like more than one reader
_SETTLED = 2_000_000_000  # ns; a file that was changed so shortly before it was read may change again unnoticed


def fingerprint(entries: Iterable[Sequence[int | str]]) -> str:
    """sha256 over sorted entries such as (name, checksum)."""
    text = json.dumps(sorted(map(list, entries)), separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def data_fingerprint(config: DataConfig, source: Source, limit: int | None = None) -> str:
    """That of the first ``limit`` images of a source: names, bytes of images and labels, and what labels mean.

    Raises:
        DataError: a file cannot be read.
    """
    names = source.names[:limit]
    if not isinstance(source, FileSource):  # drawn, by these numbers alone
        drawn = (config.kind, str(config.shapes_seed), str(config.size))
        return fingerprint([drawn, *((name,) for name in names)])
    pairs = source.pairs[:limit]
    images, labels = checksums([pair.image for pair in pairs]), checksums([pair.label for pair in pairs])
    return fingerprint([(source.table_V.tobytes().hex(),), *zip(names, images, labels, strict=True)])


def checksums(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The sha256 of each file.

    Raises:
        DataError: one cannot be read.
    """
    files = [Path(os.path.abspath(path)) for path in paths]
    found: dict[Path, str] = {}
    for folder in dict.fromkeys(file.parent for file in files):
        found |= _of_folder(folder, [file for file in files if file.parent == folder])
    return [found[file] for file in files]


def _of_folder(folder: Path, files: Sequence[Path]) -> dict[Path, str]:
    """Those of files of one folder, which are kept together."""
    known = _read(folder)
    states = {file: _state(file) for file in files}
    unknown = [file for file, state in states.items() if known.get(file.name, ())[:2] != state]
    if unknown:
        now = time.time_ns()
        with ThreadPoolExecutor(_THREADS) as pool:
            fresh = dict(zip(unknown, pool.map(_sha256, unknown), strict=True))
        found = {file: fresh[file] if file in fresh else str(known[file.name][2]) for file in files}
        settled = {file.name: [*states[file], fresh[file]] for file in unknown if states[file][1] < now - _SETTLED}
        if settled:
            _write(folder, {**known, **settled})
        return found
    return {file: str(known[file.name][2]) for file in files}


def _state(file: Path) -> list[int]:
    try:
        found = file.stat()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from None
    return [found.st_size, found.st_mtime_ns]


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    try:
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from None
    return digest.hexdigest()


def _kept(folder: Path) -> Path:
    """The file that keeps the checksums of a folder's files."""
    base = os.environ.get("WHITEBOX_CACHE")
    if not base:
        base = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "whitebox")
    return Path(base, "checksums", f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]}.json")


def _read(folder: Path) -> Known:
    """What is kept; nothing where that is not there, or is not what was written."""
    try:
        kept = json.loads(_kept(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(kept, dict):
        return {}
    whole = {name: state for name, state in kept.items() if isinstance(state, list) and len(state) == 3}
    return {name: state for name, state in whole.items() if isinstance(state[2], str) and len(state[2]) == 64}


def _write(folder: Path, known: Known) -> None:
    try:
        write_text(_kept(folder), json.dumps(known))
    except OutputError:  # no home, no space: it is read again next time
        return
