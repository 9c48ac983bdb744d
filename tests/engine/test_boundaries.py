"""Boundary IoU against its definition, mask by mask, with SciPy's erosion."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion

from whitebox.engine.boundaries import boundary_counts, boundary_width
from whitebox.errors import DataError

SQUARE = np.ones((3, 3))


def by_definition(prediction, label, classes, ignore, ratio):
    """Cheng et al. 2021: each mask by itself, d erosions by 3 x 3 px, nothing beyond the image."""
    width = max(1, round(ratio * math.hypot(*label.shape)))
    counts = np.zeros((3, classes), np.int64)
    for index in range(classes):
        near = []
        for masks in (prediction, label):
            mask = masks == index
            near.append(mask & ~binary_erosion(mask, SQUARE, iterations=width) & (label != ignore))
        counts[:, index] = (near[0] & near[1]).sum(), near[0].sum(), near[1].sum()
    return counts


def patches(seed, size, classes, ignored=0.0):
    """Coarse random regions, so that masks have an inside."""
    random = np.random.default_rng(seed)
    coarse = random.integers(classes, size=(-(-size[0] // 12), -(-size[1] // 12)))
    coarse[random.random(coarse.shape) < ignored] = 255
    return coarse.repeat(12, 0).repeat(12, 1)[: size[0], : size[1]]


@pytest.mark.parametrize("size", [(40, 61), (7, 90), (1, 1), (2, 200)])
@pytest.mark.parametrize("ratio", [0.02, 0.005, 0.1, 1.0])
@pytest.mark.parametrize(("classes", "ignored"), [(3, 0.0), (4, 0.2), (1, 0.0), (200, 0.1)])
def test_counts_are_those_of_the_definition(size, ratio, classes, ignored):
    label, prediction = patches(0, size, classes, ignored), patches(1, size, classes)
    prediction[: size[0] // 2] = np.where(label == 255, prediction, label)[: size[0] // 2]
    found = boundary_counts(torch.from_numpy(prediction), torch.from_numpy(label.astype(np.uint8)), classes, 255, ratio)
    assert found.dtype == torch.int64
    assert np.array_equal(found, by_definition(prediction, label, classes, 255, ratio))


def test_more_classes_than_a_byte_holds():
    label = patches(2, (50, 70), 847)
    prediction = patches(3, (50, 70), 847)
    prediction[:25] = label[:25]
    found = boundary_counts(torch.from_numpy(prediction), torch.from_numpy(label.astype(np.int32)), 847, 65535)
    assert np.array_equal(found, by_definition(prediction, label, 847, 65535, 0.02))


def test_a_mask_that_fills_the_image_has_a_boundary_at_its_edge():
    whole = torch.zeros(100, 100, dtype=torch.int64)
    assert boundary_width(100, 100) == 3
    assert boundary_counts(whole, whole, 2)[:, 0].tolist() == [100**2 - 94**2] * 3


def test_an_error_inside_a_mask_counts_by_its_boundary():
    """A hole of a pixel is nothing to the IoU of a large mask; to its boundary it is a second outline."""
    label = torch.zeros(100, 100, dtype=torch.int64)
    prediction = label.clone()
    prediction[50, 50] = 1
    right, predicted, labelled = boundary_counts(prediction, label, 2)[:, 0].tolist()
    assert right == labelled and predicted - right == 7**2 - 1


def test_what_is_no_class_is_named():
    with pytest.raises(DataError, match="A label has value 9"):
        boundary_counts(torch.zeros(5, 5, dtype=torch.int64), torch.full((5, 5), 9), 3)
