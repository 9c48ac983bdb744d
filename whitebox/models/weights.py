"""Reading tensors from files, and loading them strictly. Nothing beyond tensors and plain containers is unpickled."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from whitebox.errors import CheckpointError


@dataclass(frozen=True)
class LoadReport:
    """What a strict load did: where the weights came from, in which format, how many tensors matched."""

    source: str
    format: str
    matched: int

    def __str__(self) -> str:
        return f"{self.source}: {self.format}; all {self.matched} tensors matched"


def read_pickle(path: Path) -> Any:
    """Contents of a ``torch.save`` file, tensors and plain containers only.

    Raises:
        CheckpointError: missing, cut short, not a torch file, or holding anything else than tensors and containers.
    """
    _require_file(path)
    with path.open("rb") as opened:
        start = opened.read(4)
    if not start.startswith((b"PK\x03\x04", b"\x80")):  # a zip archive, or a pickle of older versions
        raise CheckpointError(f"{path} is not a torch file (a web page or a pointer to one?); download it again.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower() or "unsupported" in str(error).lower():
            raise CheckpointError(
                f"{path} holds more than tensors and is not opened, because unpickling could run code; "
                "ask its author for a safetensors file or a plain state dict."
            ) from error
        raise CheckpointError(f"{path} is not a readable torch file; download or copy it again.") from error
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, OSError, BadZipFile) as error:
        raise CheckpointError(f"{path} is cut short or not a torch file; download or copy it again.") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """State dict of a ``.safetensors`` or torch file (there it may lie under ``model`` or ``state_dict``).

    Raises:
        CheckpointError: see ``read_pickle``; or no state dict inside.
    """
    if path.suffix == ".safetensors":
        _require_file(path)
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path} is cut short or not a safetensors file; copy it again.") from error
    content = read_pickle(path)
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} holds no state dict (names to tensors).")
    return dict(content)


def renamed(name: str, rules: Iterable[tuple[str, str]]) -> str:
    """A tensor's name after the first rule (pattern of a whole name, replacement) that fits; as it is if none does."""
    for pattern, ours in rules:
        found = re.fullmatch(pattern, name)
        if found:
            return found.expand(ours)
    return name


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], source: str, format: str) -> LoadReport:
    """Load a complete state dict, described as ``format`` in the report.

    Raises:
        CheckpointError: a tensor is missing, unexpected, or of another shape; the message names the first of each.
    """
    own = module.state_dict()
    problems = []
    for what, names in (
        ("missing", [name for name in own if name not in tensors]),
        ("unexpected", [name for name in tensors if name not in own]),
    ):
        if names:
            problems.append(f"{len(names)} {what} (first: {names[0]})")
    resized = [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    if resized:
        name = resized[0]
        problems.append(
            f"{len(resized)} of another shape (first: {name} is {tuple(tensors[name].shape)}, "
            f"the model needs {tuple(own[name].shape)})"
        )
    if problems:
        raise CheckpointError(f"{source} does not fit this model: {'; '.join(problems)}.")
    module.load_state_dict(tensors, strict=True)
    return LoadReport(source, format, len(tensors))


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.")
