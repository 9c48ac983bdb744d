"""Evaluations behind the encoder are those in front of it."""

from __future__ import annotations

import errno
import tempfile
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import CLOSED, configured, tiny_model

from whitebox.data import Sample, build_dataset
from whitebox.engine.encoded import EncodedImages
from whitebox.engine.evaluate import evaluate
from whitebox.errors import ConfigError, DataError, ModelError, OutputError

# photos of 40 x 40 px, resized to 48: four windows of 32 px that overlap
VIEWS = {"data__size": 40, "data__resize": 48, "data__val_length": 5, "inference__stride": 20}
NAMES = sorted(f"{name}-tiny" for name in CLOSED if name != "segvit-shrunk")


def prepared(name: str, **changes: Any) -> tuple[Any, Any, Any]:
    deep = {"encoder__depth": 12} if name.startswith("segvit") else {}
    config = configured(name, **{**VIEWS, **deep, **changes})
    return tiny_model(config), build_dataset(config.data, "val", augment=False), config


@pytest.mark.parametrize("name", NAMES)
def test_encoding_once_changes_no_bit(name: str) -> None:
    model, dataset, config = prepared(name, inference__batch=3)
    expected = evaluate(model, dataset, config.inference, config.data, workers=0)
    assert len(np.unique(expected.counts_N3K[:, 1].argmax(1))) > 1 or (expected.counts_N3K[:, 1] > 0).sum() > 5
    images = EncodedImages(model, dataset, config.inference, config.data, workers=0)
    for _ in range(2):
        found = images.evaluate()
        assert found.names == expected.names
        np.testing.assert_array_equal(found.counts_N3K, expected.counts_N3K)


@pytest.mark.parametrize("name", ["depict-ca-tiny", "segvit-tiny"])
def test_what_does_not_fit_into_memory_changes_no_bit(name: str) -> None:
    model, dataset, config = prepared(name)
    expected = EncodedImages(model, dataset, config.inference, config.data, workers=0)
    assert expected.store.spilled == 0
    total = 4 * 10**9 - expected.store.left
    for memory in (0, total // 2):
        images = EncodedImages(model, dataset, config.inference, config.data, workers=0, memory=memory)
        assert images.store.spilled + memory - images.store.left == total and images.store.spilled > total // 3
        np.testing.assert_array_equal(images.evaluate().counts_N3K, expected.evaluate().counts_N3K)


def test_a_changed_decoder_is_evaluated_as_it_is() -> None:
    model, dataset, config = prepared("depict-sa-tiny")
    images = EncodedImages(model, dataset, config.inference, config.data, workers=0)
    before = images.evaluate().counts_N3K
    with torch.no_grad():
        model.decoder.class_embeddings.add_(torch.randn(model.decoder.class_embeddings.shape))
    after = images.evaluate().counts_N3K
    assert (before != after).any()
    np.testing.assert_array_equal(after, evaluate(model, dataset, config.inference, config.data, workers=0).counts_N3K)


@pytest.mark.parametrize(
    "changes", [{"inference__flip": True, "inference__scales": [0.75, 1.25]}, {"inference__batch": 1}]
)
def test_several_views_and_other_batches(changes: dict[str, Any]) -> None:
    model, dataset, config = prepared("depict-sa-tiny", **changes)
    images = EncodedImages(model, dataset, config.inference, config.data, limit=3, workers=0)
    expected = evaluate(model, dataset, config.inference, config.data, limit=3, workers=0)
    np.testing.assert_array_equal(images.evaluate().counts_N3K, expected.counts_N3K)


class Wrong:
    """A dataset with something wrong in its second image."""

    def __init__(self, dataset: Any, value: int | None = None, cut: int = 0) -> None:
        self.dataset, self.value, self.cut = dataset, value, cut
        self.classes, self.ignore_index = dataset.classes, dataset.ignore_index

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        image, label, name = self.dataset[index]
        if index == 1 and self.value is not None:
            label[0, 0] = self.value
        return Sample(image, label[self.cut :] if index == 1 else label, name)


def test_what_is_refused() -> None:
    model, dataset, config = prepared("depict-sa-tiny")
    with pytest.raises(DataError, match="val_00001: A label has value 7, but with 7 classes"):
        EncodedImages(model, Wrong(dataset, value=7), config.inference, config.data, workers=0)
    with pytest.raises(DataError, match=r"val_00001: the image is \(40, 40\) pixels, the label \(38, 40\)"):
        EncodedImages(model, Wrong(dataset, cut=2), config.inference, config.data, workers=0)
    with pytest.raises(ConfigError, match="limit=0 is impossible"):
        EncodedImages(model, dataset, config.inference, config.data, limit=0)
    other = tiny_model(config, classes=("a", "b"))
    with pytest.raises(ModelError, match="The model has 2 classes and the dataset has 7"):
        EncodedImages(other, dataset, config.inference, config.data)


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    model, dataset, config = prepared("depict-sa-tiny")
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(
        OutputError, match=r"Cannot write the encoder's tokens to .*: No space left on device; free some"
    ):
        EncodedImages(model, dataset, config.inference, config.data, workers=0, memory=0)
