"""The contrastive stage of the tiny CLIP: both towers from nothing, on captioned portraits of ``open-shapes``.

As CLIP is (Radford et al. 2021, arXiv 2103.00020), with one change that lets minutes suffice. A caption names any of
the words of what a portrait shows ("striped", "red star", "red striped star"), and every portrait that it is true of
is a match: targets are shares over all matches, not one pair. Only seen classes are shown, as in the training of SED.

The trained towers are kept in the cache, by a name made of all that decides them, and found there by the next run.
Beside them lies, until they are done, how far they are: a stage that was stopped or killed goes on from there, to the
same bits.

Shapes: N portraits, B of a batch, T captions, D width of the embedding.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from whitebox.config import RunConfig
from whitebox.data import open_shapes
from whitebox.engine.distributed import on_main
from whitebox.engine.log import Reporter
from whitebox.engine.update import seed_of
from whitebox.errors import CheckpointError, ConfigError, TrainingError
from whitebox.files import cache_folder, remove_leftovers, write_atomically
from whitebox.models import EncoderConfig
from whitebox.models.clip import CLIPConfig, CLIPEncoder
from whitebox.models.text import templates

VERSION = 1  # of this file: another one trains other towers
TINY = "clip_convnext_tiny"
# Of an encoder, what its contrastive stage does not depend on.
_NO_MATTER = ("pretrained", "weights", "image_size", "squash", "finetune", "embeddings", "train_text")
_LARGEST_SCALE = math.log(100)  # CLIP's bound of the temperature
_SAVED_EVERY = 50  # steps

OnStep = Callable[[int, int], None]  # steps done, of how many


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """How the towers are trained."""

    steps: int = 1250
    batch: int = 64
    portraits: int = 5000
    size: int = 64  # px, side of a portrait
    lr: float = 2e-3
    weight_decay: float = 0.01
    warmup: int = 50  # steps, linear; then a cosine to 0
    clip_grad: float = 1.0
    seed: int = 0


def captions(value: int) -> tuple[frozenset[str], ...]:
    """All that can be said of a class, an index of ``open_shapes.CLASSES``: each choice of its words."""
    if not value:
        return (frozenset({open_shapes.GROUND}),)
    words = open_shapes.KINDS[value - 1].words
    return tuple(frozenset(some) for number in (1, 2, 3) for some in combinations(words, number))


def matched_loss(logits_BT: Tensor, matches_BT: Tensor) -> Tensor:
    """Cross-entropy with shares over all matches, mean of both directions."""
    by_portrait = -(matches_BT / matches_BT.sum(1, keepdim=True) * logits_BT.log_softmax(1)).sum(1).mean()
    by_caption = -(matches_BT / matches_BT.sum(0, keepdim=True) * logits_BT.log_softmax(0)).sum(0).mean()
    return (by_portrait + by_caption) / 2


class Drawn(NamedTuple):
    """What chance says of one step: which portraits, how they are turned, and the template of their captions."""

    portrait_B: NDArray[np.int64]
    turns_3: NDArray[np.int64]
    template: int

    @classmethod
    def by(cls, rng: np.random.Generator, config: ContrastConfig, templates: int) -> Drawn:
        portrait_B = rng.choice(config.portraits, min(config.batch, config.portraits), replace=False)
        return cls(portrait_B, rng.integers(0, 2, 3), int(rng.integers(templates)))


def trained_clip(
    encoder: CLIPConfig, config: ContrastConfig, on_step: OnStep | None = None, state: Path | None = None
) -> CLIPEncoder:
    """Both towers, trained from random weights; all random numbers are a function of the seed alone.

    Args:
        on_step: called before the first step and after each, with the steps that are done, and all of them.
        state: a file that says how far an earlier call came, and is written every ``_SAVED_EVERY`` steps.

    Raises:
        TrainingError: the loss is not finite. OutputError: the state cannot be written.
    """
    rng = np.random.default_rng(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        clip = CLIPEncoder(encoder)
        initialise(clip)
    drawn = [open_shapes.portrait(config.seed, index, config.size) for index in range(config.portraits)]
    portraits_N3HW = torch.from_numpy(np.stack([image.transpose(2, 0, 1) for image, _ in drawn]))
    value_N = np.array([value for _, value in drawn])
    mean_311, std_311 = (torch.tensor(each).view(3, 1, 1) for each in (clip.mean, clip.std))
    said = [captions(value) for value in range(len(open_shapes.CLASSES))]
    of = templates(clip.config.templates)
    trained = [*clip.trunk.parameters(), *clip.projection.parameters(), *clip.text.parameters(), clip.logit_scale]
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=config.lr, weight_decay=config.weight_decay)
    clip.train()
    first = 0 if state is None else _go_on(state, clip, optimizer)
    for _ in range(first):
        Drawn.by(rng, config, len(of))
    if on_step is not None:
        on_step(first, config.steps)
    for step in range(first, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * rate(step, config)
        chosen = Drawn.by(rng, config, len(of))
        images_B3HW = turned(portraits_N3HW[torch.from_numpy(chosen.portrait_B)], chosen.turns_3).float()
        value_B = value_N[chosen.portrait_B]
        texts = sorted({caption for value in value_B for caption in said[value]}, key=sorted)
        matches_BT = torch.tensor([[float(text in said[value]) for text in texts] for value in value_B])
        template = of[chosen.template]
        ids_TL = clip.tokenizer([template.replace("{}", spoken(text)) for text in texts])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(config.seed, step))  # of dropout, where there is any
            embedded_TD = clip.text(ids_TL)
            embedded_BD = clip.image_embedding((images_B3HW - mean_311) / std_311)
        cosines_BT = F.normalize(embedded_BD, dim=-1) @ F.normalize(embedded_TD, dim=-1).T
        loss = matched_loss(cosines_BT * clip.logit_scale.clamp(max=_LARGEST_SCALE).exp(), matches_BT)
        if not torch.isfinite(loss):
            raise TrainingError(f"The contrastive loss is not finite at step {step + 1}: lower its rate.")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, config.clip_grad)
        optimizer.step()
        if state is not None and (step + 1) % _SAVED_EVERY == 0 and step + 1 < config.steps:
            _save(state, clip, optimizer, step + 1)
        if on_step is not None:
            on_step(step + 1, config.steps)
    clip.freeze()
    return clip.eval()


def _save(path: Path, clip: CLIPEncoder, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write the weights, and what the optimiser knows of each parameter."""
    tensors = {f"clip.{name}": tensor for name, tensor in clip.state_dict().items()}
    for index, known in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": tensor for key, tensor in known.items()}
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda target: save_file(whole, target, metadata={"step": str(step)}))


