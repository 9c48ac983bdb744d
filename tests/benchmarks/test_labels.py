"""The benchmark of labels runs and says what it measured. Times are never asserted."""

import csv

from benchmarking import load_benchmark

benchmark = load_benchmark("labels")


def test_table(tmp_path):
    benchmark.main(size=128, classes=[40], turns=2, threads=1, output=tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".md", ".tex"]
    (path,) = tmp_path.glob("labels-*.csv")
    regions, patches = csv.DictReader(path.open())
    for row in (regions, patches):
        assert 0 < float(row["Ratio low"]) <= float(row["Ratio"]) <= float(row["Ratio high"])
        assert int(row["Labels that differ"]) == 0
    assert 0 < float(regions["Searched (%)"]) < 50 < float(patches["Searched (%)"]) <= 100
