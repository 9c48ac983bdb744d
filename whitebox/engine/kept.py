"""What a fixed encoder makes of the images of a dataset as they are, kept for the next evaluation or measurement.

A window of an image is known by its pixels, so whatever shows it to the same encoder finds its tokens: evaluations and
noise on parameters, of every decoder. They are kept in float32, so results are the same to the last bit.
"""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from whitebox.config import StoreConfig
from whitebox.engine.rows import GIB, RowStore
from whitebox.errors import OutputError
from whitebox.models import Segmentor
from whitebox.models.segmentor import Encoded

log = logging.getLogger("whitebox")

_DIGEST = 16  # bytes, in front of each row
_AT_ONCE = 16  # windows that are written together


class KeptTokens:
    """Tokens of windows by their pixels, from a store; what is new is added, up to the budget.

    Raises:
        StoreError: the store is damaged, or of another version.
    """

    def __init__(self, model: Segmentor, gib: float) -> None:
        layers = model.decoder.encoder_layers
        question = {
            "what": "images as they are",
            "encoder": model.encoder.config.name,
            "encoder_sha256": model.encoder.sha256,
            "encoder_settings": model.encoder.settings(),
            "layers": None if layers is None else list(layers),
        }
        self.model, self.layered = model, layers is not None
        self.store = RowStore(question, None)
        self.left = gib * GIB - sum(path.stat().st_size for path in self.store.folder.glob("rows-*.bin"))
        self.writer = uuid.uuid4().hex[:12]
        self.waiting: dict[int, bytes] = {}

    def encode(self, x_13HW: Tensor) -> Encoded:
        """The tokens of one normalised and padded image, from the store, or made and kept."""
        pixels = x_13HW.cpu().contiguous().numpy()
        digest = hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=_DIGEST).digest()
        row = int.from_bytes(digest[:8], "little")
        content = self.waiting.get(row)
        if content is None and row in self.store:
            content = self.store.read(row)
        if content is not None and content[:_DIGEST] == digest:
            return self._unpacked(content, x_13HW)
        made = self.model.tokens(x_13HW)
        layers = [made.tokens] if isinstance(made.tokens, Tensor) else made.tokens
        size = _DIGEST + sum(layer.nbytes for layer in layers)
        if size <= self.left and all(layer.dtype == torch.float32 for layer in layers):
            self.left -= size
            self.waiting[row] = digest + b"".join(layer.cpu().contiguous().numpy().tobytes() for layer in layers)
            if len(self.waiting) == _AT_ONCE:
                self.flush()
        return made

    def flush(self) -> None:
        """Write what is new. A disk that is full, or a folder that cannot be written, is said and keeps nobody."""
        try:
            if self.waiting:
                self.store.begin()
                for _ in self.store.write(self.waiting.items(), self.writer):
                    pass
                self.store.refresh()
        except OutputError as error:
            log.warning("%s Tokens of images are computed anew each time.", error)
            self.left = 0.0
        self.waiting = {}

    def _unpacked(self, content: bytes, x_13HW: Tensor) -> Encoded:
        grids, width = self.model.grids((x_13HW.shape[2], x_13HW.shape[3])), self.model.encoder.width
        values = torch.from_numpy(np.frombuffer(bytearray(content[_DIGEST:]), np.float32)).to(x_13HW.device)
        layers = [part.view(1, -1, width) for part in values.split([h * w * width for h, w in grids])]
        return Encoded(layers, grids) if self.layered else Encoded(layers[0], grids[0])


@contextmanager
def tokens_kept(model: torch.nn.Module, store: StoreConfig) -> Iterator[None]:
    """Inside the block a model with a fixed encoder takes the tokens of images from the store, and adds new ones."""
    if not (isinstance(model, Segmentor) and model.encoder.fixed and store.use):
        yield
        return
    kept = KeptTokens(model, store.gib)
    model.kept = kept.encode
    try:
        yield
    finally:
        model.kept = None
        kept.flush()
