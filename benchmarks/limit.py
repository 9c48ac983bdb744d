"""The arithmetic limit of something that is computed: what its matrix products alone would take.

A task is run once, and every matrix product, convolution and fused attention in it is noted with its operands, those of
the backward pass too. Then each distinct one is run again by itself, with the same operands, as often as there is time
for, and its median is taken as often as it occurred. What is left of the task's own time went into everything else:
norms, activations, softmax, memory, Python. A task can come near this limit, and below it only with other products.

Within the task products are slower than by themselves: their operands come from memory. What share of a task on a
processor they are there is asked of PyTorch's profiler.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

SECONDS = 0.03  # for repetitions of one product, at least three
aten = torch.ops.aten
PRODUCTS = {
    *(aten.linear, aten.matmul, aten.einsum, aten.conv2d, aten.scaled_dot_product_attention),  # whole in inference mode
    *(aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution, aten.convolution_backward),
    *(aten._scaled_dot_product_flash_attention_for_cpu, aten._scaled_dot_product_flash_attention_for_cpu_backward),
    *(aten._scaled_dot_product_flash_attention, aten._scaled_dot_product_flash_attention_backward),
    *(aten._scaled_dot_product_efficient_attention, aten._scaled_dot_product_efficient_attention_backward),
    *(aten._scaled_dot_product_cudnn_attention, aten._scaled_dot_product_cudnn_attention_backward),
}


class _Noted(TorchDispatchMode):
    """Products that are computed inside the block: how often each, and how to do it again."""

    def __init__(self) -> None:
        super().__init__()
        self.times: Counter[str] = Counter()
        self.again: dict[str, Callable[[], object]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func.overloadpacket in PRODUCTS:
            key = str((func, tree_map(_shape, (args, given))))
            self.times[key] += 1
            self.again.setdefault(key, lambda: func(*args, **given))
        return func(*args, **given)


def _shape(value: Any) -> Any:
    return (value.shape, value.stride(), value.dtype) if isinstance(value, torch.Tensor) else value


def limit(task: Callable[[], object], synchronise: Callable[[], None] = lambda: None) -> float:
    """Seconds of the matrix products of a task, each by itself.

    Args:
        task: is run once.
        synchronise: waits for what a device still does.
    """
    with _Noted() as noted:
        task()
    total = 0.0
    with torch.no_grad():
        for key, again in noted.again.items():
            again()
            passed: list[float] = []
            while len(passed) < 3 or sum(passed) < SECONDS:
                synchronise()
                start = time.perf_counter()
                again()
                synchronise()
                passed.append(time.perf_counter() - start)
            total += noted.times[key] * statistics.median(passed)
    return total


def share(task: Callable[[], object]) -> float:
    """The part of a task's time on a processor that its products take within it, from 0 to 1; it is run once."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        task()
    names = {f"aten::{product.__name__}" for product in PRODUCTS} | {"aten::mkldnn_convolution"}  # what one becomes
    times = {event.key: event.self_cpu_time_total for event in seen.key_averages()}
    return sum(time for name, time in times.items() if name in names) / sum(times.values())
