"""The benchmark of what a user waits for measures what it says; no time is asserted."""

import csv
from pathlib import Path

import pytest
from benchmarking import load_benchmark

benchmark = load_benchmark("waiting")
RECORDS = Path(__file__).resolve().parents[2] / "results" / "camvid" / "robustness"


def test_every_figure_and_command_has_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "waited", lambda *given, **_: (2.0, 1.0))
    monkeypatch.setattr(benchmark, "MODELS", ("depict-sa-tiny",))
    benchmark.run(turns=1, records=RECORDS, output=tmp_path)
    (commands,) = (list(csv.DictReader(path.open(encoding="utf-8"))) for path in tmp_path.glob("*commands*.csv"))
    assert [row["At most (s)"] for row in commands] == ["0.35", "", "", "4.0", "2.0"]
    (figures,) = (list(csv.DictReader(path.open(encoding="utf-8"))) for path in tmp_path.glob("*figures*.csv"))
    assert figures
    for row in figures:
        assert float(row["Of a processor (s)"]) > 0 and 0 < float(row["Within matplotlib (%)"]) < 100
    (runs,) = (list(csv.DictReader(path.open(encoding="utf-8"))) for path in tmp_path.glob("*runs*.csv"))
    assert [row["Model"] for row in runs] == ["depict-sa-tiny"] and float(runs[0]["Ratio to drawn first"]) > 0


def test_a_command_is_waited_for_until_it_ends_or_speaks():
    took, worked = benchmark.waited(["--help"])
    assert 0 < worked < 60 and took > 0
    took, worked = benchmark.waited(["--help"], until_line=True)
    assert took > 0 and worked != worked
    assert min(benchmark.waited(["--help"], start=("-c", benchmark.PLAIN))) > 0
    with pytest.raises(RuntimeError, match="ended with"):
        benchmark.waited(["nothing"])
