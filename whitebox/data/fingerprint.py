"""Whether two measurements saw the same data: one checksum over the bytes of images and labels.

Reading many files takes seconds, so checksums are kept in a folder of the user's, by path, size and time of change:
``$WHITEBOX_CACHE``, else ``whitebox`` in ``$XDG_CACHE_HOME`` or ``~/.cache``. Nothing depends on it being there.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whitebox.errors import DataError, OutputError
from whitebox.files import cache_folder, write_text
from whitebox.foreign import read_json

if TYPE_CHECKING:
    from whitebox.config import DataConfig
    from whitebox.data.readers import Source

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
    from whitebox.data.readers import FileSource  # not above: records need checksums alone

    if not isinstance(source, FileSource):  # drawn, by these numbers alone
        drawn = (config.kind, str(config.shapes_seed), str(config.size))
        return fingerprint([drawn, *((name,) for name in names)])
    pairs = source.pairs[:limit]
    images, labels = (
        checksums([pair.image for pair in pairs], "Image"),
        checksums([pair.label for pair in pairs], "Label"),
    )
    return fingerprint([(source.table_V.tobytes().hex(),), *zip(names, images, labels, strict=True)])


def checksums(paths: Sequence[str | os.PathLike[str]], what: str = "File") -> list[str]:
    """The sha256 of each file.

    Args:
        what: how a message calls one that cannot be read.

    Raises:
        DataError: one cannot be read.
    """
    files = {os.path.abspath(path): Path(path) for path in paths}
    found: dict[str, str] = {}
    for folder in dict.fromkeys(map(os.path.dirname, files)):
        inside = {os.path.basename(name): file for name, file in files.items() if os.path.dirname(name) == folder}
        try:
            found |= {os.path.join(folder, name): digest for name, digest in _of_folder(folder, inside).items()}
        except OSError as error:
            raise DataError(
                f"{what} {error.filename} cannot be opened ({error.strerror}): check path and permissions."
            ) from None
    return [found[os.path.abspath(path)] for path in paths]


def _of_folder(folder: str, files: Mapping[str, Path]) -> dict[str, str]:
    """Those of files of one folder, which are kept together, by their names there."""
    known = _read(folder)
    states = {name: _state(file) for name, file in files.items()}
    unknown = [name for name, state in states.items() if known.get(name, ())[:2] != state]
    fresh: dict[str, str] = {}
    if unknown:
        now = time.time_ns()
        with ThreadPoolExecutor(_THREADS) as pool:
            fresh = dict(zip(unknown, pool.map(_sha256, [files[name] for name in unknown]), strict=True))
        if settled := {name: [*states[name], fresh[name]] for name in unknown if states[name][1] < now - _SETTLED}:
            _write(folder, {**known, **settled})
    return {name: fresh[name] if name in fresh else str(known[name][2]) for name in files}


def _state(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns]


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _kept(folder: str) -> Path:
    """The file that keeps the checksums of a folder's files."""
    return cache_folder() / "checksums" / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]}.json"


def _read(folder: str) -> Known:
    """What is kept; nothing where that is not there, or is not what was written."""
    try:
        kept = read_json(_kept(folder))
    except (OSError, ValueError):
        return {}
    if not isinstance(kept, dict):
        return {}
    whole = {name: state for name, state in kept.items() if isinstance(state, list) and len(state) == 3}
    return {name: state for name, state in whole.items() if isinstance(state[2], str) and len(state[2]) == 64}


def _write(folder: str, known: Known) -> None:
    try:
        write_text(_kept(folder), json.dumps(known))
    except OutputError:  # no home, no space: it is read again next time
        return
