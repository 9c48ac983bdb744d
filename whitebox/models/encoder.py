"""A timm Vision Transformer as a token encoder.

Shapes: B batch, N patch tokens, M those that a block keeps, D width, H heads, P dimension of a head, H W pixels, h w
patch grid.

The ViT and DeiT encoders of Segmenter and DEPICT (``SEGMENTER_FAMILY``) follow the official code where it departs
from timm: LayerNorm eps 1e-5, and position embeddings resampled bilinearly, only when the number of tokens differs
from the one the model was made for (a 2 x 8 grid uses the embeddings of a 4 x 4 grid unchanged). Any other timm ViT
by name (DINOv2, DINOv3, ...) keeps timm's own conventions. The unused ImageNet classifier stays in the model, frozen:
every official checkpoint carries it, and the published parameter counts include it.

The encoders of SegViT are mmsegmentation's plain ViT: no class token in the blocks, no final norm and no classifier,
position embeddings resampled bicubically, and in the Shrunk form one block that keeps a quarter of the tokens.
"""

from __future__ import annotations

import functools
import logging
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
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

from whitebox.errors import CheckpointError, ModelError, require, short
from whitebox.models.attention import ATTENTIONS, MHSA, mhsa_weights
from whitebox.models.hub import from_hub
from whitebox.models.taps import Readout, Tap
from whitebox.models.unused import freeze_unused, unused_parameters
from whitebox.models.weights import LoadReport, load_strictly, read_content, renamed, tensors_sha256, unwrap

Grid = tuple[int, int]
log = logging.getLogger("whitebox")

SEGMENTER_FAMILY = re.compile(r"(vit_(tiny|small|base|large)_patch(8|16|32)_(224|384)|deit_\w+_distilled_\w+)(\.|$)")
STATISTICS = {"vit": ((0.5,) * 3, (0.5,) * 3), "deit": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)}  # of pixels 0..1
ENCODER_SIGNS = (  # tensors by one of which a Vision Transformer is known, by timm's names or those of its authors
    r"patch_embed\.proj(?:ection)?\.weight",
    r"(?:visual\.)?conv1\.weight",  # OpenAI's CLIP, PE
    r"preprocessor\.patchifier\.proj\.weight",  # AIMv2
)
_NO_TOKENS = re.compile(  # a classifier, a pooling, or what only pretraining needs
    r"(head|head_dist|fc_norm|attn_pool|pre_logits|mask_token|decoder\w*|\w+_head|post_trunk_norm)(\.|$)"
)
_PREFIX = ("cls_token", "dist_token", "reg_token")  # timm's names, in the order of the tokens
# mmsegmentation's names of a ViT's tensors -> timm's; the first that matches renames
MMSEG_NAMES = (
    (r"patch_embed\.projection\.(.+)", r"patch_embed.proj.\1"),
    (r"layers\.(\d+)\.ln([12])\.(.+)", r"blocks.\1.norm\2.\3"),
    (r"layers\.(\d+)\.attn\.attn\.in_proj_(.+)", r"blocks.\1.attn.qkv.\2"),
    (r"layers\.(\d+)\.attn\.attn\.out_proj\.(.+)", r"blocks.\1.attn.proj.\2"),
    (r"layers\.(\d+)\.ffn\.layers\.0\.0\.(.+)", r"blocks.\1.mlp.fc1.\2"),
    (r"layers\.(\d+)\.ffn\.layers\.1\.(.+)", r"blocks.\1.mlp.fc2.\2"),
    (r"ln1\.(.+)", r"norm.\1"),
)


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
    positions: str | None = (
        None  # resampled as in segmenter | mmseg | dinov2 | timm; None: segmenter's for its family, or timm's
    )
    class_token: bool = True  # False: class tokens are dropped before the first block (SegViT)
    final_norm: bool = True  # False: neither the last LayerNorm nor the classifier behind it (SegViT)
    shrink: int | None = None  # block (from 0) that keeps every second row and column of tokens (SegViT Shrunk)
    frozen: bool = False  # the decoder alone is trained: no gradients, no drop path
    train_last: int = 0  # of a frozen encoder, its last blocks and the norm behind them, which are trained all the same
    random: bool = False  # it may be frozen although its weights are random: for comparisons

    def __post_init__(self) -> None:
        require(0 <= self.drop_path < 1, "encoder.drop_path", self.drop_path, "it lies in [0, 1)")
        for key in ("image_size", "patch_size", "width", "depth", "heads"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"encoder.{key}", value, "it must be at least 1")
        side = (self.image_size or 1) // (self.patch_size or 8)
        require(side <= 1024, "encoder.image_size", self.image_size, f"that is a grid of {side} x {side} patches")
        require(self.norm_eps is None or self.norm_eps > 0, "encoder.norm_eps", self.norm_eps, "it must be above 0")
        known = self.normalization is None or self.normalization in STATISTICS
        require(known, "encoder.normalization", self.normalization, f"choose {' or '.join(STATISTICS)}")
        require(not (self.pretrained and self.weights), "encoder.weights", self.weights, "not with pretrained=true")
        known = self.positions in (None, "segmenter", "mmseg", "dinov2", "timm")
        require(known, "encoder.positions", self.positions, "choose segmenter, mmseg, dinov2 or timm")
        require(
            self.shrink is None or not self.class_token,
            "encoder.shrink",
            self.shrink,
            "a class token has no place on the grid, so it needs encoder.class_token=false",
        )
        require(self.train_last >= 0, "encoder.train_last", self.train_last, "it cannot be negative")
        require(
            self.frozen or not self.train_last, "encoder.train_last", self.train_last, "it needs encoder.frozen=true"
        )


