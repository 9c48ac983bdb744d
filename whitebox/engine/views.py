"""A fixed number of augmented views of each image, and what a fixed encoder makes of them, kept in a store.

Training draws a new view of each image in every epoch. With ``data.views=V`` there are V of them, each a pure function
of (seed, view, index), and epoch e shows view e mod V. Behind an encoder that is not trained their tokens are then
always the same; they are computed once, kept with the labels, and shared by all trainings that ask the same.

Shapes: B batch, C crop size in pixels, X bytes of a row: the tokens of each layer that the decoder
takes, then the label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from whitebox.config import RunConfig
from whitebox.data import Sample, SegmentationDataset
from whitebox.data.loading import ErrorsAsValues, each, serve
from whitebox.engine.distributed import gathered, on_main
from whitebox.engine.rows import RowStore, require_room
from whitebox.errors import WhiteboxError
from whitebox.lock import LOCK, Lock
from whitebox.models import Segmentor
from whitebox.models.segmentor import Encoded

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}


class Views(Dataset[Sample]):
    """V views of each image of ``dataset``: ``[epoch, index]`` gives view epoch mod V."""

    def __init__(self, dataset: SegmentationDataset, views: int) -> None:
        self.dataset, self.views = dataset, views

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        return self.dataset[epoch % self.views, index]


class EncodedViews(Dataset[Sample]):
    """As ``Views``, but a sample's image is a row of the store, uint8 (X,); ``encoded`` turns a batch into tokens."""

    def __init__(self, views: Views, model: Segmentor, config: RunConfig, store: RowStore) -> None:
        self.names, self.views, self.store, self.crop = views.dataset.names, views.views, store, config.data.crop
        self.dtype = PRECISIONS[config.store.precision]
        self.packing = model.packing((self.crop, self.crop))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        row = np.frombuffer(bytearray(self.store.read((epoch % self.views) * len(self) + index)), np.uint8)
        tokens_X, label = row[: -(self.crop**2)], row[-(self.crop**2) :].reshape(self.crop, self.crop)
        return Sample(torch.from_numpy(tokens_X), torch.from_numpy(label), self.names[index])

    def encoded(self, rows_BX: Tensor) -> Encoded:
        """The tokens in a batch of rows, float32, on the device of the rows."""
        return self.packing.unpack(rows_BX.view(self.dtype))


def encoded_views(
    model: Segmentor,
    views: Views,
    config: RunConfig,
    fingerprint: str,
    *,
    workers: int = 0,
    on_row: Callable[[int, int], None] = lambda done, total: None,
) -> EncodedViews:
    """The views behind the model's encoder: from the store, after what is missing in it was made.

    All processes of a training call it, and each makes its part.

    Args:
        model: its encoder is fixed; on the device that is to encode.
        fingerprint: of the images and labels.
        workers: processes that augment.
        on_row: told how many rows of this process's part are done, of how many; may raise to stop.

    Raises:
        ConfigError: the store would not fit its budget or the disk.
        StoreError: it is damaged, or of another version.
        InUseError: another command is making it.
        DataError: an image cannot be read. OutputError: the store cannot be written.
    """
    state = PartialState()
    store = RowStore(question(model, config, fingerprint), len(views) * views.views)
    encoded = EncodedViews(views, model, config, store)
    state.wait_for_everyone()  # all see the same rows missing
    if not store.missing():
        return encoded
    lock = Lock(store.folder / LOCK, f"The store of tokens {store.folder}", "start this command again then")
    on_main(lambda: _begin(lock, encoded, config))
    error: WhiteboxError | None = None
    try:
        store.refresh()
        own = store.missing()[state.process_index :: state.num_processes]
        rows = _made(model, views, encoded, own, config.train.batch_size, workers)
        for done, _ in enumerate(store.write(rows, writer=str(state.process_index)), start=1):
            on_row(done, len(own))
    except WhiteboxError as raised:
        error = raised
    finally:
        errors = gathered(error)
        on_main(lambda: lock.__exit__())
    for raised_by_one in errors:
        if raised_by_one is not None:
            raise raised_by_one
    store.refresh()
    return encoded


