"""SegViT: the similarity between class queries and tokens is the mask.

Paper: Zhang et al., "SegViT: Semantic Segmentation with Plain Vision Transformers", NeurIPS 2022, arXiv 2210.05844.
Released code: ``zbwxp/SegVit`` (for non-commercial use; none of it is here). Written from a description of it.

Attention-to-mask (ATM): class queries q attend to projected tokens z of one encoder layer,

    S_h = (W_q q)_h (W_k z)_h^T P^-1/2;   q <- W_o [softmax(S_h) (W_v z)_h]_h;   masks = mean over heads of S_h

so a mask logit is the similarity itself, before softmax. ``SegViT`` does this with several encoder layers, deepest
first: queries go on from stage to stage and masks add up. A linear head says what each mask is (K classes, or no
object), and class maps are scores (``whitebox.models.decoders.base.class_scores``). ``SegViTShrunk`` stands behind an
encoder that keeps a quarter of its tokens from one block on (``encoder.shrink``): learned queries, one a patch, read
the tokens of both resolutions, and a single ATM stage makes masks of what they become.

Deliberate deviations from the released code. With the same weights none changes an output that it can give:

- Any grid. The released code takes the root of the number of tokens, and drops one token where it is odd; here the
  grid is known, and all tokens in front of the patches (class tokens) are those without a place on it.
- Masks are upsampled to the image, not to the size in the config. The patch queries of the Shrunk head are resampled
  bicubically where the image has another grid than the one they were made for; the released code cannot.
- The self-attention of each layer starts from weights of its own; in the released code the layers of a stage start
  from the same.
- Stochastic depth acts on both branches of an encoder block, as in timm; in mmsegmentation 0.24 on the second alone.

Shapes: B batch, N patch tokens (and class tokens, if any), M queries, D width, H heads, P dimension of a head, K
classes, C = K + 1, h w patch grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from whitebox.errors import ModelError, require
from whitebox.models.attention import MHSA, attention_weights, mhsa_weights
from whitebox.models.decoders.base import Decoder, Prediction, init_weights
from whitebox.models.encoder import Encoder, Grid, resample
from whitebox.models.taps import Readout, Tap


@dataclass(frozen=True, kw_only=True)
class SegViTConfig:
    """Hyper-parameters of SegViT."""

    name: str = "segvit"
    encoder_layers: list[int] = field(default_factory=lambda: [5, 7, 11])  # blocks from 0; one stage each
    layers: int = 3  # of a stage
    width: int | None = None  # None: half the encoder's
    heads: int | None = None  # None: width // 32, at least 1
    dropout: float = 0.1
    project: bool = True  # tokens of each encoder layer through a linear layer and LayerNorm; False: as they are

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, kw_only=True)
class SegViTShrunkConfig:
    """Hyper-parameters of SegViT's head for a shrunk encoder."""

    name: str = "segvit-shrunk"
    encoder_layers: list[int] = field(default_factory=lambda: [7, 23])  # blocks from 0; the first at full resolution
    layers: int = 3  # that read one encoder layer, and of the ATM stage
    width: int | None = None  # None: half the encoder's
    heads: int | None = None  # None: width // 32, at least 1
    dropout: float = 0.1
    grid: int | None = None  # side of the square grid of patch queries; None: that of the encoder's image_size

    def __post_init__(self) -> None:
        _check(self)
        require(self.grid is None or self.grid >= 1, "decoder.grid", self.grid, "it must be at least 1")


def _check(config: SegViTConfig | SegViTShrunkConfig) -> None:
    for key in ("layers", "width", "heads"):
        value = getattr(config, key)
        require(value is None or value >= 1, f"decoder.{key}", value, "it must be at least 1")
    require(0 <= config.dropout < 1, "decoder.dropout", config.dropout, "it lies in [0, 1)")


