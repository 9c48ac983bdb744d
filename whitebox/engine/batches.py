"""Batches of training images: which images, loaded by whom, and how long that took."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Sampler

from whitebox.data import Sample
from whitebox.data.loading import ErrorsAsValues, each
from whitebox.data.sampler import EpochSampler
from whitebox.errors import DataError, WhiteboxError


class Batches(Sampler[list[tuple[int, int]]]):
    """This process's share of every complete batch of an epoch."""

    def __init__(self, sampler: EpochSampler, batch_size: int, rank: int, processes: int) -> None:
        self.sampler, self.batch_size, self.rank, self.processes = sampler, batch_size, rank, processes

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        batch: list[tuple[int, int]] = []
        for key in self.sampler:
            batch.append(key)
            if len(batch) == self.batch_size:
                yield batch[self.rank :: self.processes]
                batch = []


class TimedImages(ErrorsAsValues):
    """A dataset that says how long a batch took."""

    def __getitems__(self, keys: list[tuple[int, int]]) -> tuple[list[Sample | WhiteboxError], float]:
        began = time.perf_counter()
        return [self[key] for key in keys], time.perf_counter() - began


@dataclass(frozen=True)
class Batch:
    """Images (B, 3, C, C), labels (B, C, C), names, and the seconds it took to make them; or what went wrong."""

    images: Tensor
    labels: Tensor
    names: list[str]
    seconds: float
    error: WhiteboxError | None = None

    @staticmethod
    def failed(error: WhiteboxError) -> Batch:
        return Batch(torch.empty(0), torch.empty(0, 0, 0, dtype=torch.uint8), [], 0.0, error)

    def pin_memory(self) -> Batch:
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory())


def collate(loaded: tuple[list[Sample | WhiteboxError], float]) -> Batch:
    """Loaded samples, and the seconds they took, as a batch."""
    samples: list[Sample] = []
    for sample in loaded[0]:
        if isinstance(sample, WhiteboxError):
            return Batch.failed(sample)
        samples.append(sample)
    return Batch(
        torch.stack([sample.image for sample in samples]),
        torch.stack([sample.label for sample in samples]),
        [sample.name for sample in samples],
        loaded[1],
    )


def batches(loader: Iterable[Batch]) -> Iterator[Batch]:
    """Those of a loader; where it fails, a last one that says so, for all processes to agree on."""
    try:
        yield from each(loader)
    except DataError as error:
        yield Batch.failed(error)
