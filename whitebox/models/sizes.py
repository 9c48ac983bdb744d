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


@contextmanager
def within_memory() -> Iterator[None]:
    """Let models be built whose parameters fit into the memory that is free.

    Raises:
        ModelError: they do not; before the one that is too much is filled.
    """
    free, taken = free_bytes(), 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal taken
        taken += 0 if parameter is None or parameter.is_meta else parameter.numel() * parameter.element_size()
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
