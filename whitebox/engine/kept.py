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
from whitebox.engine.views import tokens_question
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
        self.model = model
        self.store = RowStore({"what": "images as they are", **tokens_question(model)}, None)
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
            values_1V = torch.from_numpy(np.frombuffer(bytearray(content[_DIGEST:]), np.float32))[None]
            return self.model.packing((x_13HW.shape[2], x_13HW.shape[3])).unpack(values_1V.to(x_13HW.device))
        made = self.model.tokens(x_13HW)
        values_1V = made.packed()
        size = _DIGEST + values_1V.nbytes
        if size <= self.left and values_1V.dtype == torch.float32:
            self.left -= size
            self.waiting[row] = digest + values_1V.cpu().numpy().tobytes()
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
        except OutputError as error:
            log.warning("%s Tokens of images are computed anew each time.", error)
            self.left = 0.0
        self.waiting = {}


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
