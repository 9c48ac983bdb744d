"""The benchmark of SED's decoder runs and says what it measured. Times are never asserted."""

from __future__ import annotations

import csv
import shutil
import sys
from pathlib import Path

import pytest
import torch
from benchmarking import load_benchmark
from typer.testing import CliRunner

benchmark = load_benchmark("sed")


@pytest.fixture
def bench() -> object:
    return benchmark.Bench("sed-tiny", 64, 10)


def test_both_paths_give_the_same_masks(bench: object) -> None:
    plain, ours = (bench.masks(path) for path in benchmark.PATHS)
    assert plain.shape == (1, 10, 16, 16)
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)


def test_a_share_of_the_names_is_kept(bench: object) -> None:
    assert torch.equal(bench.rejecting(None), bench.masks("ours"))
    for percent, number in ((5, 1), (20, 2), (50, 5)):
        left = bench.rejecting(percent).isfinite().flatten(2).all(-1)[0]
        assert left.tolist() == [index < number for index in range(10)]
    assert bench.decoder.topk is None


def test_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = benchmark.decoded("ours", "sed-tiny", 64, 3, 1)  # one process for both paths
    monkeypatch.setattr(benchmark, "decoded", lambda *_: found)
    options = ["run", "--model=sed-tiny", "--size=64", "--names=3", "--names=5", "--rejecting=4", "--vocabulary=6"]
    done = CliRunner().invoke(benchmark.app, [*options, "--repeats=2", "--threads=1", f"--output={tmp_path}"])
    assert done.exit_code == 0, done.output
    rows = {path.stem.rpartition("-")[2]: list(csv.DictReader(path.open())) for path in tmp_path.glob("*.csv")}
    (costs,) = (rows.pop(title) for title in list(rows) if title not in ("rejecting", "text"))
    assert [row["Names"] for row in costs] == ["3", "5"]
    for row in costs:
        for what in ("Time", "Memory"):
            low, middle, high = (float(row[f"{what}, ours to plain{end}"]) for end in (" low", "", " high"))
            assert 0 <= low <= middle <= high
    assert [row["Names kept"] for row in rows["rejecting"]] == ["all", "5 %", "10 %", "20 %", "50 %"]
    assert float(rows["rejecting"][0]["times faster"]) == 1
    assert float(rows["text"][0]["Features (MB)"]) == pytest.approx(6 * 4 * 64 * 4 / 1e6)
    assert "load " in next(tmp_path.glob("*-rejecting.md")).read_text(encoding="utf-8")


def test_a_process_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(RuntimeError, match=r"decode plain sed-tiny --size=64 .* failed"):
        benchmark.decoded("plain", "sed-tiny", 64, 3, 1)
