"""Several processes as one: who writes, what they agree on, and how an evaluation is shared.

Processes are started by torchrun, ``accelerate launch`` or srun (docs/cluster.md), which set RANK, LOCAL_RANK and
WORLD_SIZE; accelerate does the rest.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, broadcast_object_list, gather_object

from whitebox.config import DataConfig, InferenceConfig, RunConfig
from whitebox.engine.evaluate import (
    Evaluation,
    ImageCounts,
    Kept,
    LabelledImage,
    LabelledImages,
    count_images,
    evaluation_of,
)
from whitebox.errors import ConfigError, WhiteboxError
from whitebox.lock import LOCK, Lock

_ONE_PRESS_S = 0.5  # a launcher may pass on the SIGINT that the terminal has sent to all processes


def several_processes() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join(device: str | None) -> PartialState:
    """Meet the other processes, if any, and settle the device; ``device``: the user's choice, None: the best there is.

    Raises:
        ConfigError: the device cannot be used, or one device is named for several processes.
    """
    on_cpu = device == "cpu" or (device is None and not torch.accelerator.is_available())
    if not several_processes():
        AcceleratorState._reset_state(reset_partial_state=True)  # an earlier run in this process may have had another
    elif device not in (None, "cpu"):
        raise ConfigError(f"--device {device} names one device for {os.environ['WORLD_SIZE']} processes: leave it out.")
    if device is not None and not on_cpu:
        os.environ["ACCELERATE_TORCH_DEVICE"] = device
    try:
        if device is not None:
            torch.empty(0, device=device)
        return PartialState(cpu=on_cpu)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {device} cannot be used here: {str(error).splitlines()[0]}") from error
    finally:
        os.environ.pop("ACCELERATE_TORCH_DEVICE", None)


def accelerator_for(config: RunConfig, folder: Path, device: str | None) -> Accelerator:
    """What runs a training on this device, at its precision, with the other processes.

    Raises:
        ConfigError: see ``join``; or the configuration is not possible there.
    """
    joined = join(device)
    if config.train.precision == "fp16" and joined.device.type == "cpu":
        raise ConfigError("train.precision=fp16 needs a GPU: choose fp32 or bf16.")
    precision = {"fp32": "no"}.get(config.train.precision, config.train.precision)
    AcceleratorState._reset_state()  # several runs in one process may differ in precision; accelerate keeps a singleton
    accelerator = Accelerator(
        mixed_precision=precision,
        cpu=joined.device.type == "cpu",
        log_with=list(config.train.trackers) or None,
        project_dir=folder,
    )
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        if accelerator.distributed_type != DistributedType.FSDP:
            raise ConfigError("FSDP needs GPUs: leave --use_fsdp out, and the processes train with DDP.")
        if not accelerator.is_fsdp2:
            raise ConfigError("Of FSDP only version 2 is known here: add --fsdp_version 2.")
        if config.train.ema is not None:
            raise ConfigError("train.ema keeps a whole model, which FSDP shards: use DDP, or train.ema=null.")
    return accelerator


def leave() -> None:
    """Part from the other processes."""
    PartialState().destroy_process_group()


def on_main(action: Callable[[], None]) -> None:
    """Do ``action`` on the main process while the others wait; an error it raises on purpose is raised on all.

    Processes that have parted (``leave``, the end of a training) do not wait.
    """
    failed: list[WhiteboxError | None] = [None]
    if PartialState().is_main_process:
        try:
            action()
        except WhiteboxError as error:
            failed = [error]
    if PartialState().num_processes > 1 and torch.distributed.is_initialized():
        broadcast_object_list(failed)
    if failed[0] is not None:
        raise failed[0]


@contextmanager
def one_writer(folder: Path, cure: str) -> Iterator[Lock]:
    """Inside the block the processes of this run alone write into ``folder``; the main one holds its lock.

    Raises:
        InUseError: another run holds it; ``cure`` says what to do, beside waiting.
        OutputError: the folder cannot be written.
    """
    lock = Lock(folder / LOCK, str(folder), cure)

    def acquire() -> None:
        lock.__enter__()

    on_main(acquire)
    try:
        yield lock
    finally:
        lock.__exit__()


def gathered(value: Any) -> list[Any]:
    """What every process gives, in order of their numbers."""
    return gather_object([value]) if PartialState().num_processes > 1 else [value]


def evaluate_together(
    model: torch.nn.Module,
    dataset: LabelledImages,
    inference: InferenceConfig,
    data: DataConfig | None = None,
    *,
    limit: int | None = None,
    workers: int | None = None,
    on_image: Callable[[int, LabelledImage, torch.Tensor], None] | None = None,
    kept: Kept = Kept(),  # noqa: B008 it cannot be changed
) -> Evaluation:
    """As ``evaluate``, each process on its share of the images; all of them return the whole.

    Raises:
        WhiteboxError: see ``evaluate``; what one process raises, all raise.
    """
    rank, processes = PartialState().process_index, PartialState().num_processes
    found: list[ImageCounts] | WhiteboxError
    try:
        found = list(
            count_images(
                model,
                dataset,
                inference,
                data,
                limit=limit,
                workers=workers,
                on_image=on_image,
                shard=(rank, processes),
                kept=kept,
            )
        )
    except WhiteboxError as error:
        if processes == 1:
            raise
        found = error
    parts: list[list[ImageCounts]] = []
    for part in gathered(found):
        if isinstance(part, WhiteboxError):
            raise part
        parts.append(part)
    in_order = [parts[index % processes][index // processes] for index in range(sum(map(len, parts)))]
    return evaluation_of(in_order, len(dataset.classes), data)


class StopRequested(WhiteboxError):
    """SIGTERM or SIGINT has come; raised where stopping loses nothing."""


class StopSignals:
    """Inside the block SIGTERM and SIGINT are noted instead of obeyed; a second SIGINT stops at once.

    Attributes:
        received: the first signal; None: none yet.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received is not None and time.monotonic() - self._at > _ONE_PRESS_S:
            raise KeyboardInterrupt
        if self.received is None:
            self.received, self._at = signal.Signals(number), time.monotonic()

    def check(self) -> None:
        """Raise ``StopRequested`` if a signal has come."""
        if self.received is not None:
            raise StopRequested(f"{self.received.name} came.")
