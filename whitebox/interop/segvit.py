"""Checkpoints of the released SegViT code: ``.pth`` files of mmsegmentation 0.x, a state dict and what is known of it.

Depths, widths and the number of classes are read off the tensors. What tensors cannot tell (numbers of heads, which
encoder layers are read, where tokens are dropped) comes from the config that mmsegmentation writes into ``meta``; it is
read as literals, nothing is run. A checkpoint without one must be of a released size, ViT-B or ViT-L.

The description this is written from: the released configs have ViT-B (encoder layers 5, 7, 11) and ViT-L (7, 15, 23;
Shrunk 7 and 23, at layer 8), 64 dimensions a head in the encoder and 32 in the head.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from whitebox.config import DataConfig, LossConfig, RunConfig, resolve
from whitebox.data import dataset_info
from whitebox.errors import CheckpointError, ConfigError, short
from whitebox.interop.reading import assignments, count, inference, normalization
from whitebox.models import EncoderConfig, Segmentor, build
from whitebox.models.decoders.segvit import SegViTConfig, SegViTShrunkConfig
from whitebox.models.encoder import MMSEG_NAMES
from whitebox.models.weights import count_numbers, load_strictly, renamed, unwrap

SIGNS = ("decode_head.class_embed.weight", "decode_head.atm.class_embed.weight")  # of the cascade, of the Shrunk head
LAYER_NAMES = (  # of a layer of the head -> ours
    (r"self_attn\.in_proj_(.+)", r"self_attention.qkv.\1"),
    (r"self_attn\.out_proj\.(.+)", r"self_attention.proj.\1"),
    (r"multihead_attn\.out_proj\.(.+)", r"proj.\1"),
    (r"multihead_attn\.(.+)", r"\1"),
    (r"linear([12])\.(.+)", r"mlp.fc\1.\2"),
)
MEMORY_NAMES = {"input_proj": "proj", "proj_norm": "norm"}
RELEASED = {  # (width, depth) of the encoder -> our name, drop path, layers read by the cascade and by the Shrunk head
    (768, 12): ("vit_base_patch16_384", 0.1, [5, 7, 11], []),
    (1024, 24): ("vit_large_patch16_384", 0.3, [7, 15, 23], [7, 23]),
}
SHRUNK_AT = 8
DATASETS = ("ade20k", "coco-stuff10k", "pascal-context", "pascal-context-59")


def is_segvit(checkpoint: object) -> bool:
    """Whether the contents of a torch file are a checkpoint of SegViT."""
    return _tensors(checkpoint) is not None


def _tensors(checkpoint: object) -> dict[str, Tensor] | None:
    found = unwrap(checkpoint, [re.escape(sign) for sign in SIGNS])
    return None if found is None else found.tensors


def load_segvit(checkpoint: Mapping[str, Any], source: str) -> tuple[Segmentor, RunConfig]:
    """Model and configuration of a released-style checkpoint, in evaluation mode.

    Class names come from the checkpoint; where they are those of a dataset that SegViT was released for, colours and
    the way images are resized are that dataset's.

    Args:
        checkpoint: contents of the file, see ``is_segvit``. source: what to call it.

    Raises:
        CheckpointError: the config cannot be read, is missing for a size that was not released, or contradicts the
            tensors; a tensor is missing, unexpected or of another shape.
    """
    tensors = _tensors(checkpoint) or {}
    found = checkpoint.get("meta")
    meta: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    try:
        text = meta.get("config")
        described = assignments(str(text), ("model", "img_norm_cfg")) if text else described_by_size(tensors)
        config, num_classes = configured(described, tensors)
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, OverflowError, SyntaxError) as error:
        raise CheckpointError(
            f"Tensors and config of {source} do not describe a SegViT model: {short(repr(error))}"
        ) from error
    except ConfigError as error:
        raise CheckpointError(f"Tensors and config of {source} do not describe a SegViT model: {error}") from error
    classes = tuple(str(name) for name in meta.get("CLASSES") or ())
    for what, stated in (("config", described["model"]["decode_head"].get("num_classes")), ("CLASSES", len(classes))):
        if stated and stated != num_classes:
            raise CheckpointError(
                f"The head of {source} has {num_classes} classes but its {what} says {short(repr(stated))}."
            )
    config.data, palette = _dataset(classes)
    model = build(config.encoder, config.decoder, num_classes, classes, palette, count_numbers(tensors))
    ours: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part == "backbone":
            ours[f"encoder.vit.{renamed(rest, MMSEG_NAMES)}"] = tensor
        else:
            head[rest if part == "decode_head" else name] = tensor
    ours |= {f"decoder.{name}": tensor for name, tensor in head_tensors(head).items()}
    model.load_report = load_strictly(model, ours, source, f"released SegViT checkpoint, {config.decoder.name}")
    return model.eval(), config


def head_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a released head by the names they have in our decoder; those of its losses are left out."""
    shrunk = "atm.q.weight" in tensors
    layers = count(tensors, r"(?:atm\.)?decoder_1\.layers\.")
    ours: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        part = name.removeprefix("atm.")
        makes_masks = not shrunk or part != name
        if part.startswith("loss_decode."):
            continue
        if layer := re.fullmatch(r"decoder_(\d+)\.layers\.(\d+)\.(.+)", part):
            index = (int(layer[1]) - 1) * layers + int(layer[2])
            place = f"{'cross_layers' if makes_masks else 'layers'}.{index}"
            if packed := re.fullmatch(r"multihead_attn\.in_proj_(.+)", layer[3]):
                ours |= {f"{place}.{own}.{packed[1]}": third for own, third in zip("qkv", tensor.chunk(3), strict=True)}
            else:
                ours[f"{place}.{renamed(layer[3], LAYER_NAMES)}"] = tensor
        elif memory := re.fullmatch(r"(input_proj|proj_norm)_(\d+)\.(.+)", part):
            ours[f"memories.{int(memory[2]) - 1}.{MEMORY_NAMES[memory[1]]}.{memory[3]}"] = tensor
        elif part == "q.weight":
            ours["class_embeddings" if makes_masks else "queries"] = tensor[None]
        else:
            ours[part.replace("class_embed.", "class_head.")] = tensor
    return ours


