"""The benchmark of the explorer's page: it makes, opens and points, and its file says so. Times are never asserted."""

import torch
from benchmarking import load_benchmark
from browsing import browser
from tiny_runs import tiny_run

benchmark = load_benchmark("explorer")


def test_files(tmp_path, monkeypatch):
    with browser():  # else there is nothing to measure with
        pass
    monkeypatch.setattr(benchmark, "MOVES", 3)
    monkeypatch.setattr(benchmark, "SIDE", 64)
    threads = torch.get_num_threads()
    benchmark.main(run=[tiny_run(tmp_path / "sa")], image=None, turns=1, threads=threads, output=tmp_path / "out")
    (table,) = (tmp_path / "out").glob("*.csv")
    heading, row = table.read_text().splitlines()
    assert heading.startswith("Model,Size (MB),") and "Hover (ms) low" in heading
    assert row.startswith("sa,0.") and "nan" not in row
