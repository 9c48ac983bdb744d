"""Typed run configuration: defaults <- encoder <- decoder <- dataset <- recipe <- key=value overrides.

Encoder, decoder, dataset and recipe are separate: ``depict-ca-tiny`` names a decoder on a size of ViT, ``dinov2-small``
another encoder, ``ade20k`` images, crop and windows, ``segvit`` optimiser and schedule. Their files
(``whitebox.catalog``) hold differences from the defaults below and nothing else. The resolved ``RunConfig`` is saved
with the run and is enough to repeat it.
"""

from __future__ import annotations

import copy
import functools
import math
import os
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from whitebox.catalog import (
    LABEL_MAP,
    RENAMED,
    Layer,
    about,
    dataset_layers,
    encoder_of,
    flatten,
    known_of,
    model_layers,
    nearest,
    tell,
)
from whitebox.errors import ConfigError, require, short
from whitebox.text import require_text

LONGEST = 16_384  # px of a side that images are resized, cropped or windowed to


@dataclass
class DataConfig:
    """Which images, and how they are augmented (mmsegmentation's transforms and defaults)."""

    name: str = "shapes"
    kind: str = "shapes"  # the reader: a key of whitebox.data.READERS
    root: str = "data"  # where datasets live: --data-root, else $WHITEBOX_DATA, else ./data
    path: str = ""  # the dataset's folder below root ("folder" datasets may give any path)
    train_split: str = "train"  # empty: the dataset is for evaluation only
    val_split: str = "val"
    mean_over: str = "occurring"  # mIoU: classes labelled or predicted | labelled (detectron2: those in the truth)
    reduce_zero_label: bool = False  # label 0 becomes ignored, k becomes k - 1; yours to choose only for kind=folder
    classes: list[str] = field(default_factory=list)  # only for kind=folder; else known from the dataset
    palette: list[list[int]] = field(default_factory=list)  # only for kind=folder, optional
    label_map: dict[int, int] = field(default_factory=dict)  # only for kind=folder: stored value -> class, or 255
    held_out: list[str] = field(default_factory=list)  # classes whose pixels are ignored in training (`whitebox ood`)
    unit: str = ""  # images that belong together: image | folder | a pattern (one group) of their names; "": its own
    block: int | None = None  # frames: clips are cut into blocks of so many; 0: they are not; null: as the dataset says
    image_suffix: str = ""  # only for kind=folder; empty: any of jpg, jpeg, png, bmp, tif, tiff, webp
    label_suffix: str = ""  # only for kind=folder, as _mask.png; empty: any of png, bmp, tif, tiff, gif
    resize: int = 512  # px, short side
    max_ratio: float = 4.0  # long side is at most max_ratio * resize before scaling
    train_max_ratio: float | None = None  # in training; null: max_ratio
    scale_range: list[float] = field(default_factory=lambda: [0.5, 2.0])
    crop: int = 512  # px, square
    cat_max_ratio: float = 0.75  # largest share of one class in a crop
    flip: float = 0.5  # probability
    photometric: bool = True
    views: int | None = None  # different augmented views of each image; null: a new one in every epoch
    view_seed: int | None = None  # of the augmentation; null: train.seed
    transforms: str = "mmseg"  # whose: mmseg | detectron2 (open-vocabulary papers; train_resize is its short side)
    train_resize: int | None = None  # px, short side in training, only for transforms=detectron2; null: resize
    size: int = 128  # px, only for kind=shapes
    train_length: int = 2000  # images, only for kind=shapes
    val_length: int = 200  # images, only for kind=shapes
    shapes_seed: int = 0  # only for kind=shapes

    def __post_init__(self) -> None:
        safe = re.fullmatch(r"[\w.-]*[\w-][\w.-]*", self.name) is not None
        require(safe, "data.name", self.name, "it names files, so it takes letters, digits, '.', '_' and '-'")
        for key in ("train_split", "val_split"):
            split = getattr(self, key)
            inside = not os.path.isabs(split) and ".." not in re.split(r"[/\\]", split)
            require(inside, f"data.{key}", split, "it names a folder or list inside the dataset")
        for key in ("resize", "crop", "size", "train_length", "val_length"):
            require(getattr(self, key) >= 1, f"data.{key}", getattr(self, key), "it must be at least 1")
        for key in ("resize", "train_resize", "crop", "size"):
            require_side(f"data.{key}", getattr(self, key))
        known = self.mean_over in ("occurring", "labelled")
        require(known, "data.mean_over", self.mean_over, "choose occurring or labelled")
        require(self.block is None or self.block >= 0, "data.block", self.block, "it cannot be negative")
        require(self.views is None or self.views >= 1, "data.views", self.views, "it must be at least 1, or null")
        require(
            self.view_seed is None or self.view_seed >= 0, "data.view_seed", self.view_seed, "it cannot be negative"
        )
        require(self.shapes_seed >= 0, "data.shapes_seed", self.shapes_seed, "it cannot be negative")
        low_high = list(self.scale_range)
        require(
            len(low_high) == 2 and 0 < low_high[0] <= low_high[1] < math.inf,
            "data.scale_range",
            low_high,
            "it takes two numbers, 0 < low <= high",
        )
        known = self.transforms in ("mmseg", "detectron2")
        require(known, "data.transforms", self.transforms, "choose mmseg or detectron2")
        side = self.train_resize
        require(side is None or side >= 1, "data.train_resize", side, "it must be at least 1, or null")
        require(0 < self.cat_max_ratio <= 1, "data.cat_max_ratio", self.cat_max_ratio, "it lies in (0, 1]")
        require(0 <= self.flip <= 1, "data.flip", self.flip, "a probability lies in [0, 1]")
        for key in ("max_ratio", "train_max_ratio"):
            value = getattr(self, key)
            require(value is None or 1 <= value < math.inf, f"data.{key}", value, "it must be at least 1")
        require(
            all(0 <= stored <= 255 and (0 <= index <= 253 or index == 255) for stored, index in self.label_map.items()),
            "data.label_map",
            self.label_map,
            "it takes {STORED:CLASS,...}, stored values 0..255 and classes from 0, or 255 for ignored",
        )
        require(
            not self.label_map or self.kind == "folder",
            "data.label_map",
            self.label_map,
            f"labels of data.kind={self.kind} are fixed; data.kind=folder reads them as you say",
        )


