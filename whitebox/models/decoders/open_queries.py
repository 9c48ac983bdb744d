"""DEPICT-SA and CBSA on an open vocabulary: class embeddings are made of names instead of being learned.

Ours, no paper: the layers are those of ``depict_sa`` and ``cbsa``. With t_k the mean embedding of a name over its
templates, and m_i the encoder's maps, enlarged to the grid of the second finest,

    Z_0 = [sum_i A_i m_i, B t_1, ..., B t_T];   Z_{l+1} as in DEPICT-SA or CBSA
    mask of a name = a cos(LayerNorm(Z_L) patch, LayerNorm(Z_L) class) + b

Where they differ from the decoders they are made of:

- The LayerNorm over the class axis (one weight a class) has no place where classes change: a and b are two numbers.
- Masks are independent, so that the loss can be SED's, and a class that is not named weighs nothing.
- Patch tokens are read from all maps of the encoder, as SED reads them, not from its last tokens alone.

Shapes: B batch, N patch tokens, T classes, P templates, E width of the text embedding, D width, h w a grid.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whitebox.errors import ModelError, require
from whitebox.models.attention import CBSA, SubspaceAttention
from whitebox.models.decoders.base import Decoder, Prediction, init_weights, unit
from whitebox.models.decoders.cbsa import CBSAConfig
from whitebox.models.decoders.depict_sa import DepictSAConfig
from whitebox.models.taps import Tap

GRID = 1  # the map whose grid the tokens lie on, finest first


@dataclass(frozen=True, kw_only=True)
class OpenDepictSAConfig(DepictSAConfig):
    """Hyper-parameters of DEPICT-SA with classes made of names."""

    name: str = "depict-sa-open"
    head_dim: int = 32
    width: int = 96  # D

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.width >= 1, "decoder.width", self.width, "it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class OpenCBSAConfig(CBSAConfig):
    """Hyper-parameters of CBSA with classes made of names."""

    name: str = "cbsa-open"
    head_dim: int = 32
    pool: int = 4
    width: int = 96  # D

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.width >= 1, "decoder.width", self.width, "it must be at least 1")


class OpenQueries(Decoder):
    """Layers on [patch tokens, projected names]; a subclass says what a layer is.

    Args:
        widths: channels of the encoder's maps, finest first, the last one in the space of the names (E).
        prompts: P.

    Attributes:
        text_TPD: embeddings of the names (T, P, E); None: not given yet.
        growth: places of the masks a side for one of the last map.
    """

    open_vocabulary = True
    independent = True
    text_TPD: Tensor | None

    def __init__(self, config: Any, widths: Sequence[int], prompts: int, num_classes: int) -> None:
        super().__init__(config, config.width, num_classes)
        self.config, self.prompts, self.embed = config, prompts, widths[-1]
        self.growth = 2 ** (len(widths) - 1 - GRID)
        self.register_buffer("text_TPD", None, persistent=False)
        self.maps = nn.ModuleList(nn.Conv2d(width, config.width, 1) for width in widths)
        self.names = nn.Linear(widths[-1], config.width)
        self.layers = nn.ModuleList(self.layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.scale, self.bias = nn.Parameter(torch.tensor(10.0)), nn.Parameter(torch.tensor(-5.0))
        self.apply(init_weights)
        self.input, self.patches, self.classes, self.cosine = Tap(), Tap(), Tap(), Tap()

    @classmethod
    def beside(cls, encoder: Any, config: Any, num_classes: int) -> OpenQueries:
        if not hasattr(encoder, "prompts"):
            raise ModelError(
                f"{config.name} makes classes of names: it needs an encoder with a text tower, a CLIP ConvNeXt."
            )
        decoder = cls(config, [*encoder.widths[:-1], encoder.embed], encoder.prompts, num_classes)
        decoder.encoder_strides = encoder.strides
        return decoder

    @abstractmethod
    def layer(self, config: Any) -> nn.Module:
        """A new layer."""

    def refine(self, layer: nn.Module, z_BND: Tensor, grid: tuple[int, int]) -> Tensor:
        """Joined tokens (B, h * w + T, D) after a layer."""
        return cast(Tensor, layer(z_BND))

    def forward(self, z_BND: Sequence[Tensor], grid: object = None) -> Tensor:
        """Maps (B, C, h, w) at ``encoder_strides``, the last (B, E, h, w) -> masks (B, T, growth h, growth w)."""
        return self.predict(z_BND, grid).masks_BKhw

    def predict(self, z_BND: Sequence[Tensor], grid: object = None) -> Prediction:
        if self.text_TPD is None:
            raise ModelError("This decoder has no names yet: `set_vocabulary` of its model gives them.")
        size = (z_BND[GRID].shape[-2], z_BND[GRID].shape[-1])
        read = [
            F.interpolate(project(map_BChw), size, mode="bilinear", align_corners=False)
            for project, map_BChw in zip(self.maps, z_BND, strict=True)
        ]
        patches_BND = torch.stack(read).sum(0).flatten(2).transpose(1, 2)
        names_TD = self.names(F.normalize(self.text_TPD.mean(1), dim=-1))
        x_BND = self.input(torch.cat([patches_BND, names_TD.expand(patches_BND.shape[0], -1, -1)], dim=1))
        for layer in self.layers:
            x_BND = self.refine(layer, x_BND, size)
        x_BND, N = self.norm(x_BND), patches_BND.shape[1]
        patches_BND, classes_BTD = self.patches(unit(x_BND[:, :N])), self.classes(unit(x_BND[:, N:]))
        masks_BNT = self.scale * self.cosine(patches_BND @ classes_BTD.transpose(1, 2)) + self.bias
        return Prediction(masks_BNT.transpose(1, 2).unflatten(2, size))


class OpenDepictSA(OpenQueries):
    """MSSA layers."""

    Config = OpenDepictSAConfig

    def layer(self, config: OpenDepictSAConfig) -> nn.Module:
        return SubspaceAttention(config.width, config.heads, config.head_dim, config.dropout)


class OpenCBSA(OpenQueries):
    """Contract-and-broadcast layers."""

    Config = OpenCBSAConfig

    def layer(self, config: OpenCBSAConfig) -> nn.Module:
        return CBSA(config.width, config.heads, config.head_dim, config.pool)

    def refine(self, layer: nn.Module, z_BND: Tensor, grid: tuple[int, int]) -> Tensor:
        return cast(Tensor, layer(z_BND, grid))
