"""Segmentor = encoder + decoder: normalise, pad, encode, decode, upsample, unpad.

Shapes: B batch, K classes, H W pixels, h w patch grid.

Pixel mean and std are buffers inside the model, so no caller can normalise wrongly. Padding is zeros at the bottom
and right of the *normalised* image; the padded tokens take part in attention, and mask logits are upsampled
bilinearly to the padded size before they are cropped (official ``segm/model/segmenter.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whitebox.errors import ModelError
from whitebox.models.decoders import Decoder
from whitebox.models.decoders.base import Prediction, class_scores
from whitebox.models.encoder import Encoder
from whitebox.models.losses import CrossEntropy, Loss
from whitebox.models.precision import full_precision
from whitebox.models.taps import Tap
from whitebox.models.unused import freeze_unused
from whitebox.models.weights import LoadReport
from whitebox.palette import distinct_palette

Photos = Any  # what NumPy makes an array of: its own arrays, pictures of Pillow


def as_images(images: Tensor | Photos, device: torch.device) -> Tensor:
    """Photos (H, W, 3) or (B, H, W, 3) as a batch (B, 3, H, W) on a device; tensors as they are.

    Raises:
        ModelError: it is nothing that holds numbers.
    """
    if isinstance(images, Tensor):
        return images
    try:
        array = np.asarray(images)
        found = torch.from_numpy(np.require(array, requirements=["C", "W"])).to(device)
    except (TypeError, ValueError):
        raise ModelError(
            f"A model takes images of shape (B, 3, H, W), or photos (H, W, 3) of NumPy or Pillow, not "
            f"{type(images).__name__}."
        ) from None
    found = found[None] if found.dim() == 3 else found
    return found.permute(0, 3, 1, 2) if found.dim() == 4 and found.shape[3] == 3 else found


class Encoded(NamedTuple):
    """What a decoder takes of images: tokens (B, N, D) and their grid (h, w), or lists of them, a layer each."""

    tokens: Any
    grid: Any

    @property
    def layers(self) -> list[Tensor]:
        """The tokens of each layer, also where there is one."""
        return [self.tokens] if isinstance(self.tokens, Tensor) else list(self.tokens)

    def packed(self) -> Tensor:
        """All numbers of an image in a row, layer after layer, (B, V)."""
        return torch.cat([layer.flatten(1) for layer in self.layers], dim=1)


@dataclass(frozen=True)
class Packing:
    """How the tokens of an image of some size lie in a row: of each layer h * w of D numbers."""

    grids: list[tuple[int, int]]
    width: int
    layered: bool  # the decoder takes a list of layers

    @property
    def length(self) -> int:
        """Numbers of a row, V."""
        return sum(h * w for h, w in self.grids) * self.width

    def unpack(self, values_BV: Tensor) -> Encoded:
        """The reverse of ``Encoded.packed``, float32."""
        parts = values_BV.split([h * w * self.width for h, w in self.grids], dim=1)
        layers = [part.float().unflatten(1, (-1, self.width)) for part in parts]
        return Encoded(layers, self.grids) if self.layered else Encoded(layers[0], self.grids[0])


class Segmentor(nn.Module):
    """RGB images in, class logits out.

    Attributes:
        classes: K names. palette: K RGB triples.
        loss: what ``forward`` gives when it has labels.
        load_report: what loading the weights matched; None for a new model.
        kept: what gives the tokens of one normalised and padded image behind a fixed encoder in place of the encoder
            itself, from where they are kept (``whitebox.engine.kept``).
        configuration: of its training, where ``whitebox.load_model`` loaded it; None: it is new.

    Args:
        built_from: all that its two halves were made of, so that what models of the same make do not use is found once;
            None: they may be anything.
    """

    mean: Tensor
    std: Tensor
    load_report: LoadReport | None = None
    kept: Callable[[Tensor], Encoded] | None = None
    configuration: Any = None

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        classes: tuple[str, ...] = (),
        palette: tuple[tuple[int, int, int], ...] = (),
        built_from: object = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.loss: Loss = CrossEntropy()
        self._connect()
        self.classes = classes or unnamed_classes(decoder.num_classes)
        self.palette = palette or distinct_palette(decoder.num_classes)
        for what, given in (("class names", self.classes), ("palette colours", self.palette)):
            if len(given) != decoder.num_classes:
                raise ModelError(f"{len(given)} {what} were given for {decoder.num_classes} classes.")
        self.register_buffer("mean", torch.tensor(encoder.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(encoder.std).view(3, 1, 1), persistent=False)
        self._freeze_unused(built_from)

    def _connect(self) -> None:
        """Let the encoder know what the decoder takes."""
        layers, shrink = self.decoder.encoder_layers, getattr(self.encoder.config, "shrink", None)
        if layers is not None:
            self.encoder.serve(layers)
        if shrink is not None and (layers is None or layers[0] >= shrink):
            raise ModelError(
                f"encoder.shrink={shrink} leaves a quarter of the patches, and this decoder takes no block before it: "
                "use decoder=segvit-shrunk."
            )

    def _freeze_unused(self, built_from: object) -> None:
        def outputs() -> list[Tensor]:
            said = self.predict(self.encoder.sample())
            return [
                each
                for stage in (said, *said.earlier)
                for each in (stage.masks_BKhw, stage.classes_BKC)
                if each is not None
            ]

        freeze_unused(self, outputs, built_from)

    @property
    def num_classes(self) -> int:
        return self.decoder.num_classes

    def extra_repr(self) -> str:
        names = ", ".join(self.classes[:5]) + (", ..." if self.num_classes > 5 else "")
        count = sum(parameter.numel() for parameter in self.parameters())
        return f"{self.num_classes} classes: {names}; {count / 1e6:.2f} M parameters"

    def forward(self, images: Tensor | Encoded | Photos, labels: Tensor | None = None) -> Tensor:
        """RGB images (B, 3, H, W), uint8 or float in [0, 1] -> logits (B, K, H, W), float32.

        Photos as NumPy and Pillow have them, (H, W, 3) or (B, H, W, 3), are images, too. Instead of
        images there may be what ``encode`` made of them; the logits are then those of the padded images.

        Decoders that say what each mask is (``decoder.scores``) give scores instead of logits: the largest is the
        class here too, but their softmax is not its probability; each score's share of their sum is.

        With labels (B, H, W), integers, the sums of ``loss`` instead: of the cross-entropy, its sum over the pixels
        whose label is not 255. It is computed from the masks, in a fraction of the time and memory the logits take, and
        here, so that what wraps a model for several devices sees one forward pass.

        Raises:
            ModelError: ``images`` has another shape or type; ``labels`` does not fit.
        """
        images = images if isinstance(images, Encoded) else as_images(images, self.mean.device)
        prediction = self.predict(images)
        if labels is not None:
            return self.loss(prediction, labels, self.encoder.patch_size)
        maps_BKHW = self.upsample(prediction.masks_BKhw)
        if isinstance(images, Tensor):
            maps_BKHW = maps_BKHW[..., : images.shape[-2], : images.shape[-1]]
        H, W = maps_BKHW.shape[-2:]
        if prediction.shares_BKK is None:
            return maps_BKHW
        with full_precision(maps_BKHW.device):
            scores_BPK = class_scores(maps_BKHW.flatten(2).transpose(1, 2), prediction.shares_BKK)
            return scores_BPK.transpose(1, 2).unflatten(2, (H, W))

    def masks(self, images: Tensor | Photos) -> Tensor:
        """Mask logits at the patch grid of the padded image, (B, K, h, w)."""
        return self.predict(images).masks_BKhw

    def predict(self, images: Tensor | Encoded | Photos) -> Prediction:
        """All that the decoder says, at the patch grid of the padded image."""
        return self.decoder.predict(*(images if isinstance(images, Encoded) else self.encode(images)))

    def encode(self, images: Tensor | Photos) -> Encoded:
        """What the decoder takes of images, see ``Decoder.forward``.

        An encoder that is fixed sees one image at a time on a processor: its tokens are then the same to the last bit
        whichever images they were computed with, so that they may be kept. Where somebody listens to its layers, it
        sees all of them at once, so that what is heard is of all of them.
        """
        x_B3HW = self.pad(self.normalise(images))
        if any(tap.listening for tap in self.encoder.modules() if isinstance(tap, Tap)):
            return self.tokens(x_B3HW)
        if self.kept is not None:
            return joined([self.kept(x_13HW) for x_13HW in x_B3HW.split(1)])
        if self.encoder.fixed and x_B3HW.device.type == "cpu" and len(x_B3HW) > 1:
            return joined([self.tokens(x_13HW) for x_13HW in x_B3HW.split(1)])
        return self.tokens(x_B3HW)

    def packing(self, size: tuple[int, int]) -> Packing:
        """How what ``encode`` makes of an image of ``size`` (H, W) lies in a row."""
        x_13HW = self.pad(self.mean.new_empty((1, 3, *size), device="meta"))
        assert self.decoder.encoder_strides is None  # its encoder is never fixed
        layers = self.decoder.encoder_layers
        taken = (self.encoder.depth - 1,) if layers is None else layers
        return Packing([self.encoder.grid(x_13HW, layer) for layer in taken], self.encoder.width, layers is not None)

    def tokens(self, x_B3HW: Tensor) -> Encoded:
        """As ``encode``, of normalised and padded images."""
        if self.decoder.encoder_strides is not None:
            maps = self.encoder.maps(x_B3HW, self.decoder.encoder_strides)
            return Encoded(maps, [(each.shape[-2], each.shape[-1]) for each in maps])
        if self.decoder.encoder_layers is None:
            return Encoded(*self.encoder(x_B3HW))
        return Encoded(*self.encoder.intermediate(x_B3HW, self.decoder.encoder_layers))

    def normalise(self, images: Tensor | Photos) -> Tensor:
        """RGB uint8 or float in [0, 1] -> zero-mean network input."""
        images = as_images(images, self.mean.device)
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

    @property
    def place(self) -> int:
        """Pixels a side of a place of the masks, in the image as it is shown to the encoder (``view``)."""
        return self.encoder.patch_size

    def view(self, images: Tensor) -> Tensor:
        """Images as they are shown to the encoder, but for their padding."""
        return images

    @property
    def mask_stride(self) -> int:
        """Pixels a side of a place of the masks; 0: they show the whole image, whatever its size."""
        return self.place

    def upsample(self, masks_BKhw: Tensor) -> Tensor:
        """Bilinear, to the padded size, float32."""
        patch = self.encoder.patch_size
        size = (masks_BKhw.shape[-2] * patch, masks_BKhw.shape[-1] * patch)
        return F.interpolate(masks_BKhw.float(), size=size, mode="bilinear", align_corners=False)


def joined(parts: Sequence[Encoded]) -> Encoded:
    """One batch of several whose grids are the same."""
    tokens, grid = parts[0]
    if isinstance(tokens, Tensor):
        return Encoded(torch.cat([part.tokens for part in parts]), grid)
    return Encoded([torch.cat(layers) for layers in zip(*(part.tokens for part in parts), strict=True)], grid)


def unnamed_classes(num_classes: int) -> tuple[str, ...]:
    """Names of classes nobody named: ``class 0``, ``class 1``, ..."""
    return tuple(f"class {index}" for index in range(num_classes))