@dataclass
class LossConfig:
    """What a training minimises, see ``whitebox.models.losses``."""

    name: str = "cross-entropy"  # cross-entropy | atm | binary-cross-entropy (SED)
    class_weights: list[float] | None = None  # of cross-entropy: how much a pixel of each class counts
    dice: float | None = None  # weight of the Dice term; null: 1 in atm, 0 beside cross-entropy
    ignore: str = "negative"  # atm, pixels without a label: negative, as in SegViT's released code | mask, left out
    classification: float = 1.0  # weights of the other terms of atm
    focal: float = 20.0
    names: int | None = None  # of binary-cross-entropy: classes of a step, its images' and random others; null: all
    no_object: float = 0.1  # of atm: weight of a class that is not in an image

    def __post_init__(self) -> None:
        names = ("cross-entropy", "atm", "binary-cross-entropy")
        require(self.name in names, "loss.name", self.name, "choose cross-entropy, atm or binary-cross-entropy")
        require(self.ignore in ("negative", "mask"), "loss.ignore", self.ignore, "choose negative or mask")
        for key in ("classification", "focal", "dice"):
            value = getattr(self, key)
            require(value is None or 0 <= value < math.inf, f"loss.{key}", value, "it cannot be negative")
        require(0 < self.no_object < math.inf, "loss.no_object", self.no_object, "it must be above 0")
        require(self.names is None or self.names >= 1, "loss.names", self.names, "it must be at least 1, or null")
        weights = self.class_weights
        if weights is not None:
            known = all(0 <= weight < math.inf for weight in weights) and any(weights)
            require(known, "loss.class_weights", list(weights), "numbers of at least 0, not all of them 0")
            require(self.name == "cross-entropy", "loss.class_weights", list(weights), f"{self.name} has none")


