"""Scores against the official implementation's vectors, mmsegmentation, and counting by hand."""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from whitebox.engine import metrics
from whitebox.engine.metrics import image_counts, scores
from whitebox.errors import DataError


def random_pair(seed, shape=(40, 50), classes=7, ignored=0.2):
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, classes, shape, generator=generator)
    prediction = torch.where(
        torch.rand(shape, generator=generator) < 0.5, label, torch.randint(0, classes, shape, generator=generator)
    )
    label[torch.rand(shape, generator=generator) < ignored] = 255
    return prediction, label


def by_hand(prediction, label, classes, ignore=255):
    counts = np.zeros((3, classes), dtype=np.int64)
    for p, t in zip(prediction.flatten().tolist(), label.flatten().tolist(), strict=True):
        if t != ignore:
            counts[1, p] += 1
            counts[2, t] += 1
            counts[0, t] += p == t
    return counts


def mmseg_scores(pairs, classes):
    from mmseg.evaluation.metrics import IoUMetric

    results = [IoUMetric.intersect_and_union(p, t, classes, 255) for p, t in pairs]
    return IoUMetric.total_area_to_metrics(*(sum(area) for area in zip(*results, strict=True)), metrics=["mIoU"])


def test_official_vectors(shared):
    blocks = shared / "golden" / "blocks"
    truth, meta = np.load(blocks / "metrics.npz"), json.loads((blocks / "metrics.json").read_text())
    counts_N3K = torch.stack(
        [
            image_counts(torch.from_numpy(truth[f"pred.im{i}"]), torch.from_numpy(truth[f"gt.im{i}"]), meta["n_cls"])
            for i in range(3)
        ]
    )
    total = counts_N3K.sum(0).numpy()
    for row, key in enumerate(("area_intersect", "area_pred", "area_label")):
        assert np.array_equal(total[row], truth[key])
    result = scores(counts_N3K)
    np.testing.assert_array_equal(result.iou_K, truth["IoU"])
    np.testing.assert_array_equal(result.acc_K, truth["Acc"])
    assert result.aacc == truth["aAcc"]
    for value, key in ((result.miou, "mean_iou"), (result.macc, "mean_accuracy"), (result.aacc, "pixel_accuracy")):
        assert round(value * 100, 2) == meta["official"][key]


@pytest.mark.parametrize("seed", range(4))
def test_equals_mmsegmentation(mmseg, seed):
    pairs = [random_pair(100 * seed + i, classes=9, ignored=i / 4) for i in range(5)]
    for prediction, label in pairs:
        label[label == 3] = 255  # predicted, never labelled
        label[label == 4] = 255
        prediction[prediction == 4] = 0  # in neither
    result = scores(torch.stack([image_counts(p, t, 9) for p, t in pairs]))
    expected = mmseg_scores(pairs, 9)
    np.testing.assert_allclose(result.iou_K, expected["IoU"], rtol=1e-6)
    np.testing.assert_allclose(result.acc_K, expected["Acc"], rtol=1e-6)
    assert result.aacc == pytest.approx(float(expected["aAcc"]), rel=1e-6)
    assert result.miou == pytest.approx(float(np.nanmean(expected["IoU"])), rel=1e-6)
    assert result.iou_K[3] == 0 and np.isnan(result.acc_K[3])
    assert np.isnan(result.iou_K[4]) and np.isnan(result.acc_K[4])


@pytest.mark.parametrize(("classes", "dtype"), [(7, torch.int16), (180, torch.int16), (181, torch.int32)])
def test_a_prepared_label_is_counted_alike(classes, dtype):
    prediction, label = random_pair(3, classes=classes)
    rows = metrics.label_rows(label, classes)
    assert rows.dtype == dtype
    for narrow in (torch.uint8, torch.int64):
        found = metrics.counts_in_rows(prediction.to(narrow), rows, classes)
        assert torch.equal(found, image_counts(prediction, label, classes))
        assert np.array_equal(found.numpy(), by_hand(prediction, label, classes))
    label[0, 0] = classes
    with pytest.raises(DataError, match=f"A label has value {classes}, but with {classes} classes"):
        metrics.label_rows(label, classes)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.uint16, torch.int32, torch.int64])
def test_counts_by_hand_in_any_integer_dtype(dtype):
    prediction, label = random_pair(3)
    ignore = 100 if dtype == torch.int8 else 255
    label[label == 255] = ignore
    counts = image_counts(prediction.to(dtype), label.to(dtype), 7, ignore)
    assert counts.dtype == torch.int64
    assert np.array_equal(counts.numpy(), by_hand(prediction, label, 7, ignore))


