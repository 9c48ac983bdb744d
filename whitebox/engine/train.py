"""The training loop.

Schedule and loss follow Segmenter's official code: SGD with Nesterov momentum, polynomial decay per step to
``min_lr``, and cross-entropy over the valid pixels at full resolution. A batch may be split over processes and over
forward passes (``train.micro_batch``); the loss is always the mean over the valid pixels of the whole batch, so the
split changes nothing but memory. Every random number is a function of (seed, step) or (seed, epoch, index): nothing
depends on what ran before.
"""

from __future__ import annotations

import json
import math
import resource
import time
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from whitebox import config as configuration
from whitebox.config import OptimConfig, RunConfig
from whitebox.data import Sample, build_dataset, dataset_info
from whitebox.data.loading import ErrorsAsValues, default_workers
from whitebox.data.sampler import EpochSampler
from whitebox.engine import checkpoint
from whitebox.engine.evaluate import Evaluation, evaluate
from whitebox.engine.metrics import Scores, scores
from whitebox.errors import ConfigError, DataError, TrainingError, WhiteboxError
from whitebox.models import Segmentor, build

# A resumed run may differ in these: they do not change what is learned.
FREE_ON_RESUME = {"data.root", "inference.batch"} | {
    f"train.{key}" for key in ("workers", "log_every", "eval_every", "save_every", "micro_batch", "trackers")
}


class Reporter(Protocol):
    """Who shows how a run goes."""

    def started(self, config: RunConfig, steps: int, first_step: int, train_images: int, val_images: int) -> None: ...

    def logged(self, line: dict[str, Any]) -> None: ...

    def stepped(self, step: int) -> None: ...

    def evaluating(self, done: int, total: int) -> None: ...

    def evaluated(self, line: dict[str, Any]) -> None: ...


def learning_rate(step: int, steps: int, optim: OptimConfig) -> float:
    """Rate of the update number ``step`` (from 0): (lr - min_lr)(1 - step/steps)^power + min_lr, after linear warm-up.

    Source: official ``segm/optim/scheduler.py``; constant ``min_lr`` after the last step.
    """
    decayed = (optim.lr - optim.min_lr) * max(0.0, 1 - step / steps) ** optim.power + optim.min_lr
    return decayed * min(1.0, (step + 1) / (optim.warmup_steps + 1))


