"""Confidence that an evaluation keeps: of the probabilities that a prediction is made of, in whatever windows."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from tiny_runs import configured, tiny_model

from whitebox.config import InferenceConfig, resolve
from whitebox.data import build_dataset
from whitebox.engine.boundaries import boundary_counts
from whitebox.engine.confidence import BINS, EDGES, EQUAL, UNIT, ConfidenceCounts, bins_of
from whitebox.engine.evaluate import Kept, evaluate
from whitebox.engine.inference import segment
from whitebox.engine.metrics import confusion
from whitebox.errors import ConfigError

WINDOWS = InferenceConfig(window=32, stride=20)
WAYS = {
    "windows": WINDOWS,
    "whole": replace(WINDOWS, window=None),
    "scales and mirror images": replace(WINDOWS, scales=[0.75, 1.25], flip=True),
}


def in_bins(probabilities_KHW, label_HW):
    """Counts pixel by pixel, in NumPy."""
    known = label_HW != 255
    p_PK = probabilities_KHW.permute(1, 2, 0).numpy()[known].astype(np.float64)
    label_P = label_HW[known]
    confidence, best = p_PK.max(1), p_PK.argmax(1)
    counts = np.zeros((BINS, 3))
    index = np.clip(np.searchsorted(EDGES, confidence, "right") - 1, 0, BINS - 1)
    for column, weights in enumerate((np.ones_like(confidence), best == label_P, confidence / UNIT)):
        np.add.at(counts[:, column], index, weights)
    squared = ((p_PK - np.eye(p_PK.shape[1])[label_P]) ** 2).sum()
    return counts, squared / UNIT


def made(name):
    """A configuration, its model, and its images; of SED the masks are independent, and classes are names."""
    if name == "sed-tiny":
        small = {"data.size": 48, "data.crop": 48, "data.resize": 48, "data.val_length": 2, "encoder.text_layers": 1}
        config = resolve(name, "open-shapes-held-out", small)
        dataset = build_dataset(config.data, config.data.val_split, augment=False)
        return config, tiny_model(config, classes=dataset.classes), dataset
    config = configured(name, **({"decoder.encoder_layers": [0, 1], "decoder.layers": 1} if "segvit" in name else {}))
    return config, tiny_model(config), build_dataset(config.data, "val", augment=False)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *product(["depict-sa-tiny", "segvit-tiny", "sed-tiny"], WAYS),
        ("sed-tiny", "early rejection"),
    ],
)
def test_it_is_that_of_the_probabilities(name, way):
    config, model, dataset = made(name)
    inference, K = {**WAYS, "early rejection": replace(WINDOWS, topk=1)}[way], model.num_classes
    found = evaluate(model, dataset, inference, config.data, workers=0, kept=Kept(boundary=0.05, confidence=True))
    plain = evaluate(model, dataset, inference, config.data, workers=0)
    assert np.array_equal(found.counts_N3K, plain.counts_N3K)
    assert plain.boundary_N3K is plain.confidence_NB3 is plain.squared_error_N is None
    for index in range(len(dataset)):
        image, label, _ = dataset[index]
        p_KHW = segment(model, image.permute(1, 2, 0).numpy(), inference, config.data).cpu()
        counts_B3, squared = in_bins(p_KHW, label.numpy())
        assert found.confidence_NB3[index].sum(0)[0] == (label != 255).sum()
        # a pixel at an edge may fall to either side of it by rounding
        assert np.abs(found.confidence_NB3[index] - counts_B3)[:, 0].sum() <= 4
        np.testing.assert_allclose(found.confidence_NB3[index].sum(0), counts_B3.sum(0), rtol=1e-5)
        assert found.squared_error_N[index] == pytest.approx(squared, rel=1e-4)
        prediction_HW = p_KHW.argmax(0)
        assert np.array_equal(found.boundary_N3K[index], boundary_counts(prediction_HW, label, K, ratio=0.05))
        dense_KK = np.zeros((K, K), np.int64)
        entries = found.confusion_M4[found.confusion_M4[:, 0] == index]
        dense_KK[entries[:, 1], entries[:, 2]] = entries[:, 3]
        assert np.array_equal(dense_KK, confusion(prediction_HW, label, K))


def test_edges_are_nested():
    for bins in (10, 12, 15, 20, 30):
        np.testing.assert_allclose(EDGES[: EQUAL : EQUAL // bins], np.arange(bins) / bins, rtol=1e-15)
    assert (np.diff(EDGES) > 0).all() and EDGES[0] == 0 and EDGES[-1] == 1
    assert (np.diff(EDGES[1:-1].astype(np.float32)) > 0).all()  # float32 tells them apart


def test_bins_are_those_between_edges():
    within = torch.tensor((EDGES[:-1] + EDGES[1:]) / 2, dtype=torch.float32)
    assert bins_of(within).tolist() == list(range(BINS))
    assert bins_of(torch.tensor([0.0, 1.0, 1 - 2**-24, 0.5, 59.5 / 60])).tolist() == [0, BINS - 1, BINS - 1, 30, 60]
    assert bins_of(torch.tensor([1 + 2**-23, 1 + 2**-20])).tolist() == [BINS - 1, BINS - 1]  # by rounding


def test_certainty_and_ignored_pixels():
    label_HW = torch.tensor([[0, 1, 255]], dtype=torch.uint8)
    sure = ConfidenceCounts(label_HW, 255)
    p_KRS = torch.tensor([[[1.0, 1.0, 0.6]], [[0.0, 0.0, 0.4]]])
    sure.see(slice(0, 1), slice(0, 3), p_KRS)
    counts_B3, squared = sure.counts(p_KRS.argmax(0))
    assert counts_B3[-1].tolist() == [2, 1, 2 / UNIT]
    assert counts_B3[:-1].sum() == 0
    assert squared == 2 / UNIT  # Brier: 0 for the right one, 1 + 1 for the wrong one


def test_more_names_than_classes_have_no_confidence(monkeypatch):
    """As those of an open vocabulary that name a class in several words."""

    class Model(torch.nn.Module):
        num_classes = 9

    class Images:
        classes, ignore_index = ("cat", "dog"), 255

    monkeypatch.setattr("whitebox.engine.evaluate.images_to_evaluate", lambda *_: 1)
    with pytest.raises(ConfigError, match="confidence in 2 classes cannot be taken from 9 names: give one name"):
        evaluate(Model(), Images(), WINDOWS, kept=Kept(confidence=True))
