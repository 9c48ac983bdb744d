"""The training loop.

Schedule and loss follow Segmenter's official code: SGD with Nesterov momentum, polynomial decay per step to
``min_lr``, and cross-entropy over the valid pixels at full resolution; another loss is another part
(``whitebox.models.losses``). A batch may be split over processes and over forward passes (``train.micro_batch``); the
loss is always that of the whole batch, so the split changes nothing but memory. Every random number is a function of
(seed, step) or (seed, epoch, index): nothing depends on what ran before.

With several processes the main one writes and reports. Before each update they agree, in one message, on the numbers
that the loss divides by, on whether one could not read its images, and on whether one was told to stop: so all of them
go on, fail or stop at the same step.
"""

from __future__ import annotations

import copy
import json
import math
import os
import resource
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, Protocol, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.utils.data import DataLoader, Sampler

from whitebox import config as configuration
from whitebox.config import RunConfig
from whitebox.data import Sample, build_dataset, dataset_info
from whitebox.data.loading import ErrorsAsValues, default_workers, ignore_signals
from whitebox.data.sampler import EpochSampler
from whitebox.engine import checkpoint
from whitebox.engine.adapt import StochasticDepth, recompute_layers
from whitebox.engine.distributed import StopRequested, StopSignals, evaluate_together, gathered, join, on_main
from whitebox.engine.evaluate import Evaluation
from whitebox.engine.metrics import Scores, scores
from whitebox.engine.recipe import build_loss, build_optimizer, learning_rate
from whitebox.errors import ConfigError, DataError, OutputError, TrainingError, WhiteboxError
from whitebox.files import remove_leftovers, write_text
from whitebox.models import Segmentor, build
from whitebox.models.weights import load_strictly

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
COMPILER = "inductor"
TIMED_STEPS = 20  # after the first, which is slower
_WHOLE = StateDictOptions(full_state_dict=True)
_WHOLE_ON_MAIN = StateDictOptions(full_state_dict=True, cpu_offload=True)


class Interrupted(TrainingError):
    """A training that was told to stop by a signal and has saved its state; 0 after SIGTERM, 130 after SIGINT."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Reporter(Protocol):
    """Who shows how a run goes; what is not overridden does nothing."""

    def started(self, config: RunConfig, steps: int, first_step: int, train_images: int, val_images: int) -> None:
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


class _Silent(Reporter):
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


def summed_loss(model: torch.nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Sums of the model's loss, see ``whitebox.models.losses``; label 255 is ignored."""
    return cast(Tensor, model(images, labels))


class _Batches(Sampler[list[tuple[int, int]]]):
    """This process's share of every complete batch of an epoch."""

    def __init__(self, sampler: EpochSampler, batch_size: int, rank: int, processes: int) -> None:
        self.sampler, self.batch_size, self.rank, self.processes = sampler, batch_size, rank, processes

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        batch: list[tuple[int, int]] = []
        for key in self.sampler:
            batch.append(key)
            if len(batch) == self.batch_size:
                yield batch[self.rank :: self.processes]
                batch = []


class _Timed(ErrorsAsValues):
    """A dataset that says how long a batch took."""

    def __getitems__(self, keys: list[tuple[int, int]]) -> tuple[list[Sample | WhiteboxError], float]:
        began = time.perf_counter()
        return [self[key] for key in keys], time.perf_counter() - began


@dataclass(frozen=True)
class _Batch:
    """Images (B, 3, C, C), labels (B, C, C), names, and the seconds it took to make them; or what went wrong."""

    images: Tensor
    labels: Tensor
    names: list[str]
    seconds: float
    error: WhiteboxError | None = None

    def pin_memory(self) -> _Batch:
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory())


def _collate(loaded: tuple[list[Sample | WhiteboxError], float]) -> _Batch:
    samples: list[Sample] = []
    for sample in loaded[0]:
        if isinstance(sample, WhiteboxError):
            return _Batch(torch.empty(0), torch.empty(0, 0, 0, dtype=torch.uint8), [], 0.0, sample)
        samples.append(sample)
    return _Batch(
        torch.stack([sample.image for sample in samples]),
        torch.stack([sample.label for sample in samples]),
        [sample.name for sample in samples],
        loaded[1],
    )


