"""What every decoder is, and the mask head the query-based ones share.

Shapes: B batch, N patch tokens, D width, K classes, h w patch grid (N = h * w).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from whitebox.models.taps import Tap


def init_weights(module: nn.Module) -> None:
    """Linear layers: truncated normal of std 0.02, zero bias; LayerNorm: identity (as ViT and Segmenter)."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Decoder(nn.Module):
    """Patch tokens -> mask logits. A subclass names its frozen config dataclass as ``Config``.

    Args:
        config: the subclass's ``Config``.
        width: D of the encoder's tokens (``self.width``: that of the decoder's own).
        num_classes: K.
    """

    Config: ClassVar[type[Any]]

    def __init__(self, config: Any, width: int, num_classes: int) -> None:
        super().__init__()
        self.width = width
        self.num_classes = num_classes

    @abstractmethod
    def forward(self, z_BND: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, h * w, D) on ``grid`` = (h, w) -> mask logits (B, K, h, w)."""


class QueryDecoder(Decoder):
    """One learned embedding per class; a mask logit is the cosine of patch token and class embedding.

    The vectors are divided by their L2 norm without epsilon, and a LayerNorm acts over the class axis (Segmenter,
    Strudel et al. 2021, official ``model/decoder.py``; DEPICT and CBSA keep both).
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

    def masks(self, patches_BND: Tensor, classes_BKD: Tensor, grid: tuple[int, int]) -> Tensor:
        """Mask logits (B, K, h, w)."""
        patches_BND = self.patches(patches_BND / patches_BND.norm(dim=-1, keepdim=True))
        classes_BKD = self.classes(classes_BKD / classes_BKD.norm(dim=-1, keepdim=True))
        masks_BNK = self.mask_norm(self.cosine(patches_BND @ classes_BKD.transpose(1, 2)))
        return masks_BNK.transpose(1, 2).unflatten(2, grid)
