"""The training loop: steps, logging, saving, evaluating, from a run's folder to its last evaluation.

Schedule and loss follow Segmenter's official code: SGD with Nesterov momentum, polynomial decay per step to
``min_lr``, and cross-entropy over the valid pixels at full resolution; another loss is another part
(``whitebox.models.losses``). Every random number is a function of (seed, step) or (seed, epoch, index): nothing depends
on what ran before. With several processes the main one writes and reports (``whitebox.engine.update`` says how they
agree).
"""

from __future__ import annotations

import json
import logging
import math
import time
from importlib.util import find_spec
from pathlib import Path
from traceback import clear_frames
from typing import Any, NoReturn, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from whitebox import config as configuration
from whitebox.catalog import flatten
from whitebox.config import RunConfig
from whitebox.data import Sample, build_dataset, dataset_info
from whitebox.data.fingerprint import data_fingerprint
from whitebox.data.loading import default_workers, serve
from whitebox.data.preflight import preflight
from whitebox.data.sampler import EpochSampler
from whitebox.engine import checkpoint
from whitebox.engine.batches import Batch, Batches, TimedImages, batches, collate
from whitebox.engine.contrast import encoder_of
from whitebox.engine.distributed import (
    StopRequested,
    StopSignals,
    accelerator_for,
    evaluate_together,
    gathered,
    on_main,
    one_writer,
)
from whitebox.engine.evaluate import Evaluation
from whitebox.engine.kept import tokens_kept
from whitebox.engine.log import MetricsLog, Reporter, Silent, StepTimes
from whitebox.engine.optimisation import learning_rate
from whitebox.engine.resume import check_origin, find_state, origin
from whitebox.engine.update import Learner
from whitebox.engine.views import EncodedViews, Views, encoded_views
from whitebox.errors import ConfigError, DataError, OutputError, TrainingError, short
from whitebox.files import remove_leftovers, write_text
from whitebox.lock import Lock
from whitebox.memory import is_lack_of_memory, peak_gb
from whitebox.models import CLIPConfig, EncoderConfig, OpenSegmentor, Segmentor, build
from whitebox.text import shown

log = logging.getLogger("whitebox")

TIMED_STEPS = 20  # after the first, which is slower


class Interrupted(TrainingError):
    """A training that was told to stop by a signal and has saved its state; 0 after SIGTERM, 130 after SIGINT."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


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
        allow_changes: a run to go on with may have had another configuration, other data or other code.
        device: see ``--device``.

    Raises:
        Interrupted: SIGTERM or SIGINT came; the state is saved.
        TrainingError: the folder holds another run, or the loss is not finite.
        InUseError: another process trains there.
        OutputError: the folder cannot be written, or was removed.
        ConfigError: the configuration cannot be used here, or differs from that of the run to resume.
        DataError, ModelError, CheckpointError: see there.
    """
    _check_trackers(config)
    _check_frozen(config)
    accelerator = accelerator_for(config, folder, device)
    gathered(None)  # an error before all have met would be a lost connection to the others
    if config.train.batch_size % accelerator.num_processes:
        raise ConfigError(
            f"train.batch_size={config.train.batch_size} cannot be shared by {accelerator.num_processes} processes."
        )
    on_main(lambda: _look(config, folder))
    try:
        with one_writer(folder, "choose another name with --name or folder with -o") as lock:
            state = find_state(config, folder, resume, allow_changes)
            watching = reporter if accelerator.is_main_process else Silent()
            encoder = encoder_of(config, watching) if state is None else config.encoder
            run = _Run(config, folder, watching, accelerator, state, lock, allow_changes, encoder)
            with run.signals:
                try:
                    return run.train()
                except StopRequested:
                    raise run.stopped() from None
                finally:
                    run.loader = None  # ends the loading processes
    finally:
        accelerator.end_training()


