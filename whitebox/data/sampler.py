"""The order in which training sees its samples."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) of every sample once; the order is a pure function of (seed, epoch).

    Args:
        length: number of samples.
        seed: 0 or more.
        shuffle: else in order.
    """

    def __init__(self, length: int, seed: int = 0, shuffle: bool = True) -> None:
        self.length, self.seed, self.shuffle = length, seed, shuffle
        self.epoch, self.skip = 0, 0

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Go to an epoch, past its first ``skip`` samples (those a stopped run has seen)."""
        self.epoch, self.skip = epoch, skip

    def __len__(self) -> int:
        return max(self.length - self.skip, 0)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.arange(self.length)
        if self.shuffle:
            order = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(self.epoch,))).permutation(order)
        epoch = self.epoch
        return iter([(epoch, int(index)) for index in order[self.skip :]])
