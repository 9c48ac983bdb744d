"""Errors of data loading processes as values: a DataLoader would wrap them into a traceback of many lines."""

from __future__ import annotations

import os
import signal
from typing import Any, Protocol

from torch.utils.data import Dataset

from whitebox.errors import WhiteboxError


def default_workers() -> int:
    """Data loading processes where nobody says otherwise: half the cores, at most 8."""
    return min(8, (os.cpu_count() or 2) // 2)


def ignore_signals(worker: int) -> None:
    """For ``DataLoader(worker_init_fn=)``: a signal sent to all processes at once is left to the main one.

    Without it a worker dies by SIGTERM or Ctrl-C while the main process still has its state to save.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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
