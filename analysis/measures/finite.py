"""Whether what a model gives is finite."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from whitebox.errors import ModelError
from whitebox.runs import Run

Values = TypeVar("Values", Tensor, NDArray[np.float64])


def finite(values: Values, what: str, run: Run) -> Values:
    """The values themselves.

    Raises:
        ModelError: NaN or infinity is among them; it says ``what`` they are.
    """
    if isinstance(values, Tensor) and torch.isfinite(values.sum()):
        return values  # where a value is NaN or infinite so is the sum, which takes a thirtieth of the time
    if not (torch.isfinite(values).all() if isinstance(values, Tensor) else np.isfinite(values).all()):
        raise ModelError(f"NaN or infinite values in {what} of {run.name}: look at its weights and at its training.")
    return values