class EncoderLayerTaps(nn.Module):
    """Names for what one encoder block computes."""

    def __init__(self, attention: bool, plain: bool) -> None:
        super().__init__()
        self.tokens = Tap() if plain else Readout()  # timm's own forward pass cannot be changed
        if attention:
            self.attention = Readout()


class Encoder(nn.Module):
    """Images -> patch tokens.

    Attributes:
        width, depth, patch_size: D, number of blocks, pixels.
        prefix_tokens: class tokens in front of the patch tokens.
        mean, std: per-channel statistics on the 0..255 scale, rounded to two digits as in the official code.

    Raises:
        ModelError: timm cannot build it, or it has no block ``shrink``.
    """

    load_report: LoadReport | None = None  # of pretrained weights
    any_size = False  # position embeddings are resampled for every grid, so that no size is a special case (export)

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.vit = _build_vit(config)
        self.width: int = self.vit.embed_dim
        self.depth = len(self.vit.blocks)
        self.patch_size: int = self.vit.patch_embed.patch_size[0]
        if (config.image_size or self.patch_size) < self.patch_size:
            raise ModelError(
                f"encoder.image_size={config.image_size} (the crop, unless given) is smaller than a patch of "
                f"{self.patch_size} px: choose a larger data.crop."
            )
        self.prefix_tokens: int = self.vit.num_prefix_tokens if config.class_token else 0
        self.plain = isinstance(self.vit, VisionTransformer) and self.vit.pos_embed is not None
        self.family = SEGMENTER_FAMILY.match(config.name) is not None
        self._check()
        if self.plain:
            self.input = Tap()
        known = [type(getattr(block, "attn", None)) in ATTENTIONS for block in self.vit.blocks]
        self.layers = nn.ModuleList(EncoderLayerTaps(each, self.plain) for each in known)
        mean, std = _pixel_statistics(config.normalization, self.vit.pretrained_cfg)
        self.mean, self.std = (tuple(np.round(255 * np.array(each), 2).tolist()) for each in (mean, std))
        self._idle = unused_parameters(self, lambda: [self(self.sample())[0]], key=config)
        if config.pretrained:
            self._load(_pretrained_tensors(config.name), f"timm's weights of {config.name}")
        elif config.weights is not None:
            self._load(read_content(Path(config.weights)), config.weights)
        for name in self._idle:
            self.get_parameter(name).requires_grad_(False)
        if config.frozen:
            self._freeze()

    def settings(self) -> dict[str, Any]:
        """What its tokens depend on beside its weights: the configuration without where those come from."""
        apart = ("pretrained", "weights", "drop_path", "frozen", "train_last", "random")
        return {key: value for key, value in asdict(self.config).items() if key not in apart}

    @functools.cached_property
    def sha256(self) -> str:
        """Of the weights that its tokens depend on, see ``tensors_sha256``; computed once, so they are to stay."""
        own = self.vit.state_dict()
        return tensors_sha256({name: own[name] for name in own if f"vit.{name}" not in self._idle})

    @property
    def fixed(self) -> bool:
        """Whether training leaves all of it as it is, so that an image's tokens are always the same."""
        return self.config.frozen and self.config.train_last == 0

    def train(self, mode: bool = True) -> Encoder:
        """As ``nn.Module.train``; what is frozen stays in evaluation mode (no drop path, no dropout)."""
        super().train(mode)
        if self.config.frozen:
            self.vit.eval()
            for part in self._trained():
                part.train(mode)
        return self

    def _freeze(self) -> None:
        if self.config.train_last > self.depth:
            raise ModelError(
                f"encoder.train_last={self.config.train_last} is impossible: the encoder has {self.depth} blocks."
            )
        kept = {id(parameter) for part in self._trained() for parameter in part.parameters()}
        for parameter in self.vit.parameters():
            if id(parameter) not in kept:
                parameter.requires_grad_(False)
        for name in self._idle:  # not in every file, so the same each time
            nn.init.zeros_(self.get_parameter(name))

    def _trained(self) -> list[nn.Module]:
        """Of a frozen encoder, the parts that are trained."""
        last = self.config.train_last
        return [*self.vit.blocks[self.depth - last :], self.vit.norm] if last else []

    def _check(self) -> None:
        config = self.config
        chosen = [
            key
            for key, default in (("positions", None), ("class_token", True), ("final_norm", True), ("shrink", None))
            if getattr(config, key) != default
        ]
        if chosen and not self.plain:
            raise ModelError(f"{config.name!r} runs timm's own forward pass: encoder.{chosen[0]} cannot be chosen.")
        if config.shrink is None:
            return
        if not 0 <= config.shrink < self.depth:
            raise ModelError(
                f"encoder.shrink={config.shrink} is outside the encoder, which has {self.depth} blocks (0 to "
                f"{self.depth - 1})."
            )
        if type(self.vit.blocks[config.shrink].attn) is not MHSA:
            raise ModelError(f"encoder.shrink needs ordinary ViT blocks; those of {config.name!r} are others.")

    def serve(self, layers: Sequence[int]) -> None:
        """Prepare for ``intermediate`` of these blocks alone: what comes after the last of them is frozen.

        Raises:
            ModelError: no layers, in another order than the encoder's, or one that it does not have.
        """
        if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0:
            raise ModelError(f"decoder.encoder_layers={list(layers)} is impossible: name blocks once, in rising order.")
        if layers[-1] >= self.depth:
            raise ModelError(
                f"decoder.encoder_layers={list(layers)} asks for block {layers[-1]}, but the encoder has {self.depth} "
                f"(0 to {self.depth - 1})."
            )
        freeze_unused(self, lambda: self.intermediate(self.sample(), layers)[0], (self.config, tuple(layers)))

    def blocks(self) -> list[nn.Module]:
        """The layers whose inputs are enough to run them again."""
        return list(self.vit.blocks)

    def sample(self) -> Tensor:
        """Two blank images of 4 x 4 patches, to see what a pass through the model uses."""
        side, some = 4 * self.patch_size, next(self.parameters())
        return some.new_zeros(2, 3, side, side)

    def forward(self, x_B3HW: Tensor) -> tuple[Tensor, Grid]:
        """Normalised images, sides multiples of ``patch_size`` -> (z_BND, (h, w)); class tokens are dropped."""
        z_BND = self.tokens(x_B3HW)
        return z_BND[:, self.prefix_tokens :], self.grid(x_B3HW, self.depth - 1)

    def tokens(self, x_B3HW: Tensor) -> Tensor:
        """As ``forward``, with the class tokens in front, (B, prefix + N, D)."""
        if not self.plain:
            return self._timm_tokens(x_B3HW)
        return cast(Tensor, self.vit.norm(self._after(x_B3HW, (self.depth - 1,))[0]))

    def intermediate(
        self, x_B3HW: Tensor, layers: Sequence[int], *, norm: bool = False, class_tokens: bool = False
    ) -> tuple[list[Tensor], list[Grid]]:
        """Tokens after some blocks (from 0, in rising order), (B, N, D) each, and their grids; no later block runs.

        Args:
            norm: through the final norm, whichever block they come from.
            class_tokens: with the class tokens in front.
        """
        tokens = self._after(x_B3HW, layers) if self.plain else self._timm_after(x_B3HW, layers)
        if norm:
            tokens = [self.vit.norm(z_BND) for z_BND in tokens]
        if not class_tokens:
            tokens = [z_BND[:, self.prefix_tokens :] for z_BND in tokens]
        return tokens, [self.grid(x_B3HW, layer) for layer in layers]

    def maps(self, x_B3HW: Tensor, strides: Sequence[int]) -> list[Tensor]:
        """The last tokens as feature maps (B, D, h, w), one a stride; a plain ViT has them at its patch size alone.

        Raises:
            ModelError: another stride is asked for.
        """
        if set(strides) != {self.patch_size}:
            raise ModelError(f"This encoder has maps at stride {self.patch_size} alone, not at {list(strides)}.")
        z_BND, grid = self(x_B3HW)
        return [z_BND.transpose(1, 2).unflatten(2, grid)] * len(strides)

    def grid(self, x_B3HW: Tensor, layer: int) -> Grid:
        """Patch grid of the tokens after a block."""
        h, w = (side // self.patch_size for side in x_B3HW.shape[-2:])
        shrunk = self.config.shrink is not None and layer >= self.config.shrink
        return (-(-h // 2), -(-w // 2)) if shrunk else (h, w)

    def _after(self, x_B3HW: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Tokens after some blocks, class tokens in front, by our own forward pass."""
        z_BND = self.input(self._embed(x_B3HW))
        found = []
        for index, (block, taps) in enumerate(zip(self.vit.blocks, self._taps(), strict=True)):
            kept_M = self._kept(x_B3HW) if index == self.config.shrink else None
            if self._hears_attention(taps):
                weights_BHNN = mhsa_weights(block.attn, block.norm1(z_BND))
                taps.attention(weights_BHNN if kept_M is None else weights_BHNN[:, :, kept_M])
            z_BND = taps.tokens(block(z_BND) if kept_M is None else shrunk_block(block, z_BND, kept_M))
            if index in layers:
                found.append(z_BND)
            if index == layers[-1]:
                break
        return found

    def _kept(self, x_B3HW: Tensor) -> Tensor:
        """Places of the tokens on even rows and columns, (M,)."""
        h, w = self.grid(x_B3HW, -1)
        return torch.arange(h * w, device=x_B3HW.device).view(h, w)[::2, ::2].flatten()

    def _taps(self) -> list[EncoderLayerTaps]:
        return cast(list[EncoderLayerTaps], list(self.layers))

    def _embed(self, x_B3HW: Tensor) -> Tensor:
        vit = self.vit
        x_BDhw = vit.patch_embed.proj(x_B3HW)
        grid = (x_BDhw.shape[-2], x_BDhw.shape[-1])
        x_BND = vit.patch_embed.norm(x_BDhw.flatten(2).transpose(1, 2))
        embedded_prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
        positions = self._resample(vit.pos_embed, vit.patch_embed.grid_size, grid, embedded_prefix)
        if not self.prefix_tokens:
            z_BND = x_BND + positions[:, embedded_prefix:]
        else:
            named = [getattr(vit, name, None) for name in _PREFIX]
            prefix: list[Tensor] = [token.expand(x_BND.shape[0], -1, -1) for token in named if token is not None]
            if vit.no_embed_class:
                z_BND = torch.cat([*prefix, x_BND + positions], dim=1)
            else:
                z_BND = torch.cat([*prefix, x_BND], dim=1) + positions
        return cast(Tensor, vit.norm_pre(vit.patch_drop(vit.pos_drop(z_BND))))

    @property
    def _positions(self) -> str:
        """How position embeddings are resampled."""
        return self.config.positions or ("segmenter" if self.family else "timm")

    def _resample(self, embedding_1ND: Tensor, old: Grid, new: Grid, prefix: int) -> Tensor:
        how = self._positions
        if self.any_size:
            pass
        elif how == "timm":
            return resample_abs_pos_embed(embedding_1ND, list(new), list(old), num_prefix_tokens=prefix)
        elif old[0] * old[1] == new[0] * new[1] if how == "segmenter" else old == new:
            return embedding_1ND
        front, patches = embedding_1ND[:, :prefix], embedding_1ND[:, prefix:]
        if how == "dinov2":
            patches = resample_as_dinov2(patches, old, new)
        else:
            mode = "bilinear" if how == "segmenter" else "bicubic"
            patches = resample(patches, old, new, mode, antialias=how == "timm")
        return torch.cat([front, patches], dim=1)

    def _hears_attention(self, taps: EncoderLayerTaps) -> bool:
        return hasattr(taps, "attention") and taps.attention.listening

    @contextmanager
    def _attention_of_timm(self) -> Iterator[None]:
        """Within it, who listens to attention hears it of timm's own forward pass: from the inputs of its layers."""
        handles = []
        for block, taps in zip(self.vit.blocks, self._taps(), strict=True):
            if self._hears_attention(taps):

                def hear(layer: Any, given: Any, named: dict[str, Any], tap: Tap = taps.attention) -> None:
                    tap(mhsa_weights(layer, given[0], named.get("rope", given[1] if len(given) > 1 else None)))

                handles.append(block.attn.register_forward_pre_hook(hear, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _timm_tokens(self, x_B3HW: Tensor) -> Tensor:
        """Other timm transformers (rotary positions, ...) run their own forward pass."""
        heard = [index for index, taps in enumerate(self._taps()) if taps.tokens.listening]
        with self._attention_of_timm():
            if not heard:
                return cast(Tensor, self.vit.forward_features(x_B3HW))
            final, layers = self.vit.forward_intermediates(
                x_B3HW, indices=heard, return_prefix_tokens=True, output_fmt="NLC"
            )
        for index, (patches, prefix) in zip(heard, layers, strict=True):
            self._taps()[index].tokens(torch.cat([prefix, patches], dim=1))
        return cast(Tensor, final)

    def _timm_after(self, x_B3HW: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """As ``_after``, by timm's forward pass."""
        heard = [index for index, taps in enumerate(self._taps()) if taps.tokens.listening and index < layers[-1]]
        indices = sorted({*layers, *heard})
        with self._attention_of_timm():
            found = self.vit.forward_intermediates(
                x_B3HW,
                indices=indices,
                return_prefix_tokens=True,
                output_fmt="NLC",
                stop_early=True,
                intermediates_only=True,
            )
        tokens = {
            index: torch.cat([prefix, patches], dim=1) for index, (patches, prefix) in zip(indices, found, strict=True)
        }
        for index, z_BND in tokens.items():
            self._taps()[index].tokens(z_BND)
        return [tokens[index] for index in layers]

    def _load(self, content: object, source: str) -> None:
        """Weights of a checkpoint, as their authors, timm, mmsegmentation or whitebox write them.

        Raises:
            CheckpointError: they are of another encoder.
        """
        own = {name: tensor.shape for name, tensor in self.vit.state_dict().items()}

        def fit(tensors: Mapping[str, Tensor]) -> int:
            try:
                found = self._by_timm(tensors, source)
            except CheckpointError:
                return 0
            return sum(own.get(name) == tensor.shape for name, tensor in found.items())

        found = unwrap(content, ENCODER_SIGNS, fit, whole=False)
        if found is None:
            raise CheckpointError(
                f"{source} holds no Vision Transformer by the names of timm, mmsegmentation or its authors (a file for "
                "the package transformers has others: take the one of timm or of the authors)."
            )
        if found.others:
            log.warning("%s also holds weights in %s; those in %s are taken.", source, found.others[0], found.place)
        tensors = self._by_timm(found.tensors, source)
        # what makes no token is neither asked of a file nor taken from it
        idle = {name.removeprefix("vit.") for name in self._idle} - set(_PREFIX)
        left_out = [name for name in tensors if name in idle or (name not in own and self._makes_no_token(name))]
        kept = {name: tensor for name, tensor in tensors.items() if name not in left_out}
        kept |= {name: tensor for name, tensor in self.vit.state_dict().items() if name in idle}
        place = f" in {found.place}" if found.place else ""
        self.load_report = load_strictly(self.vit, kept, f"{source}{place}", "encoder weights")

    def _makes_no_token(self, name: str) -> bool:
        """Whether a tensor that this encoder lacks has no part in its tokens."""
        return _NO_TOKENS.match(name) is not None or (not self.config.final_norm and name.startswith("norm."))

    def _by_timm(self, tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """A state dict by timm's names, converted as timm does for this architecture; position embeddings resampled."""
        vit, found = self.vit, dict(tensors)
        if "layers.0.ln1.weight" in tensors:
            found = {renamed(name, MMSEG_NAMES): tensor for name, tensor in tensors.items()}
        names = (
            "patch_embed.proj.weight",
            "visual.conv1.weight",
            "conv1.weight",
            "preprocessor.patchifier.proj.weight",
        )
        patches = next((found[name] for name in names if name in found), None)
        if patches is not None and patches.dim() == 4 and patches.shape[-1] != self.patch_size:
            raise CheckpointError(
                f"{source} does not fit this model: its patches are {patches.shape[-1]} px wide, those of "
                f"{self.config.name} {self.patch_size} px."
            )
        positions = found.get("pos_embed")
        if positions is not None and self.plain and self._positions != "timm" and positions.dim() == 3:
            prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
            side = math.isqrt(max(0, positions.shape[1] - prefix))
            if side * side != positions.shape[1] - prefix:
                raise CheckpointError(
                    f"The position embedding of {source} is not a square grid; it cannot be resampled."
                )
            if positions.shape != vit.pos_embed.shape:
                found["pos_embed"] = self._resample(positions, (side, side), vit.patch_embed.grid_size, prefix)
        convert = getattr(sys.modules[type(vit).__module__], "checkpoint_filter_fn", None)
        if convert is None:
            return found
        try:
            with torch.no_grad():
                return dict(convert(found, vit))
        except (KeyError, ValueError, IndexError, RuntimeError, AssertionError, AttributeError, TypeError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise CheckpointError(
                f"{source} does not fit {self.config.name}: timm cannot convert it ({reason})."
            ) from error


def shrunk_block(block: Any, z_BND: Tensor, kept_M: Tensor) -> Tensor:
    """A timm ViT block that hands on some of its tokens: all of them are keys and values, those kept are queries.

    Source: query-based downsampling of SegViT (Zhang et al. 2022, arXiv 2210.05844); without learned
    parameters of its own.

    Returns:
        (B, M, D).
    """
    attention, D = block.attn, z_BND.shape[-1]
    weight, bias = attention.qkv.weight, attention.qkv.bias
    y_BND = block.norm1(z_BND)
    q_BMD = F.linear(y_BND[:, kept_M], weight[:D], None if bias is None else bias[:D])
    k_BND, v_BND = F.linear(y_BND, weight[D:], None if bias is None else bias[D:]).chunk(2, dim=-1)
    q_BHMP, k_BHNP, v_BHNP = (
        each.unflatten(-1, (attention.num_heads, attention.head_dim)).transpose(1, 2) for each in (q_BMD, k_BND, v_BND)
    )
    dropout = attention.attn_drop.p if block.training else 0.0
    out_BHMP = F.scaled_dot_product_attention(
        attention.q_norm(q_BHMP), attention.k_norm(k_BHNP), v_BHNP, dropout_p=dropout, scale=attention.scale
    )
    out_BMD = attention.proj_drop(attention.proj(out_BHMP.transpose(1, 2).flatten(2)))
    z_BMD = z_BND[:, kept_M] + block.drop_path1(block.ls1(out_BMD))
    return cast(Tensor, z_BMD + block.drop_path2(block.ls2(block.mlp(block.norm2(z_BMD)))))


def resample(embedding_1ND: Tensor, old: Grid, new: Grid, mode: str, antialias: bool = False) -> Tensor:
    """Embeddings of the places of one grid -> those of another; half-pixel centres."""
    map_1Dhw = embedding_1ND.transpose(1, 2).unflatten(2, old)
    found_1Dhw = F.interpolate(map_1Dhw, size=new, mode=mode, align_corners=False, antialias=antialias)
    return found_1Dhw.flatten(2).transpose(1, 2)


def resample_as_dinov2(embedding_1ND: Tensor, old: Grid, new: Grid) -> Tensor:
    """As ``resample``, bicubically, in steps a little smaller than the patches of the new grid.

    Source: the released models of DINOv2 without registers (Oquab et al. 2023), ``interpolate_offset=0.1``; those with
    registers, and timm, take the grid as it is and smooth before they sample.
    """
    map_1Dhw = embedding_1ND.transpose(1, 2).unflatten(2, old)
    scales = [(many + 0.1) / few for few, many in zip(old, new, strict=True)]
    return F.interpolate(map_1Dhw, scale_factor=scales, mode="bicubic").flatten(2).transpose(1, 2)


def _pixel_statistics(name: str | None, timm_config: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of the pixels on the 0..1 scale."""
    return (timm_config["mean"], timm_config["std"]) if name is None else STATISTICS[name]


def _build_vit(config: EncoderConfig) -> Any:
    if not timm.is_model(config.name.split(".")[0]):
        beginning = re.sub(r"\W", "", config.name.split("_")[0])[:20]
        close = timm.list_models(f"*{beginning}*")[:5]
        raise ModelError(f"timm has no model {short(repr(config.name))} (some that it has: {', '.join(close)}).")
    timm_names = {"patch_size": "patch_size", "width": "embed_dim", "depth": "depth", "heads": "num_heads"}
    sizes: dict[str, Any] = {
        name: getattr(config, key) for key, name in timm_names.items() if getattr(config, key) is not None
    }
    eps = config.norm_eps
    if eps is None and SEGMENTER_FAMILY.match(config.name):
        eps = 1e-5
    options: dict[str, Any] = {} if eps is None else {"norm_layer": partial(nn.LayerNorm, eps=eps)}
    if not config.final_norm:
        options["num_classes"] = 0
    try:
        vit = timm.create_model(
            config.name,
            img_size=config.image_size or 512,
            dynamic_img_size=True,
            drop_path_rate=config.drop_path,
            **options,
            **sizes,
        )
    except (TypeError, AssertionError, ValueError, RuntimeError, ZeroDivisionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "unexpected keyword argument" in reason and not sizes.keys() & set(re.findall(r"\w+", reason)):
            raise ModelError(_not_plain(config.name)) from error
        raise ModelError(
            f"timm cannot build {config.name!r} as a ViT{f' of {sizes}' if sizes else ''}: {reason}."
        ) from error
    if type(getattr(vit, "patch_embed", None)) is not PatchEmbed or not hasattr(vit, "blocks"):
        raise ModelError(_not_plain(config.name))
    if not config.final_norm:
        vit.norm = nn.Identity()
    return vit


def _not_plain(name: str) -> str:
    return (
        f"{name!r} is not a plain Vision Transformer (one layer that embeds patches, then blocks on one grid of any "
        "size), so it is no encoder here: take a vit, deit or eva model of timm."
    )


def hub_repository(name: str) -> str | None:
    """The repository of the Hub that holds the pretrained weights of timm's model; None: none does."""
    found: str | None = getattr(timm.models.get_pretrained_cfg(name), "hf_hub_id", None)
    return found


def _pretrained_tensors(name: str) -> dict[str, Tensor]:
    files = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")
    return from_hub(
        name, hub_repository(name), files, lambda: dict(timm.create_model(name, pretrained=True).state_dict())
    )
