"""Scores of counts against torchmetrics."""

import numpy as np
import pytest
import torch

from analysis.maths.image_scores import frequency_weighted, image_iou, image_means, image_sums
from whitebox.engine.metrics import confusion, image_counts

K = 6


@pytest.fixture(scope="module")
def theirs():
    """torchmetrics, whose import takes seconds in every worker."""
    import torchmetrics.functional.classification
    import torchmetrics.functional.segmentation

    return torchmetrics.functional


@pytest.fixture(scope="module")
def images():
    """Predictions and labels (N, H, W); class 5 is in no label, class 4 in that of one image."""
    random = np.random.default_rng(0)
    label = random.integers(0, 4, (5, 24, 31))
    label[2, :6] = 4
    prediction = np.where(random.random(label.shape) < 0.6, label, random.integers(0, K, label.shape))
    return torch.from_numpy(prediction), torch.from_numpy(label)


@pytest.fixture(scope="module")
def counts_N3K(images):
    return np.stack([image_counts(*pair, K).numpy() for pair in zip(*images, strict=True)])


def test_confusion_is_that_of_torchmetrics(images, theirs):
    for prediction, label in zip(*images, strict=True):
        with_ignored = label.clone()
        with_ignored[::5] = 255
        expected = theirs.classification.multiclass_confusion_matrix(prediction, with_ignored, K, ignore_index=255)
        assert torch.equal(confusion(prediction, with_ignored, K), expected)


def test_frequency_weighted_iou_is_that_of_torchmetrics(images, counts_N3K, theirs):
    expected = theirs.classification.multiclass_jaccard_index(*images, K, average="weighted")
    assert frequency_weighted(counts_N3K.sum(0)) == pytest.approx(float(expected), abs=1e-6)
    assert np.isnan(frequency_weighted(np.zeros((3, K))))
    np.testing.assert_allclose(
        frequency_weighted(counts_N3K), [frequency_weighted(each) for each in counts_N3K], rtol=1e-12
    )


def test_iou_of_images_is_that_of_torchmetrics(images, counts_N3K, theirs):
    prediction, label = images
    iou_NK = image_iou(counts_N3K)
    of_images_NK = theirs.segmentation.mean_iou(prediction, label, num_classes=K, per_class=True, input_format="index")
    there_NK = np.stack([[(each == index).any() for index in range(K)] for each in label.numpy()])
    assert np.array_equal(~np.isnan(iou_NK), there_NK)
    np.testing.assert_allclose(iou_NK[there_NK], of_images_NK.numpy()[there_NK], rtol=1e-6)


def test_means_of_images(counts_N3K):
    iou_NK = image_iou(counts_N3K)
    of_images, of_classes = image_means(image_sums(counts_N3K).sum(0))
    assert of_images == pytest.approx(np.nanmean(iou_NK, 1).mean())
    assert of_classes == pytest.approx(np.nanmean(iou_NK[:, :5], 0).mean())  # class 5 is nowhere
    assert of_images != of_classes


def test_an_image_without_a_label_is_left_out(counts_N3K):
    empty = np.concatenate([counts_N3K, np.zeros((1, 3, K), np.int64)])
    np.testing.assert_array_equal(image_means(image_sums(empty).sum(0)), image_means(image_sums(counts_N3K).sum(0)))
    assert np.isnan(image_means(image_sums(np.zeros((2, 3, K))).sum(0))).all()
