"""Images behind a model's encoder: its tokens are computed once, and its decoder is evaluated as often as it changes.

What the decoder takes of each batch of windows is kept, and each image's label; in memory up to a budget, beyond it in
a temporary file. An evaluation is bit for bit that of ``whitebox.engine.evaluate``: the same batches go through the
same decoder, and on to the same pixels.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from whitebox.config import DataConfig, InferenceConfig
from whitebox.engine.assembly import WindowedPhoto
from whitebox.engine.evaluate import Evaluation, LabelledImages, images_to_evaluate, read_images
from whitebox.engine.inference import device_of, evaluating, photo_for, rejecting
from whitebox.engine.metrics import counts_in_rows, label_rows
from whitebox.engine.queue import Place, deliver, through
from whitebox.errors import ConfigError, DataError, OutputError
from whitebox.models import Segmentor

MEMORY = 4 * 10**9  # bytes


class EncodedImages:
    """The images of a dataset, encoded.

    Args:
        model: its encoder and decoder; the encoder must stay as it is, the decoder's parameters may change.
        dataset, inference, data, limit, workers: as for ``evaluate``.
        memory: bytes of tokens and labels to keep in memory (the tokens on the model's device); what is more goes to a
            temporary file, which vanishes with the process.

    Raises:
        ModelError, DataError, ConfigError: see ``evaluate``.
        OutputError: the temporary file cannot be written.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: Segmentor,
        dataset: LabelledImages,
        inference: InferenceConfig,
        data: DataConfig | None = None,
        *,
        limit: int | None = None,
        workers: int | None = None,
        memory: int = MEMORY,
    ) -> None:
        total = images_to_evaluate(model, dataset, limit)
        if model.num_classes != len(dataset.classes):
            raise ConfigError(
                f"{model.num_classes} names for {len(dataset.classes)} classes cannot be measured here: give as many."
            )
        self.model, self.topk = model, inference.topk
        self.names: list[str] = []
        self.store = _Store(memory)
        self._labels: list[Callable[[], Tensor]] = []  # as `label_rows` gives them
        self._batches: list[tuple[list[Place], Callable[[], Any], Any]] = []  # windows, tokens, grid

        def photos() -> Iterator[WindowedPhoto]:
            for sample in read_images(dataset, range(total), workers):
                image_HW3 = sample.image.permute(1, 2, 0).numpy()
                if sample.label.shape != image_HW3.shape[:2]:
                    raise DataError(
                        f"{sample.name}: the image is {tuple(image_HW3.shape[:2])} pixels, "
                        f"the label {tuple(sample.label.shape)}."
                    )
                try:
                    rows_HW = label_rows(sample.label, model.num_classes, dataset.ignore_index)
                except DataError as error:
                    raise DataError(f"{sample.name}: {error}") from error
                self._labels.append(self.store.put(rows_HW.to(device_of(model))))
                self.names.append(sample.name)
                yield photo_for(model, image_HW3, inference, data)

        def take(places: list[Place], crops_B3vu: Tensor) -> None:
            tokens, grid = model.encode(crops_B3vu)
            self._batches.append((places, self.store.put(tokens), grid))

        with evaluating(model):
            seen = through(photos(), device_of(model), inference.window, inference.stride, inference.batch, take)
            self._photos = list(seen)

    @property
    def windows(self) -> list[int]:
        """How many windows each image has."""
        count = dict.fromkeys(map(id, self._photos), 0)
        for places, _, _ in self._batches:
            for photo, _, _ in places:
                count[id(photo)] += 1
        return [count[id(photo)] for photo in self._photos]

    @torch.inference_mode()
    def evaluate(self, on_batch: Callable[[list[int]], None] | None = None) -> Evaluation:
        """Counts with the decoder as it is now.

        Args:
            on_batch: called when the decoder has seen a batch of windows, with the number of the image of each.
        """
        counts: list[Tensor] = []
        number = {id(photo): index for index, photo in enumerate(self._photos)}
        waiting = deque(self._photos)
        for photo in self._photos:
            photo.forget()
        with evaluating(self.model), rejecting(self.model, self.topk):
            for places, tokens, grid in self._batches:
                deliver(self.model.decoder.predict(tokens(), grid), places, self.model.mask_stride)
                if on_batch is not None:
                    on_batch([number[id(photo)] for photo, _, _ in places])
                while waiting and waiting[0].waiting == 0:
                    photo = waiting.popleft()
                    rows_HW, K = self._labels[len(counts)](), self.model.num_classes
                    predicted_HW = photo.labels(torch.uint8 if K <= 256 else torch.int64)  # less to move, and to count
                    counts.append(counts_in_rows(predicted_HW, rows_HW, K))
                    photo.forget()
        return Evaluation(tuple(self.names), torch.stack(counts).cpu().numpy())


class _Store:
    """Tensors in memory up to a budget of bytes, beyond it in a temporary file without a name."""

    def __init__(self, budget: int) -> None:
        self.left = budget
        self.spilled = 0  # bytes

    def put(self, value: Any) -> Callable[[], Any]:
        """Keep a tensor, or a list of them; returns what gives it back."""
        if isinstance(value, Tensor):
            return self._put(value)
        parts = [self._put(part) for part in value]
        return lambda: [part() for part in parts]

    def _put(self, tensor: Tensor) -> Callable[[], Tensor]:
        if tensor.nbytes <= self.left:
            self.left -= tensor.nbytes
            return lambda: tensor
        try:
            if not self.spilled:
                self.file = tempfile.TemporaryFile(prefix="whitebox-")  # noqa: SIM115 closed with this object
            self.file.seek(self.spilled)
            self.file.write(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
            self.file.flush()
        except OSError as error:
            raise OutputError(
                f"Cannot write the encoder's tokens to {tempfile.gettempdir()}: {error.strerror}; free some space, "
                "set TMPDIR to another disk, or keep more in memory."
            ) from error
        start = self.spilled
        self.spilled += tensor.nbytes
        return partial(self._read, start, tensor.shape, tensor.dtype, tensor.device)

    def _read(self, start: int, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        data = bytearray(shape.numel() * dtype.itemsize)
        self.file.seek(start)
        self.file.readinto(data)
        return torch.frombuffer(data, dtype=dtype).reshape(shape).to(device)
