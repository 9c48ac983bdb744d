"""mmsegmentation without its chatter: importing it prints a line about an absent plug-in, twice."""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what the block prints and warns. Errors still get out."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


@functools.cache
def mmseg_datasets() -> Any:
    """The module ``mmseg.datasets``: dataset classes, and the transforms of mmsegmentation by name."""
    with quiet():
        import mmseg.datasets

    return mmseg.datasets
