"""One update: the model with everything it needs, on one device or many.

A batch may be split over processes and over forward passes (``train.micro_batch``); the loss is always that of the
whole batch, so the split changes nothing but memory. Every random number is a function of (seed, step). Before each
update the processes agree, in one message, on the numbers that the loss divides by, on whether one could not read its
images, and on whether one was told to stop: so all of them go on, fail or stop at the same step.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from whitebox.config import RunConfig
from whitebox.engine import room
from whitebox.engine.batches import Batch
from whitebox.engine.checkpoint import ENCODER, encoder_apart
from whitebox.engine.distributed import (
    StopRequested,
    StopSignals,
    gathered,
)
from whitebox.engine.optimisation import build_loss, build_optimizer
from whitebox.engine.recompute import recompute_layers
from whitebox.engine.stochastic_depth import StochasticDepth
from whitebox.errors import CheckpointError
from whitebox.models import Segmentor
from whitebox.models.segmentor import Encoded
from whitebox.models.weights import load_strictly

COMPILER = "inductor"

_WHOLE = StateDictOptions(full_state_dict=True)

_WHOLE_ON_MAIN = StateDictOptions(full_state_dict=True, cpu_offload=True)


def summed_loss(model: torch.nn.Module, images: Tensor | Encoded, labels: Tensor) -> Tensor:
    """Sums of the model's loss, see ``whitebox.models.losses``; label 255 is ignored."""
    return cast(Tensor, model(images, labels))