def test_dtypes_may_differ_and_prediction_on_ignored_pixels_may_be_anything():
    prediction, label = torch.tensor([[0, 250]]), torch.tensor([[0, 255]], dtype=torch.uint8)
    assert image_counts(prediction, label, 2).tolist() == [[1, 0], [1, 0], [1, 0]]


def test_all_ignored_image_counts_nothing():
    counts = image_counts(torch.zeros(4, 4, dtype=torch.uint8), torch.full((4, 4), 255), 3)
    assert counts.tolist() == [[0] * 3] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = scores(counts)
    assert np.isnan([result.miou, result.macc, result.aacc, *result.iou_K, *result.acc_K]).all()


@pytest.mark.parametrize("value", [7, 254, -1])
def test_label_out_of_range_is_an_error(value):
    prediction, label = random_pair(0)
    label[2, 3] = value
    with pytest.raises(DataError, match=rf"label has value {value}, but with 7 classes values are 0 to 6, or 255"):
        image_counts(prediction, label, 7)


def test_prediction_out_of_range_is_an_error():
    with pytest.raises(DataError, match="prediction has value 7"):
        image_counts(torch.tensor([[7]]), torch.tensor([[0]]), 7)


def test_other_shape_is_an_error():
    with pytest.raises(DataError, match=r"\(2, 3\) pixels, the label \(3, 2\)"):
        image_counts(torch.zeros(2, 3, dtype=torch.long), torch.zeros(3, 2, dtype=torch.long), 7)


def test_sum_of_images_and_numpy_give_the_same_scores():
    counts = torch.stack([image_counts(*random_pair(i), 7) for i in range(3)])
    assert scores(counts).miou == scores(counts.sum(0)).miou == scores(counts.numpy()).miou


def test_totals_beyond_float32_are_exact():
    counts = np.array([[[2**24 + 1, 0], [2**24 + 1, 1], [2**24 + 2, 0]]])
    assert scores(counts).iou_K[0] == (2**24 + 1) / (2**24 + 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_counts_on_a_gpu():
    prediction, label = random_pair(0)
    counts = image_counts(prediction.cuda(), label.cuda(), 7)
    assert counts.is_cuda and torch.equal(counts.cpu(), image_counts(prediction, label, 7))


# --- the mean over labelled classes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain_absent", "ade847_like", "pc459_like", "voc20b_like"])
def test_labelled_classes_are_detectron2s(shared: Path, name: str) -> None:
    folder = shared / "golden" / "sed_steps"
    expected = json.loads((folder / "sed_eval_data.json").read_text("utf-8"))["evaluator"][name]
    with np.load(folder / "sed_eval_data.npz") as arrays:
        pairs = [
            (torch.from_numpy(arrays[f"eval.{name}.pred{index}"].astype(np.int64)), arrays[f"eval.{name}.gt{index}"])
            for index in range(3)
        ]
    counts = torch.stack(
        [
            image_counts(
                prediction.clamp(max=expected["num_classes"] - 1),  # of PAS-20b's names the last are background
                torch.from_numpy(label),
                expected["num_classes"],
                expected["ignore"],
            )
            for prediction, label in pairs
        ]
    )
    found = scores(counts, "labelled")
    assert 100 * found.miou == pytest.approx(expected["mIoU"], abs=1e-9)
    assert 100 * found.macc == pytest.approx(expected["mACC"], abs=1e-9)
    assert 100 * found.aacc == pytest.approx(expected["pACC"], abs=1e-9)
    iou_K = [math.nan if value is None else value for value in expected["IoU"]]
    np.testing.assert_allclose(100 * found.iou_K, iou_K, atol=1e-9)
    ours = scores(counts).miou
    assert 100 * ours == pytest.approx(expected["mIoU_if_absent_but_predicted_count_as_zero"], abs=1e-9)


def test_a_class_that_is_predicted_alone_is_left_out_of_the_labelled() -> None:
    counts_N3K = np.array([[[4, 0, 0], [4, 1, 0], [5, 0, 0]], [[2, 0, 0], [2, 0, 0], [2, 0, 0]]])
    occurring, labelled = scores(counts_N3K), scores(counts_N3K, "labelled")
    assert occurring.iou_K[1] == 0
    assert np.isnan(labelled.iou_K[1:]).all()
    assert labelled.miou == labelled.iou_K[0] == occurring.iou_K[0] == 2 * occurring.miou
    assert labelled.macc == occurring.macc
    miou_N = [scores(each, "labelled").miou for each in counts_N3K]
    assert miou_N == pytest.approx([0.8, 1.0])  # never halved by the class that is not there