@dataclass
class OptimConfig:
    """Optimiser and schedule. The defaults are those of Segmenter and DEPICT (timm's ``sgd`` is SGD with Nesterov)."""

    name: str = "sgd"  # sgd | adamw
    lr: float = 1e-3
    min_lr: float = 1e-5
    schedule: str = "polynomial"  # decay of the rate, per optimiser step: polynomial | cosine
    power: float = 0.9  # of the polynomial
    warmup_steps: int = 0  # linear, from 0
    warmup_ratio: float | None = None  # share of the rate at the first step; null: 1 / (warmup_steps + 1)
    momentum: float = 0.9  # only for sgd, Nesterov
    weight_decay: float = 0.0
    clip_grad: float | None = None  # largest L2 norm of all gradients
    decoder_lr: float = 1.0  # the decoder's rate is so many times lr
    layer_decay: float = 1.0  # an encoder block's rate is so many times that of the block after it
    decay_norms: bool = True  # false: no weight decay of the encoder's LayerNorms
    decay_decoder_norms: bool = True  # false: nor of the decoder's norms (SED)

    def __post_init__(self) -> None:
        require(self.name in ("sgd", "adamw"), "optim.name", self.name, "choose sgd or adamw")
        require(0 < self.lr < math.inf, "optim.lr", self.lr, "it must be above 0")
        require(0 <= self.min_lr <= self.lr, "optim.min_lr", self.min_lr, f"it lies in [0, optim.lr={self.lr}]")
        known = self.schedule in ("polynomial", "cosine")
        require(known, "optim.schedule", self.schedule, "choose polynomial or cosine")
        require(0 < self.power < math.inf, "optim.power", self.power, "it must be above 0")
        require(self.warmup_steps >= 0, "optim.warmup_steps", self.warmup_steps, "it cannot be negative")
        require(0 <= self.momentum < 1, "optim.momentum", self.momentum, "it lies in [0, 1)")
        require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "it cannot be negative")
        known = self.warmup_ratio is None or 0 < self.warmup_ratio <= 1
        require(known, "optim.warmup_ratio", self.warmup_ratio, "it lies in (0, 1]")
        require(0 < self.decoder_lr < math.inf, "optim.decoder_lr", self.decoder_lr, "it must be above 0")
        require(0 < self.layer_decay <= 1, "optim.layer_decay", self.layer_decay, "it lies in (0, 1]")
        require(self.clip_grad is None or self.clip_grad > 0, "optim.clip_grad", self.clip_grad, "it must be above 0")


@dataclass
class TrainConfig:
    """The training loop."""

    epochs: int = 64
    steps: int | None = None  # optimiser steps, instead of epochs
    contrast_steps: int = 1250  # of the tiny CLIP of open-shapes, before the first training with it
    batch_size: int = 8  # total over processes and accumulation: what the recipe means
    micro_batch: int | None = None  # images in one forward pass; null: as many as batch_size
    precision: str = "fp32"  # fp32 | bf16 | fp16
    seed: int = 0
    workers: int | None = None  # data loading processes; null: half the cores, at most 8
    log_every: int = 10  # optimiser steps
    eval_every: int = 1  # epochs; 0: only at the end
    save_every: int = 1  # epochs
    save_every_steps: int | None = 1000  # optimiser steps, also within an epoch; null: only after epochs
    keep_every: int | None = None  # epochs; the weights then stay, for `--checkpoints all`; null: none do
    compile: bool = False  # torch.compile the training step
    checkpointing: bool = False  # recompute activations in the backward pass: less memory, more time, same gradients
    whole: bool = False  # save a frozen encoder with the decoder, instead of its name, hash and where it came from
    ema: float | None = None  # decay of a moving average of the weights (0.999), which is then evaluated and saved
    trackers: list[str] = field(default_factory=list)  # tensorboard, wandb, mlflow

    def __post_init__(self) -> None:
        for key in ("epochs", "batch_size", "log_every", "save_every", "contrast_steps"):
            require(getattr(self, key) >= 1, f"train.{key}", getattr(self, key), "it must be at least 1")
        require(
            self.save_every_steps is None or self.save_every_steps >= 1,
            "train.save_every_steps",
            self.save_every_steps,
            "it must be at least 1, or null",
        )
        kept = self.keep_every is None or self.keep_every >= 1
        require(kept, "train.keep_every", self.keep_every, "it must be at least 1, or null")
        require(self.steps is None or self.steps >= 1, "train.steps", self.steps, "it must be at least 1, or null")
        require(self.ema is None or 0 < self.ema < 1, "train.ema", self.ema, "a decay lies in (0, 1)")
        require(self.seed >= 0, "train.seed", self.seed, "it cannot be negative")
        require(self.eval_every >= 0, "train.eval_every", self.eval_every, "it cannot be negative")
        require(self.workers is None or self.workers >= 0, "train.workers", self.workers, "it cannot be negative")
        require(
            self.micro_batch is None or (self.micro_batch >= 1 and self.batch_size % self.micro_batch == 0),
            "train.micro_batch",
            self.micro_batch,
            f"it must divide train.batch_size={self.batch_size}",
        )
        require(
            self.precision in ("fp32", "bf16", "fp16"), "train.precision", self.precision, "choose fp32, bf16 or fp16"
        )
        known = {"tensorboard", "wandb", "mlflow"}
        require(set(self.trackers) <= known, "train.trackers", self.trackers, f"choose from {sorted(known)}")


