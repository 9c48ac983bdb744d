"""The benchmark of GPUs, on a CPU at a small size: it measures what it says, and stops where something is wrong."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from benchmarking import load_benchmark
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def gpu() -> Any:
    return load_benchmark("gpu")


def test_all_of_it_at_a_small_size(gpu: Any, tmp_path: Path) -> None:
    small = ("--size", "64", "--classes", "4", "--batch", "1", "--levels", "2", "--photos", "1", "--turns", "1")
    found = CliRunner().invoke(
        gpu.app, ["run", "--model", "depict-sa-tiny", *small, "--device", "cpu", "--output", str(tmp_path)]
    )
    assert found.exit_code == 0, found.output
    (table,) = tmp_path.glob("gpu-*.csv")
    rows = list(csv.reader(table.open()))
    quantities = {row[1] for row in rows}
    assert {"step (s)", "step, bf16 / plain", "evaluation (s a photo)", "reading of a step (%)"} <= quantities
    assert {"fused, labels that agree (%)", "sweep of 2 levels (s)", "scales and flips, fp32 / plain"} <= quantities
    assert not any("MFU" in quantity for quantity in quantities)  # a CPU has no peak here
    assert list(tmp_path.glob("gpu-*.png"))


def test_what_does_not_fit_is_left_out_and_said(gpu: Any, tmp_path: Path) -> None:
    found = CliRunner().invoke(
        gpu.app, ["run", "--model", "depict-sa-tiny", "--minutes", "0", "--output", str(tmp_path)]
    )
    assert found.exit_code == 0, found.output
    assert "Left out for time: frozen, sweep, depict-sa-tiny" in " ".join(found.output.split())


def test_wrong_numbers_stop_it(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "BOUNDS", {"fused": 0.0, "bf16": -1.0})
    setting = gpu.Setting(size=64, classes=4, batch=1)
    with pytest.raises(SystemExit, match=r"depict-sa-tiny: \w+ logits differ by"):
        list(gpu.of_model("depict-sa-tiny", setting, 1, ("plain", "fp32"), gpu.Budget(0.0)))


def test_missed_aims_are_lines(gpu: Any) -> None:
    quantity, aim = next(iter(gpu.AIMS.items()))
    rows = [(name, quantity, "", gpu.Estimate(aim * factor)) for name, factor in (("a-base", 0.5), ("b-large", 2.0))]
    rows += [("c-tiny", quantity, "", gpu.Estimate(0.0))]
    (line,) = gpu.missed(rows)
    assert line.startswith(f"missed: a-base, {quantity}")
