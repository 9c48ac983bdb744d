"""The benchmark of frozen encoders runs and says what it measured. Times are never asserted."""

import csv
import os

import pytest
import typer
from benchmarking import load_benchmark

benchmark = load_benchmark("frozen")


def test_tables(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "DECODERS", {"DEPICT-SA": ("depict-sa-tiny", ()), "SegViT": ("segvit-tiny", ())})
    monkeypatch.setattr(benchmark, "ENCODER", "vit-tiny")
    found = benchmark.peak_memory("stored", 32, 2)  # one process for all ways, whose updates are timed here
    monkeypatch.setattr(benchmark, "peak_memory", lambda *_: found)
    stores = os.environ.get("WHITEBOX_CACHE")
    benchmark.run(turns=2, crop=[32, 48], part=[], batch=2, threads=1, output=tmp_path)
    assert os.environ.get("WHITEBOX_CACHE") == stores
    assert "2 turns that alternate" in " ".join(capsys.readouterr().out.split())

    def rows(part):
        (path,) = tmp_path.glob(f"frozen-{part}-*.csv")
        return list(csv.DictReader(path.read_text().splitlines()))

    assert [(row["crop, px"], row["tokens"]) for row in rows("steps")] == [("32", "4"), ("48", "9")]
    for row in rows("steps"):
        for way in benchmark.WAYS:
            assert 0 < float(row[f"{way}, s low"]) <= float(row[f"{way}, s"]) <= float(row[f"{way}, s high"])
    assert [row["decoder"] for row in rows("epochs")] == ["DEPICT-SA", "SegViT"]
    assert {row["quantity"]: row["value"] for row in rows("store")}["bytes a token"] == "384"  # 192 numbers of 2 bytes
    for row in rows("memory"):
        assert float(row["before, GB"]) < float(row["peak, GB"])
    assert [row["way"] for row in rows("memory")] == list(benchmark.WAYS)
    assert len(list(tmp_path.glob("frozen-steps-*.png"))) == 1


def test_unknown_part(tmp_path):
    with pytest.raises(typer.BadParameter, match=r"no part speed; there are steps, epochs, store, memory\."):
        benchmark.run(part=["speed"], output=tmp_path)
    assert not list(tmp_path.iterdir())