@dataclass
class StoreConfig:
    """What a frozen encoder makes of ``data.views`` views, kept on the disk, see ``whitebox.engine.views``."""

    use: bool = True  # false: each training encodes them again
    precision: str = "fp16"  # fp16 | fp32, of the tokens
    gib: float = 20.0  # largest size

    def __post_init__(self) -> None:
        require(self.precision in ("fp16", "fp32"), "store.precision", self.precision, "choose fp16 or fp32")
        require(0 < self.gib < math.inf, "store.gib", self.gib, "it must be above 0")


@dataclass
class InferenceConfig:
    """Sliding windows as the official ``segm.model.utils.inference``, scales and flips averaged as probabilities."""

    window: int | None = 512  # px; null: no windows, the whole (resized) image in one pass
    stride: int | None = 512  # px; null without windows, whatever was given
    batch: int = 4  # windows, or whole images of one size, in one forward pass
    scales: list[float] = field(default_factory=lambda: [1.0])
    flip: bool = False  # also the mirrored image
    scores: str = (
        "shares"  # probabilities of a model that gives scores: shares of their sum | softmax (released SegViT)
    )
    topk: int | None = None  # early rejection of open-vocabulary models: classes of a place that stay; null: all

    def __post_init__(self) -> None:
        if self.window is None:
            self.stride = None  # settings that mean the same are the same
        for key, value in (("window", self.window), ("stride", self.stride), ("batch", self.batch)):
            require(value is None or value >= 1, f"inference.{key}", value, "it must be at least 1")
        require_side("inference.window", self.window)
        if self.window is not None:
            need = f"at most window={self.window}"
            require(self.stride is not None and self.stride <= self.window, "inference.stride", self.stride, need)
        require(
            0 < len(self.scales) <= 100 and all(0 < scale <= 100 for scale in self.scales),
            "inference.scales",
            list(self.scales),
            "it takes numbers above 0, and at most 100",
        )
        require(self.topk is None or self.topk >= 1, "inference.topk", self.topk, "it must be at least 1, or null")
        require(self.scores in ("shares", "softmax"), "inference.scores", self.scores, "choose shares or softmax")


def require_side(key: str, pixels: int | None) -> None:
    """Bound a side of images, which memory grows with: a saved configuration may be somebody else's."""
    require(pixels is None or pixels <= LONGEST, key, pixels, f"it can be {LONGEST} px at most")


MULTISCALE = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


@dataclass(kw_only=True)
class RunConfig:
    """Everything that defines a run. ``encoder`` and ``decoder`` are the dataclasses beside the modules they build."""

    model: str
    data: DataConfig = field(default_factory=DataConfig)
    encoder: Any
    decoder: Any
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)

    @property
    def view_seed(self) -> int:
        """Of the augmentation."""
        return self.train.seed if self.data.view_seed is None else self.data.view_seed


PATHS = ("data.root", "data.path", "encoder.weights")  # ~ is the home directory
BESIDE_LEARNING = {"data.root", "data.unit", "data.block", "inference.batch"} | {  # do not change what is learned
    f"train.{key}"
    for key in (
        "workers",
        "log_every",
        "eval_every",
        "save_every",
        "save_every_steps",
        "keep_every",
        "micro_batch",
        "compile",
        "checkpointing",
        "trackers",
    )
}
_SECTIONS = ("encoder", "decoder", "loss", "optim")  # that have a name: loss=atm means loss.name=atm
_NULLS = ("", "null", "Null", "NULL", "~")  # of YAML
_SCALARS = (str, int, float, type(None))  # values that are the same if they are of one type and equal


