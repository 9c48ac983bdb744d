"""Evaluation of a dataset: counts, errors, and what is left behind."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from whitebox.config import DataConfig, InferenceConfig
from whitebox.engine.evaluate import evaluate
from whitebox.engine.inference import predict_labels
from whitebox.engine.metrics import image_counts, scores
from whitebox.errors import ConfigError, DataError, ModelError

INFERENCE = InferenceConfig(window=16, stride=16)


class Sample(NamedTuple):
    image: torch.Tensor
    label: torch.Tensor
    name: str


class Noise:
    """Random images of different sizes; the class is the brightest channel, mostly."""

    classes = ("red", "green", "blue")
    ignore_index = 255

    def __init__(self, length=5, broken=None, value=None, short_label=None):
        self.length, self.broken, self.value, self.short_label = length, broken, value, short_label
        self.read = []

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.read.append(index)
        if index == self.broken:
            raise DataError(f"Image image{index}.jpg is damaged: replace it.")
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (3, 16 + index, 20), dtype=torch.uint8, generator=generator)
        label = image.argmax(0).to(torch.uint8)
        label[torch.rand(label.shape, generator=generator) < 0.2] = 255
        label[torch.rand(label.shape, generator=generator) < 0.2] = 1
        if self.value is not None and index == 1:
            label[0, 0] = self.value
        return Sample(image, label[: self.short_label], f"image{index}")


class Brightest(nn.Module):
    num_classes = 3

    def forward(self, images_B3HW):
        return images_B3HW * 5


def test_counts_of_each_image_and_scores_of_all():
    dataset, model = Noise(), Brightest()
    result = evaluate(model, dataset, INFERENCE, None, workers=0)
    assert result.names == ("image0", "image1", "image2", "image3", "image4")
    assert result.counts_N3K.shape == (5, 3, 3) and result.counts_N3K.dtype == np.int64
    for index in range(5):
        image, label, _ = dataset[index]
        expected = image_counts(image.long().argmax(0), label, 3).numpy()
        assert np.array_equal(result.counts_N3K[index], expected)
    assert 0.5 < result.scores.miou == scores(result.counts_N3K).miou < 1


def test_images_are_resized_for_the_model_and_predictions_back():
    data, dataset, model = DataConfig(resize=24), Noise(3), Brightest()
    seen = []
    evaluate(model, dataset, INFERENCE, data, workers=0, on_image=lambda i, s, p: seen.append((i, s, p)))
    for index, sample, prediction in seen:
        assert sample.name == f"image{index}"
        assert prediction.shape == sample.label.shape and prediction.dtype == torch.int64
        expected = predict_labels(model, sample.image.permute(1, 2, 0).numpy(), INFERENCE, data)
        assert torch.equal(prediction, expected)
    assert [index for index, _, _ in seen] == [0, 1, 2]


def test_workers_change_nothing():
    alone = evaluate(Brightest(), Noise(), INFERENCE, workers=0)
    together = evaluate(Brightest(), Noise(), INFERENCE, workers=2)
    assert alone.names == together.names and np.array_equal(alone.counts_N3K, together.counts_N3K)


def test_batches_of_windows_change_nothing():
    class Seen(Brightest):
        def __init__(self):
            super().__init__()
            self.batches = []

        def forward(self, images_B3HW):
            self.batches.append(len(images_B3HW))
            return super().forward(images_B3HW)

    alone, model, order = evaluate(Brightest(), Noise(), replace(INFERENCE, batch=1), workers=0), Seen(), []
    together = evaluate(model, Noise(), replace(INFERENCE, batch=4), workers=0, on_image=lambda i, *_: order.append(i))
    assert alone.names == together.names and np.array_equal(alone.counts_N3K, together.counts_N3K)
    assert model.batches == [4, 4, 4, 4, 2]  # 2 + 4 * 4 windows, of five images of other sizes
    assert order == [0, 1, 2, 3, 4]


def test_limit_reads_no_more_than_it_says():
    dataset = Noise(5)
    result = evaluate(Brightest(), dataset, INFERENCE, limit=2, workers=0)
    assert result.names == ("image0", "image1") and dataset.read == [0, 1]
    assert len(evaluate(Brightest(), dataset, INFERENCE, limit=9, workers=0).names) == 5


def test_training_mode_comes_back():
    model = nn.Sequential(Brightest(), nn.Dropout(0.9))
    model.num_classes = 3
    first = evaluate(model.train(), Noise(), INFERENCE, workers=0)
    assert model.training and model[1].training
    assert np.array_equal(first.counts_N3K, evaluate(Brightest(), Noise(), INFERENCE, workers=0).counts_N3K)


def test_other_number_of_classes_is_an_error():
    model = Brightest()
    model.num_classes = 7
    with pytest.raises(ModelError, match=r"model has 7 classes and the dataset has 3 \(red, green, blue, ...\)"):
        evaluate(model, Noise(), INFERENCE)


def test_other_classes_are_an_error():
    model = Brightest()
    model.classes = ("red", "verdant", "blue")
    with pytest.raises(ModelError, match="Class 1 is 'verdant' for the model and 'green' in the dataset"):
        evaluate(model, Noise(), INFERENCE)
    model.classes = ("class 0", "class 1", "class 2")  # an official checkpoint that does not say
    assert evaluate(model, Noise(), INFERENCE, limit=1, workers=0).names == ("image0",)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image_is_one_line(workers):
    with pytest.raises(DataError) as raised:
        evaluate(Brightest(), Noise(broken=3), INFERENCE, workers=workers)
    assert str(raised.value) == "Image image3.jpg is damaged: replace it."


def test_label_out_of_range_names_the_image():
    with pytest.raises(DataError, match="image1: A label has value 3, but with 3 classes"):
        evaluate(Brightest(), Noise(value=3), INFERENCE, workers=0)


def test_label_of_another_size_names_the_image():
    with pytest.raises(DataError, match=r"image0: The prediction is \(16, 20\) pixels, the label \(10, 20\)"):
        evaluate(Brightest(), Noise(short_label=10), INFERENCE, workers=0)


def test_no_images_is_an_error():
    with pytest.raises(DataError, match="no images"):
        evaluate(Brightest(), Noise(0), INFERENCE)


def test_impossible_limit_is_an_error():
    with pytest.raises(ConfigError, match="limit=0"):
        evaluate(Brightest(), Noise(), INFERENCE, limit=0)
