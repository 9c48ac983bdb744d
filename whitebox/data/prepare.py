"""Get a dataset ready: download, unpack, convert labels, count, and move the whole into place.

Everything happens in ``ROOT/.prepare/NAME`` until the dataset is complete; then one rename puts it at ``ROOT/FOLDER``.
A second call goes on where a stopped one was, and does nothing where the dataset is there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from whitebox import __version__
from whitebox.data.conversions import RAW, replace_text
from whitebox.data.download import disk_error, download, file_digests, is_url
from whitebox.data.published import Published, find_published
from whitebox.data.readers import READERS, Folder, Layout
from whitebox.data.unpack import Limits, copy_folder, is_archive, unpack
from whitebox.errors import DataError
from whitebox.foreign import read_json
from whitebox.lock import LOCK, Lock

MARKER = ".whitebox.json"  # in a prepared folder: where it came from, and how complete it is

_MANY = 1_000_000


class Reporter(Protocol):
    """Who hears of the progress."""

    def say(self, line: str) -> None:
        """One line that stays."""
        ...

    def advance(self, task: str, done: int, total: int | None, unit: str) -> None:
        """How far a task is; ``unit`` is ``B`` (bytes) or ``files``."""
        ...


@dataclass(frozen=True)
class Prepared:
    """A dataset in its place."""

    published: Published
    folder: Path
    counts: Mapping[str, int]

    @property
    def complete(self) -> bool:
        """Whether it has as many images as its owners published."""
        return dict(self.counts) == dict(self.published.counts)


def prepare(
    name: str,
    root: str | os.PathLike[str],
    sources: Sequence[str] = (),
    reporter: Reporter | None = None,
    *,
    allow_partial: bool = False,
    keep_archives: bool = False,
    patience: int = 5,
    wait: float = 1.0,
) -> Prepared:
    """Put a dataset below ``root``, as its reader wants it.

    Args:
        name: a key of ``PUBLISHED``.
        root: folder of the datasets, made where missing.
        sources: archives (zip, tar, tar.gz ...), folders, or addresses of archives; none: the owners' addresses.
        reporter: hears of the progress.
        allow_partial: accept another number of images than the owners published.
        keep_archives: keep what was downloaded, in ``ROOT/.prepare/NAME/archives``.
        patience: see ``download``.
        wait: see ``download``.

    Raises:
        ConfigError: unknown name.
        DataError: a source is missing, damaged, unsafe or of no use; the dataset would be incomplete; the place is
            taken; the disk is full. What was done stays for the next call.
        InUseError: another process prepares it.
    """
    published = find_published(name)
    root = Path(root)
    reporter = reporter or _Silent()
    target, work = root / published.folder, root / ".prepare" / published.name
    there = _already_there(published, root, target)
    if there is not None:
        reporter.say(f"{published.name} is in {target} already: {_in_words(there)}. Delete the folder to make it anew.")
        return there
    if published.get_it and not sources:
        files = " and ".join(archive.name for archive in published.archives)
        raise DataError(
            f"{published.name} cannot be downloaded without an account: {published.get_it}, get {files}, and give each "
            "with --from."
        )
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(work, error) from error
    reporter.say(f"{published.name}, terms of use: {published.licence}.")
    with Lock(work / LOCK, str(work), "give another folder with --data-root"):
        preparation = _Preparation(published, work, reporter, patience, wait, keep_archives)
        for source in sources or [archive.url for archive in published.archives]:
            preparation.add(source)
        return preparation.finish(target, allow_partial)


class _Silent:
    def say(self, line: str) -> None:
        pass

    def advance(self, task: str, done: int, total: int | None, unit: str) -> None:
        pass


class _Preparation:
    """The work between the sources and the finished folder; ``state.json`` says which sources are done."""

    def __init__(
        self, published: Published, work: Path, reporter: Reporter, patience: int, wait: float, keep_archives: bool
    ) -> None:
        self.published, self.work, self.reporter, self.keep_archives = published, work, reporter, keep_archives
        self.patience, self.wait = patience, wait
        self.staging = work / published.folder
        self.state_file = work / "state.json"
        self.done: dict[str, dict[str, Any]] = {}  # source -> what the marker will say of it
        if self.state_file.is_file() and self.staging.is_dir():
            try:
                self.done = dict(read_json(self.state_file))
            except (ValueError, TypeError):  # cut short; unpacking again skips what is there
                self.done = {}

    def add(self, source: str) -> None:
        """Unpack, or copy, what is wanted of a source."""
        if is_url(source):
            self._add_url(source)
            return
        path = Path(source).expanduser()
        if not path.exists():
            raise DataError(f"{source} does not exist or may not be read: give an archive, a folder or an address.")
        if path.is_dir():
            self._add_folder(path)
        else:
            self._add_archive(path)

    def _add_url(self, url: str) -> None:
        if url in self.done and not self.keep_archives:
            return
        name = re.sub(r"[^A-Za-z0-9._-]", "_", url.split("?")[0].rstrip("/").rsplit("/", 1)[-1])
        path = self.work / "archives" / f"{zlib.crc32(url.encode()):08x}-{name}"  # other addresses, other files
        path.parent.mkdir(exist_ok=True)
        official = next((archive for archive in self.published.archives if archive.url == url), None)
        checksum = official.checksum if official else ""
        if not path.exists():
            self.reporter.say(f"Downloading {url}")
        on_bytes = partial(self._advance, f"download {name}", "B")
        largest = self.published.size_limit  # of what is unpacked
        sha256 = download(url, path, checksum, on_bytes, self.patience, self.wait, largest=largest)
        known = f"{checksum.partition(':')[0]} is right" if checksum else "unknown checksum"
        if url not in self.done:
            self.reporter.say(f"{name}: {known}, sha256 {sha256}")
            self._unpack(path, url, {"sha256": sha256})
        if not self.keep_archives:
            path.unlink()

    def _add_archive(self, path: Path) -> None:
        status = path.stat()
        key = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
        if key in self.done:
            return
        if not is_archive(path):
            raise DataError(f"{path} is no zip or tar archive, or is damaged: get it again.")
        sha256 = file_digests(path, ("sha256",), partial(self._advance, f"read {path.name}", "B"))["sha256"]
        self.reporter.say(f"{path.name}: sha256 {sha256}")
        self._unpack(path, key, {"sha256": sha256})

    def _unpack(self, path: Path, key: str, facts: dict[str, Any]) -> None:
        on_file = self._counter(f"unpack {path.name}")
        wanted = unpack(path, self.staging, self.published.place, Limits(self.published.size_limit, _MANY), on_file)
        self._require(wanted, str(path))
        self.done[key] = {"name": path.name, "files": wanted, **facts}
        self._save_state()

    def _add_folder(self, folder: Path) -> None:
        archives = [folder / archive.name for archive in self.published.archives]
        archives = [path for path in archives if path.is_file()]
        for path in archives:
            self._add_archive(path)
        on_file = self._counter(f"copy {folder.name}")
        limits = Limits(self.published.size_limit, _MANY)
        wanted = copy_folder(folder, self.staging, self.published.place, limits, on_file)
        self._require(wanted + len(archives), str(folder))
        self.done[str(folder.resolve())] = {"name": folder.name, "files": wanted}
        self._save_state()

    def finish(self, target: Path, allow_partial: bool) -> Prepared:
        """Convert, count, and move into place."""
        if self.published.convert is not None:
            self.published.convert(self.staging, lambda done, total: self._advance("convert", "files", done, total))
        counts = _count(self.published, self.work)
        prepared = Prepared(self.published, target, counts)
        if not prepared.complete and not (allow_partial and any(counts.values())):
            raise DataError(
                f"{self.published.name} is incomplete: {_in_words(prepared)}. Give what is missing with --from (the "
                f"rest stays in {self.work}; delete that to begin anew), or accept it with --allow-partial."
            )
        marker = {
            "dataset": self.published.name,
            "images": dict(counts),
            "complete": prepared.complete,
            "sources": list(self.done.values()),
            "whitebox": __version__,
        }
        replace_text(self.staging / MARKER, json.dumps(marker, indent=1) + "\n")
        try:
            shutil.rmtree(self.staging / RAW, ignore_errors=True)
            if target.is_dir() and not any(target.iterdir()):
                target.rmdir()
            os.rename(self.staging, target)
            self.state_file.unlink(missing_ok=True)
            if not self.keep_archives:
                shutil.rmtree(self.work, ignore_errors=True)
                if not any(self.work.parent.iterdir()):
                    self.work.parent.rmdir()
        except OSError as error:
            raise disk_error(target, error) from error
        self.reporter.say(f"{self.published.name} is ready in {target}: {_in_words(prepared)}.")
        return prepared

    def _require(self, wanted: int, source: str) -> None:
        if not wanted:
            raise DataError(f"{source} holds nothing of {self.published.name}: looked for {self.published.looks_for}.")

    def _save_state(self) -> None:
        replace_text(self.state_file, json.dumps(self.done))

    def _advance(self, task: str, unit: str, done: int, total: int | None) -> None:
        self.reporter.advance(task, done, total, unit)

    def _counter(self, task: str) -> Callable[[int], None]:
        return lambda done: self.reporter.advance(task, done, None, "files")


def _already_there(published: Published, root: Path, target: Path) -> Prepared | None:
    """The dataset in its place, prepared by this command or put there by hand."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    accepted = read_marker(target)
    prepared = Prepared(published, target, _count(published, root))
    if prepared.complete or (accepted is not None and dict(prepared.counts) == accepted.get("images")):
        return prepared
    raise DataError(
        f"{target} is there but not complete: {_in_words(prepared)}. Move it away, and give it with --from beside what "
        "is missing."
    )


def read_marker(folder: Path) -> dict[str, Any] | None:
    """What ``prepare`` wrote about a folder; None where it did not make it."""
    try:
        marker = read_json(folder / MARKER)
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) else None


def _count(published: Published, root: Path) -> dict[str, int]:
    """Images with labels by split, 0 where a folder or list is missing. ``DataError`` names an image or label alone."""
    config, counts = published.config(root), {}
    reader = READERS[config.kind]
    assert isinstance(reader, (Layout, Folder))
    for split in published.counts:
        try:
            listing = reader.listing(config, split)
        except DataError:  # its message is about folders; the count says it as well
            counts[split] = 0
            continue
        counts[split] = len(listing.source().names) if listing.names else 0
    return counts


def _in_words(prepared: Prepared) -> str:
    parts = []
    for split, count in prepared.counts.items():
        published = prepared.published.counts[split]
        parts.append(f"{split} {count}" + ("" if count == published else f" of {published}"))
    return ", ".join(parts) + " images"
