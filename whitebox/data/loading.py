"""Data loading processes: which signals they obey, how they end, and their errors as values.

A DataLoader would wrap an error into a traceback of many lines.
"""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.queues
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

from torch.utils.data import Dataset

from whitebox.errors import DataError, WhiteboxError
from whitebox.memory import keep_freed

T = TypeVar("T")


def default_workers() -> int:
    """Data loading processes where nobody says otherwise: half the cores, at most 8."""
    return min(8, (os.cpu_count() or 2) // 2)


def serve(worker: int) -> None:
    """For ``DataLoader(worker_init_fn=)``: live as long as the main process, leave signals to it, and end on failure.

    Else a worker dies by a SIGTERM or Ctrl-C sent to all processes at once while the main one has its state to save;
    begun by a forkserver, it never notices that the main one was killed; and where no memory can be shared (``ulimit
    -f`` bounds it too), it drops the sample, which the main process would await for ever.
    """
    multiprocessing.queues.Queue._on_queue_feeder_error = _end_at_once  # type: ignore[attr-defined]
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    keep_freed()  # a third of the time that augmenting an image takes goes into getting its megabytes back


def _end_at_once(*_: object) -> None:
    os._exit(1)


def _end_with(parent: multiprocessing.process.BaseProcess | None) -> None:
    if parent is not None:
        parent.join()
        os._exit(1)


@atexit.register  # runs before the same of multiprocessing, which was imported earlier
def end_children(patience: float = 1.0) -> None:
    """End daemonic child processes as Python does at its exit, but without waiting for those that ignore SIGTERM.

    A loader whose iterator an error keeps alive still has its workers then, and Python would wait for them for ever.
    """
    children = [child for child in multiprocessing.active_children() if child.daemon]
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler raises where a worker is killed
    for child in children:
        child.terminate()
    end = time.monotonic() + patience
    for child in children:
        child.join(max(0.0, end - time.monotonic()))
        if child.is_alive():
            child.kill()


def each(loader: Iterable[T]) -> Iterator[T]:
    """What a ``DataLoader`` gives.

    Where one of its processes is killed, PyTorch raises at whatever line the main process has reached, in the middle of
    saving too. Here that is found out when the next sample is due.

    Raises:
        DataError: a loading process was killed.
    """
    samples: Iterator[T] | None = None
    while True:
        try:
            if samples is None:
                samples = iter(loader)
                if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler is what raises
            sample = next(samples)
        except StopIteration:
            return
        except (RuntimeError, ConnectionError, EOFError) as error:  # the last two: while it handed over a sample
            if isinstance(error, RuntimeError) and "DataLoader worker (pid" not in str(error):
                raise
            for worker in getattr(samples, "_workers", ()):  # PyTorch waits five seconds for each that is stuck
                worker.kill()
            raise DataError(
                "A data loading process was killed, most often because memory ran out (also that of /dev/shm): go on "
                "with fewer of them (train.workers), or smaller images."
            ) from None
        yield sample


class Indexable(Protocol):
    """Anything that gives samples by key."""

    def __getitem__(self, key: Any) -> Any: ...


class ErrorsAsValues(Dataset[Any]):
    """Gives the samples of ``dataset``, and in place of one that cannot be had, its ``WhiteboxError``.

    ``length`` limits a sequential loader to the first samples.
    """

    def __init__(self, dataset: Indexable, length: int) -> None:
        self.dataset, self.length = dataset, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.dataset[key]
        except WhiteboxError as error:
            return error
