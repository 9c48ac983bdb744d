"""What tests of benchmarks share."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """As many threads after a benchmark as before it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def few_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the products of a task, where a benchmark has asked for its limit."""
    if "limit" in sys.modules:
        monkeypatch.setattr("limit.SECONDS", 0.0)
