"""What a process holds in memory, and may still take, so that what cannot fit is refused before it is tried."""

from __future__ import annotations

import gc
import math
import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_UNKNOWN = 2**63
_STATUS = "/proc/self/status"
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # options of mallopt(3)
_LARGEST_KEPT = 2**25  # bytes; glibc takes no more
_NEW_OBJECTS = 200_000  # until garbage is looked for, while libraries are imported
_usual: tuple[int, int, int] | None = None  # thresholds of a command that imports


def keep_freed(any_size: bool = False) -> None:
    """Let glibc keep what is freed for what comes next, as PyTorch's allocator does on a GPU; elsewhere nothing.

    As it is, glibc returns tensors of 128 kB and more to the system at once, and gets their pages back one by one, each
    cleared; until it has seen larger ones freed.

    Args:
        any_size: blocks above 32 MB, too, which else still go back.
    """
    if (glibc := _glibc()) is not None:
        blocks = (_M_MMAP_MAX, 0) if any_size else (_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        for option, value in (blocks, (_M_TRIM_THRESHOLD, 2**31 - 1)):
            glibc.mallopt(option, value)  # an option that it does not know changes nothing


@contextmanager
def fewer_collections() -> Iterator[None]:
    """For a command, which begins with imports: until `keep_imported`, or the end, garbage is rarely looked for.

    PyTorch and timm make half a million objects that stay. While they become more, Python looks at all of them again
    and again, and so it does afterwards, which takes two fifths of the time until a command begins its work.
    """
    global _usual
    if "whitebox.models" in sys.modules:
        yield
        return
    _usual = gc.get_threshold()
    gc.set_threshold(_NEW_OBJECTS, *_usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*_usual)
        _usual = None


def keep_imported() -> None:
    """In a command, never look again for garbage among what is there; elsewhere nothing: it is others' choice."""
    if _usual is not None:
        gc.freeze()
        gc.set_threshold(*_usual)


def _return_freed() -> None:
    if (glibc := _glibc()) is not None:
        glibc.malloc_trim(0)


def _glibc() -> Any:
    import ctypes

    return libc if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt") else None


def free_bytes(wanted: float = math.inf) -> int:
    """The least of what the machine has free, what its limits (``ulimit -v``) leave, and what a container may take.

    Args:
        wanted: where that is not free, what this process has freed, and kept, is returned first.
    """
    if (found := _free()) < wanted:
        _return_freed()
        found = _free()
    return found


def _free() -> int:
    return max(0, min(_machine(), _limit(), _container()))


def held_gb() -> float:
    """Of this process now, in GB. RuntimeError where Linux does not say it."""
    found = _status_gb("VmRSS")
    if found is None:
        raise RuntimeError(f"What a process holds is read from {_STATUS}, which does not say it here.")
    return found


def peak_gb() -> float:
    """Of this process at most so far, in GB."""
    found = _status_gb("VmHWM")
    if found is not None:
        return found
    # second choice: a child begins with that of its parent
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an error of NumPy, OpenCV, PyTorch or oneDNN means that memory could not be had."""
    words = ("out of memory", "allocate memory", "not enough memory", "Insufficient memory")
    # oneDNN says no more than that where it gets none; of what it does not know it names the descriptor
    return (
        isinstance(error, MemoryError)
        or any(word in str(error) for word in words)
        or str(error).strip() == "could not create a primitive"
    )


def readable(size: float) -> str:
    """``1.2 GB``."""
    if size < 1e5:
        return f"{size / 1e3:.1f} kB"
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _machine() -> int:
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return _UNKNOWN  # not Linux


def _limit() -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return _UNKNOWN
    pages = _text("/proc/self/statm").split()
    taken = int(pages[0]) * os.sysconf("SC_PAGE_SIZE") if pages else 0
    return limit - taken


def _container() -> int:
    limit, taken = _text("/sys/fs/cgroup/memory.max").strip(), _text("/sys/fs/cgroup/memory.current").strip()
    if not (limit.isdigit() and taken.isdigit()):
        return _UNKNOWN
    cached = [
        int(line.split()[1]) for line in _text("/sys/fs/cgroup/memory.stat").splitlines() if line.startswith("file ")
    ]
    return int(limit) - int(taken) + sum(cached)  # pages of files are given up when needed


def _status_gb(field: str) -> float | None:
    found = re.search(rf"^{field}:\s*(\d+) kB", _text(_STATUS), re.MULTILINE)
    return None if found is None else int(found[1]) * 1024 / 1e9


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
