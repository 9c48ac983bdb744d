"""A timm Vision Transformer as a token encoder.

Shapes: B batch, N patch tokens, D width, H W pixels, h w patch grid.

The ViT and DeiT encoders of Segmenter and DEPICT (``SEGMENTER_FAMILY``) follow the official code where it departs
from timm: LayerNorm eps 1e-5, and position embeddings resampled bilinearly, only when the number of tokens differs
from the one the model was made for (a 2 x 8 grid uses the embeddings of a 4 x 4 grid unchanged). Any other timm ViT
by name (DINOv2, DINOv3, ...) keeps timm's own conventions. The unused ImageNet classifier stays in the model, frozen:
every official checkpoint carries it, and the published parameter counts include it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from whitebox.errors import ModelError, require
from whitebox.models.attention import mhsa_weights
from whitebox.models.taps import Tap
from whitebox.models.weights import load_strictly, read_tensors

SEGMENTER_FAMILY = re.compile(r"(vit_(tiny|small|base|large)_patch(8|16|32)_(224|384)|deit_\w+_distilled_\w+)(\.|$)")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Which timm ViT, and how it is initialised. ``None`` keeps what timm or the family defines."""

    name: str = "vit_tiny_patch16_384"
    pretrained: bool = False  # download timm's weights
    weights: str | None = None  # or read them from this file (.safetensors, or .pth holding tensors only)
    image_size: int | None = None  # px; grid of the position embeddings; None: the crop size of the dataset, else 512
    drop_path: float = 0.1
    normalization: str | None = None  # pixel statistics: vit | deit (ImageNet's); None: those of timm's weights
    norm_eps: float | None = None  # None: 1e-5 for the Segmenter family, else timm's
    patch_size: int | None = None
    width: int | None = None
    depth: int | None = None
    heads: int | None = None

    def __post_init__(self) -> None:
        require(0 <= self.drop_path < 1, "encoder.drop_path", self.drop_path, "it lies in [0, 1)")
        for key in ("image_size", "patch_size", "width", "depth", "heads"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"encoder.{key}", value, "it must be at least 1")
        require(self.norm_eps is None or self.norm_eps > 0, "encoder.norm_eps", self.norm_eps, "it must be above 0")
        known = self.normalization in (None, "vit", "deit")
        require(known, "encoder.normalization", self.normalization, "choose vit or deit")
        require(not (self.pretrained and self.weights), "encoder.weights", self.weights, "not with pretrained=true")


class EncoderLayerTaps(nn.Module):
    """Names for what one encoder block computes."""

    def __init__(self, attention: bool) -> None:
        super().__init__()
        self.tokens = Tap()
        if attention:
            self.attention = Tap()