def train(
    config: RunConfig,
    folder: Path,
    reporter: Reporter,
    *,
    resume: bool = False,
    allow_changes: bool = False,
    device: str | None = None,
) -> tuple[Segmentor, Evaluation]:
    """Train a model, or go on with an interrupted run; returns it with its evaluation on the validation split.

    Writes into ``folder``: config.yaml, metrics.jsonl, checkpoints/, model.safetensors. With several processes all of
    them must see the same folder.

    Args:
        config: what to train, on what, and how.
        folder: of the run.
        reporter: told how it goes, on the main process.
        resume: go on from the newest training state; where a run was stopped before its first, begin.
        allow_changes: a run to go on with may have had another configuration.
        device: see ``--device``.

    Raises:
        Interrupted: SIGTERM or SIGINT came; the state is saved.
        TrainingError: the folder holds another run, or the loss is not finite.
        OutputError: the folder cannot be written.
        ConfigError: the configuration cannot be used here, or differs from that of the run to resume.
        DataError, ModelError, CheckpointError: see there.
    """
    _check_trackers(config)
    state = _find_state(config, folder, resume, allow_changes)
    accelerator = _accelerator(config, folder, device)
    if config.train.batch_size % accelerator.num_processes:
        raise ConfigError(
            f"train.batch_size={config.train.batch_size} cannot be shared by {accelerator.num_processes} processes."
        )
    try:
        run = _Run(config, folder, reporter if accelerator.is_main_process else _Silent(), accelerator, state)
        with run.signals:
            try:
                return run.train()
            except StopRequested:
                raise run.stopped() from None
            finally:
                del run.loader  # ends the loading processes
    finally:
        accelerator.end_training()