@functools.cache
def _types(section: str) -> dict[str, str]:
    """What each dotted key of a section takes, as its dataclass says it; where decoders differ, that of the last."""
    kinds: list[Any] = [kind for name, kind in _PLAIN.items() if name == section]
    if section == "encoder":
        from whitebox.models import CLIPConfig, EncoderConfig

        kinds = [CLIPConfig, EncoderConfig]
    elif section == "decoder":
        from whitebox.models.decoders import DECODERS

        kinds = [decoder.Config for decoder in DECODERS.values()]
    types = {f"{section}.{each.name}": str(each.type) for kind in kinds for each in fields(kind)}
    return {**types, "model": "str"}


_PLAIN = {  # sections that need no model
    "data": DataConfig,
    "inference": InferenceConfig,
    "loss": LossConfig,
    "optim": OptimConfig,
    "store": StoreConfig,
    "train": TrainConfig,
}


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """``["optim.lr=0.01", "data.path=007"]`` -> ``{"optim.lr": 0.01, "data.path": "007"}``.

    Where a key takes text, the value is taken as it is written; other values are read as YAML.

    Raises:
        ConfigError: an item is not ``key=value``, or its value is not YAML.
    """
    parsed: dict[str, Any] = {}
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"Override {item!r} is not of the form key=value (for example optim.lr=0.01).")
        parsed[key.strip()] = _read_value(key.strip(), text)
    return parsed


