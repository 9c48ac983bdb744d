"""Corruptions beside the clean photos and beside another model: all on the same resampled images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_runs import tiny_run

from analysis.consumed import Chosen
from analysis.measures.changes import CLEAN, ChangedRun
from analysis.measures.corruption_tables import Corrupted, corrupted, measured_corruptions
from analysis.measures.corruptions import Corruptions
from analysis.measures.rows import Counts, Key
from whitebox.runs import open_run

OPTIONS = Corruptions(kinds=("fog", "contrast"), severities=(1, 5))


@pytest.fixture
def measured(imagecorruptions: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corrupted:
    """Each photo has its own number of right pixels of 100, and each corruption takes 10 of them from every photo."""

    def measure(self: ChangedRun, key: Key) -> Counts:
        right_N = np.array([20, 40, 60, 80, 90]) - (0 if key == CLEAN else 10)
        counts_N3K = np.zeros((5, 3, 7), np.int64)
        counts_N3K[:, 0, 0] = right_N
        counts_N3K[:, 1:, 0] = 100
        return counts_N3K

    monkeypatch.setattr(ChangedRun, "measure", measure)
    run = open_run(tiny_run(tmp_path / "run", data__val_length=5), device="cpu")
    return corrupted(run, OPTIONS, OPTIONS.consumes(run, Chosen()), tmp_path, lambda *_: None)


def test_clean_and_corrupted_are_paired_photo_by_photo(measured: Corrupted) -> None:
    """Of n photos with r right pixels IoU is r / (200 n - r): in each resample both have the same n and r - 10 n."""
    right_x = 200 * measured.clean_x / (1 + measured.clean_x)  # a photo's, from the IoU
    assert right_x[0] == pytest.approx(58) and right_x[1:].std() > 5
    expected_x = (right_x - 10) / (200 - (right_x - 10))
    for kind in (0, 1):
        for severity in (0, 1):
            np.testing.assert_allclose(measured.miou_xCS[:, kind, severity], expected_x, rtol=1e-9)


def test_two_models_are_paired_photo_by_photo(measured: Corrupted) -> None:
    """Beside itself a model is as good as itself on every resample: the intervals have no width."""
    found = measured_corruptions(OPTIONS, measured, measured)
    for key in ("mcd", "relative_mcd"):
        assert found[key] == {"value": 1.0, "low": 1.0, "high": 1.0}
