"""The 15 corruptions of ImageNet-C in 5 severities, on photos of any size from 32 px.

Source: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
ICLR 2019 (arXiv 1903.12261); on segmentation: Kamann and Rother, "Benchmarking the Robustness of Semantic Segmentation
Models", CVPR 2020 (arXiv 1908.05005). The implementation is the package ``imagecorruptions-imaug``, the kept fork of
``imagecorruptions``; it draws from NumPy's global generator, which is seeded for each photo here and put back after.

The decoded photo is corrupted, at the size it is stored in, before the model's own resizing; labels stay as they are
(``elastic_transform`` moves pixels by a few px).

Shapes: H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from analysis.maths.corruption_names import package_version
from analysis.maths.perturbation import random_state
from whitebox.errors import DataError

SMALLEST = 32  # px
_OWN_SEED = ("impulse_noise", "glass_blur")  # these take a seed instead of using the global generator


def corrupt(image_HW3: NDArray[np.uint8], kind: str, severity: int, *key: object) -> NDArray[np.uint8]:
    """A corrupted copy of an RGB photo, a function of photo, kind, severity and ``key`` alone.

    The random numbers do not depend on the severity, so they are common to all severities of a photo.

    Raises:
        ConfigError: the package is not installed.
        DataError: a side is below 32 px.
    """
    if min(image_HW3.shape[:2]) < SMALLEST:
        height, width = image_HW3.shape[:2]
        raise DataError(
            f"A photo of {width} x {height} px cannot be corrupted: the corruptions need {SMALLEST} px a side."
        )
    seeds = random_state(kind, *key).integers(0, 2**32, 8, dtype=np.uint32)
    own = {"seed": int(seeds[0])} if kind in _OWN_SEED else {}
    with numpy_seeded(seeds):
        corrupted_HW3 = _library().corrupt(image_HW3, severity=severity, corruption_name=kind, **own)
    return np.asarray(corrupted_HW3, np.uint8)


@contextmanager
def numpy_seeded(key: NDArray[np.uint32]) -> Iterator[None]:
    """Inside the block NumPy's global generator starts from ``key``; after it, it goes on from where it was."""
    before = np.random.get_state()  # noqa: NPY002, it is what the package draws from
    np.random.seed(key)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def _library() -> ModuleType:
    package_version()
    import imagecorruptions

    return imagecorruptions


@dataclass(frozen=True)
class Corruption:
    """A corruption of a dataset's photos, each by random numbers of its own."""

    kind: str
    severity: int
    dataset: str
    seed: int

    def __call__(self, image_HW3: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
        try:
            return corrupt(image_HW3, self.kind, self.severity, self.seed, self.dataset, name)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error

    def __post_init__(self) -> None:
        """What is compiled at its first use is compiled here, not in each of the loading processes to come."""
        corrupt(np.zeros((SMALLEST, SMALLEST, 3), np.uint8), self.kind, self.severity)