def _begin(lock: Lock, encoded: EncodedViews, config: RunConfig) -> None:
    lock.__enter__()
    try:
        _require_room(encoded, config, len(encoded.store.missing()))
        encoded.store.begin()
    except WhiteboxError:
        lock.__exit__()
        raise


def question(model: Segmentor, config: RunConfig, fingerprint: str) -> dict[str, Any]:
    """All that the views and their tokens depend on."""
    data = _of_views(config)
    if not data["held_out"]:  # stores of before there was such a key are those of no class
        del data["held_out"]
    return {
        "what": f"{config.data.views} views of {config.data.name} {config.data.train_split}",
        **tokens_question(model),
        "data": data,
        "fingerprint": fingerprint,
        "seed": config.view_seed,
        "views": config.data.views,
        "precision": config.store.precision,
    }


def _of_views(config: RunConfig) -> dict[str, Any]:
    """What of the settings of data a view depends on."""
    apart = ("root", "path", "name", "views", "view_seed", "val_split", "val_length", "mean_over", "unit", "block")
    return {key: value for key, value in asdict(config.data).items() if key not in apart}


def shared_store(config: RunConfig) -> str | None:
    """The same for trainings that take their tokens from one store, before a model is built; None: it takes none."""
    if not (config.encoder.frozen and config.data.views):
        return None
    place = (config.data.name, config.data.root, config.data.path)
    layers = getattr(config.decoder, "encoder_layers", None)
    data = (place, _of_views(config), config.data.views, config.view_seed, config.store.precision)
    return repr((asdict(config.encoder), layers, data))


def tokens_question(model: Segmentor) -> dict[str, Any]:
    """What the tokens of an image depend on beside its pixels."""
    layers = model.decoder.encoder_layers
    return {
        "encoder": model.encoder.config.name,
        "encoder_sha256": model.encoder.sha256,
        "encoder_settings": model.encoder.settings(),
        "layers": None if layers is None else list(layers),
    }


def _require_room(encoded: EncodedViews, config: RunConfig, rows: int) -> None:
    row = encoded.packing.length * encoded.dtype.itemsize + encoded.crop**2
    fits = int(config.store.gib * 2**30 // (row * len(encoded)))
    cures = ["store.precision=fp16"] if config.store.precision == "fp32" else []
    cures += [f"data.views={fits}"] if 0 < fits < encoded.views else []
    cure = " or ".join([*cures, "a smaller data.crop"])
    what = f"{encoded.views} views of {len(encoded)} images, {row / 2**20:.3g} MiB each,"
    require_room(rows * row, config.store.gib, encoded.store.folder, what, cure)


def _made(
    model: Segmentor, views: Views, encoded: EncodedViews, rows: list[int], batch_size: int, workers: int
) -> Iterator[tuple[int, bytes]]:
    """Rows with their content, in order."""
    keys = [divmod(row, len(views)) for row in rows]
    loader = DataLoader(
        ErrorsAsValues(views, len(views)),
        batch_sampler=[keys[start : start + batch_size] for start in range(0, len(keys), batch_size)],
        collate_fn=list,
        num_workers=workers,
        worker_init_fn=serve,
    )
    waiting = iter(rows)
    device = model.mean.device
    model.eval()
    for samples in each(loader):
        for sample in samples:
            if isinstance(sample, WhiteboxError):
                raise sample
        with torch.inference_mode():
            made = model.encode(torch.stack([sample.image for sample in samples]).to(device))
            values_BV = made.packed().to(encoded.dtype).cpu().numpy()
        for values_V, sample in zip(values_BV, samples, strict=True):
            yield next(waiting), values_V.tobytes() + sample.label.numpy().tobytes()
