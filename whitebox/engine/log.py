"""What a training says of itself: to who watches it, and in ``metrics.jsonl``."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from whitebox.config import RunConfig
from whitebox.errors import OutputError
from whitebox.files import write_text
from whitebox.foreign import parse_json


class Reporter(Protocol):
    """Who shows how a run goes; what is not overridden does nothing."""

    def started(self, config: RunConfig, steps: int, first_step: int, train_images: int, val_images: int) -> None:
        return

    def contrasting(self, done: int, total: int, kept: Path) -> None:
        """First where it begins, or goes on; only with ``done == total`` where it was done before."""
        return

    def encoding(self, done: int, total: int, what: str) -> None:
        return

    def logged(self, line: dict[str, Any]) -> None:
        return

    def stepped(self, step: int) -> None:
        return

    def evaluating(self, done: int, total: int) -> None:
        return

    def evaluated(self, line: dict[str, Any]) -> None:
        return

    def timed(self, times: StepTimes) -> None:
        return


class Silent(Reporter):
    """The reporter of the processes beside the main one."""


@dataclass
class StepTimes:
    """Mean seconds of a step, over ``steps`` of them.

    Attributes:
        model: forward, backward and update.
        loader: making one batch: reading and augmenting, divided by the number of loading processes.
        waited: how long the model waited for a batch.
        workers: loading processes; 0: the training process loads, between steps.
    """

    workers: int
    steps: int = 0
    model: float = 0.0
    loader: float = 0.0
    waited: float = 0.0

    def add(self, model: float, loader: float, waited: float) -> None:
        """Take one more step into the means."""
        self.steps += 1
        self.model += (model - self.model) / self.steps
        self.loader += (loader / max(1, self.workers) - self.loader) / self.steps
        self.waited += (waited - self.waited) / self.steps


class MetricsLog:
    """``metrics.jsonl``: one JSON object a line; lines after the step a run is resumed from are dropped.

    Attributes:
        evaluated: the steps whose evaluation was kept.
    """

    def __init__(self, path: Path, first_step: int, steps: int) -> None:
        self.path = path
        self.lines: list[str] = []
        self.evaluated: set[int] = set()
        if not first_step or not path.exists():
            return
        for written in path.read_bytes().splitlines():
            try:
                line = parse_json(written)
                step, evaluation = line["step"], "split" in line
            except (ValueError, KeyError, TypeError):  # cut short by a crash, or damaged
                continue
            if not isinstance(step, int):
                continue
            text = written.decode()
            if step < first_step or (step == first_step and not (evaluation and step == steps)):  # the last is repeated
                self.lines.append(text)
                self.evaluated |= {step} if evaluation else set()

    def begin(self) -> None:
        """Write the lines that are kept."""
        write_text(self.path, "".join(f"{line}\n" for line in self.lines))

    def write(self, line: dict[str, Any]) -> None:
        """Append one line.

        Raises:
            OutputError: the disk does not take it.
        """
        clean = {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in line.items()}
        try:
            with self.path.open("a", encoding="utf-8") as opened:
                opened.write(json.dumps(clean) + "\n")
        except OSError as error:
            raise OutputError(f"Cannot write {self.path}: {error.strerror}; free some space, then --resume.") from error