class _Run:
    """One training, from its folder to its last evaluation."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        reporter: Reporter,
        accelerator: Accelerator,
        state: dict[str, Any] | None,
        lock: Lock,
        allow_changes: bool,
        encoder: EncoderConfig | CLIPConfig,
    ) -> None:
        self.config, self.folder, self.reporter, self.accelerator = config, folder, reporter, accelerator
        self.lock = lock
        self.signals = StopSignals()
        classes, palette = dataset_info(config.data)
        torch.manual_seed(config.train.seed)
        built = build(encoder, config.decoder, len(classes), classes, palette)
        self.train_set = build_dataset(
            config.data,
            config.data.train_split,
            augment=True,
            seed=config.view_seed,
            mean_255=tuple(built.mean.flatten().tolist()),
        )
        self.val_set = build_dataset(config.data, config.data.val_split, augment=False)
        self.steps_per_epoch = len(self.train_set) // config.train.batch_size
        if self.steps_per_epoch == 0:
            raise DataError(
                f"{config.data.name} has {len(self.train_set)} training images, fewer than one batch: "
                f"set train.batch_size to at most {len(self.train_set)}."
            )
        self.origin: dict[str, Any] = {}

        def compare() -> None:
            self.origin = origin(config, self.train_set, self.val_set)
            if state is not None:
                check_origin(state.get("origin"), self.origin, folder, allow_changes)

        on_main(compare)
        self.steps = config.train.steps or self.steps_per_epoch * config.train.epochs
        self.step = self.saved_at = self.first_step = min(int(state["step"]), self.steps) if state is not None else 0
        self.learner = Learner(built, config, accelerator, state)

        self.sampler = EpochSampler(len(self.train_set), seed=config.train.seed, shuffle=True)
        self.workers = default_workers() if config.train.workers is None else config.train.workers
        self.loader: DataLoader[Any] | None = None
        self.pixels_V = torch.zeros(256, dtype=torch.long)  # of this process's share of the first epoch
        self.log = MetricsLog(folder / "metrics.jsonl", self.first_step, self.steps)
        on_main(self._begin)
        settings = flatten(configuration.to_dict(config))
        plain = {key: value if isinstance(value, int | float) else str(value) for key, value in settings.items()}
        accelerator.init_trackers("whitebox", plain)  # tensorboard takes no lists

    def _load(self) -> DataLoader[Any]:
        """Batches of samples: images, or where a store has them the encoder's tokens."""
        config = self.config
        samples: Dataset[Sample] = self.train_set
        if config.data.views is not None:
            samples = views = Views(self.train_set, config.data.views)
            if config.store.use and self.learner.built.encoder.fixed:
                samples = encoded = self._encoded(views)
                self.learner.inputs = encoded.encoded
        return DataLoader(
            TimedImages(samples, len(self.train_set)),
            batch_sampler=Batches(
                self.sampler, config.train.batch_size, self.accelerator.process_index, self.accelerator.num_processes
            ),
            collate_fn=cast(Any, collate),  # it takes what __getitems__ gives
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=self.accelerator.device.type == "cuda",
            worker_init_fn=serve,
        )

    def _encoded(self, views: Views) -> EncodedViews:
        def on_row(done: int, total: int) -> None:
            self.signals.check()
            self.reporter.encoding(done, total, "views")

        found = data_fingerprint(self.config.data, self.train_set.source)
        return encoded_views(self.learner.built, views, self.config, found, workers=self.workers, on_row=on_row)

    def _encode_names(self) -> None:
        """Where classes are names: their prompts, once, on the main process; the others read what it keeps."""
        built, accelerator = self.learner.built, self.accelerator
        if not isinstance(built, OpenSegmentor) or built.encoder.config.train_text:
            return
        if accelerator.distributed_type == DistributedType.FSDP:  # a tower in parts: all together, in the first step
            return

        def advance(done: int, total: int) -> None:
            self.signals.check()
            self.reporter.encoding(done, total, "prompts")

        def encode() -> None:
            built.prepare(advance)

        on_main(encode)

    def _begin(self) -> None:
        for name in ("config.yaml", "metrics.jsonl", checkpoint.WEIGHTS):
            remove_leftovers(self.folder, name)
        remove_leftovers(self.folder / "checkpoints", "step-*")
        write_text(self.folder / "config.yaml", configuration.to_yaml(self.config))
        self.log.begin()

    def train(self) -> tuple[Segmentor, Evaluation]:
        """All steps that are left, and the evaluation of the result."""
        self.reporter.started(self.config, self.steps, self.first_step, len(self.train_set), len(self.val_set))
        self._encode_names()
        if self._evaluation_due() and not self._evaluated():  # it was killed after saving, before evaluating
            self._validate(self.learner.evaluated())
        self.loader = self._load()
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
        self._save_once()
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
        assert self.loader is not None
        for batch in batches(self.loader):
            loaded = time.perf_counter()
            rate = learning_rate(self.step, self.steps, config.optim)
            try:
                loss, norm = self.learner.update(batch, self.step, rate, self.signals)
            except DataError as error:  # in all processes, before anything was changed
                raise DataError(f"{error}{self._saved()}") from error
            except (RuntimeError, MemoryError) as error:
                if not is_lack_of_memory(error):
                    raise
                clear_frames(error.__traceback__)  # of the tensors in them: what fits without these is measured
                self._lack(short(str(error)), batch)
            if not (math.isfinite(loss) and (math.isfinite(norm) or self.accelerator.scaler is not None)):
                self._refuse(loss, norm, epoch, rate, batch.names)
            self.step += 1
            if epoch == 0 and self.first_step == 0:
                self._count(batch.labels)
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
            if self._keep_due():  # before the state from which it would go on
                self._keep()
            if self._save_due():
                self._save()
            if self.step == self.steps:
                return
            waiting = time.perf_counter()

    def _count(self, labels_BHW: Tensor) -> None:
        """At the end of the first epoch say which classes did not occur; stop where no pixel counted."""
        self.pixels_V += labels_BHW.flatten().bincount(minlength=256)
        if self.step not in (self.steps_per_epoch, self.steps):
            return
        classes = self.train_set.classes
        pixels_K = torch.stack(gathered(self.pixels_V)).sum(0)[: len(classes)]
        if not pixels_K.any():
            raise TrainingError(
                f"No pixel of the {self.step} steps of the first epoch had a class, so there is nothing to learn: "
                "`whitebox data check` shows what the labels hold."
            )
        absent = [name for name, count in zip(classes, pixels_K.tolist(), strict=True) if not count]
        if absent and self.step == self.steps_per_epoch:
            more = f" and {len(absent) - 6} more" if len(absent) > 6 else ""
            names = shown(", ".join(absent[:6]) + more)
            if self.accelerator.is_main_process:
                log.warning("Classes without a pixel in the first epoch: %s.", names)

    def _saved(self) -> str:
        """Save what is not saved yet, and say so; before the first step there is nothing to save."""
        if self.step == 0:
            return ""
        self._save_once()
        return f" The state of step {self.step} is saved, --resume goes on from it."

    def _lack(self, reason: str, batch: Batch) -> NoReturn:
        alone = self.accelerator.num_processes == 1  # the others do not know of it
        saved = self._saved() if alone and not self.learner.changing else ""
        raise TrainingError(
            f"{self.learner.part(batch)} images at once do not fit into the memory of {self.accelerator.device} "
            f"({reason.rstrip('.')}). {self.learner.what_fits(batch)}{saved}"
        )

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

    def _keep_due(self) -> bool:
        epoch, within = divmod(self.step, self.steps_per_epoch)
        every = self.config.train.keep_every
        return every is not None and within == 0 and epoch % every == 0

    def _keep(self) -> None:
        """The weights alone, which stay. Those of an epoch that is trained once more are the same again."""
        weights, _ = self.learner.state()
        path = self.folder / checkpoint.EPOCHS / f"epoch-{self.step // self.steps_per_epoch:05d}.safetensors"

        def write() -> None:
            self.lock.check()
            checkpoint.save_model(path, self.learner.built, self.config, weights)

        on_main(write)

    def _save_once(self) -> None:
        """Save what is not saved yet."""
        if self.saved_at != self.step:
            self._save()

    def _save(self) -> None:
        weights, state = self.learner.state()
        state |= {"step": self.step, "config": json.dumps(configuration.to_dict(self.config)), "origin": self.origin}

        def write() -> None:
            self.lock.check()
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

        with tokens_kept(model, self.config.store):
            measured = evaluate_together(
                model, self.val_set, self.config.inference, self.config.data, workers=self.workers, on_image=on_image
            )
        found = measured.scores
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
        def write() -> None:
            self.lock.check()
            self.log.write(line)

        on_main(write)


