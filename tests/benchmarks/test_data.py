"""The benchmark of the data path runs and says what it measured. Times are never asserted."""

import csv
import importlib.util

from benchmarking import load_benchmark

benchmark = load_benchmark("data")


def test_table(tmp_path, capsys):
    benchmark.main(turns=2, output=tmp_path)
    assert "2 turns of 8 samples" in " ".join(capsys.readouterr().out.split())
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".md", ".tex"]
    (table,) = tmp_path.glob("data-*.csv")
    rows = table.read_text().splitlines()
    assert rows[0].startswith("Sample,ms,ms low,ms high,of mmsegmentation's")
    assert len(rows) == (6 if importlib.util.find_spec("mmseg") else 5)
    for row in rows[1:]:
        median, low, high = map(float, next(csv.reader([row]))[1:4])
        assert 0 < low <= median <= high
