"""One writer a folder: a lock that names its holder, and that a dead holder does not keep.

A lock is a file that one call makes or finds there (``O_EXCL``), which works on network file systems too; ``flock``
is local or missing on many. It says who made it, and that process touches it every ``BEAT`` seconds.

A holder on this machine is asked for by its process number and start time, so that neither a killed process nor
another one that got its number keeps the lock. A holder elsewhere, or in another container, is watched: a lock that
nobody touches for ``PATIENCE`` seconds is dead. No clocks are compared, so they may differ, or jump. A holder that was
only asleep finds out, and stops, before it writes again (``Lock.check``).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import socket
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import NamedTuple

from whitebox.errors import InUseError, OutputError

LOCK = ".lock"
BEAT = 10.0  # s
PATIENCE = 60.0  # s; network file systems may show a change only after half of it
_MOST = 4096  # bytes of a lock
_LONGEST = 80  # letters of a command
_REMOVING = 5.0  # s; it takes milliseconds
log = logging.getLogger("whitebox")


class _Found(NamedTuple):
    """A lock as it is now."""

    content: bytes
    touched: int  # ns


class Lock:
    """Held inside the block, by one process.

    Args:
        path: of the lock; its folder is made if need be, and removed again where nothing was written into it.
        what: that the lock protects, as its user knows it.
        cure: what to do where another process holds it, beside waiting.

    Raises:
        InUseError: another process holds it.
        OutputError: it cannot be written.
    """

    def __init__(self, path: Path, what: str, cure: str) -> None:
        self.path, self.what, self.cure = path.absolute(), what, cure
        self._shown = path.parent
        holder = {
            "host": socket.gethostname(),
            "machine": _machine(),
            "process": os.getpid(),
            "started": _started(os.getpid()),
            "command": _command(),
            "since": time.strftime("%Y-%m-%d %H:%M"),
            "token": uuid.uuid4().hex,
        }
        self._content = json.dumps(holder).encode()
        self._made: list[Path] = []  # folders
        self._ended = threading.Event()
        self._held = False
        self._waited = 0.0  # s, for others that remove the lock of a dead process

    def __enter__(self) -> Lock:
        try:
            self._made = [folder for folder in (self.path.parent, *self.path.parents[1:]) if not folder.exists()]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while not self._create():
                self._clear()
        except OSError as error:
            raise OutputError(f"Cannot write {self._shown}: {error.strerror}; {self.cure}.") from error
        self._held = True
        threading.Thread(target=self._beat, name=f"lock {self.path}", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if not self._held:
            return
        self._held = False
        with contextlib.suppress(OSError):
            found = self._found()
            if found is not None and found.content == self._content:
                self.path.unlink()
            for folder in self._made:
                folder.rmdir()  # those that are not empty stay

    def held(self) -> bool:
        """Whether a process has it that lives, as far as can be told at once: of one elsewhere it is taken to be so.

        Raises:
            OSError: it cannot be read.
        """
        found = self._found()
        return found is not None and _lives_here(found) is not False

    def check(self) -> None:
        """Make sure, before something is written, that it is still this process that may.

        Raises:
            OutputError: the folder was removed, or another process took the lock over while this one did not run.
        """
        try:
            found = self._found()
            if found is None:  # somebody removed it by hand
                self._create()
                found = self._found()
        except OSError as error:
            raise OutputError(
                f"{self._shown} was removed or cannot be written any more ({error.strerror}); what was not saved "
                "before is lost."
            ) from error
        if found is None or found.content != self._content:
            raise OutputError(
                f"{_in_words(found)} took over {self.what} while this process stood still: it stops, and leaves "
                "everything to that one."
            )

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError):
                found = self._found()
                if found is not None and found.content == self._content:
                    os.utime(self.path)

    def _create(self) -> bool:
        """Make the lock; False: it is there."""
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        try:
            os.write(handle, self._content)
        finally:
            os.close(handle)
        return True

    def _found(self) -> _Found | None:
        """The lock; None: there is none. Opening it makes network file systems look."""
        try:
            with self.path.open("rb") as opened:
                return _Found(opened.read(_MOST), os.fstat(opened.fileno()).st_mtime_ns)
        except FileNotFoundError:
            return None

    def _clear(self) -> None:
        """Remove the lock if its holder is dead, so that one can be made; nothing where it has changed meanwhile.

        Raises:
            InUseError: its holder lives.
        """
        found = self._found()
        if found is None:
            return
        lives = _lives_here(found)
        if lives is None:
            lives = self._watch(found)
        if lives is None:
            return
        if lives:
            raise InUseError(f"{self.what} is being written by {_in_words(found)}: wait until it ends, or {self.cure}.")
        self._remove(found)

    def _remove(self, dead: _Found) -> None:
        """Remove the lock of a dead process; of several processes that find it one at a time, so never a new one."""
        guard = self.path.with_name(f"{self.path.name}.removing")
        try:
            os.close(os.open(guard, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        except FileExistsError:
            time.sleep(0.05)
            self._waited += 0.05
            if self._waited > _REMOVING:  # killed at that very moment
                self._waited = 0.0
                guard.unlink(missing_ok=True)
            return
        try:
            now = self._found()
            if now is not None and now.content == dead.content:
                self.path.unlink()
        finally:
            guard.unlink(missing_ok=True)

    def _watch(self, first: _Found) -> bool | None:
        """Whether somebody touches the lock; None: it was released or taken over."""
        begun, pause, told = time.monotonic(), 0.02, False
        while (waited := time.monotonic() - begun) < PATIENCE:
            if waited > 0.3 and not told:
                told = True
                log.warning(
                    "%s: locked by %s; looking for a sign of life, up to %g s.", self.what, _in_words(first), PATIENCE
                )
            time.sleep(pause)
            pause = min(2 * pause, 1.0)
            now = self._found()
            if now is None or now.content != first.content:
                return None
            if now.touched != first.touched:
                return True
        return False


def _command() -> str:
    program = Path(sys.argv[0]).name
    text = shlex.join(["whitebox" if program == "__main__.py" else program, *sys.argv[1:]])
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _machine() -> str:
    """What tells the processes of this system apart from those of others that have the same host name."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(process: int) -> str | None:
    """When a process began, in ticks of its system; empty where there is no way to know, None where it has ended."""
    try:
        state, *rest = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return None if state in "ZX" else rest[18]


def _holder(found: _Found) -> dict[str, object]:
    try:
        holder = json.loads(found.content)
    except (ValueError, RecursionError):  # not written yet, or by somebody else
        return {}
    return holder if isinstance(holder, dict) else {}


def _lives_here(found: _Found) -> bool | None:
    """Whether the holder runs on this machine; None: it is not a process of this machine."""
    holder = _holder(found)
    process = holder.get("process")
    here = (holder.get("host"), holder.get("machine")) == (socket.gethostname(), _machine())
    if not here or type(process) is not int or os.name != "posix":  # elsewhere os.kill would kill
        return None
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        pass
    started = _started(process)
    return started is not None and started in ("", holder.get("started"))


def _in_words(found: _Found | None) -> str:
    holder = _holder(found) if found is not None else {}

    def text(key: str) -> str:
        return "".join(letter if letter.isprintable() else "?" for letter in str(holder.get(key, "?"))[:200])

    if not holder:
        return "another process"
    return f"process {text('process')} on {text('host')} ({text('command')}, since {text('since')})"