def build_optimizer(model: torch.nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """SGD (Nesterov, one parameter group) or AdamW over the parameters that are trained."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if optim.name == "adamw":
        return torch.optim.AdamW(trained, lr=optim.lr, weight_decay=optim.weight_decay)
    return torch.optim.SGD(
        trained, lr=optim.lr, momentum=optim.momentum, nesterov=optim.momentum > 0, weight_decay=optim.weight_decay
    )


def summed_loss(model: torch.nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy summed over the valid pixels; label 255 is ignored."""
    return F.cross_entropy(model(images), labels.long(), ignore_index=255, reduction="sum")


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


def _collate(loaded: list[Sample | WhiteboxError]) -> tuple[Tensor, Tensor, list[str]] | WhiteboxError:
    samples: list[Sample] = []
    for sample in loaded:
        if isinstance(sample, WhiteboxError):
            return sample
        samples.append(sample)
    images = torch.stack([sample.image for sample in samples])
    labels = torch.stack([sample.label for sample in samples])
    return images, labels, [sample.name for sample in samples]


def train(
    config: RunConfig, folder: Path, reporter: Reporter, *, resume: bool = False, device: str | None = None
) -> tuple[Segmentor, Evaluation]:
    """Train a model, or go on with an interrupted run; returns it with its evaluation on the validation split.

    Writes into ``folder``: config.yaml, metrics.jsonl, checkpoints/, model.safetensors.

    Raises:
        TrainingError: the folder holds another run, cannot be written, or the loss is not finite.
        ConfigError: the configuration cannot be used here, or differs from that of the run to resume.
        DataError, ModelError: see there.
    """
    _check_trackers(config)
    if not resume and (folder / "config.yaml").exists():
        raise TrainingError(
            f"{folder} holds a run already: continue it with --resume, or choose another name with --name."
        )
    state = checkpoint.load_training_state(folder / "checkpoints") if resume else None
    if state is not None:
        _check_same(configuration.flatten(json.loads(state["config"])), config, folder)

    accelerator = _accelerator(config, folder, device)
    if config.train.batch_size % accelerator.num_processes:
        raise ConfigError(
            f"train.batch_size={config.train.batch_size} cannot be shared by {accelerator.num_processes} processes."
        )
    classes, palette = dataset_info(config.data)
    torch.manual_seed(config.train.seed)
    built = build(config.encoder, config.decoder, len(classes), classes, palette)
    train_set = build_dataset(
        config.data,
        config.data.train_split,
        augment=True,
        seed=config.train.seed,
        mean_255=tuple(built.mean.flatten().tolist()),
    )
    val_set = build_dataset(config.data, config.data.val_split, augment=False)
    steps_per_epoch = len(train_set) // config.train.batch_size
    if steps_per_epoch == 0:
        raise DataError(
            f"{config.data.name} has {len(train_set)} training images, fewer than one batch: "
            f"set train.batch_size to at most {len(train_set)}."
        )
    steps = steps_per_epoch * config.train.epochs
    optimizer = build_optimizer(built, config.optim)
    first_step = 0
    if state is not None:
        built.load_state_dict(state["model"], strict=True)
        optimizer.load_state_dict(state["optimizer"])
        first_step = int(state["step"])
    model, optimizer = accelerator.prepare(built, optimizer)
    if state is not None and accelerator.scaler is not None and state["scaler"] is not None:
        accelerator.scaler.load_state_dict(state["scaler"])

    log = MetricsLog(folder / "metrics.jsonl", first_step)
    if accelerator.is_main_process:
        checkpoint.write_text(folder / "config.yaml", configuration.to_yaml(config))
    accelerator.init_trackers("whitebox", configuration.flatten(configuration.to_dict(config)))

    sampler = EpochSampler(len(train_set), seed=config.train.seed, shuffle=True)
    workers = default_workers() if config.train.workers is None else config.train.workers
    loader = DataLoader(
        ErrorsAsValues(train_set, len(train_set)),
        batch_sampler=_Batches(sampler, config.train.batch_size, accelerator.process_index, accelerator.num_processes),
        collate_fn=_collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=accelerator.device.type == "cuda",
    )

    def save(step: int) -> None:
        accelerator.wait_for_everyone()
        if not accelerator.is_main_process:
            return
        checkpoint.save_training_state(
            folder / "checkpoints",
            step,
            {
                "step": step,
                "config": json.dumps(configuration.to_dict(config)),
                "model": built.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
            },
        )
        checkpoint.save_model(folder / checkpoint.WEIGHTS, built, config)

    def validate(validated: Segmentor, step: int) -> Evaluation:
        measured = evaluate(
            validated,
            val_set,
            config.inference,
            config.data,
            workers=workers,
            on_image=lambda index, *_: reporter.evaluating(index + 1, len(val_set)),
        )
        found: Scores = scores(measured.counts_N3K)
        line = {
            "step": step,
            "epoch": step / steps_per_epoch,
            "split": config.data.val_split,
            "miou": found.miou,
            "macc": found.macc,
            "aacc": found.aacc,
        }
        log.write(line)
        accelerator.log({f"val/{key}": line[key] for key in ("miou", "macc", "aacc")}, step=step)
        reporter.evaluated(line)
        return measured

    reporter.started(config, steps, first_step, len(train_set), len(val_set))
    model.train()
    step, since, images_since = first_step, time.perf_counter(), 0
    for epoch in range(first_step // steps_per_epoch, config.train.epochs):
        sampler.set_epoch(epoch, skip=(step - epoch * steps_per_epoch) * config.train.batch_size)
        for batch in loader:
            if isinstance(batch, WhiteboxError):
                raise batch
            images, labels, names = batch
            rate = learning_rate(step, steps, config.optim)
            for group in optimizer.param_groups:
                group["lr"] = rate
            torch.manual_seed(_step_seed(config.train.seed, step, accelerator.process_index))
            loss, gradient_norm = _update(model, optimizer, accelerator, images, labels, config)
            if not math.isfinite(loss) or (gradient_norm is not None and not math.isfinite(gradient_norm)):
                raise TrainingError(
                    f"The loss is {loss} at step {step} (epoch {epoch}, learning rate {rate:.3g}, images "
                    f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''}); the weights were not updated. "
                    "Lower optim.lr, or set optim.clip_grad=1."
                )
            step += 1
            images_since += config.train.batch_size
            if step % config.train.log_every == 0 or step == steps:
                now = time.perf_counter()
                line = {
                    "step": step,
                    "epoch": step / steps_per_epoch,
                    "loss": loss,
                    "lr": rate,
                    "images_per_second": images_since / (now - since),
                    "memory_gb": _peak_memory_gb(accelerator.device),
                }
                since, images_since = now, 0
                log.write(line)
                accelerator.log({"train/loss": loss, "train/lr": rate}, step=step)
                reporter.logged(line)
            reporter.stepped(step)
        finished = epoch + 1 == config.train.epochs
        if finished or (epoch + 1) % config.train.save_every == 0:
            save(step)
        if not finished and config.train.eval_every and (epoch + 1) % config.train.eval_every == 0:
            validate(built, step)
            since = time.perf_counter()
    # The result is that of the saved weights in float32, as `whitebox eval` will find it again.
    saved, _ = checkpoint.load_weights(folder / checkpoint.WEIGHTS)
    measured = validate(saved.to(accelerator.device), step)
    accelerator.end_training()
    return saved, measured


