"""Windows of one photo after another on their way through a model, sharing batches.

Shapes: B windows, C colours, K classes, v u pixels of a window and a b its mask logits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from whitebox.engine.assembly import View, WindowedPhoto
from whitebox.models import Segmentor
from whitebox.models.decoders.base import Prediction

Place = tuple[WindowedPhoto, View, int]  # of a window: its number in a view of a photo

Take = Callable[[list[Place], Tensor], None]  # windows of one batch, and their pixels (B, 3, v, u)


def through(
    photos: Iterable[WindowedPhoto],
    device: torch.device,
    window: int | None,
    stride: int | None,
    batch: int,
    take: Take,
) -> Iterator[WindowedPhoto]:
    """Photos in order, each when what a model says of all its windows is known; ``take`` sees to that.

    A batch is full with ``batch`` windows, or where the next one (a whole view) has another size.
    """
    queue: deque[WindowedPhoto] = deque()
    places: list[Place] = []
    crops: list[Tensor] = []

    def forward() -> None:
        take(list(places), torch.cat(crops))
        places.clear()
        crops.clear()

    for photo in photos:
        queue.append(photo)
        for view, number, crop_13vu in photo.windows(device, window, stride):
            if crops and crops[0].shape != crop_13vu.shape:
                forward()
            places.append((photo, view, number))
            crops.append(crop_13vu)
            if len(places) == batch:
                forward()
        while queue and queue[0].cut and queue[0].waiting == 0:
            yield queue.popleft()
    if places:
        forward()
    yield from queue


def predict(model: nn.Module, places: list[Place], crops_B3vu: Tensor) -> None:
    """Show a model the windows of a batch."""
    if isinstance(model, Segmentor):
        deliver(model.predict(crops_B3vu), places, model.mask_stride)
    else:
        deliver(Prediction(model(crops_B3vu)), places, 1)


def deliver(said: Prediction, places: list[Place], patch: int) -> None:
    """Hand what a model says of the windows of a batch to their photos; ``patch``: see ``Segmentor.mask_stride``."""
    shares = [None] * len(places) if said.shares_BKK is None else said.shares_BKK
    for (photo, view, number), masks_Kab, shares_KK in zip(places, said.masks_BKhw, shares, strict=True):
        view.receive(number, masks_Kab, shares_KK, patch, photo.shape)
        photo.waiting -= 1
