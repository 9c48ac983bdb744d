"""Weights and training states on disk.

``model.safetensors`` holds the weights, and in its header what is needed to rebuild the model
(``whitebox.engine.header``). ``checkpoints/step-STEP-SHA256.pt`` holds what resume needs; its checksum is in the name,
so file and checksum appear in one rename (see whitebox/files.py).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import save_file
from torch import Tensor

from whitebox import config as configuration
from whitebox.config import RunConfig
from whitebox.engine.header import EPOCHS as EPOCHS
from whitebox.engine.header import HEADER, read_header
from whitebox.engine.header import WEIGHTS as WEIGHTS
from whitebox.errors import CheckpointError, ConfigError
from whitebox.files import write_atomically
from whitebox.models import EncoderConfig, Segmentor, build
from whitebox.models.weights import Undrawn, count_numbers, load_strictly, read_pickle, read_tensors
from whitebox.versions import versions

ENCODER = "encoder."  # begins the names of its tensors
ENCODERS = "WHITEBOX_WEIGHTS"  # names a folder of encoder files
log = logging.getLogger("whitebox")

KEPT = 2  # training states
_STATE = re.compile(r"step-(\d{8,})-([0-9a-f]{16})\.pt")  # step, first digits of the SHA-256 of the file


def save_model(
    path: Path,
    model: Segmentor,
    config: RunConfig,
    weights: dict[str, Tensor] | None = None,
    altered: Mapping[str, Any] | None = None,
) -> None:
    """Write weights (None: those of ``model``) and header to ``path`` atomically.

    Of a frozen encoder that came from elsewhere, only name, hash and origin are written, unless ``train.whole``.

    Args:
        altered: what was done to the model after its training, in JSON's types, for the header.
    """
    header = {
        "config": configuration.to_dict(config),
        "classes": list(model.classes),
        "palette": [list(colour) for colour in model.palette],
        "versions": versions(),
        **({} if altered is None else {"altered": dict(altered)}),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in (weights or model.state_dict()).items()}
    if encoder_apart(config) and not config.train.whole:
        origin = config.encoder.weights or "timm"
        header["encoder"] = {"name": config.encoder.name, "sha256": model.encoder.sha256, "origin": origin}
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(ENCODER)}
    write_atomically(path, lambda target: save_file(tensors, target, metadata={HEADER: json.dumps(header)}))


def encoder_apart(config: RunConfig) -> bool:
    """Whether the encoder is as it came from elsewhere, so that a run need not keep it."""
    encoder = config.encoder
    frozen = isinstance(encoder, EncoderConfig) and encoder.frozen and encoder.train_last == 0
    return frozen and bool(encoder.pretrained or encoder.weights)


def _found_encoder(config: RunConfig, path: Path) -> EncoderConfig:
    """The configuration of an encoder that is not saved with a run, with a file that is there.

    Raises:
        CheckpointError: the file is not found; the message says which.
    """
    if config.encoder.weights is None:
        return replace(config.encoder, pretrained=True)
    given = Path(config.encoder.weights).expanduser()
    folders = [os.environ[ENCODERS]] if os.environ.get(ENCODERS) else []
    candidates = [given, path.parent / given.name, *(Path(folder).expanduser() / given.name for folder in folders)]
    for candidate in candidates:
        if candidate.is_file():
            return replace(config.encoder, weights=str(candidate))
    raise CheckpointError(
        f"{path} holds a decoder alone; its frozen encoder {config.encoder.name} came from {given}, which is not "
        f"there: put that file beside it, or name its folder with {ENCODERS}."
    )


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
    apart = header.get("encoder")
    if apart is not None and not isinstance(apart, dict):
        raise CheckpointError(f"The header of {path} does not say which encoder it needs; it is damaged.")
    whole = replace(config.encoder, pretrained=False, weights=None)  # everything is in the file itself
    encoder = whole if apart is None else _found_encoder(config, path)
    classes = tuple(header["classes"])
    palette = tuple((red, green, blue) for red, green, blue in header["palette"])
    tensors = read_tensors(path)
    held = count_numbers(tensors) if apart is None else None  # memory alone bounds an encoder that lies elsewhere
    with Undrawn():
        model = build(encoder, config.decoder, len(classes), classes, palette, held)
    if apart is not None:
        if model.encoder.sha256 != apart.get("sha256"):
            raise CheckpointError(
                f"The encoder {config.encoder.name} from {encoder.weights or 'timm'} is not the one that the decoder "
                f"in {path} was trained on (its hash differs): give that one."
            )
        own = model.state_dict().items()
        tensors = {**{name: tensor for name, tensor in own if name.startswith(ENCODER)}, **tensors}
    model.load_report = load_strictly(model, tensors, str(path), "whitebox weights")
    return model.eval(), config


class _Hashed:
    """A file that is written once, from start to end, and the checksum of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def save_training_state(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write ``state`` (tensors and plain containers) as the newest of the run, and keep the ``KEPT`` newest.

    Raises:
        OutputError: it cannot be written; the older states are untouched.
    """
    path = folder / f"step-{step:08d}.pt"
    final = path

    def write(target: Path) -> Path:
        nonlocal final
        with target.open("wb") as opened:
            hashed = _Hashed(opened)
            try:
                torch.save(state, hashed)  # type: ignore[arg-type]
            except RuntimeError as error:
                raise hashed.error or error from None  # torch hides the system's error behind its own
        final = folder / f"step-{step:08d}-{hashed.digest.hexdigest()[:16]}.pt"
        return final

    write_atomically(path, write)
    # Files of this step or a later one are leftovers: a run goes on from the newest state that verifies.
    older = [other for other in training_states(folder) if state_step(other) < step]
    for other in training_states(folder):
        if other != final and other not in older[1 - KEPT :]:
            other.unlink()
    return final


def training_states(folder: Path) -> list[Path]:
    """Training states of a run, oldest first."""
    return sorted((path for path in folder.glob("step-*.pt") if _STATE.fullmatch(path.name)), key=state_step)


def state_step(path: Path) -> int:
    """The step of a training state, from its name."""
    found = _STATE.fullmatch(path.name)
    assert found is not None
    return int(found[1])


def load_training_state(folder: Path) -> dict[str, Any]:
    """The newest training state whose checksum is right.

    Raises:
        CheckpointError: there is none.
    """
    damaged: list[str] = []
    for path in reversed(training_states(folder)):
        digest = hashlib.sha256()
        with path.open("rb") as opened:
            while block := opened.read(2**20):
                digest.update(block)
        if path.name != f"step-{state_step(path):08d}-{digest.hexdigest()[:16]}.pt":
            damaged.append(path.name)
            continue
        state = read_pickle(path)
        if not isinstance(state, dict):
            raise CheckpointError(f"{path} holds no training state: move it away.")
        if damaged:
            log.warning("%s is damaged (its checksum is wrong); going on from %s.", " and ".join(damaged), path.name)
        return state
    detail = f" ({' and '.join(damaged)}: damaged, the checksum is wrong)" if damaged else ""
    raise CheckpointError(f"{folder} holds no training state that can be resumed{detail}.")
