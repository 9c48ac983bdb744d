"""What ``configs/`` holds by name: encoders, models, datasets and recipes, each as differences from the defaults.

    encoders/NAME.yaml   ``encoder:`` keys, and ``about:`` it (see ``About``)
    decoders/NAME.yaml   what a decoder wants of any encoder and loss, and its ``models:`` with what differs between
                         them, and the encoder that one ``takes`` if not the ViT of its size; a decoder without
                         ``models`` is one on each ViT: DECODER-tiny ... DECODER-large
    datasets/NAME.yaml   ``data:`` and ``inference:`` keys, and its ``recipe:`` where it is another than the default
    recipes/NAME.yaml    keys of any section for any dataset, and ``datasets:`` with what differs between them

Where several say the same key, the last of encoder, decoder, dataset, recipe counts.
"""

from __future__ import annotations

import difflib
import functools
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from whitebox.errors import ConfigError

SIZES = ("tiny", "small", "base", "large")
RECIPE = "segmenter"  # of a dataset that names none
RENAMED = {  # former datasets that were a dataset with a recipe
    "ade20k-640": ("ade20k", "segmenter-640"),
    "ade20k-segvit": ("ade20k", "segvit"),
    "coco-stuff10k-segvit": ("coco-stuff10k", "segvit"),
    "pascal-context-segvit": ("pascal-context", "segvit"),
    "pascal-context-59-segvit": ("pascal-context-59", "segvit"),
}
LABEL_MAP = "data.label_map"  # a key whose value is a mapping

log = logging.getLogger("whitebox")

Layer = tuple[dict[str, Any], str]  # values by dotted key, and where they are said, for error messages


@dataclass(frozen=True, kw_only=True)
class About:
    """What nobody can read off an encoder's name.

    Attributes:
        patch: px; crops and windows of datasets become multiples of it.
        depth: blocks, which a decoder that takes several follows; 0: it has none.
        image_size: px, of its pretraining.
        parameters: millions.
        pretraining: method and images.
        licence: of the weights.
        gated: what to do before the weights can be downloaded; empty: nothing.
    """

    patch: int
    image_size: int
    parameters: float
    pretraining: str
    licence: str
    gated: str = ""
    depth: int = 0


@functools.cache
def configs_folder() -> Path:
    """Folder of the YAML files: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def encoder_names() -> list[str]:
    """Names of all encoders, sorted."""
    return _files("encoder")


def dataset_names() -> list[str]:
    """Names of all datasets, sorted."""
    return _files("dataset")


def recipe_names() -> list[str]:
    """Names of all recipes, sorted."""
    return _files("recipe")


def model_names() -> list[str]:
    """Names of all models, sorted."""
    return sorted(_models())


def nearest(name: str, known: Sequence[str]) -> str:
    """``; did you mean ...?`` to end the first sentence of an error message, or its full stop when nothing is near."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "."


def about(encoder: str) -> About:
    """What is known about an encoder.

    Raises:
        ConfigError: there is none of that name, or its file does not say what it should.
    """
    said = _read("encoder", encoder).get("about") or {}
    try:
        return About(**said)
    except TypeError as error:
        names = ", ".join(field.name for field in fields(About))
        raise ConfigError(f"`about:` in configs/encoders/{encoder}.yaml takes {names}.") from error


def known_of(timm_name: str) -> About | None:
    """What is known about an encoder by the name that timm has for it; None: it is none of ours."""
    for encoder in encoder_names():
        if _read("encoder", encoder)["encoder"]["name"] == timm_name:
            return about(encoder)
    return None


def datasets_of(recipe: str) -> tuple[str, ...]:
    """The datasets that a recipe says something about."""
    return tuple(_read("recipe", recipe).get("datasets") or {})


def encoder_layers(encoder: str) -> list[Layer]:
    """What an encoder's file says.

    Raises:
        ConfigError: there is none of that name.
    """
    said = _read("encoder", encoder)
    return [(flatten({"encoder": said["encoder"]}), f" in configs/encoders/{encoder}.yaml")]


