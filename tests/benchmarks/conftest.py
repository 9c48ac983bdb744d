"""What tests of benchmarks share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """As many threads after a benchmark as before it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
