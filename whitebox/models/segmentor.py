"""Segmentor = encoder + decoder: normalise, pad, encode, decode, upsample, unpad.

Shapes: B batch, K classes, H W pixels, h w patch grid.

Pixel mean and std are buffers inside the model, so no caller can normalise wrongly. Padding is zeros at the bottom
and right of the *normalised* image; the padded tokens take part in attention, and mask logits are upsampled
bilinearly to the padded size before they are cropped (official ``segm/model/segmenter.py``).
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whitebox.errors import ModelError
from whitebox.models.decoders import Decoder
from whitebox.models.encoder import Encoder
from whitebox.models.palette import distinct_palette
from whitebox.models.tail import summed_cross_entropy
from whitebox.models.weights import LoadReport


class Segmentor(nn.Module):
    """RGB images in, class logits out.

    Attributes:
        classes: K names. palette: K RGB triples.
        load_report: what loading the weights matched; None for a new model.
    """

    mean: Tensor
    std: Tensor
    load_report: LoadReport | None = None

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        classes: tuple[str, ...] = (),
        palette: tuple[tuple[int, int, int], ...] = (),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.classes = classes or unnamed_classes(decoder.num_classes)
        self.palette = palette or distinct_palette(decoder.num_classes)
        for what, given in (("class names", self.classes), ("palette colours", self.palette)):
            if len(given) != decoder.num_classes:
                raise ModelError(f"{len(given)} {what} were given for {decoder.num_classes} classes.")
        self.register_buffer("mean", torch.tensor(encoder.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(encoder.std).view(3, 1, 1), persistent=False)

    @property
    def num_classes(self) -> int:
        return self.decoder.num_classes

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """RGB images (B, 3, H, W), uint8 or float in [0, 1] -> logits (B, K, H, W), float32.

        With labels (B, H, W), integers, the cross-entropy of these logits instead, summed over the pixels whose label
        is not 255. It is computed from the masks, in a fraction of the time and memory the logits take, and here, so
        that what wraps a model for several devices sees one forward pass.

        Raises:
            ModelError: ``images`` has another shape or type; ``labels`` does not fit.
        """
        masks_BKhw = self.masks(images)
        if labels is not None:
            return summed_cross_entropy(masks_BKhw, labels, self.encoder.patch_size)
        H, W = images.shape[-2:]
        return self.upsample(masks_BKhw)[..., :H, :W]

    def masks(self, images: Tensor) -> Tensor:
        """Mask logits at the patch grid of the padded image, (B, K, h, w)."""
        z_BND, grid = self.encoder(self.pad(self.normalise(images)))
        return cast(Tensor, self.decoder(z_BND, grid))

    def normalise(self, images: Tensor) -> Tensor:
        """RGB uint8 or float in [0, 1] -> zero-mean network input."""
        if images.dim() != 4 or images.shape[1] != 3:
            raise ModelError(f"A model takes images of shape (B, 3, H, W); these have shape {tuple(images.shape)}.")
        if images.dtype == torch.uint8:
            pixels = images.float()
        elif images.is_floating_point():
            pixels = images * 255
        else:
            raise ModelError(f"A model takes uint8 images, or float images in [0, 1]; these are {images.dtype}.")
        return (pixels - self.mean) / self.std

    def pad(self, x_B3HW: Tensor) -> Tensor:
        """Zeros at the bottom and right, up to a multiple of the patch size."""
        patch = self.encoder.patch_size
        H, W = x_B3HW.shape[-2:]
        return F.pad(x_B3HW, (0, -W % patch, 0, -H % patch))

    def upsample(self, masks_BKhw: Tensor) -> Tensor:
        """Bilinear, to the padded size, float32."""
        patch = self.encoder.patch_size
        size = (masks_BKhw.shape[-2] * patch, masks_BKhw.shape[-1] * patch)
        return F.interpolate(masks_BKhw.float(), size=size, mode="bilinear", align_corners=False)


def unnamed_classes(num_classes: int) -> tuple[str, ...]:
    """Names of classes nobody named: ``class 0``, ``class 1``, ..."""
    return tuple(f"class {index}" for index in range(num_classes))