def model_layers(model: str, encoder: str | None = None) -> list[Layer]:
    """What a model's encoder (or another ``encoder``) and its decoder say.

    Raises:
        ConfigError: there is no model, or no encoder, of that name.
    """
    models = _models()
    if model not in models:
        raise ConfigError(f"Unknown model {model!r}{nearest(model, sorted(models))} `whitebox models` lists them.")
    decoder, own = models[model]
    said = _read("decoder", decoder) if decoder in _files("decoder") else {}
    origin = f" in configs/decoders/{decoder}.yaml"
    layers = encoder_layers(encoder or encoder_of(model))
    layers.append(({"decoder.name": decoder}, ""))
    layers += [(flatten(_without(said, "models")), origin), (flatten(_without(own, "takes")), origin)]
    return layers


def encoder_of(model: str) -> str:
    """The encoder of a model: the one that it ``takes``, else the ViT of its size."""
    _, own = _models()[model]
    return str(own.get("takes") or f"vit-{_size(model)}")


def dataset_layers(dataset: str | None, recipe: str | None = None) -> list[Layer]:
    """What a dataset and its recipe (or another ``recipe``) say.

    Raises:
        ConfigError: there is no dataset, or no recipe, of that name.
    """
    layers: list[Layer] = []
    if dataset is not None:
        said = _read("dataset", dataset)
        layers.append((flatten(_without(said, "recipe")), f" in configs/datasets/{dataset}.yaml"))
        recipe = recipe or said.get("recipe", RECIPE)
    if recipe is not None:
        said, origin = _read("recipe", recipe), f" in configs/recipes/{recipe}.yaml"
        own = (said.get("datasets") or {}).get(dataset) or {}
        layers += [(flatten(_without(said, "datasets")), origin), (flatten(own), origin)]
    return layers


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings -> one level with dotted keys; keys that are already dotted stay."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and f"{prefix}{key}" != LABEL_MAP:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@functools.cache
def tell(line: str) -> None:
    """Say something that the user should know, once, by the main process."""
    if os.environ.get("RANK", "0") == "0":
        log.warning("%s", line)


def described_models() -> list[str]:
    """Names of the models whose decoder has a file, sorted: all of ours, and PyTorch is not imported for it."""
    return sorted(name for decoder in _files("decoder") for name in _models_of(decoder))


def _models() -> dict[str, tuple[str, Mapping[str, Any]]]:
    """The decoder of each model, and what its file says of this model alone."""
    from whitebox.models.decoders import DECODERS

    return {model: (decoder, own or {}) for decoder in DECODERS for model, own in _models_of(decoder).items()}


def _models_of(decoder: str) -> dict[str, Mapping[str, Any] | None]:
    """The models of a decoder, and what its file says of each; where no file names any, one of each size."""
    said = _read("decoder", decoder) if decoder in _files("decoder") else {}
    return said["models"] if "models" in said else {f"{decoder}-{size}": {} for size in SIZES}


def _size(model: str) -> str:
    return next(part for part in model.split("-") if part in SIZES)


def _files(kind: str) -> list[str]:
    folder = f"{configs_folder()}/{kind}s"
    return list(_listed(folder, os.stat(folder).st_mtime_ns))


@functools.lru_cache(maxsize=16)
def _listed(folder: str, _: int) -> list[str]:
    return sorted(path.stem for path in Path(folder).glob("*.yaml"))


def _read(kind: str, name: str) -> dict[str, Any]:
    known = _files(kind)
    if name not in known:
        other = "; any other is --dataset folder data.path=DIR" if kind == "dataset" else ""
        raise ConfigError(f"Unknown {kind} {name!r}{nearest(name, known)} `whitebox {kind}s` lists them{other}.")
    path = f"{configs_folder()}/{kind}s/{name}.yaml"
    return _load(path, os.stat(path).st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _load(path: str, _: int) -> dict[str, Any]:
    loaded = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return {str(key): value for key, value in loaded.items()} if isinstance(loaded, dict) else {}


def _without(said: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in said.items() if name != key}
