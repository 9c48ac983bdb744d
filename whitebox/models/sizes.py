"""Sizes of models that somebody else may have written down: bounded before anything is allocated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from whitebox.errors import ModelError, require
from whitebox.memory import free_bytes, readable

MOST_LAYERS = 1_000
LARGEST = 65_536  # a width, a number of classes, pixels of a side
_SLACK = 2**24
_COUNTS = ("layers", "cross_layers", "depth", "heads")


def require_sizes(section: str, config: Any) -> None:
    """Raise a ``ConfigError`` where a whole number of a config is beyond what any model has."""
    for each in fields(config):
        value = getattr(config, each.name)
        most = MOST_LAYERS if each.name in _COUNTS else LARGEST
        numbers = value if isinstance(value, list | tuple) else [value]
        require(len(numbers) <= MOST_LAYERS, f"{section}.{each.name}", "...", f"it takes at most {MOST_LAYERS} values")
        for number in numbers:
            within = not isinstance(number, int) or number <= most
            require(within, f"{section}.{each.name}", number, f"it can be {most} at most")
    inner = (getattr(config, "heads", None) or 1) * (getattr(config, "head_dim", None) or 1)
    need = f"with heads={getattr(config, 'heads', None)} it is {inner} in all, which can be {LARGEST} at most"
    require(inner <= LARGEST, f"{section}.head_dim", getattr(config, "head_dim", None), need)


@contextmanager
def bounded(parameters: int | None = None) -> Iterator[None]:
    """Let models be built whose parameters fit into the memory that is free.

    Args:
        parameters: those that a file holds; what has far more does not belong to it. A few more are loaded strictly,
            which tells what is missing.

    Raises:
        ModelError: there are more, or memory does not suffice; before the one that is too much is filled.
    """
    free, taken, numbers = free_bytes(), 0, 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal taken, numbers
        if parameter is None or parameter.is_meta:
            return
        numbers += parameter.numel()
        taken += parameter.numel() * parameter.element_size()
        if parameters is not None and numbers > 2 * parameters + _SLACK:
            raise ModelError(
                f"The model that this file describes has far more parameters than the {parameters} numbers in it."
            )
        if taken > free:
            raise ModelError(
                f"This model needs more than {readable(taken)} for its parameters, {readable(free)} are free: give it "
                "fewer layers or a smaller width."
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    except RuntimeError as error:
        if "allocate" not in str(error):
            raise
        raise ModelError(
            f"This model does not fit into memory ({readable(free)} are free): give it fewer layers or a smaller width."
        ) from error
    finally:
        handle.remove()
