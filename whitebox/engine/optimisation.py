"""What a configuration means for training: the loss, the optimiser, and the rate of each step."""

from __future__ import annotations

import torch
from torch import nn

from whitebox.config import LossConfig, OptimConfig
from whitebox.errors import require
from whitebox.models.losses import ATMLoss, CrossEntropy, DiceCrossEntropy, Loss


def learning_rate(step: int, steps: int, optim: OptimConfig) -> float:
    """Rate of the update number ``step`` (from 0): (lr - min_lr)(1 - step/steps)^power + min_lr, after linear warm-up.

    Sources: official ``segm/optim/scheduler.py``, constant ``min_lr`` after the last step; with ``warmup_ratio`` r and
    w steps of warm-up mmcv's, whose share of the rate is 1 - (1 - step/w)(1 - r).
    """
    decayed = (optim.lr - optim.min_lr) * max(0.0, 1 - step / steps) ** optim.power + optim.min_lr
    if optim.warmup_ratio is None:
        return decayed * min(1.0, (step + 1) / (optim.warmup_steps + 1))
    left = max(0.0, 1 - step / optim.warmup_steps) if optim.warmup_steps else 0.0
    return decayed * (1 - left * (1 - optim.warmup_ratio))


def build_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """SGD (Nesterov) or AdamW over the parameters that are trained.

    They are one group, unless the decoder has a rate of its own (``decoder_lr``) or the encoder's LayerNorms are not
    decayed (``decay_norms``), as in SegViT.
    """
    groups = _groups(model, optim)
    if optim.name == "adamw":
        return torch.optim.AdamW(groups, lr=optim.lr, weight_decay=optim.weight_decay)
    return torch.optim.SGD(
        groups, lr=optim.lr, momentum=optim.momentum, nesterov=optim.momentum > 0, weight_decay=optim.weight_decay
    )


def _groups(model: nn.Module, optim: OptimConfig) -> list[dict[str, object]]:
    norms = {
        parameter
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm) and name.startswith("encoder.")
        for parameter in module.parameters()
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = optim.lr * (optim.decoder_lr if name.startswith("decoder.") else 1.0)
            decay = optim.weight_decay if optim.decay_norms or parameter not in norms else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": chosen, "lr": rate, "weight_decay": decay} for (rate, decay), chosen in groups.items()]


def build_loss(loss: LossConfig, num_classes: int) -> Loss:
    """The loss that a configuration names.

    Raises:
        ConfigError: there is not one weight for each class.
    """
    if loss.name == "atm":
        terms = {"classification": loss.classification, "focal": loss.focal, "no_object": loss.no_object}
        return ATMLoss(loss.ignore, dice=1.0 if loss.dice is None else loss.dice, **terms)
    weights = loss.class_weights
    count = f"there are {num_classes} classes"
    require(weights is None or len(weights) == num_classes, "loss.class_weights", weights, count)
    entropy = CrossEntropy(weights)
    return DiceCrossEntropy(entropy, loss.dice) if loss.dice else entropy
