"""Weights from the Hugging Face Hub: from the cache where they are there, else downloaded, else one line that says why.

The Hub's own client asks again and again for a minute where there is no network, so whether the Hub answers at all is
asked first.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from whitebox import terminal
from whitebox.errors import ModelError

T = TypeVar("T")
SECONDS = 5.0  # for an answer of the Hub


def from_hub(what: str, repository: str | None, files: Sequence[str], fetch: Callable[[], T]) -> T:
    """What ``fetch`` gives, which uses the Hub's client.

    Args:
        what: of whom the weights are, for messages.
        repository: on the Hub; None: somewhere else.
        files: any of which it may be; one that is in the cache is taken without asking the Hub.
        fetch: reads or downloads it.

    Raises:
        ModelError: they cannot be had.
    """
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = repository is not None and any(
            isinstance(try_to_load_from_cache(repository, file), str) for file in files
        )
        if cached:
            with offline():
                return fetch()
        if repository is not None:
            require_answer()
        return fetch()
    except Exception as error:  # the client raises errors of several libraries; all mean the same to the user
        raise ModelError(_reason(error, what, repository)) from error


def _reason(error: Exception, what: str, repository: str | None) -> str:
    name = type(error).__name__
    if name == "GatedRepoError":
        return (
            f"The weights of {what} are given to who has accepted their licence: do so at "
            f"https://huggingface.co/{repository}, then `hf auth login`, or give a file: encoder.weights=FILE."
        )
    said = " ".join(str(error).split())[:120]
    return (
        f"The pretrained weights of {what} could not be downloaded ({name}{': ' if said else ''}{said}); without a "
        "network give a local file: encoder.pretrained=false encoder.weights=FILE."
    )


def require_answer() -> None:
    """Raise an error of the client's unless the Hub answers, whatever it says."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if not constants.HF_HUB_OFFLINE:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)


@contextmanager
def offline(there: bool = True) -> Iterator[None]:
    """Inside the block the client keeps its warnings, and reads its cache alone (``there``: False: asks the Hub)."""
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before, log = constants.HF_HUB_OFFLINE, logging.getLogger("huggingface_hub")
    level, constants.HF_HUB_OFFLINE = log.level, before or there
    log.setLevel(logging.ERROR)
    watched = sys.stderr.isatty() and not terminal.manner.quiet and not are_progress_bars_disabled()
    if not watched:
        disable_progress_bars()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        log.setLevel(level)
        if not watched:
            enable_progress_bars()
