"""Datasets: images with labels, as they are or augmented.

``build_dataset(config, split, augment=...)`` is all that training and evaluation need; ``READERS`` names the kinds of
dataset. These names load torch on first use, so that files can be listed and told apart without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whitebox.data.dataset import Sample, SegmentationDataset, build_dataset
    from whitebox.data.readers import GENERATED, READERS, dataset_info

__all__ = ["GENERATED", "READERS", "Sample", "SegmentationDataset", "build_dataset", "dataset_info"]


def __getattr__(name: str) -> Any:
    if name in ("GENERATED", "READERS", "dataset_info"):
        from whitebox.data import readers

        return getattr(readers, name)
    if name in __all__:
        from whitebox.data import dataset

        return getattr(dataset, name)
    raise AttributeError(f"module 'whitebox.data' has no attribute {name!r}")
