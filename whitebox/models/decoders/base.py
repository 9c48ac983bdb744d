"""What every decoder is and says, and the mask head the query-based ones share.

Shapes: B batch, N patch tokens, D width, K classes, H W pixels, h w patch grid (N = h * w).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from whitebox.models.taps import Tap

if TYPE_CHECKING:
    from whitebox.models.encoder import Encoder


def init_weights(module: nn.Module) -> None:
    """Linear layers: truncated normal of std 0.02, zero bias; LayerNorm: identity (as ViT and Segmenter)."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@dataclass(frozen=True)
class Prediction:
    """What a decoder says of a batch of images.

    Attributes:
        masks_BKhw: mask logits on the patch grid.
        classes_BKC: logits of what each mask is, C = K + 1: a class, or (last) no object; None: mask k is class k.
        earlier: what the stages before the last one said, first stage first; losses may take them too.
    """

    masks_BKhw: Tensor
    classes_BKC: Tensor | None = None
    earlier: tuple[Prediction, ...] = ()

    @property
    def shares_BKK(self) -> Tensor | None:
        """Probability that mask q (rows) is class k; None: mask k is class k."""
        return None if self.classes_BKC is None else self.classes_BKC.float().softmax(dim=-1)[..., :-1]


def class_scores(masks_xK: Tensor, shares_KK: Tensor) -> Tensor:
    """Scores of the classes, sum over masks q of share_qk sigmoid(mask_q), masks last (..., K): between 0 and K.

    Source: semantic inference of MaskFormer (Cheng et al. 2021, arXiv 2107.06278), as SegViT has it.
    """
    return masks_xK.sigmoid() @ shares_KK


class Decoder(nn.Module):
    """Patch tokens -> mask logits. A subclass names its frozen config dataclass as ``Config``.

    Args:
        config: the subclass's ``Config``.
        width: D of the encoder's tokens (``self.width``: that of the decoder's own).
        num_classes: K.

    Attributes:
        scores: whether its predictions have ``classes_BKC``. Class maps are then scores (``class_scores``), which are
            not linear in the masks; else they are logits, the masks upsampled.
        encoder_layers: the encoder's blocks (from 0, in rising order) whose tokens it takes, as they are; None: the
            encoder's last tokens, through its final norm.
        encoder_strides: pixels a side of a place of the encoder's feature maps it takes instead, finest first.
        open_vocabulary: whether its classes are names, given when it is used (``OpenSegmentor``).
        independent: whether the sigmoid of a mask is the probability of its class, whatever the other masks are.
    """

    Config: ClassVar[type[Any]]
    scores: ClassVar[bool] = False
    open_vocabulary: ClassVar[bool] = False
    independent: ClassVar[bool] = False
    encoder_layers: Sequence[int] | None = None
    encoder_strides: Sequence[int] | None = None

    def __init__(self, config: Any, width: int, num_classes: int) -> None:
        super().__init__()
        self.width = width
        self.num_classes = num_classes

    @classmethod
    def beside(cls, encoder: Encoder, config: Any, num_classes: int) -> Decoder:
        """The decoder for this encoder."""
        return cls(config, encoder.width, num_classes)

    @abstractmethod
    def forward(self, z_BND: Any, grid: Any) -> Tensor:
        """Tokens (B, h * w, D) on ``grid`` = (h, w) -> mask logits (B, K, h, w).

        A decoder with ``encoder_layers`` takes a list of tokens and a list of grids; one with ``encoder_strides`` a
        list of maps (B, C, h, w) and a list of their grids.
        """

    def predict(self, z_BND: Any, grid: Any) -> Prediction:
        """As ``forward``, with all that the decoder says."""
        return Prediction(self(z_BND, grid))


def unit(x_BND: Tensor) -> Tensor:
    """Vectors divided by their L2 norm, without epsilon as in the official code; where that is 0 / 0, zero."""
    norm_BN1 = x_BND.norm(dim=-1, keepdim=True)
    return x_BND / torch.where(norm_BN1 == 0, 1.0, norm_BN1)


class QueryDecoder(Decoder):
    """One learned embedding per class; a mask logit is the cosine of patch token and class embedding.

    The cosine is that of ``unit`` vectors, and a LayerNorm acts over the class axis (Segmenter, Strudel et al. 2021,
    official ``model/decoder.py``; DEPICT and CBSA keep both).
    """

    def __init__(self, config: Any, width: int, num_classes: int) -> None:
        super().__init__(config, width, num_classes)
        self.class_embeddings = nn.Parameter(torch.empty(1, num_classes, width))
        nn.init.trunc_normal_(self.class_embeddings, std=0.02)
        self.mask_norm = nn.LayerNorm(num_classes)
        self.input = Tap()
        self.patches = Tap()
        self.classes = Tap()
        self.cosine = Tap()

    def join(self, z_BND: Tensor) -> Tensor:
        """[patch tokens, class embeddings], (B, N + K, D): what enters the first layer."""
        return cast(Tensor, self.input(torch.cat([z_BND, self.class_embeddings.expand(z_BND.shape[0], -1, -1)], dim=1)))

    def split(self, z_BND: Tensor) -> tuple[Tensor, Tensor]:
        """The two parts of joined tokens, (B, N, D) and (B, K, D)."""
        return z_BND[:, : -self.num_classes], z_BND[:, -self.num_classes :]

    def masks(self, patches_BND: Tensor, classes_BKD: Tensor, grid: tuple[int, int]) -> Tensor:
        """Mask logits (B, K, h, w)."""
        patches_BND, classes_BKD = self.patches(unit(patches_BND)), self.classes(unit(classes_BKD))
        masks_BNK = self.mask_norm(self.cosine(patches_BND @ classes_BKD.transpose(1, 2)))
        return masks_BNK.transpose(1, 2).unflatten(2, grid)


class JoinedDecoder(QueryDecoder):
    """``config.layers`` layers on [patch tokens, class embeddings], then the cosine of the two parts.

    A subclass says what a layer is (``layer``), and how it is called if it takes more than the tokens (``refine``).
    """

    def __init__(self, config: Any, width: int, num_classes: int) -> None:
        super().__init__(config, width, num_classes)
        self.layers = nn.ModuleList(self.layer(config, width) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)

    @abstractmethod
    def layer(self, config: Any, width: int) -> nn.Module:
        """A new layer."""

    def refine(self, layer: nn.Module, z_BND: Tensor, grid: tuple[int, int]) -> Tensor:
        """Joined tokens (B, h * w + K, D) after a layer."""
        return cast(Tensor, layer(z_BND))

    def forward(self, z_BND: Tensor, grid: tuple[int, int]) -> Tensor:
        z_BND = self.join(z_BND)
        for layer in self.layers:
            z_BND = self.refine(layer, z_BND, grid)
        return self.masks(*self.split(self.norm(z_BND)), grid)
