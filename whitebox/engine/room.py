"""Memory that a training step takes, measured, and which part of a batch would fit: what to say of one that did not.

What a part of m images takes above weights and states is ``fixed + each * m`` bytes: gradients and buffers, and the
activations of each image. Both follow from a part of one image and one of two, forward and backward on the device
itself; the parts that a batch may be split into (``train.micro_batch``) divide it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from traceback import clear_frames
from typing import NamedTuple

import torch
from torch import Tensor

from whitebox.memory import free_bytes, is_lack_of_memory, readable

_OTHERS = "train.checkpointing=true, train.precision=bf16, a smaller data.crop or a smaller model"
_MARGIN = 0.9  # of what is free: allocators cannot use all of it


class Need(NamedTuple):
    """Bytes of a part of m images: ``fixed + each * m``."""

    fixed: float
    each: float

    def largest(self, batch: int, below: int, free: float) -> int | None:
        """The largest divisor of ``batch`` below ``below`` that fits into ``free`` bytes, as one image did."""
        parts = _parts(batch, below)
        return next((part for part in parts if part == 1 or self.fixed + self.each * part <= _MARGIN * free), None)


def measured(step: Callable[[int], None], device: torch.device) -> Need | None:
    """What parts take, of two small ones; None: already these do not fit.

    Args:
        step: forward and backward of so many images; what it leaves behind is the caller's.
    """
    taken = []
    for images in (1, 2):
        try:
            taken.append(_taken(partial(step, images), device))
        except (RuntimeError, MemoryError) as error:
            if not is_lack_of_memory(error):
                raise
            clear_frames(error.__traceback__)  # of the tensors in them
            return None if images == 1 else Need(taken[0], torch.inf)
    each = max(taken[1] - taken[0], 0)
    return Need(taken[0] - each, each)


def free(device: torch.device) -> float:
    """Bytes that can be had on a device."""
    if device.type != "cuda":
        return free_bytes()
    torch.cuda.empty_cache()
    held_back = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + held_back)


def halved(batch: int, part: int) -> str:
    """What to set where nothing was measured: half of ``part``, or less where that does not divide the batch."""
    best = next(_parts(batch, part // 2 + 1), None)
    return f"Take {_OTHERS}." if best is None else _in_parts(best)


def advice(need: Need | None, batch: int, part: int, room: float) -> str:
    """What to set where a part of ``part`` images was too many for ``room`` bytes."""
    if need is None or (best := need.largest(batch, part, room)) is None:
        return f"Not even one image would: take {_OTHERS}."
    known = need.each < torch.inf
    took = f" ({readable(need.each)} an image and {readable(need.fixed)} were measured)" if known else ""
    return _in_parts(best, took)


def _in_parts(part: int, took: str = "") -> str:
    return f"Set train.micro_batch={part}{took}: the same loss and gradients in parts; or take {_OTHERS}."


def _parts(batch: int, below: int) -> Iterator[int]:
    """What a batch may be split into, the largest first."""
    return (part for part in range(below - 1, 0, -1) if batch % part == 0)


def _taken(action: Callable[[], None], device: torch.device) -> float:
    """Bytes that it holds at most; where no allocator counts them, those that it keeps for the backward pass."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        return float(torch.cuda.max_memory_allocated(device) - before)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        action()
    return float(sum(kept.values()))