def _check_frozen(config: RunConfig) -> None:
    encoder = config.encoder
    if not (isinstance(encoder, EncoderConfig) and encoder.frozen):
        return
    if not (encoder.pretrained or encoder.weights or encoder.random):
        raise ConfigError(
            f"encoder.frozen=true would keep {encoder.name} at random weights: give encoder.pretrained=true or "
            "encoder.weights=FILE, or say --random-encoder."
        )
    if config.data.views is not None and config.store.use and encoder.train_last:
        raise ConfigError(
            f"encoder.train_last={encoder.train_last} changes the tokens, so data.views={config.data.views} cannot be "
            "kept encoded: say store.use=false."
        )


def _look(config: RunConfig, folder: Path) -> None:
    """See what can be known before the first step, and note what only the user can judge."""
    data, window = config.data, config.inference.window
    splits, cure = [data.train_split, data.val_split], "choose another name with --name or folder with -o"
    for line in preflight(folder, data, splits, training=True, cure=cure):
        log.warning("%s", shown(line))
    if window is not None and window != data.crop:
        log.warning(
            "inference.window=%s is not data.crop=%s: the model will see other sizes than in training.",
            window,
            data.crop,
        )


def _check_trackers(config: RunConfig) -> None:
    for tracker in config.train.trackers:
        if find_spec(tracker) is None:
            raise ConfigError(f"train.trackers={tracker} needs that package: pip install {tracker}.")


def _peak_memory_gb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return peak_gb()