class QueryLayer(nn.Module):
    """Post-norm Transformer decoder layer: queries attend to each other, then to tokens; MLP with ReLU.

    Attributes:
        q, k, v, proj: the cross-attention's maps of queries and tokens, and its output map.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.self_attention = MHSA(width, heads, qkv_bias=True, attn_drop=dropout, proj_drop=dropout)
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.mlp = Mlp(width, 4 * width, act_layer=nn.ReLU, drop=dropout)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)
        self.self_attention_weights = Readout()
        self.attention = Readout()
        self.masks = Tap()
        self.update = Tap()
        self.tokens = Tap()

    def forward(self, q_BMD: Tensor, z_BND: Tensor, with_masks: bool = False) -> tuple[Tensor, Tensor | None]:
        """Queries after the layer (B, M, D), and if asked for their similarity to the tokens (B, M, N)."""
        if self.self_attention_weights.listening:
            self.self_attention_weights(mhsa_weights(self.self_attention, q_BMD))
        out_BMD = self.norm1(q_BMD + self.self_attention(q_BMD))
        read_BMD, masks_BMN = self.read(out_BMD, z_BND, with_masks)
        out_BMD = self.norm2(out_BMD + self.dropout(read_BMD))
        out_BMD = self.norm3(out_BMD + self.mlp(out_BMD))
        return self.tokens(self.update.between(q_BMD, out_BMD)), masks_BMN

    def read(self, q_BMD: Tensor, z_BND: Tensor, with_masks: bool) -> tuple[Tensor, Tensor | None]:
        """Attention-to-mask: what the queries read of the tokens, and the mean over heads of the logits behind it."""
        q_BMD, k_BND, v_BND = self.q(q_BMD), self.k(z_BND), self.v(z_BND)
        q_BHMP, k_BHNP, v_BHNP = (
            each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (q_BMD, k_BND, v_BND)
        )
        scale = q_BHMP.shape[-1] ** -0.5
        if self.attention.listening:
            self.attention(attention_weights(q_BHMP, k_BHNP, scale))
        masks_BMN = None
        if with_masks or self.masks.listening:  # the products of all heads add up to that of the whole vectors
            masks_BMN = self.masks(q_BMD @ k_BND.transpose(1, 2) * (scale / self.heads))
        out_BHMP = F.scaled_dot_product_attention(
            q_BHMP, k_BHNP, v_BHNP, dropout_p=self.dropout.p if self.training else 0.0, scale=scale
        )
        return self.proj(out_BHMP.transpose(1, 2).flatten(2)), masks_BMN


class Memory(nn.Module):
    """Tokens of one encoder layer as the decoder reads them."""

    def __init__(self, encoder_width: int, width: int, project: bool = True) -> None:
        super().__init__()
        self.proj = nn.Linear(encoder_width, width) if project else nn.Identity()
        self.norm = nn.LayerNorm(width) if project else nn.Identity()
        self.tokens = Tap()

    def forward(self, z_BND: Tensor) -> Tensor:
        return cast(Tensor, self.tokens(self.norm(self.proj(z_BND))))


class ATMDecoder(Decoder):
    """What both heads have: class queries, ATM layers, and a linear head that says what a mask is.

    Attributes:
        class_embeddings: (1, K, D), what the class queries start from.
        cross_layers: the ATM layers, those of the first stage first.
    """

    scores = True

    def __init__(self, config: Any, width: int, num_classes: int, stages: int, project: bool = True) -> None:
        decoder_width = config.width or max(1, width // 2 if project else width)
        super().__init__(config, decoder_width, num_classes)
        heads = config.heads or max(1, decoder_width // 32)
        if decoder_width % heads:
            raise ModelError(
                f"decoder.heads={heads} is impossible: it must divide the decoder's width {decoder_width}."
            )
        if not project and decoder_width != width:
            raise ModelError(
                f"decoder.width={decoder_width} is impossible: with decoder.project=false it is the encoder's, {width}."
            )
        self.config = config
        self.heads = heads
        self.encoder_layers = tuple(config.encoder_layers)
        self.memories = nn.ModuleList(Memory(width, decoder_width, project) for _ in self.encoder_layers)
        self.class_embeddings = nn.Parameter(torch.randn(1, num_classes, decoder_width))
        self.cross_layers = nn.ModuleList(self._layers(stages))
        self.class_head = nn.Linear(decoder_width, num_classes + 1)

    def _layers(self, stages: int) -> list[QueryLayer]:
        """``config.layers`` new layers for each of some stages."""
        return [QueryLayer(self.width, self.heads, self.config.dropout) for _ in range(stages * self.config.layers)]

    def forward(self, z_BND: Sequence[Tensor], grid: Sequence[Grid]) -> Tensor:
        return self.predict(z_BND, grid).masks_BKhw


class SegViT(ATMDecoder):
    """The cascade: one ATM stage an encoder layer, deepest first."""

    Config = SegViTConfig

    def __init__(self, config: SegViTConfig, width: int, num_classes: int) -> None:
        super().__init__(config, width, num_classes, len(config.encoder_layers), config.project)
        self.input = Tap()
        _initialise(self)

    def predict(self, z_BND: Sequence[Tensor], grid: Sequence[Grid]) -> Prediction:
        """Tokens and grids of the encoder layers, shallowest first -> masks on the grid of the first."""
        _require_layers(self, z_BND)
        q_BKD = self.class_embeddings.expand(z_BND[0].shape[0], -1, -1)
        total_BKhw = torch.zeros((), device=q_BKD.device)
        said: list[Prediction] = []
        for stage, (own_BND, (h, w)) in enumerate(zip(reversed(z_BND), reversed(grid), strict=True)):
            memory_BND = self.memories[stage](own_BND)
            memory_BND = self.input(memory_BND) if stage == 0 else memory_BND
            end = (stage + 1) * self.config.layers
            for index in range(end - self.config.layers, end):
                q_BKD, masks_BKN = self.cross_layers[index](q_BKD, memory_BND, with_masks=index == end - 1)
            masks_BKhw = masks_BKN[..., -h * w :].unflatten(-1, (h, w))
            total_BKhw = total_BKhw + F.interpolate(masks_BKhw, size=grid[0], mode="bilinear", align_corners=False)
            said.append(Prediction(total_BKhw, self.class_head(q_BKD)))
        return replace(said[-1], earlier=tuple(said[:-1]))


class SegViTShrunk(ATMDecoder):
    """Patch queries read the layers of a shrunk encoder, shallowest first; one ATM stage makes masks of them.

    Attributes:
        queries: (1, grid * grid, D), what the patch queries start from, one a place.
        layers: the layers in which they read, those of the first encoder layer first.
    """

    Config = SegViTShrunkConfig

    def __init__(self, config: SegViTShrunkConfig, width: int, num_classes: int) -> None:
        super().__init__(config, width, num_classes, stages=1)
        side = config.grid or 32  # that of an image of 512 px, where no encoder says another (``beside``)
        self.grid = (side, side)
        self.queries = nn.Parameter(torch.randn(1, side * side, self.width))
        layers = self._layers(len(config.encoder_layers))
        self.layers = nn.ModuleList(layers)
        self.input = Tap()
        _initialise(self)
        for layer in layers:
            _start_as_one(layer.q, layer.k, layer.v)

    @classmethod
    def beside(cls, encoder: Encoder, config: SegViTShrunkConfig, num_classes: int) -> SegViTShrunk:
        side = config.grid or encoder.vit.patch_embed.grid_size[0]
        return cls(replace(config, grid=side), encoder.width, num_classes)

    def predict(self, z_BND: Sequence[Tensor], grid: Sequence[Grid]) -> Prediction:
        """Tokens and grids of the encoder layers, shallowest first -> masks on the grid of the first."""
        _require_layers(self, z_BND)
        queries_1ND = self.queries if grid[0] == self.grid else resample(self.queries, self.grid, grid[0], "bicubic")
        p_BND = self.input(queries_1ND.expand(z_BND[0].shape[0], -1, -1))
        for number, own_BND in enumerate(z_BND):
            memory_BND = self.memories[number](own_BND)
            for index in range(number * self.config.layers, (number + 1) * self.config.layers):
                p_BND, _ = self.layers[index](p_BND, memory_BND)
        q_BKD = self.class_embeddings.expand(p_BND.shape[0], -1, -1)
        said: list[Prediction] = []
        for layer in self.cross_layers:
            q_BKD, masks_BKN = layer(q_BKD, p_BND, with_masks=True)
            said.append(Prediction(masks_BKN.unflatten(-1, grid[0]), self.class_head(q_BKD)))
        return replace(said[-1], earlier=tuple(said[:-1]))


def _require_layers(decoder: ATMDecoder, tokens: object) -> None:
    wanted = len(decoder.memories)
    if not isinstance(tokens, list | tuple) or len(tokens) != wanted:
        raise ModelError(
            f"This decoder takes the tokens of {wanted} encoder layers as a list, and a list of their grids."
        )


def _initialise(decoder: ATMDecoder) -> None:
    """Linear layers as ``init_weights``, LayerNorm identity, input maps of self-attention as torch's attention."""
    decoder.apply(init_weights)
    for module in decoder.modules():
        if isinstance(module, QueryLayer):
            nn.init.xavier_uniform_(module.self_attention.qkv.weight)


def _start_as_one(*maps: nn.Linear) -> None:
    """Weights after Xavier, as if the three were one of D -> 3 D: so torch's attention keeps them."""
    for each in maps:
        bound = (6 / (4 * each.in_features)) ** 0.5
        nn.init.uniform_(each.weight, -bound, bound)
