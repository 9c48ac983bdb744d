"""Writing files so that a reader sees the old one or the new one, whatever happens in between.

Every file is written to a temporary name in the same folder, flushed to the disk, and renamed. Flushing takes most of
the time of a small file; what can be made again, such as tables and figures, goes without.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from whitebox.errors import DataError, OutputError

try:
    _STARTED_IN = Path.cwd()
except FileNotFoundError:  # deleted already; the command line says so
    _STARTED_IN = Path(os.sep)


def write_atomically(path: Path, write: Callable[[Path], Path | None], *, flush: bool = True) -> None:
    """Call ``write`` on a temporary file beside ``path``, flush it to the disk, and rename it.

    ``write`` may return another path to rename to, where the name depends on the content. Without ``flush`` a power cut
    soon after may leave an empty file.

    Raises:
        OutputError: the disk or the permissions do not allow it; an existing ``path`` is untouched.
    """
    temporary = ""
    try:
        path = from_the_start(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.{os.getpid()}-")
        os.close(handle)
        final = write(Path(temporary)) or path
        if flush:
            with open(temporary, "rb+") as written:
                os.fsync(written.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, final)
        if flush:
            _flush_folder(path.parent)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise OutputError(f"Cannot write {path}: {reason}; free some space or choose another folder.") from error
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def _flush_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot
            raise
    finally:
        os.close(handle)


def from_the_start(path: Path) -> Path:
    """``path``, counted from the folder the command was started in, where that has been deleted since."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return _STARTED_IN / path
    return path


def remove_leftovers(folder: Path, name: str) -> None:
    """Delete what killed processes left of their attempts to write files named like ``name`` (a shell pattern)."""
    for path in folder.glob(f".{name}.*"):
        writer = re.fullmatch(r".*\.(\d+)-[^.]+", path.name)
        if writer is None or not _is_another_live_process(int(writer[1])):
            path.unlink(missing_ok=True)


def _is_another_live_process(number: int) -> bool:
    if number == os.getpid() or os.name != "posix":  # elsewhere os.kill would kill
        return False
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        pass
    return True


def cache_folder() -> Path:
    """Where what can be made again is kept: ``$WHITEBOX_CACHE``, else ``whitebox`` in the user's folder of caches."""
    chosen = os.environ.get("WHITEBOX_CACHE")
    base = chosen or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "whitebox")
    return Path(os.path.expanduser(base))


def write_text(path: Path, text: str, *, flush: bool = True) -> Path:
    """Write a text file atomically and return its path; ``flush`` as for ``write_atomically``.

    Raises:
        OutputError: see ``write_atomically``.
    """

    def write(target: Path) -> None:
        target.write_text(text, encoding="utf-8")

    write_atomically(path, write, flush=flush)
    return path


def copy_file(source: Path, path: Path) -> None:
    """Copy what a file holds, atomically.

    Raises:
        OutputError: see ``write_atomically``.
    """

    def write(target: Path) -> None:
        shutil.copyfile(source, target)

    write_atomically(path, write)


def make_folder(folder: Path) -> None:
    """Make an output folder where missing, and see that it can be written.

    Raises:
        DataError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".whitebox-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise unwritable(folder, error) from error


def unwritable(folder: Path, error: OSError) -> DataError:
    """The one line for an output folder that cannot be written."""
    return DataError(f"Folder {folder} cannot be written ({error.strerror or error}): choose another with -o.")