class Encoder(nn.Module):
    """Images -> patch tokens.

    Attributes:
        width, depth, patch_size: D, number of blocks, pixels.
        mean, std: per-channel statistics on the 0..255 scale, rounded to two digits as in the official code.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.vit = _build_vit(config)
        self.width: int = self.vit.embed_dim
        self.depth = len(self.vit.blocks)
        self.patch_size: int = self.vit.patch_embed.patch_size[0]
        self.prefix_tokens: int = self.vit.num_prefix_tokens
        self.plain = isinstance(self.vit, VisionTransformer) and self.vit.pos_embed is not None
        self.family = SEGMENTER_FAMILY.match(config.name) is not None
        if self.plain:
            self.input = Tap()
        self.layers = nn.ModuleList(EncoderLayerTaps(attention=self.plain) for _ in range(self.depth))
        mean, std = _pixel_statistics(config.normalization, self.vit.pretrained_cfg)
        self.mean, self.std = (tuple(np.round(255 * np.array(each), 2).tolist()) for each in (mean, std))
        if config.pretrained:
            self._load(_pretrained_tensors(config.name), f"timm's weights of {config.name}")
        elif config.weights is not None:
            self._load(read_tensors(Path(config.weights)), config.weights)
        for name, parameter in self.vit.named_parameters():
            if name.startswith(("head.", "head_dist.")):
                parameter.requires_grad_(False)

    def forward(self, x_B3HW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Normalised images, sides multiples of ``patch_size`` -> (z_BND, (h, w)); class tokens are dropped."""
        grid = (x_B3HW.shape[-2] // self.patch_size, x_B3HW.shape[-1] // self.patch_size)
        z_BND = self.tokens(x_B3HW)
        return z_BND[:, self.prefix_tokens :], grid

    def tokens(self, x_B3HW: Tensor) -> Tensor:
        """As ``forward``, with the class tokens in front, (B, prefix + N, D)."""
        if not self.plain:
            return self._timm_tokens(x_B3HW)
        z_BND = self.input(self._embed(x_B3HW))
        for block, taps in zip(self.vit.blocks, self._taps(), strict=True):
            if taps.attention.listening:
                taps.attention(mhsa_weights(block.attn, block.norm1(z_BND)))
            z_BND = taps.tokens(block(z_BND))
        return cast(Tensor, self.vit.norm(z_BND))

    def _taps(self) -> list[EncoderLayerTaps]:
        return cast(list[EncoderLayerTaps], list(self.layers))

    def _embed(self, x_B3HW: Tensor) -> Tensor:
        vit = self.vit
        x_BDhw = vit.patch_embed.proj(x_B3HW)
        grid = (x_BDhw.shape[-2], x_BDhw.shape[-1])
        x_BND = vit.patch_embed.norm(x_BDhw.flatten(2).transpose(1, 2))
        named = [getattr(vit, name, None) for name in ("cls_token", "dist_token", "reg_token")]
        prefix: list[Tensor] = [token.expand(len(x_BND), -1, -1) for token in named if token is not None]
        embedded_prefix = 0 if vit.no_embed_class else self.prefix_tokens
        positions = self._resample(vit.pos_embed, vit.patch_embed.grid_size, grid, embedded_prefix)
        if vit.no_embed_class:
            z_BND = torch.cat([*prefix, x_BND + positions], dim=1)
        else:
            z_BND = torch.cat([*prefix, x_BND], dim=1) + positions
        return cast(Tensor, vit.norm_pre(vit.patch_drop(vit.pos_drop(z_BND))))

    def _resample(self, embedding_1ND: Tensor, old: tuple[int, int], new: tuple[int, int], prefix: int) -> Tensor:
        if not self.family:
            return resample_abs_pos_embed(embedding_1ND, list(new), list(old), num_prefix_tokens=prefix)
        if old[0] * old[1] == new[0] * new[1]:
            return embedding_1ND
        front, patches = embedding_1ND[:, :prefix], embedding_1ND[:, prefix:]
        patches = patches.transpose(1, 2).unflatten(2, old)
        patches = F.interpolate(patches, size=new, mode="bilinear", align_corners=False)
        return torch.cat([front, patches.flatten(2).transpose(1, 2)], dim=1)

    def _timm_tokens(self, x_B3HW: Tensor) -> Tensor:
        """Other timm transformers (rotary positions, ...) run their own forward pass."""
        heard = [index for index, taps in enumerate(self._taps()) if taps.tokens.listening]
        if not heard:
            return cast(Tensor, self.vit.forward_features(x_B3HW))
        final, layers = self.vit.forward_intermediates(
            x_B3HW, indices=heard, return_prefix_tokens=True, output_fmt="NLC"
        )
        for index, (patches, prefix) in zip(heard, layers, strict=True):
            self._taps()[index].tokens(torch.cat([prefix, patches], dim=1))
        return cast(Tensor, final)

    def _load(self, tensors: dict[str, Tensor], source: str) -> None:
        """Weights made for another image size: the position embeddings are resampled."""
        vit = self.vit
        positions = tensors.get("pos_embed")
        if positions is not None and self.plain and positions.shape != vit.pos_embed.shape:
            prefix = 0 if vit.no_embed_class else self.prefix_tokens
            side = int((positions.shape[1] - prefix) ** 0.5)
            if side * side != positions.shape[1] - prefix:
                raise ModelError(f"The position embedding of {source} is not a square grid; it cannot be resampled.")
            tensors["pos_embed"] = self._resample(positions, (side, side), vit.patch_embed.grid_size, prefix)
        heads = {key: value for key, value in vit.state_dict().items() if key.startswith(("head.", "head_dist."))}
        kept = {key: value for key, value in tensors.items() if not key.startswith(("head.", "head_dist.", "fc_norm."))}
        load_strictly(vit, {**heads, **kept}, source, "timm weights")


def _pixel_statistics(name: str | None, timm_config: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of the pixels on the 0..1 scale."""
    if name == "vit":
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    if name == "deit":
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return timm_config["mean"], timm_config["std"]


def _build_vit(config: EncoderConfig) -> Any:
    if not timm.is_model(config.name.split(".")[0]):
        close = timm.list_models(f"*{config.name.split('_')[0]}*")[:5]
        raise ModelError(f"timm has no model {config.name!r} (some that it has: {', '.join(close)}).")
    timm_names = {"patch_size": "patch_size", "width": "embed_dim", "depth": "depth", "heads": "num_heads"}
    sizes: dict[str, Any] = {
        name: getattr(config, key) for key, name in timm_names.items() if getattr(config, key) is not None
    }
    eps = config.norm_eps
    if eps is None and SEGMENTER_FAMILY.match(config.name):
        eps = 1e-5
    norm_layer: dict[str, Any] = {} if eps is None else {"norm_layer": partial(nn.LayerNorm, eps=eps)}
    try:
        vit = timm.create_model(
            config.name,
            img_size=config.image_size or 512,
            dynamic_img_size=True,
            drop_path_rate=config.drop_path,
            **norm_layer,
            **sizes,
        )
    except (TypeError, AssertionError, ValueError, RuntimeError, ZeroDivisionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"timm cannot build {config.name!r} as a ViT{f' of {sizes}' if sizes else ''}: {reason}."
        ) from error
    if type(getattr(vit, "patch_embed", None)) is not PatchEmbed:
        raise ModelError(
            f"{config.name!r} is not a plain Vision Transformer: its patches are not embedded by one layer."
        )
    return vit


def _pretrained_tensors(name: str) -> dict[str, Tensor]:
    try:
        return dict(timm.create_model(name, pretrained=True).state_dict())
    except Exception as error:  # the hub client raises errors of several libraries; all mean the same to the user
        raise ModelError(
            f"The pretrained weights of {name} could not be downloaded ({type(error).__name__}); "
            "without a network give a local file: encoder.pretrained=false encoder.weights=FILE."
        ) from error
