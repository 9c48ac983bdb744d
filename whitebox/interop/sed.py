"""Checkpoints of the official SED code: ``model_final.pth`` of detectron2, which holds the whole CLIP.

All sizes are read off the tensors but one: class attention has 4 heads, as in every config of SED. The vocabulary is in
no checkpoint; a converted model starts with the 171 names SED is trained on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from whitebox.config import RunConfig, resolve
from whitebox.data import dataset_info
from whitebox.errors import CheckpointError, ConfigError, short
from whitebox.interop.reading import count
from whitebox.models import CLIPConfig, Segmentor, build
from whitebox.models.clip import LEVELS, OPEN_CLIP_NAMES, PRESETS
from whitebox.models.decoders.sed import SEDConfig
from whitebox.models.text import TEMPLATE_COUNTS
from whitebox.models.weights import load_strictly, renamed, unwrap

CLIP, DECODER = "sem_seg_head.predictor.clip_model.", "sem_seg_head.predictor.transformer."
SIGN = f"{DECODER}conv1.weight"
# the official names of the decoder's tensors -> ours; the first that matches renames
DECODER_NAMES = (
    (r"conv1\.(.+)", r"cost_embedding.\1"),
    (r"decoder_guidance_projection\.(\d)\.0\.(.+)", r"image_guidance.\1.\2"),
    (r"decoder_corr_guidance_projection\.(\d)\.0\.(.+)", r"cost_guidance.\1.\2"),
    (r"text_guidance_projection\.(\d)\.0\.(.+)", r"text_guidance.\1.\2"),
    (r"head\.(.+)", r"heads.3.\1"),
    (r"head(\d)\.(.+)", r"heads.\1.\2"),
)
LAYER_NAMES = (
    (r"cnext\.dwconv\.(.+)", r"spatial.depthwise.\1"),
    (r"cnext\.norm\.(.+)", r"spatial.norm.\1"),
    (r"cnext\.pwconv([12])\.(.+)", r"spatial.mlp.fc\1.\2"),
    (r"cnext\.gamma", r"spatial.scale"),
    (r"attention\.attention\.([qkv])\.(.+)", r"classes.\1.\2"),
    (r"attention\.MLP\.0\.(.+)", r"classes.mlp.fc1.\1"),
    (r"attention\.MLP\.2\.(.+)", r"classes.mlp.fc2.\1"),
    (r"attention\.norm([12])\.(.+)", r"classes.norm\1.\2"),
    (r"up\.(.+)", r"fusion.up.\1"),
    (r"conv\.double_conv\.0\.(.+)", r"fusion.conv1.\1"),
    (r"conv\.double_conv\.1\.(.+)", r"fusion.norm1.\1"),
    (r"conv\.double_conv\.3\.(.+)", r"fusion.conv2.\1"),
    (r"conv\.double_conv\.4\.(.+)", r"fusion.norm2.\1"),
)


def is_sed(checkpoint: object) -> bool:
    """Whether the contents of a torch file are a checkpoint of SED."""
    return unwrap(checkpoint, [re.escape(SIGN)]) is not None


def load_sed(checkpoint: Mapping[str, Any], source: str) -> tuple[Segmentor, RunConfig]:
    """Model and configuration of an official checkpoint, in evaluation mode.

    Args:
        checkpoint: contents of the file, see ``is_sed``. source: what to call it.

    Raises:
        CheckpointError: the tensors are not those of a SED; one is missing, unexpected or of another shape.
    """
    found = unwrap(checkpoint, [re.escape(SIGN)])
    tensors: dict[str, Tensor] = {} if found is None else found.tensors
    try:
        ours = {our_name(name): tensor for name, tensor in tensors.items()}
        encoder, decoder = _encoder(tensors), _decoder(tensors)
    except (KeyError, ValueError, IndexError, ConfigError) as error:
        reason = str(error) if isinstance(error, ConfigError) else short(repr(error))
        raise CheckpointError(f"The tensors of {source} do not describe a SED: {reason}") from error
    name = "sed-large" if encoder.name == "clip_convnext_large_d_320" else "sed-base"
    config = resolve(name, "coco-stuff", recipe="sed")
    config.model, config.encoder, config.decoder = "official-sed", encoder, decoder
    classes, palette = dataset_info(config.data)
    model = build(encoder, decoder, len(classes), classes, palette)
    model.load_report = load_strictly(model, ours, source, "official checkpoint, sed")
    return model.eval(), config


def our_name(official: str) -> str:
    """Our name of an official tensor; what is of neither part keeps its own."""
    if official.startswith(CLIP):
        return f"encoder.{renamed(official.removeprefix(CLIP), OPEN_CLIP_NAMES)}"
    if official.startswith(DECODER):
        return f"decoder.{decoder_name(official.removeprefix(DECODER))}"
    return official


def decoder_name(official: str) -> str:
    """Our name of a tensor of the official decoder (``transformer``)."""
    if layer := re.fullmatch(r"decoder(\d)\.(.+)", official):
        return f"layers.{int(layer[1]) - 1}.{renamed(layer[2], LAYER_NAMES)}"
    return renamed(official, DECODER_NAMES)


def _encoder(tensors: Mapping[str, Tensor]) -> CLIPConfig:
    clip = {name.removeprefix(CLIP): tensor for name, tensor in tensors.items() if name.startswith(CLIP)}
    stages = [rf"visual\.trunk\.stages\.{level}\.blocks\." for level in range(LEVELS)]
    linear = "visual.head.proj.weight" in clip
    prompts = tensors[SIGN].shape[1]
    named = [name for name, number in TEMPLATE_COUNTS.items() if number == prompts]
    if not named:
        raise ValueError(f"its cost volume has {prompts} prompts a name, and no templates of that number are known")
    width = clip["token_embedding.weight"].shape[1]
    sizes: dict[str, Any] = {
        "depths": [count(clip, stage) for stage in stages],
        "widths": [clip[f"visual.trunk.stages.{level}.blocks.0.conv_dw.weight"].shape[0] for level in range(LEVELS)],
        "embed": clip["text_projection"].shape[1],
        "projection": "linear" if linear else "mlp",
        "patch_size": clip["visual.trunk.stem.0.weight"].shape[-1],
        "text_width": width,
        "text_heads": max(1, width // 64),
        "text_layers": count(clip, r"transformer\.resblocks\."),
        "context": clip["positional_embedding"].shape[0],
        "vocabulary": clip["token_embedding.weight"].shape[0],
    }
    name = "clip_convnext_base_w_320" if linear else "clip_convnext_large_d_320"
    defaults = {"patch_size": 4, "context": 77, "vocabulary": 49408} | PRESETS[name]
    return CLIPConfig(
        name=name, templates=named[0], **{key: value for key, value in sizes.items() if defaults[key] != value}
    )


def _decoder(tensors: Mapping[str, Tensor]) -> SEDConfig:
    def size(name: str, axis: int) -> int:
        return tensors[DECODER + name].shape[axis]

    layers = (1, 2, 3)
    return SEDConfig(
        hidden=size("conv1.weight", 0),
        widths=[size(f"decoder{layer}.conv.double_conv.3.weight", 0) for layer in layers],
        guidance=[size(f"decoder_guidance_projection.{layer - 1}.0.weight", 0) for layer in layers],
        kernels=[size(f"decoder{layer}.cnext.dwconv.weight", -1) for layer in layers],
        text_guidance=f"{DECODER}text_guidance_projection.0.0.weight" in tensors,
    )
