"""What benchmarks share: tasks that alternate, so that whatever else the machine does meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from analysis.show.tables import Estimate


def seconds(
    tasks: Mapping[str, Callable[[], object]], turns: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Of each task in each turn; tasks alternate, the first turn is not counted.

    Args:
        clock: what is read before and after a task.
    """
    passed: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(turns + 1):
        for name, task in tasks.items():
            start = clock()
            task()
            if turn:
                passed[name].append(clock() - start)
    return passed


def spread(values: Sequence[float]) -> Estimate:
    """Median and range over turns."""
    return Estimate(statistics.median(values), min(values), max(values))


def ratio(above: Sequence[float], below: Sequence[float]) -> Estimate:
    """Of the same turns."""
    return spread([one / other for one, other in zip(above, below, strict=True)])
