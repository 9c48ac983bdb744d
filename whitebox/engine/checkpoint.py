"""Weights and training states on disk.

``model.safetensors`` holds the weights; its header holds a JSON text under ``whitebox``: config, classes, palette,
versions and git commit, so the file alone is enough to rebuild the model. ``checkpoints/`` holds what resume needs.
Every file is written to a temporary name in the same folder, flushed to the disk, and renamed: a reader sees the old
file or the new one.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from whitebox import config as configuration
from whitebox.config import RunConfig
from whitebox.errors import CheckpointError, ConfigError, TrainingError
from whitebox.models import Segmentor, build
from whitebox.models.weights import load_strictly, read_pickle, read_tensors
from whitebox.versions import versions

WEIGHTS = "model.safetensors"
HEADER = "whitebox"
KEPT = 2  # training states


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call ``write`` on a temporary file beside ``path``, flush it to the disk, and rename it.

    Raises:
        TrainingError: the disk or the permissions do not allow it; an existing ``path`` is untouched.
    """
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        write(Path(temporary))
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise TrainingError(f"Cannot write {path}: {reason}; free some space or choose another folder.") from error
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""

    def write(target: Path) -> None:
        target.write_text(text, encoding="utf-8")

    write_atomically(path, write)


def save_model(path: Path, model: Segmentor, config: RunConfig) -> None:
    """Write weights and header to ``path`` atomically."""
    header = {
        "config": configuration.to_dict(config),
        "classes": list(model.classes),
        "palette": [list(colour) for colour in model.palette],
        "versions": versions(),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(path, lambda target: save_file(tensors, target, metadata={HEADER: json.dumps(header)}))


def read_header(path: Path) -> dict[str, Any]:
    """The header of a ``model.safetensors``.

    Raises:
        CheckpointError: the file is missing, cut short, or was not written by whitebox.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="pt") as opened:
            header = json.loads((opened.metadata() or {})[HEADER])
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is cut short or not a safetensors file; copy it again.") from error
    except KeyError as error:
        raise CheckpointError(
            f"{path} has no whitebox header, so its model is unknown; load it as encoder.weights=FILE."
        ) from error
    if not isinstance(header, dict) or not {"config", "classes", "palette"} <= header.keys():
        raise CheckpointError(f"The header of {path} is incomplete; it was not written by whitebox.")
    return header


def load_weights(path: Path) -> tuple[Segmentor, RunConfig]:
    """Rebuild the model of a ``model.safetensors``.

    Raises:
        CheckpointError: see ``read_header``; or tensors and header disagree.
    """
    header = read_header(path)
    try:
        config = configuration.from_dict(header["config"])
    except ConfigError as error:
        raise CheckpointError(f"The header of {path} cannot be used: {error}") from error
    encoder = replace(config.encoder, pretrained=False, weights=None)  # everything is in the file itself
    classes = tuple(header["classes"])
    palette = tuple((red, green, blue) for red, green, blue in header["palette"])
    model = build(encoder, config.decoder, len(classes), classes, palette)
    model.load_report = load_strictly(model, read_tensors(path), str(path), "whitebox weights")
    return model.eval(), config


def save_training_state(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write ``state`` (tensors and plain containers) as the newest of the run, and keep the ``KEPT`` newest."""
    path = folder / f"step-{step:08d}.pt"
    write_atomically(path, lambda target: torch.save(state, target))
    for old in training_states(folder)[:-KEPT]:
        old.unlink()
    return path


def training_states(folder: Path) -> list[Path]:
    """Training states of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*.pt") if re.fullmatch(r"step-\d+\.pt", path.name))


def load_training_state(folder: Path) -> dict[str, Any]:
    """The newest training state that can be read.

    Raises:
        CheckpointError: there is none.
    """
    problems = []
    for path in reversed(training_states(folder)):
        try:
            state = read_pickle(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if isinstance(state, dict):
            return state
    detail = f" ({problems[0]})" if problems else ""
    raise CheckpointError(f"{folder} holds no training state that can be resumed{detail}")
