"""Where half precision must not reach."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Neither autocast nor TF32 inside the block: interpolation is a matrix product here, and must not be rounded."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    has_autocast = torch.amp.is_autocast_available(device.type)  # the meta device, on which costs are counted, has not
    try:
        with torch.autocast(device.type, enabled=False) if has_autocast else nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(before)
