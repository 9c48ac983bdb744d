"""Trainings in processes of their own, which tests may kill.

They are forked from one server that has imported everything and computed nothing, so a process costs no start.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pkgutil
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import analysis
import experiments
import whitebox
from whitebox.config import RunConfig, resolve
from whitebox.engine import train
from whitebox.errors import WhiteboxError

SERVER = multiprocessing.get_context("forkserver")
OURS = [
    found.name
    for package in (whitebox, analysis, experiments)
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not found.name.endswith((".__main__", ".mmseg"))  # the one begins, the other needs an extra
]
THEIRS = [
    *("torch._dynamo", "torch._dynamo.backends.common", "torch._functorch.aot_autograd"),
    *("seaborn", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_pdf"),
    *("pytest", "typer._adapters"),
]
SERVER.set_forkserver_preload([*OURS, *THEIRS, "warm_child"])

TINY = {
    "encoder.width": 24,
    "encoder.depth": 2,
    "encoder.heads": 2,
    "decoder.head_dim": 8,
    "data.size": 32,
    "data.crop": 32,
    "data.resize": 32,
    "data.train_length": 12,
    "data.val_length": 3,
    "inference.window": 32,
    "inference.stride": 32,
    "train.batch_size": 4,
    "train.epochs": 2,
    "train.workers": 0,
    "train.log_every": 1,
    "train.save_every_steps": 2,
}
STEPS = 6  # of TINY: 2 epochs of 3; states are saved at 2, 3, 4, 6


def tiny(model: str = "depict-sa-tiny", **overrides: Any) -> RunConfig:
    """A training of a second; overrides with ``__`` for the dot."""
    return resolve(model, "shapes", {**TINY, **{key.replace("__", "."): value for key, value in overrides.items()}})


class Quiet:
    """A reporter that remembers, and calls ``at_step`` after each step, ``at_image`` after each evaluated image, and
    ``at_row`` after each encoded view or some prompts."""

    def __init__(
        self,
        at_step: Callable[[int], None] | None = None,
        at_image: Callable[[int], None] | None = None,
        at_row: Callable[[int], None] | None = None,
    ) -> None:
        self.at_step, self.at_image, self.at_row = at_step, at_image, at_row
        self.encoded = 0  # views or prompts
        self.lines: list[dict[str, Any]] = []
        self.times: list[train.StepTimes] = []
        self.begun: tuple[int, int, int, int] | None = None

    def started(self, config: RunConfig, steps: int, first_step: int, train_images: int, val_images: int) -> None:
        self.begun = (steps, first_step, train_images, val_images)

    def encoding(self, done: int, total: int, what: str) -> None:
        assert 0 < done <= total
        self.encoded = done
        if self.at_row is not None:
            self.at_row(done)

    def logged(self, line: dict[str, Any]) -> None:
        self.lines.append(line)

    def stepped(self, step: int) -> None:
        if self.at_step is not None:
            self.at_step(step)

    def evaluating(self, done: int, total: int) -> None:
        assert 0 < done <= total
        if self.at_image is not None:
            self.at_image(done)

    def evaluated(self, line: dict[str, Any]) -> None:
        self.lines.append(line)

    def timed(self, times: train.StepTimes) -> None:
        self.times.append(times)


def die() -> None:
    """kill -9 of this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def _run(target: Callable[..., None], arguments: tuple[Any, ...], environment: dict[str, str], output: Path) -> None:
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # as where no server began the process
    with output.open("w") as opened:
        os.dup2(opened.fileno(), 1)
        os.dup2(opened.fileno(), 2)
        sys.stdout = sys.stderr = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), write_through=True)
        code = 1
        try:
            target(*arguments)
            code = 0
        except WhiteboxError as error:
            sys.stdout.write(f"{type(error).__name__}: {error}\n")
            code = error.exit_code
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        except BaseException:  # noqa: BLE001 what a process prints before it dies
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)


class Ended(list[tuple[int, str]]):
    """Exit code (-9: killed) and output of each process."""


def together(count: int, target: Callable[..., None], *arguments: Any, folder: Path) -> Ended:
    """Run ``target(*arguments)`` in ``count`` processes that know of each other."""
    environments: list[dict[str, str]] = [{}]
    if count > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
        shared |= {"LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        environments = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    outputs = [folder / f"output-{rank}.txt" for rank in range(count)]
    processes = [
        SERVER.Process(target=_run, args=(target, arguments, environment, output))
        for environment, output in zip(environments, outputs, strict=True)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode is not None, "a process hangs: " + "".join(path.read_text() for path in outputs)
    return Ended(
        (int(process.exitcode or 0), path.read_text()) for process, path in zip(processes, outputs, strict=True)
    )


def alone(target: Callable[..., None], *arguments: Any, folder: Path) -> tuple[int, str]:
    """Run ``target(*arguments)`` in one process; its exit code and output."""
    return together(1, target, *arguments, folder=folder)[0]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights a run has saved."""
    return whitebox.load_model(folder).state_dict()


def lines(folder: Path, key: str = "loss") -> list[tuple[int, float]]:
    """(step, value) of the lines of metrics.jsonl that hold ``key``."""
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line[key]) for line in read if key in line]


def same(first: Path, second: Path) -> bool:
    """Whether two runs have bitwise the same losses, scores and weights."""
    ours, theirs = weights(first), weights(second)
    return (
        lines(first) == lines(second)
        and lines(first, "miou") == lines(second, "miou")
        and ours.keys() == theirs.keys()
        and all(torch.equal(ours[name], theirs[name]) for name in ours)
    )
