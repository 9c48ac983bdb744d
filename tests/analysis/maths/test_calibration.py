"""Numbers of binned confidences against torchmetrics, and against what is computed pixel by pixel."""

import numpy as np
import pytest
import torch

from analysis.maths.calibration import (
    area_under_risk,
    brier_score,
    calibration_error,
    overconfidence,
    reliability,
    risk_coverage,
    risks_at,
)
from whitebox.engine.confidence import BINS, UNIT, ConfidenceCounts
from whitebox.errors import ConfigError

SPREADS = (0.1, 1.0, 3.0, 20.0)  # of logits: from unsure to all but certain


def pixels(spread, classes=7, size=(120, 150), seed=0):
    """Probabilities (P, K) and labels (P,) of labelled pixels, and their binned counts."""
    generator = torch.Generator().manual_seed(seed)
    logits_KHW = spread * torch.randn(classes, *size, generator=generator)
    p_KHW = logits_KHW.softmax(0)
    true_HW = torch.multinomial(p_KHW.flatten(1).T ** 0.7, 1, generator=generator).reshape(size)  # surer than right
    label_HW = torch.where(torch.rand(size, generator=generator) < 0.1, 255, true_HW).to(torch.uint8)
    counts = ConfidenceCounts(label_HW, 255)
    counts.see(slice(0, 60), slice(0, size[1]), p_KHW[:, :60])
    counts.see(slice(60, size[0]), slice(0, size[1]), p_KHW[:, 60:])
    bins_B3, squared = counts.counts(p_KHW.argmax(0))
    known = label_HW != 255
    return p_KHW.permute(1, 2, 0)[known], label_HW[known].long(), bins_B3.numpy(), squared


@pytest.mark.parametrize("bins", [10, 15, 20])
@pytest.mark.parametrize("spread", SPREADS)
def test_calibration_error_is_that_of_torchmetrics(spread, bins):
    from torchmetrics.functional.classification import multiclass_calibration_error  # seconds, in every worker

    p_PK, label_P, bins_B3, _ = pixels(spread)
    expected = multiclass_calibration_error(p_PK, label_P, p_PK.shape[1], n_bins=bins, norm="l1")
    assert calibration_error(bins_B3, bins) == pytest.approx(float(expected), abs=2e-5)  # they add up in float32


@pytest.mark.parametrize("spread", SPREADS)
def test_brier_score_and_overconfidence_are_those_of_pixels(spread):
    p_PK, label_P, bins_B3, squared = pixels(spread)
    expected = (p_PK.double() - torch.nn.functional.one_hot(label_P, p_PK.shape[1])).square().sum(1).mean()
    assert brier_score(squared, bins_B3) == pytest.approx(float(expected), abs=2e-6)
    confidence, best = p_PK.max(1)
    gap = confidence.double().mean() - (best == label_P).double().mean()
    assert overconfidence(bins_B3) == pytest.approx(float(gap), abs=2e-6)


@pytest.mark.parametrize("spread", SPREADS)
def test_risk_is_nearly_that_of_sorted_pixels(spread):
    """Bins tell pixels apart but by a 60th, and nearer to certainty by halvings."""
    p_PK, label_P, bins_B3, _ = pixels(spread)
    confidence, best = p_PK.max(1)
    wrong_P = (best != label_P).double()[confidence.argsort(descending=True)]
    risk_P = (wrong_P.cumsum(0) / torch.arange(1, len(wrong_P) + 1)).numpy()
    area, excess = area_under_risk(bins_B3)
    assert area == pytest.approx(risk_P.mean(), abs=0.01)
    perfect_P = wrong_P.sort().values.cumsum(0) / torch.arange(1, len(wrong_P) + 1)
    assert excess == pytest.approx(risk_P.mean() - float(perfect_P.mean()), abs=0.01)
    coverages = (0.5, 0.8, 0.95, 1.0)
    expected = [risk_P[int(coverage * len(risk_P)) - 1] for coverage in coverages]
    np.testing.assert_allclose(risks_at(bins_B3, coverages), expected, atol=0.015)
    assert risks_at(bins_B3, [1.0])[0] == pytest.approx(wrong_P.mean().item(), abs=1e-9)


def test_the_area_under_risk_is_its_integral():
    _, _, bins_B3, _ = pixels(3.0)
    steps = (np.arange(200_000) + 0.5) / 200_000
    assert area_under_risk(bins_B3)[0] == pytest.approx(risks_at(bins_B3, steps).mean(), abs=1e-5)
    coverage_B, risk_B = risk_coverage(bins_B3)
    known = ~np.isnan(risk_B)
    np.testing.assert_allclose(risks_at(bins_B3, coverage_B[known]), risk_B[known], rtol=1e-9)


def one_bin(index, count, right, confidence):
    counts_B3 = np.zeros((BINS, 3))
    counts_B3[index] = count, right, count * confidence / UNIT
    return counts_B3


def test_perfect_and_worst():
    sure = one_bin(BINS - 1, 100, 100, 1.0)
    assert calibration_error(sure) == overconfidence(sure) == 0
    np.testing.assert_allclose(area_under_risk(sure), 0, atol=1e-12)
    wrong = one_bin(BINS - 1, 100, 0, 1.0)
    assert calibration_error(wrong) == overconfidence(wrong) == 1
    assert area_under_risk(wrong)[0] == pytest.approx(1.0)
    assert area_under_risk(wrong)[1] == pytest.approx(0.0)  # no order is better


def test_the_last_bin_holds_all_its_halves():
    counts_B3 = one_bin(BINS - 1, 10, 10, 1.0) + one_bin(59, 30, 15, 0.985)
    share, confidence, accuracy = reliability(counts_B3, 60)
    assert share[-1] == 1 and accuracy[-1] == 25 / 40 and confidence[-1] == pytest.approx((10 + 30 * 0.985) / 40)


def test_many_sets_of_images_at_once():
    of_bins = [pixels(3.0, seed=seed)[2] for seed in range(3)]
    stacked = np.stack([*of_bins, np.zeros((BINS, 3))])
    for function in (calibration_error, overconfidence, area_under_risk):
        np.testing.assert_allclose(function(stacked)[:3], [function(each) for each in of_bins])
        assert np.isnan(function(stacked)[3]).all()  # no pixel
    np.testing.assert_allclose(risks_at(stacked, [0.5, 1])[:3], [risks_at(each, [0.5, 1]) for each in of_bins])


def test_bins_that_are_no_sums_of_bins():
    with pytest.raises(ConfigError, match="7 bins are impossible: give a divisor of 60, as 10, 12, 15 or 20"):
        calibration_error(np.zeros((BINS, 3)), 7)