def described_by_size(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the config of a released checkpoint says, by the size of its encoder."""
    shrunk = SIGNS[1] in tensors
    size = (tensors["backbone.cls_token"].shape[-1], count(tensors, r"backbone\.layers\."))
    _, drop_path, cascade, read = RELEASED.get(size, ("", 0.0, [], []))
    layers = read if shrunk else cascade
    if not layers:
        raise ValueError(f"no SegViT of width {size[0]} and depth {size[1]} was released, and the file holds no config")
    backbone = {"num_heads": size[0] // 64, "drop_path_rate": drop_path, "out_indices": layers, "with_cls_token": False}
    head = {"num_heads": tensors[SIGNS[shrunk]].shape[1] // 32}
    return {"model": {"backbone": {**backbone, "shrink_idx": SHRUNK_AT if shrunk else None}, "decode_head": head}}


def configured(described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[RunConfig, int]:
    """The configuration, and the number of classes."""
    backbone, head = described["model"]["backbone"], described["model"]["decode_head"]
    if backbone.get("with_cls_token", True) or backbone.get("final_norm", False):
        raise ValueError("only encoders without class token (with_cls_token=False) and final norm are known")
    shrunk = SIGNS[1] in tensors
    patches, positions = tensors["backbone.patch_embed.projection.weight"], tensors["backbone.pos_embed"]
    depth = count(tensors, r"backbone\.layers\.")
    encoder = EncoderConfig(
        name=RELEASED.get((patches.shape[0], depth), ("vit_tiny_patch16_384",))[0],  # every size is given below
        image_size=patches.shape[-1] * math.isqrt(positions.shape[1] - 1),
        drop_path=float(backbone.get("drop_path_rate", 0.0)),
        normalization=_normalization(described.get("img_norm_cfg")),
        norm_eps=1e-6,
        patch_size=patches.shape[-1],
        width=patches.shape[0],
        depth=depth,
        heads=int(backbone["num_heads"]),
        positions="mmseg",
        class_token=False,
        final_norm=False,
        shrink=backbone.get("shrink_idx") if shrunk else None,
    )
    sizes: dict[str, Any] = {
        "layers": count(tensors, r"decode_head\.(?:atm\.)?decoder_1\.layers\."),
        "width": tensors[SIGNS[shrunk]].shape[1],
        "heads": int(head["num_heads"]),
    }
    stages = count(tensors, r"decode_head\.decoder_")
    read = [int(layer) for layer in backbone["out_indices"]][:stages]
    decoder: SegViTConfig | SegViTShrunkConfig
    if shrunk:
        side = math.isqrt(tensors["decode_head.q.weight"].shape[0])
        decoder = SegViTShrunkConfig(encoder_layers=read, grid=side, **sizes)
    else:
        project = "decode_head.input_proj_1.weight" in tensors
        decoder = SegViTConfig(encoder_layers=read, project=project, **sizes)
    config = RunConfig(model=f"released-{decoder.name}", encoder=encoder, decoder=decoder, loss=LossConfig(name="atm"))
    windows = {"mode": "slide", "crop_size": 2 * (encoder.image_size,), "stride": 2 * (encoder.image_size,)}
    config.inference = inference(described["model"].get("test_cfg") or windows)
    return config, tensors[SIGNS[shrunk]].shape[0] - 1


def _normalization(stated: Mapping[str, Any] | None) -> str:
    """Our name of the pixel statistics."""
    if stated is None:
        return "vit"
    name = normalization(stated["mean"])
    if name is None:
        raise ValueError(f"pixels are normalised with mean {stated['mean']}; known are 127.5 and ImageNet's")
    return name


def _dataset(classes: tuple[str, ...]) -> tuple[DataConfig, tuple[tuple[int, int, int], ...]]:
    """The released dataset that has these classes, and its colours."""
    for name in DATASETS:
        data = resolve("segvit-base", name, recipe="segvit").data
        known, palette = dataset_info(data)
        if [each.strip() for each in known] == [each.strip() for each in classes]:
            return data, palette
    return DataConfig(name="unknown", kind=""), ()
