"""Training against its formulas: the same updates, written out here once more without any part of the training loop.

Nothing is shared with what is tested but the model, its data and its first weights. So a constant that AdamW or
clipping would hide, a seed that is not a function of the step, or a rate for the wrong group shows in the weights.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from child_runs import STEPS, TINY, Quiet, lines, together, weights
from timm.layers import DropPath
from torch import Tensor, nn

from whitebox.config import RunConfig, resolve
from whitebox.data import build_dataset, dataset_info
from whitebox.engine.train import train
from whitebox.models import Segmentor, build

PADDED = {"data.crop": 48, "encoder.drop_path": 0.5}  # images have different numbers of labelled pixels; skip layers
SGD = {**PADDED, "optim.name": "sgd", "optim.lr": 0.05, "optim.clip_grad": None, "optim.weight_decay": 0.2}
ADAMW = {**PADDED, "optim.name": "adamw", "optim.lr": 2e-3, "optim.clip_grad": None, "optim.weight_decay": 0.5}


def tiny(model: str, **settings: Any) -> RunConfig:
    common = {key: value for key, value in TINY.items() if "depict" in model or key != "decoder.head_dim"}
    return resolve(model, "shapes", {**common, "train.seed": 3, **settings})


def seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


def skip_layers(model: Segmentor, step: int, seed: int, batch: int) -> None:
    """Stochastic depth (Huang et al. 2016): a sample skips a layer, or passes with 1 / its probability to pass."""
    layers = [module for module in model.encoder.modules() if isinstance(module, DropPath)]
    uniform_LB = torch.rand(len(layers), batch, generator=torch.Generator().manual_seed(seed_of(seed, step)))
    for layer, uniform_B in zip(layers, uniform_LB, strict=True):
        passes = 1 - layer.drop_prob
        scale_B11 = ((uniform_B < passes).float() / passes)[:, None, None]
        layer.forward = lambda x_BND, scale_B11=scale_B11: x_BND * scale_B11  # type: ignore[method-assign]


def rate_of(step: int, config: RunConfig) -> float:
    """Polynomial decay over all steps to min_lr (official segm/optim/scheduler.py), after linear warm-up."""
    optim = config.optim
    rate = (optim.lr - optim.min_lr) * ((STEPS - step) / STEPS) ** optim.power + optim.min_lr
    if step < optim.warmup_steps:
        if optim.warmup_ratio is None:
            rate *= (step + 1) / (optim.warmup_steps + 1)
        else:  # mmcv: from warmup_ratio, linearly to 1
            rate *= optim.warmup_ratio + (1 - optim.warmup_ratio) * step / optim.warmup_steps
    return rate


def by_hand(config: RunConfig) -> tuple[dict[str, Tensor], list[float], list[float]]:
    """The weights (averaged where train.ema says so), losses and rates of ``STEPS`` updates."""
    optim, seed, batch = config.optim, config.train.seed, config.train.batch_size
    torch.manual_seed(seed)
    classes, palette = dataset_info(config.data)
    model = build(config.encoder, config.decoder, len(classes), classes, palette).train()
    mean_255 = tuple(model.mean.flatten().tolist())
    dataset = build_dataset(config.data, "train", augment=True, seed=seed, mean_255=mean_255)
    norms = {
        f"{name}.{kind}"
        for name, module in model.encoder.named_modules(prefix="encoder")
        if isinstance(module, nn.LayerNorm)
        for kind in ("weight", "bias")
    }
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    memory: dict[str, list[Tensor]] = {name: [torch.zeros_like(value)] * 2 for name, value in trained.items()}
    average: dict[str, Tensor] = {}
    losses, rates = [], []
    for step in range(STEPS):
        epoch, within = divmod(step, len(dataset) // batch)
        order = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,))).permutation(len(dataset))
        samples = [dataset[epoch, int(index)] for index in order[within * batch : (within + 1) * batch]]
        skip_layers(model, step, seed, batch)
        torch.manual_seed(seed_of(seed, step, 0))  # of the decoder's dropout
        logits_BKHW = model(torch.stack([sample.image for sample in samples]))
        labels_BHW = torch.stack([sample.label for sample in samples]).long()
        loss = F.cross_entropy(logits_BKHW, labels_BHW, ignore_index=255)
        losses.append(loss.item())
        found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        gradients = {name: g for name, g in zip(trained, found, strict=True) if g is not None}
        if optim.clip_grad is not None:  # Pascanu et al. 2013: the norm of all of them together
            norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
            assert norm > 2 * optim.clip_grad, "nothing to clip"
            gradients = {name: g * optim.clip_grad / norm for name, g in gradients.items()}
        rate = rate_of(step, config)
        rates.append(rate)
        with torch.no_grad():
            for name, g in gradients.items():
                own = rate * (optim.decoder_lr if name.startswith("decoder.") else 1)
                decay = optim.weight_decay if optim.decay_norms or name not in norms else 0.0
                value, (first, second) = trained[name], memory[name]
                if optim.name == "sgd":  # Sutskever et al. 2013, as PyTorch has it
                    g = g + decay * value
                    first = g if step == 0 else optim.momentum * first + g
                    value -= own * (g + optim.momentum * first)
                else:  # Loshchilov and Hutter 2019, algorithm 2
                    first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
                    value *= 1 - own * decay
                    value -= (
                        own * (first / (1 - 0.9 ** (step + 1))) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
                    )
                memory[name] = [first, second]
            now = {name: value.detach().clone() for name, value in trained.items()}
            if config.train.ema is None or step == 0:
                average = now
            else:
                keep = config.train.ema
                average = {name: keep * average[name] + (1 - keep) * value for name, value in now.items()}
    return average, losses, rates


def check(folder: Path, config: RunConfig) -> None:
    expected, losses, rates = by_hand(config)
    assert [rate for _, rate in lines(folder, "lr")] == pytest.approx(rates, rel=1e-9)
    assert [loss for _, loss in lines(folder)] == pytest.approx(losses, rel=2e-5)
    found = weights(folder)
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-4, atol=2e-5, msg=lambda text, name=name: f"{name} {text}"
        )


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        pytest.param("depict-sa-tiny", SGD, id="sgd"),
        pytest.param("depict-sa-tiny", {**SGD, "train.micro_batch": 1}, id="sgd-parts-of-a-batch"),
        pytest.param(
            "depict-sa-tiny", {**SGD, "optim.momentum": 0.0, "optim.power": 2.0, "optim.min_lr": 0.01}, id="decay"
        ),
        pytest.param(
            "depict-sa-tiny", {**SGD, "optim.clip_grad": 0.02, "optim.lr": 1.0, "optim.weight_decay": 0.0}, id="clipped"
        ),
        pytest.param("depict-sa-tiny", {**SGD, "optim.decoder_lr": 4.0, "optim.decay_norms": False}, id="groups"),
        pytest.param("segmenter-mask-tiny", SGD, id="dropout"),
        pytest.param("depict-sa-tiny", {**ADAMW, "optim.warmup_steps": 3}, id="adamw"),
        pytest.param(
            "depict-sa-tiny", {**ADAMW, "optim.warmup_steps": 3, "optim.warmup_ratio": 0.1}, id="warm-up-ratio"
        ),
        pytest.param("depict-sa-tiny", {**SGD, "train.ema": 0.75}, id="average"),
    ],
)
def test_one_process(model: str, settings: dict[str, Any], tmp_path: Path) -> None:
    config = tiny(model, **settings)
    train(config, tmp_path / "run", Quiet())
    check(tmp_path / "run", config)


def run(folder: Path, settings: dict[str, Any]) -> None:
    train(tiny("depict-sa-tiny", **settings), folder, Quiet())


@pytest.mark.parametrize("settings", [SGD, {**SGD, "train.micro_batch": 1, "optim.clip_grad": 0.02, "optim.lr": 1.0}])
def test_two_processes(settings: dict[str, Any], tmp_path: Path) -> None:
    """Plain SGD: nothing hides a factor of the gradient."""
    ended = together(2, run, tmp_path / "run", settings, folder=tmp_path / "output")
    assert [code for code, _ in ended] == [0, 0], ended
    check(tmp_path / "run", tiny("depict-sa-tiny", **settings))