class _Learner:
    """The model with everything an update needs, on one device or many."""

    def __init__(
        self, built: Segmentor, config: RunConfig, accelerator: Accelerator, state: dict[str, Any] | None
    ) -> None:
        self.built, self.config, self.accelerator = built, config, accelerator
        if config.train.checkpointing:
            recompute_layers(built)
        self.depth = StochasticDepth(built)
        built.loss = self.loss = build_loss(config.loss, built.num_classes)
        optimizer = build_optimizer(built, config.optim)
        self.rates = [group["lr"] / config.optim.lr for group in optimizer.param_groups]
        chosen = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        if state is not None:
            load_strictly(built, state["model"], "The training state", "whitebox weights")
        sharded = accelerator.distributed_type == DistributedType.FSDP
        # Processes evaluate different numbers of windows, which a sharded model cannot: it needs all of them each time.
        self.whole = copy.deepcopy(built).to(accelerator.device) if sharded else None
        self.model, self.optimizer = accelerator.prepare(built, optimizer)
        if config.train.compile:
            self.model = torch.compile(self.model, backend=COMPILER)
        saved: dict[str, Any] = state["optimizer"] if state is not None else {"name": None}
        if (
            saved["name"] == config.optim.name
            and saved["state"]["state"]
            and len(saved["state"]["param_groups"]) == len(chosen)  # else decoder_lr or decay_norms were changed
        ):
            set_optimizer_state_dict(built, self.optimizer.optimizer, saved["state"], options=_WHOLE)
            for group, settings in zip(self.optimizer.param_groups, chosen, strict=True):
                group.update(settings)
        if state is not None and accelerator.scaler is not None and state["scaler"] is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
        self.ema = ModelEmaV3(built, decay=config.train.ema) if config.train.ema is not None else None
        if self.ema is not None and state is not None and state["ema"] is not None:
            self.ema.module.load_state_dict(state["ema"])

    def update(self, batch: _Batch, step: int, rate: float, signals: StopSignals) -> tuple[float, float]:
        """One optimiser step; returns the loss of the whole batch and the norm of its gradient.

        Nothing is updated when one of them is not finite (but see fp16: its scaler skips such steps itself).

        Raises:
            StopRequested: a process was told to stop; nothing was done.
            DataError: a process could not read its images.
        """
        config, accelerator = self.config, self.accelerator
        processes, device = accelerator.num_processes, accelerator.device
        own = self.loss.counts(batch.labels, self.built.num_classes)
        agreed = torch.tensor([*own, int(signals.received is not None), int(batch.error is not None)]).to(device)
        *counts, told_to_stop, failed = cast(Tensor, accelerator.reduce(agreed, reduction="sum")).tolist()
        if failed:
            raise next(error for error in gathered(batch.error) if error is not None)
        if told_to_stop:
            raise StopRequested("A process was told to stop.")

        for group, times in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * times
        torch.manual_seed(_seed(config.train.seed, step, accelerator.process_index))
        uniform_LB = self.depth.draw(_seed(config.train.seed, step), config.train.batch_size)
        uniform_LB = uniform_LB[:, accelerator.process_index :: processes].to(device)
        self.built.train()
        micro = config.train.micro_batch or len(batch.images)
        total = torch.zeros((), device=device)
        starts = range(0, len(batch.images), micro)
        for start in starts:
            images = batch.images[start : start + micro].to(device, non_blocking=True)
            labels = batch.labels[start : start + micro].to(device, non_blocking=True)
            self.depth.use(uniform_LB[:, start : start + micro])
            with accelerator.no_sync(self.model) if start != starts[-1] else nullcontext():
                loss = self.loss.mean(summed_loss(self.model, images, labels), counts)
                # processes average their gradients; the loss is a sum over all of them
                accelerator.backward(loss * processes)
            total += loss.detach()
        value, norm = float(cast(Tensor, accelerator.reduce(total, reduction="sum"))), math.nan
        if math.isfinite(value):
            limit = math.inf if config.optim.clip_grad is None else config.optim.clip_grad  # inf: measured alone
            norm = float(accelerator.clip_grad_norm_(self.model.parameters(), limit))
            if math.isfinite(norm) or accelerator.scaler is not None:
                self.optimizer.step()
                if self.ema is not None:
                    self.ema.update(self.built, step=step + 1)
        self.optimizer.zero_grad(set_to_none=True)
        return value, norm

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What is saved as the model, and what resuming needs; both empty beside the main process.

        Names and shapes are those of one process, so that another number of them can go on.
        """
        weights = cast(dict[str, Tensor], get_model_state_dict(self.built, options=_WHOLE_ON_MAIN))
        optimizer = get_optimizer_state_dict(self.built, self.optimizer.optimizer, options=_WHOLE_ON_MAIN)
        scaler = self.accelerator.scaler
        averaged = self.ema.module.state_dict() if self.ema is not None else None
        return averaged or weights, {
            "model": weights,
            "optimizer": {"name": self.config.optim.name, "state": optimizer},
            "scaler": scaler.state_dict() if scaler is not None else None,
            "ema": averaged,
        }

    def evaluated(self) -> Segmentor:
        """The model whose scores count."""
        if self.ema is not None:
            return cast(Segmentor, self.ema.module)
        if self.whole is not None:
            self.whole.load_state_dict(get_model_state_dict(self.built, options=_WHOLE))
            return self.whole
        return self.built


class _Run:
    """One training, from its folder to its last evaluation."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        reporter: Reporter,
        accelerator: Accelerator,
        state: dict[str, Any] | None,
    ) -> None:
        self.config, self.folder, self.reporter, self.accelerator = config, folder, reporter, accelerator
        self.signals = StopSignals()
        classes, palette = dataset_info(config.data)
        torch.manual_seed(config.train.seed)
        built = build(config.encoder, config.decoder, len(classes), classes, palette)
        self.train_set = build_dataset(
            config.data,
            config.data.train_split,
            augment=True,
            seed=config.train.seed,
            mean_255=tuple(built.mean.flatten().tolist()),
        )
        self.val_set = build_dataset(config.data, config.data.val_split, augment=False)
        self.steps_per_epoch = len(self.train_set) // config.train.batch_size
        if self.steps_per_epoch == 0:
            raise DataError(
                f"{config.data.name} has {len(self.train_set)} training images, fewer than one batch: "
                f"set train.batch_size to at most {len(self.train_set)}."
            )
        self.steps = config.train.steps or self.steps_per_epoch * config.train.epochs
        self.step = self.saved_at = self.first_step = min(int(state["step"]), self.steps) if state is not None else 0
        self.learner = _Learner(built, config, accelerator, state)

        self.sampler = EpochSampler(len(self.train_set), seed=config.train.seed, shuffle=True)
        self.workers = default_workers() if config.train.workers is None else config.train.workers
        self.loader: DataLoader[Any] = DataLoader(
            _Timed(self.train_set, len(self.train_set)),
            batch_sampler=_Batches(
                self.sampler, config.train.batch_size, accelerator.process_index, accelerator.num_processes
            ),
            collate_fn=cast(Any, _collate),  # it takes what __getitems__ gives
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=accelerator.device.type == "cuda",
            worker_init_fn=ignore_signals,
        )
        self.log = MetricsLog(folder / "metrics.jsonl", self.first_step, self.steps)
        on_main(self._begin)
        settings = configuration.flatten(configuration.to_dict(config))
        plain = {key: value if isinstance(value, int | float) else str(value) for key, value in settings.items()}
        accelerator.init_trackers("whitebox", plain)  # tensorboard takes no lists

    def _begin(self) -> None:
        for name in ("config.yaml", "metrics.jsonl", checkpoint.WEIGHTS):
            remove_leftovers(self.folder, name)
        remove_leftovers(self.folder / "checkpoints", "step-*")
        write_text(self.folder / "config.yaml", configuration.to_yaml(self.config))
        self.log.begin()

    def train(self) -> tuple[Segmentor, Evaluation]:
        """All steps that are left, and the evaluation of the result."""
        self.reporter.started(self.config, self.steps, self.first_step, len(self.train_set), len(self.val_set))
        if self._evaluation_due() and not self._evaluated():  # it was killed after saving, before evaluating
            self._validate(self.learner.evaluated())
        times = StepTimes(self.workers)
        while self.step < self.steps:
            epoch, within = divmod(self.step, self.steps_per_epoch)
            self.sampler.set_epoch(epoch, skip=within * self.config.train.batch_size)
            self._epoch(epoch, times)
            if self._evaluation_due():
                self._validate(self.learner.evaluated())
        # The result is that of the saved weights in float32, as `whitebox eval` will find it again.
        saved, _ = checkpoint.load_weights(self.folder / checkpoint.WEIGHTS)
        return saved, self._validate(saved.to(self.accelerator.device))

    def stopped(self) -> Interrupted:
        """Save what is not saved yet, and say how to go on."""
        if self.saved_at != self.step:
            self._save()
        name = next(received.name for received in gathered(self.signals.received) if received is not None)
        return Interrupted(
            f"Stopped by {name} at step {self.step} of {self.steps}"
            f"{f'; the state is saved in {self.folder}' if self.step else ''}. "
            "Go on with the same command and --resume.",
            exit_code=130 if name == "SIGINT" else 0,
        )

    def _epoch(self, epoch: int, times: StepTimes) -> None:
        config = self.config
        since, images_since, waiting = time.perf_counter(), 0, time.perf_counter()
        for batch in self.loader:
            loaded = time.perf_counter()
            rate = learning_rate(self.step, self.steps, config.optim)
            loss, norm = self.learner.update(batch, self.step, rate, self.signals)
            if not (math.isfinite(loss) and (math.isfinite(norm) or self.accelerator.scaler is not None)):
                self._refuse(loss, norm, epoch, rate, batch.names)
            self.step += 1
            images_since += config.train.batch_size
            now = time.perf_counter()
            if self.step > self.first_step + 1 and times.steps < TIMED_STEPS:
                times.add(now - loaded, batch.seconds, loaded - waiting)
                if times.steps == TIMED_STEPS or self.step == self.steps:
                    self.reporter.timed(times)
            if self.step % config.train.log_every == 0 or self.step == self.steps:
                line = {
                    "step": self.step,
                    "epoch": self.step / self.steps_per_epoch,
                    "loss": loss,
                    "lr": rate,
                    "images_per_second": images_since / (now - since),
                    "memory_gb": _peak_memory_gb(self.accelerator.device),
                }
                since, images_since = now, 0
                self._write(line)
                self.accelerator.log({"train/loss": loss, "train/lr": rate}, step=self.step)
                self.reporter.logged(line)
            self.reporter.stepped(self.step)
            if self._save_due():
                self._save()
            if self.step == self.steps:
                return
            waiting = time.perf_counter()

    def _refuse(self, loss: float, norm: float, epoch: int, rate: float, names: list[str]) -> NoReturn:
        together = [name for part in gathered(names) for name in part]
        what = f"gradient is {norm}" if math.isfinite(loss) else f"loss is {loss}"
        raise TrainingError(
            f"The {what} at step {self.step} (epoch {epoch}, learning rate {rate:.3g}, images "
            f"{', '.join(together[:4])}{', ...' if len(together) > 4 else ''}); the weights were not updated. "
            "Lower optim.lr, or set optim.clip_grad=1."
        )

    def _save_due(self) -> bool:
        chosen = self.config.train
        epoch, within = divmod(self.step, self.steps_per_epoch)
        if self.step == self.steps or (within == 0 and epoch % chosen.save_every == 0):
            return True
        return chosen.save_every_steps is not None and self.step % chosen.save_every_steps == 0

    def _save(self) -> None:
        weights, state = self.learner.state()
        state |= {"step": self.step, "config": json.dumps(configuration.to_dict(self.config))}

        def write() -> None:
            states = self.folder / "checkpoints"
            try:  # in this order: a state that is there has its weights beside it
                checkpoint.save_model(self.folder / checkpoint.WEIGHTS, self.learner.built, self.config, weights)
                checkpoint.save_training_state(states, self.step, state)
            except OutputError as error:
                kept = checkpoint.training_states(states)
                if not kept:
                    raise
                step = checkpoint.state_step(kept[-1])
                raise OutputError(f"{error} The state of step {step} is kept: --resume goes on from it.") from error

        on_main(write)
        self.saved_at = self.step

    def _evaluation_due(self) -> bool:
        epoch, within = divmod(self.step, self.steps_per_epoch)
        every = self.config.train.eval_every
        return 0 < self.step < self.steps and within == 0 and every > 0 and epoch % every == 0

    def _evaluated(self) -> bool:
        return bool(gathered(self.step in self.log.evaluated)[0])

    def _validate(self, model: Segmentor) -> Evaluation:
        def on_image(index: int, *_: object) -> None:
            self.signals.check()
            self.reporter.evaluating(index + 1, len(self.val_set))

        measured = evaluate_together(
            model, self.val_set, self.config.inference, self.config.data, workers=self.workers, on_image=on_image
        )
        found: Scores = scores(measured.counts_N3K)
        line = {
            "step": self.step,
            "epoch": self.step / self.steps_per_epoch,
            "split": self.config.data.val_split,
            "miou": found.miou,
            "macc": found.macc,
            "aacc": found.aacc,
        }
        self._write(line)
        self.accelerator.log({f"val/{key}": line[key] for key in ("miou", "macc", "aacc")}, step=self.step)
        self.reporter.evaluated(line)
        return measured

    def _write(self, line: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            self.log.write(line)


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
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
                step, evaluation = line["step"], "split" in line
            except (ValueError, KeyError, TypeError):  # cut short by a crash
                continue
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


def _find_state(config: RunConfig, folder: Path, resume: bool, allow_changes: bool) -> dict[str, Any] | None:
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


def _accelerator(config: RunConfig, folder: Path, device: str | None) -> Accelerator:
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


def _check_trackers(config: RunConfig) -> None:
    for tracker in config.train.trackers:
        if find_spec(tracker) is None:
            raise ConfigError(f"train.trackers={tracker} needs that package: pip install {tracker}.")


def _check_same(saved: dict[str, Any], config: RunConfig, folder: Path) -> None:
    was = configuration.flatten(configuration.to_dict(configuration.from_dict(saved)))  # with keys it did not know
    now = configuration.flatten(configuration.to_dict(config))
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


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _peak_memory_gb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
