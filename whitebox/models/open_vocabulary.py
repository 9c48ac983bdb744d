"""A segmentor whose classes are names: any words, given when it is used.

Shapes: B batch, T classes, P templates, D width of the embedding, H W pixels, h w a grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whitebox.errors import ModelError
from whitebox.models.clip import CLIPEncoder
from whitebox.models.cross_entropy import IGNORED
from whitebox.models.decoders.base import Decoder, Prediction
from whitebox.models.segmentor import Encoded, Photos, Segmentor, as_images
from whitebox.models.text import Progress, cached_text_features, random_features, templates, text_features
from whitebox.names import check_vocabulary
from whitebox.palette import distinct_palette


class OpenSegmentor(Segmentor):
    """A CLIP encoder and a decoder that compares its maps with names.

    Masks are independent of each other: the sigmoid of one is the probability of its class. ``forward`` gives these
    probabilities, (B, T, H, W), upsampled bilinearly as SED's evaluation does; they do not sum to 1.
    """

    encoder: CLIPEncoder  # type: ignore[assignment]

    def __init__(
        self,
        encoder: CLIPEncoder,
        decoder: Decoder,
        classes: tuple[str, ...] = (),
        palette: tuple[tuple[int, int, int], ...] = (),
        built_from: object = None,
    ) -> None:
        super().__init__(cast(Any, encoder), decoder, classes, palette, built_from)
        self.register_load_state_dict_post_hook(_forget)

    def _freeze_unused(self, built_from: object) -> None:
        """The two halves say themselves what of them is trained."""

    def set_vocabulary(
        self, classes: Sequence[str], palette: Sequence[tuple[int, int, int]] = (), features_TPD: Tensor | None = None
    ) -> None:
        """Choose the classes.

        Args:
            classes: names, synonyms separated by ", ". palette: a colour each; none: distinct ones.
            features_TPD: their embeddings; None: of the text tower, when they are first needed (``prepare``).

        Raises:
            VocabularyError: no names, or one twice.
            ModelError: colours or embeddings that are not theirs.
        """
        check_vocabulary(classes)
        if palette and len(palette) != len(classes):
            raise ModelError(f"{len(palette)} palette colours were given for {len(classes)} classes.")
        T = len(classes)
        wanted = (T, self.encoder.prompts, self.encoder.embed)
        if features_TPD is not None and tuple(features_TPD.shape) != wanted:
            raise ModelError(f"Embeddings of shape {tuple(features_TPD.shape)} were given, of {wanted} are needed.")
        self.classes, self.palette = tuple(classes), tuple(palette) or distinct_palette(T)
        self.decoder.num_classes = T
        self._features = features_TPD

    @property
    def _features(self) -> Tensor | None:
        return cast("Tensor | None", self.decoder.text_TPD)

    @_features.setter
    def _features(self, features_TPD: Tensor | None) -> None:
        cast(Any, self.decoder).text_TPD = None if features_TPD is None else features_TPD.to(self.mean.device)

    def prepare(self, progress: Progress | None = None) -> Tensor:
        """The embeddings of the classes (T, P, D), computed or read from the disk unless they are there.

        Those of a text tower that is trained are not kept on the disk.

        Raises:
            VocabularyError: a name that the text tower cannot take. ModelError: open_clip is needed and not there.
        """
        if self._features is None:
            encoder = self.encoder
            if encoder.config.embeddings == "random":
                self._features = random_features(self.classes, encoder.prompts, encoder.embed)
            elif encoder.config.train_text:  # kept, each evaluation of a training would leave files that no other reads
                of = templates(encoder.config.templates)
                with torch.no_grad():
                    self._features = text_features(encoder.text, encoder.tokenizer, self.classes, of, progress)
            else:
                self._features = cached_text_features(
                    encoder.text, encoder.tokenizer, self.classes, encoder.config.templates, progress
                )
        features = self._features
        assert features is not None
        return features

    def encode(self, images: Tensor | Photos) -> Encoded:
        """The image's maps at the decoder's strides, finest first, the last one embedded; and their grids."""
        self.prepare()
        x_B3HW = self.pad(self.view(self.normalise(images)))
        maps = self.encoder.maps(x_B3HW, self.decoder.encoder_strides or self.encoder.strides)
        maps[-1] = self.encoder.embedded(maps[-1])
        return Encoded(maps, [(each.shape[-2], each.shape[-1]) for each in maps])

    def forward(self, images: Tensor | Encoded | Photos, labels: Tensor | None = None) -> Tensor:
        """RGB images (B, 3, H, W) -> probabilities (B, T, H, W); with labels the sums of ``loss``."""
        images = images if isinstance(images, Encoded) else as_images(images, self.mean.device)
        few = getattr(self.loss, "names", None)
        if labels is not None and self.training:
            few = self.num_classes if few is None else few
            if few < self.num_classes or self.encoder.config.train_text:
                return self._loss_of_few(images, labels, few)
        prediction = self.predict(images)
        if labels is not None:
            return self.loss(prediction, labels, self.label_stride(prediction, labels))
        assert isinstance(images, Tensor)  # the sizes of encoded images are not known
        return self.probabilities(prediction, (images.shape[-2], images.shape[-1]))

    def _loss_of_few(self, images: Tensor | Encoded, labels: Tensor, few: int) -> Tensor:
        """The loss with some of the names alone, as much as that of all of them would be on average."""
        encoder, T = self.encoder, self.num_classes
        features_TPD = None if encoder.config.train_text else self.prepare()  # of a tower that changes none is kept
        chosen_S, labels = few_classes(labels, T, few)
        try:
            if features_TPD is None:
                names = [self.classes[index] for index in chosen_S.tolist()]
                of = templates(encoder.config.templates)
                self._features = text_features(encoder.text, encoder.tokenizer, names, of)
            else:
                self._features = features_TPD[chosen_S]
            self.decoder.num_classes = len(chosen_S)
            prediction = self.predict(images)
        finally:
            self._features, self.decoder.num_classes = features_TPD, T
        return self.loss(prediction, labels, self.label_stride(prediction, labels)) * (T / len(chosen_S))

    def probabilities(self, prediction: Prediction, size: tuple[int, int]) -> Tensor:
        """Sigmoid of the masks, then upsampled to the pixels of the image, (B, T, H, W) float32."""
        maps_BThw = prediction.masks_BKhw.float().sigmoid()
        whole = F.interpolate(maps_BThw, self.shown(size), mode="bilinear", align_corners=False)
        return whole[..., : size[0], : size[1]]

    def shown(self, size: tuple[int, int]) -> tuple[int, int]:
        """What of an image of some size the masks show, in its pixels: all of it, or more where it is padded."""
        if self.encoder.image_size is not None:
            return size
        patch = self.encoder.patch_size
        # not -(-side // patch) * patch: in ONNX a division of integers goes towards 0
        return (size[0] + patch - 1) // patch * patch, (size[1] + patch - 1) // patch * patch

    def view(self, images: Tensor) -> Tensor:
        """Squashed to the encoder's square, if it has one."""
        size = self.encoder.image_size
        if size is None or images.shape[-2:] == (size, size):
            return images
        return F.interpolate(images, (size, size), mode="bilinear", align_corners=False)

    @property
    def place(self) -> int:
        return self.encoder.patch_size // cast(Any, self.decoder).growth

    @property
    def mask_stride(self) -> int:
        """Pixels a side of a place of the masks; 0: images are squashed, and the masks show them whole."""
        return self.place if self.encoder.image_size is None else 0

    def label_stride(self, prediction: Prediction, labels_BHW: Tensor) -> int:
        """As ``mask_stride``, but where images were squashed by a whole number it is that."""
        if self.mask_stride:
            return self.mask_stride
        sides = zip(labels_BHW.shape[1:], prediction.masks_BKhw.shape[-2:], strict=True)
        strides = {side // count if side % count == 0 else 0 for side, count in sides}
        return strides.pop() if len(strides) == 1 else 0


def few_classes(labels_BHW: Tensor, num_classes: int, few: int) -> tuple[Tensor, Tensor]:
    """Classes of some images, and random others up to ``few`` in all.

    Returns:
        Their indices (S,), and the labels as indices of these; what is no class becomes 255.
    """
    present_N = labels_BHW.long().unique()
    present_N = present_N[present_N < num_classes]
    order_T = torch.randperm(num_classes, device=labels_BHW.device)
    others = order_T[~torch.isin(order_T, present_N)]
    chosen_S = torch.cat([present_N, others[: max(0, few - len(present_N))]])
    table = torch.full((max(num_classes, IGNORED) + 1,), IGNORED, device=labels_BHW.device)
    table[chosen_S] = torch.arange(len(chosen_S), device=labels_BHW.device)
    return chosen_S, table[labels_BHW.long()]


def _forget(module: nn.Module, incompatible: object) -> None:
    """Other weights of the text tower make other embeddings."""
    cast(OpenSegmentor, module)._features = None