def _go_on(path: Path, clip: CLIPEncoder, optimizer: torch.optim.Optimizer) -> int:
    """Be as when the state was written; returns its step, 0 where there is none that can be read."""
    if not path.is_file():
        return 0
    try:
        with safe_open(path, "pt") as opened:
            step = int(opened.metadata()["step"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 it is no mapping
        known: dict[int, dict[str, Any]] = {}
        for name in (name for name in tensors if name.startswith("optimizer.")):
            _, index, key = name.split(".")
            known.setdefault(int(index), {})[key] = tensors[name]
        weights = {name.removeprefix("clip."): tensors[name] for name in tensors if name.startswith("clip.")}
        clip.load_state_dict(weights)
        optimizer.load_state_dict({"state": known, "param_groups": optimizer.state_dict()["param_groups"]})
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} does not say how far the contrastive stage is: delete it, and it begins anew."
        ) from error
    return step


def initialise(clip: CLIPEncoder) -> None:
    """Random weights that learn in minutes: a variance of 1 / fan-in in the image tower, larger word embeddings."""
    for module in (*clip.trunk.modules(), *clip.projection.modules()):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(clip.text.token_embedding.weight, std=0.1)
    nn.init.constant_(clip.logit_scale, math.log(10))


def rate(step: int, config: ContrastConfig) -> float:
    """Share of the rate at a step, from 0."""
    return min(1.0, (step + 1) / (config.warmup + 1)) * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def turned(images_B3HW: Tensor, turns_3: NDArray[np.int64]) -> Tensor:
    """All images mirrored, turned upside down and transposed, each or not: names say nothing of directions."""
    across, down, transposed = turns_3
    images_B3HW = images_B3HW.flip([axis for axis, flip in ((3, across), (2, down)) if flip])
    return images_B3HW.transpose(2, 3) if transposed else images_B3HW


def spoken(caption: frozenset[str]) -> str:
    """The words of a caption in the order of names: colour, pattern, form."""
    return " ".join(word for word in open_shapes.WORDS if word in caption)


def encoder_of(config: RunConfig, reporter: Reporter) -> EncoderConfig | CLIPConfig:
    """The encoder that a training begins with: the tiny CLIP of open-shapes comes from its contrastive stage.

    Of several processes the main one carries it out, unless an earlier run has left its towers.

    Raises:
        TrainingError: the contrastive loss is not finite. OutputError: the cache cannot be written.
    """
    encoder = config.encoder
    if not isinstance(encoder, CLIPConfig) or encoder.name != TINY or encoder.weights is not None:
        return encoder
    if config.data.kind != "open_shapes":
        raise ConfigError(
            f"{config.model} has a CLIP that is trained on open-shapes alone: add --dataset open-shapes, or give the "
            "file of another with encoder.weights=FILE."
        )
    contrast = ContrastConfig(steps=config.train.contrast_steps, seed=config.train.seed)
    path = kept_at(encoder, contrast)
    if path.is_file():
        reporter.contrasting(contrast.steps, contrast.steps, path)

    def keep() -> None:
        keep_towers(encoder, contrast, lambda done, total: reporter.contrasting(done, total, path))

    on_main(keep)
    return replace(encoder, weights=str(path))


def keep_towers(encoder: CLIPConfig, config: ContrastConfig, on_step: OnStep | None = None) -> Path:
    """The file of trained towers (for ``encoder.weights``): from the cache, else trained and kept there.

    Raises:
        TrainingError: the loss is not finite. OutputError: the cache cannot be written.
        CheckpointError: what an earlier run left of its stage is damaged.
    """
    path = kept_at(encoder, config)
    state = path.with_suffix(".state.safetensors")
    if not path.is_file():
        remove_leftovers(path.parent, state.name)
        clip = trained_clip(encoder, config, on_step, state)
        tensors = {name: tensor.contiguous() for name, tensor in clip.state_dict().items()}
        write_atomically(path, lambda target: save_file(tensors, target))
    state.unlink(missing_ok=True)
    return path


def kept_at(encoder: CLIPConfig, config: ContrastConfig) -> Path:
    """Where the cache has the towers of these settings."""
    shape = {key: value for key, value in asdict(encoder).items() if key not in _NO_MATTER}
    decides = json.dumps([VERSION, shape, asdict(config), open_shapes.CLASSES], sort_keys=True)
    return cache_folder() / "contrast" / f"{hashlib.sha256(decides.encode()).hexdigest()[:32]}.safetensors"
