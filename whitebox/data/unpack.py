"""Unpack archives nobody has to trust: no file leaves its folder, no links, and a bound on size and number.

Owners, permissions and times of the archive are ignored. A file appears complete or not at all, and one that is there
with the same content is not written again, so that an interrupted unpacking goes on.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from whitebox.data.download import disk_error, open_for_writing, write_block
from whitebox.errors import DataError

Place = Callable[[str], str | None]  # path of a member -> its path below the target, None: not wanted
OnFile = Callable[[int], None]  # members looked at so far

_BLOCK = 1 << 20
_MOST_HEADERS = 1000  # of a whole tar file
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,  # gzip and bz2
    NotImplementedError,  # a compression that Python does not know
    UnicodeDecodeError,
    ValueError,
)


@dataclass(frozen=True)
class Limits:
    """The most one archive or folder may hold, wanted or not: bytes unpacked, and members."""

    size: int
    members: int = 1_000_000


@dataclass(frozen=True)
class _Member:
    name: str
    size: int  # bytes, as the archive says; reading stops there
    kind: str  # "file", "folder", or what else it is
    open: Callable[[], IO[bytes]]


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or tar archive, by its content."""
    try:
        if zipfile.is_zipfile(path):
            return True
        with _opened(path) as file, tarfile.open(fileobj=file, mode="r:"):
            return True
    except _HeaderError:
        return True  # of no use, but ``unpack`` says why
    except _DAMAGED:
        return False


def unpack(archive: Path, target: Path, place: Place, limits: Limits, on_file: OnFile | None = None) -> int:
    """Write the wanted files of a zip or tar archive (plain, gz, bz2, xz) below ``target``.

    Returns:
        How many of its files are wanted.

    Raises:
        DataError: no archive, damaged, locked by a password, a member that would be written outside of ``target``, a
            link where a file is wanted, more than the limits, or the disk is full.
    """
    members = _zip_members if zipfile.is_zipfile(archive) else _tar_members
    try:
        return _write_all(str(archive), members(archive), target, place, limits, on_file)
    except _DAMAGED as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"Archive {archive} is damaged, cut short, or no zip or tar file ({reason}): get it again."
        ) from error


def copy_folder(folder: Path, target: Path, place: Place, limits: Limits, on_file: OnFile | None = None) -> int:
    """Copy the wanted files of a folder below ``target``; links of the folder are followed. See ``unpack``."""

    def members() -> Iterator[_Member]:
        for parent, folders, files in os.walk(folder, followlinks=True):
            folders.sort()
            for each in folders:
                _require_no_circle(Path(parent, each))
            for file in sorted(files):
                path = Path(parent, file)
                if path.is_file():
                    name = path.relative_to(folder).as_posix()
                    yield _Member(name, path.stat().st_size, "file", partial(_open, path))

    try:
        return _write_all(str(folder), members(), target, place, limits, on_file)
    except OSError as error:
        raise DataError(f"Folder {folder} cannot be read ({error}): check its permissions.") from error


def _require_no_circle(folder: Path) -> None:
    """Whether a folder leads back to one that it lies in."""
    if folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{folder} is a link to a folder that it lies in, so it has no end: remove the link.")


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            mode = info.external_attr >> 16
            kind = "folder" if info.is_dir() else "file"
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                kind = "link" if stat.S_ISLNK(mode) else "device"
            elif info.flag_bits & 1:
                kind = "file under a password"
            yield _Member(info.filename, info.file_size, kind, partial(file.open, info))


def _tar_members(archive: Path) -> Iterator[_Member]:
    with _opened(archive) as content, tarfile.open(fileobj=content, mode="r:") as file:
        for info in file:
            if len(file.pax_headers) > _MOST_HEADERS:
                raise ValueError("it has too many headers")
            kind = "file" if info.isreg() else "folder" if info.isdir() else "link"
            if not (info.isreg() or info.isdir() or info.islnk() or info.issym()):
                kind = "device"
            yield _Member(info.name, info.size, kind, partial(_extract, file, info))
            file.members.clear()  # type: ignore[attr-defined]  # else a million of them stay in memory


class _HeaderError(ValueError):
    """A header that would fill the memory."""


class _Bounded:
    """A tar file, unpacked, that hands out no more than a block at once: tarfile reads whole headers into memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > _BLOCK:
            raise _HeaderError(f"it has a header of {size / 1e6:.1f} MB")
        return self.file.read(size)


@contextmanager
def _opened(archive: Path) -> Iterator[Any]:
    with archive.open("rb") as file:
        start = file.read(6)
    opener: Callable[[Path], IO[bytes]] = _open
    for magic, module in ((b"\x1f\x8b", gzip), (b"BZh", bz2), (b"\xfd7zXZ\0", lzma)):
        if start.startswith(magic):
            opener = module.open
    with opener(archive) as file:
        yield _Bounded(file)


def _open(path: Path) -> IO[bytes]:
    return path.open("rb")


def _extract(file: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    content = file.extractfile(info)
    assert content is not None, "asked for files only"
    return content


def _write_all(
    origin: str, members: Iterator[_Member], target: Path, place: Place, limits: Limits, on_file: OnFile | None
) -> int:
    total = wanted = 0
    for number, member in enumerate(members, start=1):
        total += member.size
        if number > limits.members or total > limits.size:
            raise DataError(
                f"{origin} holds more than {limits.members} files or {limits.size / 1e9:g} GB, far more than this "
                "dataset: it is another one, or made to fill the disk."
            )
        if _leaves(member.name):
            raise DataError(f"{origin} would write outside its folder ({member.name!r}): do not use it.")
        below = place(member.name) if member.kind != "folder" else None
        if below is not None:
            if member.kind != "file":
                raise DataError(
                    f"{origin} has a {member.kind} where a file should be ({member.name!r}): do not use it."
                )
            if _leaves(below):
                raise ValueError(f"place() gave {below!r}")
            _write(member, target / below)
            wanted += 1
        if on_file is not None:
            on_file(number)
    return wanted


def _leaves(name: str) -> bool:
    """Whether a path could lead out of the folder it is put below, on any system."""
    parts = re.split(r"[/\\]", name)
    return not name or parts[0] == "" or ".." in parts or "\0" in name or re.match(r"[A-Za-z]:", name) is not None


def _holds(member: _Member, path: Path) -> bool:
    """Whether a file of the right size has the content of a member."""
    left = member.size
    with member.open() as source, path.open("rb") as present:
        while left and (block := source.read(min(_BLOCK, left))):
            if present.read(len(block)) != block:
                return False
            left -= len(block)
    return not left


def _write(member: _Member, path: Path) -> None:
    """One file, complete or not at all; one of that content is left as it is."""
    if path.is_file() and path.stat().st_size == member.size and _holds(member, path):
        return
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(path, error) from error
    left = member.size
    with member.open() as source, open_for_writing(unfinished, "wb") as file:
        while left and (block := source.read(min(_BLOCK, left))):
            write_block(file, block, path)
            left -= len(block)
        if left:
            raise EOFError(f"{member.name} ends {left} bytes early")
    try:
        os.replace(unfinished, path)
    except OSError as error:
        raise disk_error(path, error) from error
