"""What a configuration means for training: the loss, the optimiser, and the rate of each step."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import nn

from whitebox.config import LossConfig, OptimConfig
from whitebox.errors import require
from whitebox.models.losses import ATMLoss, BinaryCrossEntropy, CrossEntropy, DiceCrossEntropy, Loss

_BLOCK = re.compile(r"encoder\.vit\.blocks\.(\d+)\.")


def learning_rate(step: int, steps: int, optim: OptimConfig) -> float:
    """Rate of the update number ``step`` (from 0): (lr - min_lr)(1 - step/steps)^power + min_lr, after linear warm-up.

    With ``schedule=cosine`` the share of lr - min_lr is (1 + cos(pi step/steps))/2.

    Sources: official ``segm/optim/scheduler.py``, constant ``min_lr`` after the last step; with ``warmup_ratio`` r and
    w steps of warm-up mmcv's, whose share of the rate is 1 - (1 - step/w)(1 - r). Cosine: detectron2's, as SED has it.
    """
    left = max(0.0, 1 - step / steps)
    share = left**optim.power if optim.schedule == "polynomial" else (1 + math.cos(math.pi * (1 - left))) / 2
    decayed = (optim.lr - optim.min_lr) * share + optim.min_lr
    if optim.warmup_ratio is None:
        return decayed * min(1.0, (step + 1) / (optim.warmup_steps + 1))
    cold = max(0.0, 1 - step / optim.warmup_steps) if optim.warmup_steps else 0.0
    return decayed * (1 - cold * (1 - optim.warmup_ratio))


def build_optimizer(model: nn.Module, optim: OptimConfig, fused: bool = False) -> torch.optim.Optimizer:
    """SGD (Nesterov) or AdamW over the parameters that are trained.

    They are one group, unless the decoder has a rate of its own (``decoder_lr``), encoder blocks have rates that fall
    towards the image (``layer_decay``), or the norms of the encoder (``decay_norms``) or of the decoder
    (``decay_decoder_norms``) are not decayed, as in SegViT and SED.

    Args:
        fused: one kernel updates all parameters, which a GPU wants; on a CPU its rounding differs from the default's.
    """
    groups = _groups(model, optim)
    shared: dict[str, Any] = {"lr": optim.lr, "weight_decay": optim.weight_decay, "fused": True if fused else None}
    if optim.name == "adamw":
        return torch.optim.AdamW(groups, **shared)
    return torch.optim.SGD(groups, momentum=optim.momentum, nesterov=optim.momentum > 0, **shared)


def _groups(model: nn.Module, optim: OptimConfig) -> list[dict[str, object]]:
    undecayed = {
        parameter
        for part, decayed, kinds in (
            ("encoder.", optim.decay_norms, (nn.LayerNorm,)),
            ("decoder.", optim.decay_decoder_norms, (nn.LayerNorm, nn.GroupNorm)),
        )
        for name, module in model.named_modules()
        if not decayed and isinstance(module, kinds) and name.startswith(part)
        for parameter in module.parameters()
    }
    blocks = [int(found[1]) for name, _ in model.named_parameters() if (found := _BLOCK.match(name))]
    depth = max(blocks, default=-1) + 1
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = optim.decoder_lr if name.startswith("decoder.") else _layer_rate(name, depth, optim.layer_decay)
            rate = optim.lr * part
            decay = 0.0 if parameter in undecayed else optim.weight_decay
            groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": chosen, "lr": rate, "weight_decay": decay} for (rate, decay), chosen in groups.items()]


def _layer_rate(name: str, depth: int, decay: float) -> float:
    """Share of the rate that an encoder's parameter gets: 1 behind its blocks, ``decay`` less for each block before it.

    Source: ELECTRA (Clark et al. 2020, arXiv 2003.10555), for ViT as in BEiT (Bao et al. 2022, arXiv 2106.08254).
    """
    if decay == 1.0 or name.startswith("encoder.vit.norm."):
        return 1.0
    block = _BLOCK.match(name)
    return decay ** (depth + 1 if block is None else depth - int(block[1]))


def build_loss(loss: LossConfig, num_classes: int) -> Loss:
    """The loss that a configuration names.

    Raises:
        ConfigError: there is not one weight for each class.
    """
    if loss.name == "atm":
        terms = {"classification": loss.classification, "focal": loss.focal, "no_object": loss.no_object}
        return ATMLoss(loss.ignore, dice=1.0 if loss.dice is None else loss.dice, **terms)
    if loss.name == "binary-cross-entropy":
        return BinaryCrossEntropy(loss.names)
    weights = loss.class_weights
    count = f"there are {num_classes} classes"
    require(weights is None or len(weights) == num_classes, "loss.class_weights", weights, count)
    entropy = CrossEntropy(weights)
    return DiceCrossEntropy(entropy, loss.dice) if loss.dice else entropy
