"""Which training state a run goes on from, and what may differ from the run that saved it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from whitebox import config as configuration
from whitebox.catalog import flatten
from whitebox.config import BESIDE_LEARNING, RunConfig
from whitebox.data import SegmentationDataset
from whitebox.data.fingerprint import data_fingerprint
from whitebox.engine import checkpoint
from whitebox.errors import CheckpointError, ConfigError, TrainingError
from whitebox.foreign import parse_json
from whitebox.versions import versions

_PARTS = {"step", "config", "model", "optimizer", "scaler", "ema"}  # of a state; since 0.2 also "origin"
log = logging.getLogger("whitebox")


def find_state(config: RunConfig, folder: Path, resume: bool, allow_changes: bool) -> dict[str, Any] | None:
    """The state to go on from; None: there is nothing yet."""
    if not resume:
        if (folder / "config.yaml").exists():
            raise TrainingError(
                f"{folder} holds a run already: continue it with --resume, or choose another name with --name."
            )
        return None
    saved = (folder / checkpoint.WEIGHTS).exists() and not _stopped_in_its_first_save(folder)
    if not checkpoint.training_states(folder / "checkpoints") and not saved:
        return None  # stopped before it saved anything, or not begun
    state = checkpoint.load_training_state(folder / "checkpoints")
    if not state.keys() >= _PARTS:
        raise CheckpointError(f"The newest training state of {folder} is not one of whitebox: move it away.")
    _settle(folder, "another configuration", _changed_keys(json.loads(state["config"]), config), allow_changes)
    return state


def _stopped_in_its_first_save(folder: Path) -> bool:
    """Whether a run that has weights and no state ended between the two.

    One that was finished, whose states were deleted, has an evaluation in its log; what was never trained has no log.
    """
    log_file = folder / "metrics.jsonl"
    try:
        lines = [parse_json(line) for line in log_file.read_bytes().splitlines()]
    except (OSError, ValueError):
        return False
    return all(isinstance(line, dict) and "split" not in line for line in lines)


def origin(config: RunConfig, train_set: SegmentationDataset, val_set: SegmentationDataset) -> dict[str, Any]:
    """What a state says of the data and the code it comes from, beside its configuration.

    Raises:
        DataError: a file cannot be read.
    """
    known = versions()
    return {
        "classes": list(train_set.classes),
        "data": {
            split: {"images": len(images), "fingerprint": data_fingerprint(config.data, images.source)}
            for split, images in ((config.data.train_split, train_set), (config.data.val_split, val_set))
        },
        "code": {name: known[name] for name in ("whitebox", "git_commit")},
    }


def check_origin(was: Mapping[str, Any] | None, now: Mapping[str, Any], folder: Path, allow_changes: bool) -> None:
    """See whether a run that is gone on with has the data and the code it began with; None: a state of before 0.2.

    Raises:
        ConfigError: it has not, and nobody allowed it.
    """
    if was is None:
        return
    data = []
    if was["classes"] != now["classes"]:
        data.append(f"classes were {_listed(was['classes'])}, are {_listed(now['classes'])}")
    for split, before in was["data"].items():
        after = now["data"].get(split, {"images": 0, "fingerprint": ""})
        if before["images"] != after["images"]:
            data.append(f"{split} had {before['images']} images, has {after['images']}")
        elif before["fingerprint"] != after["fingerprint"]:
            data.append(f"images or labels of {split} have changed")
    _settle(folder, "other data", data, allow_changes)
    code = [
        f"{name} was {before}, is {now['code'].get(name)}"
        for name, before in was["code"].items()
        if before != now["code"].get(name)
    ]
    _settle(folder, "another version of the code", code, allow_changes)


def _settle(folder: Path, what: str, changed: list[str], allow_changes: bool) -> None:
    if not changed:
        return
    found = f"{folder} was started with {what}: {'; '.join(changed)}."
    if not allow_changes:
        raise ConfigError(f"{found} Go on with the old one, or accept the changes with --allow-changes.")
    log.warning("%s It goes on as you allowed.", found)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _changed_keys(saved: dict[str, Any], config: RunConfig) -> list[str]:
    was = flatten(configuration.to_dict(configuration.from_dict(saved)))  # with keys it did not know
    now = flatten(configuration.to_dict(config))
    return [
        f"{key} was {was.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(was.keys() | now.keys())
        if key not in BESIDE_LEARNING and was.get(key) != now.get(key)
    ]