def _update(
    model: torch.nn.Module,
    optimizer: Any,
    accelerator: Accelerator,
    images: Tensor,
    labels: Tensor,
    config: RunConfig,
) -> tuple[float, float | None]:
    """One optimiser step; returns the loss of the whole batch and, when clipping, the norm of its gradient."""
    counted = (labels != 255).sum().to(accelerator.device)
    valid = int(cast(Tensor, accelerator.reduce(counted, reduction="sum")))
    micro = config.train.micro_batch or len(images)
    total = torch.zeros((), device=accelerator.device)
    starts = range(0, len(images), micro)
    for start in starts:
        part = images[start : start + micro].to(accelerator.device, non_blocking=True)
        target = labels[start : start + micro].to(accelerator.device, non_blocking=True)
        with accelerator.no_sync(model) if start != starts[-1] else nullcontext():
            loss = summed_loss(model, part, target) / max(1, valid)
            # processes average their gradients; the loss is a sum over all of them
            accelerator.backward(loss * accelerator.num_processes)
        total += loss.detach()
    value = float(cast(Tensor, accelerator.reduce(total, reduction="sum")))
    norm = None
    if math.isfinite(value):
        if config.optim.clip_grad is not None:
            norm = float(accelerator.clip_grad_norm_(model.parameters(), config.optim.clip_grad))
        if norm is None or math.isfinite(norm):
            optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return value, norm


class MetricsLog:
    """``metrics.jsonl``: one JSON object a line; lines after the step a run is resumed from are dropped."""

    def __init__(self, path: Path, first_step: int) -> None:
        self.path = path
        lines = []
        if first_step and path.exists():
            for text in path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(text)["step"] <= first_step:
                        lines.append(text)
                except (ValueError, KeyError, TypeError):  # a line cut short by a crash
                    continue
        checkpoint.write_text(path, "".join(f"{line}\n" for line in lines))

    def write(self, line: dict[str, Any]) -> None:
        clean = {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in line.items()}
        with self.path.open("a", encoding="utf-8") as opened:
            opened.write(json.dumps(clean) + "\n")


def _accelerator(config: RunConfig, folder: Path, device: str | None) -> Accelerator:
    if config.train.precision == "fp16" and (device == "cpu" or not torch.cuda.is_available()):
        raise ConfigError("train.precision=fp16 needs a GPU: choose fp32 or bf16.")
    precision = {"fp32": "no"}.get(config.train.precision, config.train.precision)
    AcceleratorState._reset_state()  # several runs in one process may differ in precision; accelerate keeps a singleton
    return Accelerator(
        mixed_precision=precision, cpu=device == "cpu", log_with=list(config.train.trackers) or None, project_dir=folder
    )


def _check_trackers(config: RunConfig) -> None:
    for tracker in config.train.trackers:
        if find_spec(tracker) is None:
            raise ConfigError(f"train.trackers={tracker} needs that package: pip install {tracker}.")


def _check_same(saved: dict[str, Any], config: RunConfig, folder: Path) -> None:
    now = configuration.flatten(configuration.to_dict(config))
    changed = [
        f"{key} was {saved.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(saved.keys() | now.keys())
        if key not in FREE_ON_RESUME and saved.get(key) != now.get(key)
    ]
    if changed:
        raise ConfigError(f"{folder} was started with another configuration: {'; '.join(changed)}.")


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def _peak_memory_gb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