def _read_value(key: str, text: str) -> Any:
    kind = _types(key.partition(".")[0]).get(key, "")
    if kind == "str":
        return text
    if kind == "str | None":
        return None if text in _NULLS else text
    if key == LABEL_MAP:
        inside = re.fullmatch(r"\s*\{(.*)\}\s*", text, re.DOTALL)
        pairs = (
            [] if inside is None else [re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", each) for each in inside[1].split(",")]
        )
        if inside is not None and all(pairs):
            return {int(pair[1]): int(pair[2]) for pair in pairs if pair is not None}
        if inside is not None and not inside[1].strip():
            return {}
        raise ConfigError(f"{key}={text} cannot be read: write {{STORED:CLASS,...}}, for example {{0:0,255:1}}.")
    try:
        if kind == "list[str]":
            return yaml.load(text, yaml.BaseLoader)  # nothing but texts, lists and mappings
        return OmegaConf.from_dotlist([f"value={text}"]).value
    except Exception as error:  # the YAML reader's own errors have several unrelated bases
        raise ConfigError(f"The value of {key!r} cannot be read: {str(error).splitlines()[0]}.") from error


def _named(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """``loss=atm`` means ``loss.name=atm``, and so for every section that has a name."""
    return {
        f"{key}.name" if key in _SECTIONS and isinstance(value, str) else key: value for key, value in chosen.items()
    }


def architecture(config: RunConfig) -> dict[str, Any]:
    """What makes a model another one, by dotted key: all of its decoder, and the shape of its encoder."""
    shape = ("name", "patch_size", "width", "depth", "heads", "shrink")
    encoder = {key: getattr(config.encoder, key) for key in shape}
    return flatten({"encoder": encoder, "decoder": asdict(config.decoder)})


def _merge(config: DictConfig, layers: Sequence[Layer]) -> None:
    """Set what ``layers`` say (by dotted key), one after the other, naming the key in every error."""
    held: dict[str, Any] = flatten(OmegaConf.to_container(config, resolve=False))  # type: ignore[arg-type]
    known = list(held)
    for key, value, origin in ((*each, origin) for differences, origin in layers for each in differences.items()):
        if key not in known:
            raise ConfigError(f"Unknown key {key!r}{origin}{nearest(key, known)} `--print-config` shows all keys.")
        if key in held and isinstance(value, _SCALARS) and type(held[key]) is type(value) and held[key] == value:
            continue  # as nearly all of a saved configuration
        held.pop(key, None)  # what it holds then, OmegaConf decides
        try:
            if key == LABEL_MAP:
                value = {int(stored): index for stored, index in value.items()}  # JSON has no numbers as keys
            OmegaConf.update(config, key, _literal(value), merge=False)
        except (OmegaConfBaseException, AttributeError, ValueError) as error:
            raise ConfigError(f"{key}={short(repr(value))}{origin}: {short(str(error))}.") from error


def _literal(value: Any) -> Any:
    """``value`` so that OmegaConf takes the texts in it as they are, ``${...}`` too."""
    if isinstance(value, str):
        require_text(value, "The setting")
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, list | tuple):
        return [_literal(item) for item in value]
    return value


def _structure(model: str, encoder_name: str, decoder_name: str) -> DictConfig:
    from whitebox.models import encoder_config
    from whitebox.models.decoders import DECODERS

    if decoder_name not in DECODERS:
        raise ConfigError(
            f"Unknown decoder {short(repr(decoder_name))}{nearest(decoder_name, list(DECODERS))} "
            f"There are: {', '.join(sorted(DECODERS))}."
        )
    config = _defaults(type(encoder_config(encoder_name)), DECODERS[decoder_name].Config)
    config.model, config.encoder.name = _literal(model), _literal(encoder_name)
    return config


def _defaults(*halves: type) -> DictConfig:
    """Of a run whose encoder and decoder are configured by these, or of what can be ``Shown``."""
    return _copies(*halves)()


@functools.cache
def _copies(*halves: type) -> Callable[[], DictConfig]:
    """OmegaConf takes 13 times as long to read the dataclasses, and 6 times to copy what it has read."""
    encoder_decoder = dict(zip(("encoder", "decoder"), (half() for half in halves), strict=False))
    config: DictConfig = OmegaConf.structured(RunConfig(model="", **encoder_decoder) if halves else Shown())
    OmegaConf.set_readonly(config, False)
    for section in encoder_decoder:  # frozen dataclasses come read-only
        OmegaConf.set_readonly(config[section], False)
    try:
        return functools.partial(pickle.loads, pickle.dumps(config))
    except (AttributeError, pickle.PicklingError):  # a decoder's class that cannot be imported, as one of a function
        return functools.partial(copy.deepcopy, config)


def resolve(
    model: str,
    dataset: str | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    data_root: str | os.PathLike[str] | None = None,
    *,
    encoder: str | None = None,
    recipe: str | None = None,
) -> RunConfig:
    """The complete configuration of a run.

    Where several of these say the same key, the last counts: encoder, model, dataset, recipe, overrides.

    Args:
        model: a name of ``whitebox models``.
        dataset: a name of ``whitebox datasets``; None: the defaults, without a dataset's recipe.
        overrides: dotted keys to values, or ``key=value`` strings. ``encoder=NAME`` is as ``encoder``, or any of timm.
        data_root: where datasets live; None: ``$WHITEBOX_DATA``, else ``data``.
        encoder: a name of ``whitebox encoders``; None: the model's own. A frozen one is pretrained, unless its weights
            come from a file or it is said otherwise.
        recipe: a name of ``whitebox recipes``; None: the dataset's own.

    Raises:
        ConfigError: unknown name or key, wrong type, impossible value.
    """
    chosen = _named(flatten(overrides) if isinstance(overrides, Mapping) else parse_overrides(overrides))
    if encoder is None and _is_of_ours(chosen.get("encoder.name")):
        encoder = str(chosen.pop("encoder.name"))
    if dataset in RENAMED:
        old, (dataset, own) = dataset, RENAMED[dataset]
        tell(f"{old} is now a dataset with a recipe: write --dataset {dataset} --recipe {own}")
        recipe = recipe or own
    layers = model_layers(model, encoder) + dataset_layers(dataset, recipe)
    said = _united([*layers, (chosen, "")])
    known = known_of(str(said["encoder.name"]))
    patch = said.get("encoder.patch_size", known.patch if known else None)
    fitted = _whole_patches(patch, _united(layers))
    told = [f"{key}={value}" for key, value in fitted.items() if key not in chosen]
    if told and dataset is not None:
        tell(f"Whole patches of {patch} px: {' '.join(told)}")
    layers += [(fitted, ""), (_root(data_root), ""), (chosen, "")]

    named = _united(layers)
    config = _structure(model, str(named["encoder.name"]), str(named["decoder.name"]))
    _merge(config, layers)
    if "encoder.pretrained" not in chosen:
        unknown = config.encoder.get("frozen", False) and not config.encoder.random
        config.encoder.pretrained = config.encoder.weights is None and (unknown or config.encoder.pretrained)
    if config.encoder.image_size is None:
        config.encoder.image_size = config.data.crop
    _follow(config, chosen, before=_united(layers[:-1]))
    if "decoder.encoder_layers" not in chosen:
        _follow_depth(config, about(encoder_of(model)).depth, known.depth if known else 0)
    if config.encoder.get("squash") and "inference.window" not in chosen:
        config.inference.window = config.inference.stride = None  # what is squashed to a square is shown whole
    given = data_root is not None or "data.root" in chosen
    _find_folder(config, [config.data.root, ""] if given else ["", config.data.root])
    return _to_run_config(config)


def _united(layers: Sequence[Layer]) -> dict[str, Any]:
    return {key: value for differences, _ in layers for key, value in differences.items()}


def _is_of_ours(name: object) -> bool:
    """Whether the name of an encoder is meant to be one of `whitebox encoders`: timm's have no hyphens."""
    return isinstance(name, str) and re.fullmatch(r"[a-z0-9.]+(-[a-z0-9.]+)+", name) is not None


def _whole_patches(patch: object, said: Mapping[str, Any]) -> dict[str, int]:
    """Crop and window of a dataset, where they are no multiples of the patch: the next smaller ones."""
    fitted: dict[str, int] = {}
    if not isinstance(patch, int) or patch < 1:
        return fitted
    for key, default in (("data.crop", DataConfig().crop), ("inference.window", InferenceConfig().window)):
        length = said.get(key, default)
        if length is not None and length % patch:
            fitted[key] = max(patch, length // patch * patch)
    stride = said.get("inference.stride", InferenceConfig().stride)
    if "inference.window" in fitted and stride is not None and stride > fitted["inference.window"]:
        fitted["inference.stride"] = fitted["inference.window"]
    return fitted


@dataclass(kw_only=True)
class Shown:
    """What of a run's configuration can change after its training: the images, and how they are shown to the model."""

    data: DataConfig = field(default_factory=DataConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)


def change(
    config: RunConfig,
    dataset: str | None = None,
    overrides: Sequence[str] = (),
    data_root: str | os.PathLike[str] | None = None,
) -> RunConfig:
    """A saved run's configuration for another dataset, root or setting: only ``data`` and ``inference`` can change.

    Raises:
        ConfigError: see ``resolve``; or an override of what the weights were trained with.
    """
    changed = change_shown(to_dict(config), dataset, overrides, data_root)
    return replace(config, data=changed.data, inference=changed.inference)


def change_shown(
    saved: Mapping[str, Any],
    dataset: str | None = None,
    overrides: Sequence[str] = (),
    data_root: str | os.PathLike[str] | None = None,
) -> Shown:
    """As ``change``, of a configuration as it is saved (``to_dict``); needs no model and no torch.

    Raises:
        ConfigError: see ``change``.
    """
    chosen = parse_overrides(overrides)
    for key in chosen:
        if key.split(".")[0] in ("model", "encoder", "decoder", "loss", "optim", "train", "store"):
            raise ConfigError(f"{key} was fixed by the training: only data.* and inference.* can change afterwards.")
    layers: list[tuple[dict[str, Any], str]] = []
    if dataset is None:
        there = {key: saved.get(key, {}) for key in ("data", "inference")}
        layers.append((_current(flatten(there)), " in the saved configuration"))
    else:
        layers += _shown_layers(dataset)
        layers.append((_always_shown(saved), " in the saved configuration"))
        layers.append((_whole_patches(_saved_patch(saved), _united(layers)), ""))
    layers += [(_root(data_root), ""), (chosen, "")]
    changed = _defaults()
    _merge(changed, layers)
    _follow(changed, chosen, before={})
    given = data_root is not None or "data.root" in chosen
    own = saved.get("data", {}).get("root", "")
    _find_folder(changed, [*([changed.data.root] if given else []), own, "", changed.data.root])
    shown = _to_object(changed)
    assert isinstance(shown, Shown)
    return shown


def _shown_layers(dataset: str) -> list[Layer]:
    """Of a dataset's own recipe nothing is shown; a former dataset with a recipe in its name goes on showing it."""
    dataset, recipe = RENAMED.get(dataset, (dataset, None))
    layers = [
        ({key: value for key, value in said.items() if key.startswith(("data.", "inference."))}, origin)
        for said, origin in dataset_layers(dataset, recipe)
    ]
    if recipe is not None:
        differences = " ".join(f"{key}={value}" for key, value in _united(layers[1:]).items())
        tell(f"{dataset} with the recipe {recipe} is now written --dataset {dataset} {differences}")
    return layers


def _always_shown(saved: Mapping[str, Any]) -> dict[str, Any]:
    """How an open-vocabulary model is shown images: on datasets it was not trained on as on its own."""
    if "squash" not in saved.get("encoder", {}):
        return {}
    there = _current(flatten({key: saved.get(key, {}) for key in ("data", "inference")}))
    kept = ("data.transforms", "data.resize", "data.max_ratio", "inference.")
    return {key: value for key, value in there.items() if key.startswith(kept)}


def _saved_patch(saved: Mapping[str, Any]) -> int | None:
    encoder = saved.get("encoder", {})
    known = known_of(str(encoder.get("name")))
    return encoder.get("patch_size") or (known.patch if known else None)


def _follow(config: DictConfig, chosen: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Let window and stride follow a ``data.crop`` that was ``chosen``, and the stride a window, unless given."""
    inference, crop = config.inference, before.get("data.crop", DataConfig().crop)
    if "data.crop" in chosen and "inference.window" not in chosen and before and inference.window is not None:
        inference.window = max(1, round(inference.window * config.data.crop / crop))
        if "inference.stride" not in chosen and inference.stride is not None:
            inference.stride = max(1, round(inference.stride * config.data.crop / crop))
    elif (
        chosen.get("inference.window") is not None and "inference.stride" not in chosen and inference.stride is not None
    ):
        inference.stride = min(inference.stride, inference.window)


def _follow_depth(config: DictConfig, own: int, depth: int) -> None:
    """Let the blocks that a decoder takes lie at the same fractions of an encoder of another depth than the model's."""
    layers = config.decoder.get("encoder_layers")
    if not layers or not own or not depth or depth == own or config.encoder.get("depth") is not None:
        return
    config.decoder.encoder_layers = [max(round((layer + 1) * depth / own), 1) - 1 for layer in layers]
    chosen = ",".join(map(str, config.decoder.encoder_layers))
    tell(f"Blocks at the same fractions of {depth} as of {own}: decoder.encoder_layers=[{chosen}]")


def _find_folder(config: DictConfig, roots: Sequence[str]) -> None:
    """Expand ``~``, and let ``data.root`` of a ``folder`` be the first of ``roots`` ("": here) that holds its path.

    It becomes absolute, so that the run finds its images from wherever it is used. Where none holds it, nothing
    changes, and the reader says so.
    """
    for key in PATHS:
        section, name = key.split(".")
        if section in config and isinstance(value := config[section][name], str):
            config[section][name] = _literal(os.path.expanduser(value))
    if config.data.kind != "folder":
        return
    for root in roots:
        if Path(root, config.data.path).is_dir():
            config.data.root = _literal(os.path.abspath(os.path.expanduser(root)))
            return


def _root(data_root: str | os.PathLike[str] | None) -> dict[str, Any]:
    root = str(data_root) if data_root is not None else os.environ.get("WHITEBOX_DATA")
    return {"data.root": root} if root else {}


def from_dict(saved: Mapping[str, Any]) -> RunConfig:
    """The ``RunConfig`` of a saved run (``config.yaml``, or the header of ``model.safetensors``).

    Raises:
        ConfigError: a section or key is missing, unknown, or impossible.
    """
    try:
        named = saved["model"], saved["encoder"]["name"], saved["decoder"]["name"]
    except (KeyError, TypeError) as error:
        raise ConfigError(f"The saved configuration lacks {error}; it was not written by whitebox.") from error
    for key, name in zip(("model", "encoder.name", "decoder.name"), named, strict=True):
        require(isinstance(name, str), key, name, "it is a name")
    model, encoder, decoder = named
    config = _structure(model, encoder, decoder)
    flat = _current(flatten(saved))
    if flat.get("loss.name") == "cross-entropy" and "loss.class_weights" not in flat:
        flat.pop("loss.dice", None)  # written before cross-entropy could have a Dice term: it was atm's default
    _merge(config, [(flat, " in the saved configuration")])
    return _to_run_config(config)


def _current(saved: dict[str, Any]) -> dict[str, Any]:
    """A saved configuration with the dataset's name of today."""
    name = saved.get("data.name")
    if isinstance(name, str) and name in RENAMED:
        saved["data.name"] = RENAMED[name][0]
    return saved


def _to_run_config(config: DictConfig) -> RunConfig:
    resolved = _to_object(config)
    assert isinstance(resolved, RunConfig)
    return resolved


def _to_object(config: DictConfig) -> Any:
    try:
        return OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise ConfigError(short(str(error))) from error


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Plain nested dictionary, as saved in YAML and in weight headers."""
    return asdict(config)


def to_yaml(config: RunConfig) -> str:
    """YAML text of the whole configuration."""
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))
