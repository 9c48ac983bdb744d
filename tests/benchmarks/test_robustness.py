"""The benchmark of noise sweeps runs and says what it measured. Times are never asserted."""

import csv

import pytest
from benchmarking import load_benchmark

benchmark = load_benchmark("robustness")


@pytest.mark.parametrize(("steps", "weights"), [(0, "Weights: random."), (1, "Weights: trained for 1 steps.")])
def test_table(tmp_path, capsys, steps, weights):
    sizes = {"size": 64, "classes": 5, "images": 2, "sigmas": 2, "draws": 2, "plain": 2}
    benchmark.main(model="depict-sa-tiny", **sizes, steps=steps, threads=0, output=tmp_path)
    said = " ".join(capsys.readouterr().out.split())
    assert "5 points: 2 sigmas x 2 draws" in said and "2 photos of 85 x 64 px, 5 classes" in said
    assert weights in said
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".md", ".tex"]
    (path,) = tmp_path.glob("robustness-depict-sa-tiny-64px-*.csv")
    (row,) = csv.DictReader(path.open())
    number = {name: float(value) for name, value in row.items() if name != "Model"}
    assert 0 < number["One plain (s) low"] <= number["One plain (s)"] <= number["One plain (s) high"]
    assert abs(number["All plain (s)"] - 5 * number["One plain (s)"]) < 1e-9 < number["Sweep (s)"]
    assert abs(number["Ratio"] * number["Sweep (s)"] - number["All plain (s)"]) < 1e-9
    assert 0 < number["Outside the decoder (% of rows) low"] <= number["Outside the decoder (% of rows) high"] < 100
