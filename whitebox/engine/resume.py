"""Which training state a run goes on from, and what may differ from the run that saved it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from whitebox import config as configuration
from whitebox.catalog import flatten
from whitebox.config import RunConfig
from whitebox.engine import checkpoint
from whitebox.errors import ConfigError, TrainingError

# A resumed run may differ in these: they do not change what is learned.
FREE_ON_RESUME = {"data.root", "inference.batch"} | {
    f"train.{key}"
    for key in (
        "workers",
        "log_every",
        "eval_every",
        "save_every",
        "save_every_steps",
        "micro_batch",
        "compile",
        "checkpointing",
        "trackers",
    )
}


def find_state(config: RunConfig, folder: Path, resume: bool, allow_changes: bool) -> dict[str, Any] | None:
    """The state to go on from; None: there is nothing yet."""
    if not resume:
        if (folder / "config.yaml").exists():
            raise TrainingError(
                f"{folder} holds a run already: continue it with --resume, or choose another name with --name."
            )
        return None
    if not checkpoint.training_states(folder / "checkpoints") and not (folder / checkpoint.WEIGHTS).exists():
        return None  # stopped before it saved anything, or not begun
    state = checkpoint.load_training_state(folder / "checkpoints")
    if not allow_changes:
        _check_same(json.loads(state["config"]), config, folder)
    return state


def _check_same(saved: dict[str, Any], config: RunConfig, folder: Path) -> None:
    was = flatten(configuration.to_dict(configuration.from_dict(saved)))  # with keys it did not know
    now = flatten(configuration.to_dict(config))
    changed = [
        f"{key} was {was.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(was.keys() | now.keys())
        if key not in FREE_ON_RESUME and was.get(key) != now.get(key)
    ]
    if changed:
        raise ConfigError(
            f"{folder} was started with another configuration: {'; '.join(changed)}. "
            "Go on with the old one, or accept the changes with --allow-changes."
        )
