"""The benchmark of what cost grows with runs, and says what it measured. Times are never asserted."""

import csv

from benchmarking import load_benchmark

benchmark = load_benchmark("cost")


def test_table_and_figure(tmp_path, monkeypatch, capsys):
    for name, values in {"SIDES": (32, 64), "CLASSES": (2, 5), "IMAGES": (1, 2), "DRAWS": (1, 2)}.items():
        monkeypatch.setattr(benchmark, name, values)
    benchmark.run(model="depict-sa-tiny", size=32, turns=1, threads=0, output=tmp_path)
    said = " ".join(capsys.readouterr().out.split())
    assert "Photos of 42 x 32 px" in said and "Median [range] of 1 turns" in said
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".md", ".pdf", ".png", ".tex"]
    (path,) = tmp_path.glob("cost-depict-sa-tiny-*.csv")
    rows = list(csv.DictReader(path.open()))
    assert [row["Grows with"] for row in rows] == [
        each for each in ("tokens", "classes", "images", "draws") for _ in "12"
    ]
    assert [int(row["Amount"]) for row in rows] == [4, 16, 2, 5, 1, 2, 1, 2]
    for row in rows:
        assert float(row["Limit (s)"]) > 0 and float(row["Time (s)"]) > 0
