"""The benchmark of the data path runs and says what it measured. Times are never asserted."""

import importlib.util
from pathlib import Path

import torch

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "data.py"
spec = importlib.util.spec_from_file_location("data_benchmark", FILE)
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)


def test_table(tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        benchmark.main(turns=2, output=tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert "2 turns of 8 samples" in " ".join(capsys.readouterr().out.split())
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".md", ".tex"]
    (table,) = tmp_path.glob("data-*.csv")
    rows = table.read_text().splitlines()
    assert rows[0] == "Sample,ms,ms low,ms high"
    assert len(rows) == 4
    for row in rows[1:]:
        median, low, high = map(float, row.rsplit(",", 3)[1:])
        assert 0 < low <= median <= high
