"""Checkpoints of the official DEPICT, CBSA and Segmenter code: ``checkpoint.pth`` beside ``variant.yml``.

``variant.yml`` says ``mask_transformer`` for every decoder, and DEPICT's choice of self- or cross-attention is an
edit of its source, so decoders are told apart by their tensors. Depths and widths are read off the tensors; what
tensors cannot tell (numbers of heads, image size, normalisation) comes from ``variant.yml``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from whitebox.catalog import dataset_names
from whitebox.config import DataConfig, InferenceConfig, RunConfig, resolve
from whitebox.errors import CheckpointError, ConfigError, short
from whitebox.interop.plain_yaml import read_yaml
from whitebox.interop.reading import count
from whitebox.models import DECODERS, EncoderConfig, Segmentor, build
from whitebox.models.encoder import SEGMENTER_FAMILY
from whitebox.models.weights import count_numbers, load_strictly, read_content, renamed, unwrap

# official name -> ours, tried in order; the first that matches renames
RENAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "depict-sa": (
        (r"decoder\.net\.layers\.(\d+)\.fn\.proj", r"decoder.layers.\1.basis"),
        (r"decoder\.net\.layers\.(\d+)\.(?:fn\.)?(.+)", r"decoder.layers.\1.\2"),
        (r"decoder\.decoder_norm\.(.+)", r"decoder.norm.\1"),
    ),
    "depict-ca": (
        (r"decoder\.snet\.layers\.(\d+)\.fn\.proj", r"decoder.layers.\1.basis"),
        (r"decoder\.snet\.layers\.(\d+)\.(?:fn\.)?(.+)", r"decoder.layers.\1.\2"),
        (r"decoder\.cnet\.layers\.(\d+)\.fn\.proj", r"decoder.cross_layers.\1.basis"),
        (r"decoder\.cnet\.layers\.(\d+)\.(?:fn\.)?(.+)", r"decoder.cross_layers.\1.\2"),
        (r"decoder\.snorm\.(.+)", r"decoder.norm.\1"),
        (r"decoder\.cnorm\.(.+)", r"decoder.class_norm.\1"),
    ),
    "cbsa": (
        (r"decoder\.net\.layers\.(\d+)\.fn\.proj\.weight", r"decoder.layers.\1.basis"),
        (r"decoder\.net\.layers\.(\d+)\.fn\.step_x", r"decoder.layers.\1.step_size"),
        (r"decoder\.net\.layers\.(\d+)\.fn\.step_rep", r"decoder.layers.\1.representative_step"),
        (r"decoder\.net\.layers\.(\d+)\.fn\.to_out\.(.+)", r"decoder.layers.\1.output.\2"),
        (r"decoder\.net\.layers\.(\d+)\.norm\.(.+)", r"decoder.layers.\1.norm.\2"),
        (r"decoder\.decoder_norm\.(.+)", r"decoder.norm.\1"),
    ),
    "segmenter-mask": (
        (r"decoder\.blocks\.(.+)", r"decoder.layers.\1"),
        (r"decoder\.proj_dec\.(.+)", r"decoder.proj_in.\1"),
        (r"decoder\.proj_classes", r"decoder.proj_class"),
        (r"decoder\.decoder_norm\.(.+)", r"decoder.norm.\1"),
    ),
    "segmenter-linear": (),
}
COMMON_RENAMES = ((r"encoder\.(.+)", r"encoder.vit.\1"), (r"decoder\.cls_emb", r"decoder.class_embeddings"))


def read_variant(path: Path) -> dict[str, Any]:
    """``variant.yml`` as nested dictionaries.

    Raises:
        CheckpointError: missing, not YAML, or holding a tag other than the python tuple.
    """
    if not path.is_file():
        raise CheckpointError(
            f"There is no {path}: an official checkpoint.pth needs its variant.yml beside it "
            "(one of mmsegmentation: `whitebox convert --from mmseg`)."
        )
    try:
        content = read_yaml(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read as plain YAML: {error}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("net_kwargs"), dict):
        raise CheckpointError(f"{path} has no section net_kwargs; it is not the variant.yml of a Segmenter training.")
    return content


SIGNS = {  # a tensor by which each decoder is known
    "decoder.net.layers.0.fn.proj": "depict-sa",
    "decoder.snet.layers.0.fn.proj": "depict-ca",
    "decoder.net.layers.0.fn.proj.weight": "cbsa",  # where DEPICT has a parameter, CBSA has a linear layer
    "decoder.blocks.0.norm1.weight": "segmenter-mask",
    "decoder.head.weight": "segmenter-linear",
}


def official_tensors(path: Path) -> tuple[str, dict[str, Tensor]]:
    """Which decoder the official tensors of a file belong to, and the tensors.

    Raises:
        CheckpointError: none that is known; see ``read_pickle``.
    """
    found = unwrap(read_content(path), [re.escape(sign) for sign in SIGNS])
    tensors = {} if found is None else found.tensors
    if any(name.startswith("encoder.") for name in tensors):
        for sign, name in SIGNS.items():
            if sign in tensors:
                return name, tensors
    raise CheckpointError(f"{path} is no DEPICT, CBSA or Segmenter checkpoint: its tensors fit no known decoder.")


def load_official(path: Path) -> tuple[Segmentor, RunConfig]:
    """Model of an official ``checkpoint.pth`` (or of the folder that holds it), with the official outputs.

    Raises:
        CheckpointError: files missing, cut short, unsafe, or contradicting each other.
    """
    if path.is_dir():
        path = path / "checkpoint.pth"
    variant = read_variant(path.with_name("variant.yml"))
    name, tensors = official_tensors(path)
    ours = {renamed(key, (*RENAMES[name], *COMMON_RENAMES)): value for key, value in tensors.items()}
    try:
        config, num_classes = _config(variant, ours, name)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, ConfigError) as error:
        reason = str(error) if isinstance(error, ConfigError) else short(repr(error))
        raise CheckpointError(f"{path} and its variant.yml do not describe a model: {reason}") from error
    declared = variant["net_kwargs"].get("n_cls", num_classes)
    if declared != num_classes:
        raise CheckpointError(f"{path} has {num_classes} classes but its variant.yml says {short(repr(declared))}.")
    classes, palette = _classes(config, num_classes)
    model = build(config.encoder, config.decoder, num_classes, classes, palette, count_numbers(ours))
    model.load_report = load_strictly(model, ours, str(path), f"official checkpoint, {name}")
    return model.eval(), config


def _config(variant: dict[str, Any], tensors: Mapping[str, Tensor], name: str) -> tuple[RunConfig, int]:
    net = variant["net_kwargs"]
    decoder_variant = net.get("decoder") or {}
    distilled = "encoder.vit.dist_token" in tensors
    backbone = str(net.get("backbone", ""))
    # every size is given below, so the name decides nothing but the family's conventions
    named = timm.is_model(backbone) and SEGMENTER_FAMILY.match(backbone) and distilled == ("distilled" in backbone)
    fallback = "deit_tiny_distilled_patch16_224" if distilled else "vit_tiny_patch16_384"
    patches = tensors["encoder.vit.patch_embed.proj.weight"]
    image_size = net["image_size"]
    encoder = EncoderConfig(
        name=backbone if named else fallback,
        image_size=int(image_size[0] if isinstance(image_size, list | tuple) else image_size),
        drop_path=float(net.get("drop_path_rate", 0.0)),
        normalization=str(net["normalization"]),
        norm_eps=1e-5,
        patch_size=patches.shape[-1],
        width=patches.shape[0],
        depth=count(tensors, r"encoder\.vit\.blocks\."),
        heads=int(net["n_heads"]),
    )

    options: dict[str, Any] = {}
    dropout = float(decoder_variant.get("dropout", 0.0))
    if name in ("depict-sa", "depict-ca", "cbsa"):
        heads = int(decoder_variant["n_heads"])
        options = {
            "layers": count(tensors, r"decoder\.layers\."),
            "heads": heads,
            "head_dim": _per_head(tensors["decoder.layers.0.basis"], heads),
        }
    if name.startswith("depict"):
        options["dropout"] = dropout  # the official CBSA ignores it
    if name == "depict-ca":
        options["cross_layers"] = count(tensors, r"decoder\.cross_layers\.")
        options["cross_head_dim"] = _per_head(tensors["decoder.cross_layers.0.basis"], heads)
    if name == "segmenter-mask":
        options = {
            "layers": count(tensors, r"decoder\.layers\."),
            "width": tensors["decoder.proj_in.weight"].shape[0],
            "dropout": dropout,
            "drop_path": float(decoder_variant.get("drop_path_rate", 0.0)),
        }
    decoder: Any = DECODERS[name].Config(**options)
    head = "decoder.head.bias" if name == "segmenter-linear" else "decoder.mask_norm.bias"
    config = RunConfig(model=f"official-{name}", encoder=encoder, decoder=decoder)
    config.data, config.inference = _data(variant), _inference(variant)
    return config, len(tensors[head])


def _per_head(basis: Tensor, heads: int) -> int:
    if heads < 1 or basis.shape[0] % heads:
        raise ValueError(f"{basis.shape[0]} rows of a basis cannot be shared by {heads} heads")
    return basis.shape[0] // heads


def _data(variant: dict[str, Any]) -> DataConfig:
    """The dataset the checkpoint was trained on, as far as we have it."""
    kwargs = variant.get("dataset_kwargs") or {}
    name = str(kwargs.get("dataset", "")).replace("_", "-")
    known = name in dataset_names()
    data = resolve("segmenter-linear-tiny", name).data if known else DataConfig(name=name or "unknown", kind="")
    data.resize = int(kwargs.get("image_size", data.resize))
    data.crop = int(kwargs.get("crop_size", data.crop))
    return data


def _inference(variant: dict[str, Any]) -> InferenceConfig:
    kwargs = variant.get("inference_kwargs") or {}
    window = int(kwargs.get("window_size", 512))
    return InferenceConfig(window=window, stride=int(kwargs.get("window_stride", window)))


def _classes(config: RunConfig, num_classes: int) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Names and colours of the dataset's classes where their number fits, else numbered classes."""
    from whitebox.data import GENERATED, READERS, dataset_info

    if config.data.kind in READERS and config.data.kind not in (*GENERATED, "folder"):
        classes, palette = dataset_info(config.data)
        if len(classes) == num_classes:
            return classes, palette
    return (), ()