class Learner:
    """The model with everything an update needs, on one device or many."""

    def __init__(
        self, built: Segmentor, config: RunConfig, accelerator: Accelerator, state: dict[str, Any] | None
    ) -> None:
        self.built, self.config, self.accelerator = built, config, accelerator
        if config.train.checkpointing:
            recompute_layers(built)
        self.depth = StochasticDepth(built)
        built.loss = self.loss = build_loss(config.loss, built.num_classes)
        optimizer = build_optimizer(built, config.optim, fused=accelerator.device.type == "cuda")
        self.rates = [group["lr"] / config.optim.lr for group in optimizer.param_groups]
        chosen = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        self.inputs: Callable[[Tensor], Tensor | Encoded] = lambda images: images  # what the model takes of a batch
        self.apart = encoder_apart(config)
        self.changing = False  # whether an update has begun to change weights, and not ended
        if state is not None:
            if state.get("encoder") != self._encoder():
                raise CheckpointError(
                    f"The frozen encoder {config.encoder.name} is not the one that this run began with: give that one."
                )
            load_strictly(built, self._completed(state["model"]), "The training state", "whitebox weights")
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
            for parameter, kept in self.optimizer.optimizer.state.items():
                if accelerator.device.type == "cuda" and "step" in kept:  # saved on a CPU, or by an optimiser not fused
                    kept["step"] = kept["step"].to(parameter.device)
        if state is not None and accelerator.scaler is not None and state["scaler"] is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
        self.ema = ModelEmaV3(built, decay=config.train.ema) if config.train.ema is not None else None
        if self.ema is not None and state is not None and state["ema"] is not None:
            self.ema.module.load_state_dict(self._completed(state["ema"]))

    def _encoder(self) -> str | None:
        """What tells an encoder that is not saved with the run."""
        return self.built.encoder.sha256 if self.apart else None

    def _kept(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is saved of them: where the encoder is not, the others."""
        return {name: tensor for name, tensor in tensors.items() if not (self.apart and name.startswith(ENCODER))}

    def _completed(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The reverse of ``_kept``."""
        own = self.built.state_dict() if self.apart else {}
        return {**{name: tensor for name, tensor in own.items() if name.startswith(ENCODER)}, **tensors}

    def update(self, batch: Batch, step: int, rate: float, signals: StopSignals) -> tuple[float, float]:
        """One optimiser step; returns the loss of the whole batch and the norm of its gradient.

        Nothing is updated when one of them is not finite (but see fp16: its scaler skips such steps itself).

        Raises:
            StopRequested: a process was told to stop; nothing was done.
            DataError: a process could not read its images.
        """
        config, accelerator = self.config, self.accelerator
        processes, device = accelerator.num_processes, accelerator.device
        own = self.loss.counts(batch.labels, self.built.num_classes)
        agreed = torch.tensor([*own, int(signals.received is not None), int(batch.error is not None)])
        if processes > 1:  # alone there is nothing to agree on, and nothing for which a GPU would be waited for
            agreed = cast(Tensor, accelerator.reduce(agreed.to(device), reduction="sum"))
        *counts, told_to_stop, failed = agreed.tolist()
        if failed:
            raise next(error for error in gathered(batch.error) if error is not None)
        if told_to_stop:
            raise StopRequested("A process was told to stop.")

        for group, times in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * times
        torch.manual_seed(seed_of(config.train.seed, step, accelerator.process_index))
        uniform_LB = self.depth.draw(seed_of(config.train.seed, step), config.train.batch_size)
        uniform_LB = uniform_LB[:, accelerator.process_index :: processes].to(device, non_blocking=True)
        self.built.train()
        total = self._gradients(batch, counts, uniform_LB, self.part(batch))
        limit = math.inf if config.optim.clip_grad is None else config.optim.clip_grad  # inf: measured alone
        summed = cast(Tensor, accelerator.reduce(total, reduction="sum"))
        length = accelerator.clip_grad_norm_(self.model.parameters(), limit)
        # The only place where a GPU is waited for: what is not finite must not reach the weights
        value, norm = float(summed), float(length)
        if not math.isfinite(value):
            norm = math.nan
        elif math.isfinite(norm) or accelerator.scaler is not None:
            self.changing = True
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update(self.built, step=step + 1)
            self.changing = False
        self.optimizer.zero_grad(set_to_none=True)
        return value, norm

    def part(self, batch: Batch) -> int:
        """How many of a batch's images are in one forward pass."""
        return self.config.train.micro_batch or len(batch.images)

    def _gradients(self, batch: Batch, counts: list[int], uniform_LB: Tensor, part: int) -> Tensor:
        """Add up the gradients of a batch, part after part; returns this process's share of the loss."""
        accelerator, device = self.accelerator, self.accelerator.device
        total = torch.zeros((), device=device)
        starts = range(0, len(batch.images), part)
        for start in starts:
            images = batch.images[start : start + part].to(device, non_blocking=True)
            labels = batch.labels[start : start + part].to(device, non_blocking=True)
            self.depth.use(uniform_LB[:, start : start + part])
            with accelerator.no_sync(self.model) if start != starts[-1] else nullcontext():
                loss = self.loss.mean(summed_loss(self.model, self.inputs(images), labels), counts)
                # processes average their gradients; the loss is a sum over all of them
                accelerator.backward(loss * accelerator.num_processes)
            total += loss.detach()
        return total

    def what_fits(self, batch: Batch) -> str:
        """What to set where a batch did not fit into memory, by what its first images take; gradients are lost.

        Of several processes nothing is measured: one alone cannot run a step.
        """
        if self.accelerator.num_processes > 1:
            return room.halved(self.config.train.batch_size, self.part(batch))
        counts = list(self.loss.counts(batch.labels, self.built.num_classes))

        def step(images: int) -> None:
            self.optimizer.zero_grad(set_to_none=True)
            few = replace(batch, images=batch.images[:images], labels=batch.labels[:images])
            self._gradients(few, counts, self.depth.draw(0, images).to(self.accelerator.device), images)

        need = room.measured(step, self.accelerator.device)
        self.optimizer.zero_grad(set_to_none=True)
        trained = sum(each.nbytes for each in self.built.parameters() if each.requires_grad)
        states = 0 if self.optimizer.state else (2 if self.config.optim.name == "adamw" else 1) * trained
        free = room.free(self.accelerator.device) - states
        return room.advice(need, len(batch.images), self.part(batch), free)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What is saved as the model, and what resuming needs; both empty beside the main process.

        Names and shapes are those of one process, so that another number of them can go on.
        """
        weights = cast(dict[str, Tensor], get_model_state_dict(self.built, options=_WHOLE_ON_MAIN))
        optimizer = get_optimizer_state_dict(self.built, self.optimizer.optimizer, options=_WHOLE_ON_MAIN)
        scaler = self.accelerator.scaler
        averaged = self.ema.module.state_dict() if self.ema is not None else None
        return averaged or weights, {
            "model": self._kept(weights),
            "encoder": self._encoder(),
            "optimizer": {"name": self.config.optim.name, "state": optimizer},
            "scaler": scaler.state_dict() if scaler is not None else None,
            "ema": None if averaged is None else self._kept(averaged),
        }

    def evaluated(self) -> Segmentor:
        """The model whose scores count."""
        if self.ema is not None:
            return cast(Segmentor, self.ema.module)
        if self.whole is not None:
            self.whole.load_state_dict(get_model_state_dict(self.built, options=_WHOLE))
            return self.whole
        return self.built


def seed_of(*numbers: int) -> int:
    """A seed as a function of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
