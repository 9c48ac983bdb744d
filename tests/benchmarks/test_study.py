"""Costs of a study on paper follow from their constants, and the state of many tasks is timed; no time is asserted."""

import csv

import pytest
from benchmarking import load_benchmark

from whitebox.sweep import DONE, FAILED, LOST, WAITING, found_states, read_plan

benchmark = load_benchmark("study")


def test_costs_of_two_encoders(tmp_path, capsys):
    benchmark.cost(encoders=["vit-tiny", "dinov2-small"], decoders=["linear", "segvit"], output=tmp_path)
    assert "2 encoders x 2 decoders x 5 seeds" in " ".join(capsys.readouterr().out.split())
    tiny, small = csv.DictReader((tmp_path / "study-encoders.csv").read_text("utf-8").splitlines())
    assert [tiny["Tokens"], small["Tokens"]] == ["1024", "1296"]  # 512 px in patches of 16, 504 px in patches of 14
    rows = (2 * 192 * 1024 + 512**2, 3 * 2 * 192 * 1024 + 512**2)  # SegViT takes three layers
    assert float(tiny["Stores, GB"]) == pytest.approx(sum(rows) * 20_210 * 8 / 1e9)
    one, many = [
        list(csv.DictReader((tmp_path / "study-gpus.csv").read_text("utf-8").splitlines()))[at] for at in (0, 2)
    ]
    days = "store on one server, days"
    for row in (one, many):
        assert float(row[days]) >= float(row["on a disk a machine, days"]) >= float(row["Without reading, days"]) > 0
    assert float(one["no store, days"]) == pytest.approx(64 * float(many["no store, days"]))
    assert float(one[days]) < 64 * float(many[days])  # a server does not grow with the GPUs


def test_an_update_takes_its_time_however_small():
    tiny = benchmark.Behind("x", "tiny", 512, 1024, 1e9, (1.0,), (10,))
    assert tiny.updating == pytest.approx(benchmark.SEEDS * benchmark.STEPS * benchmark.UPDATE)
    heavy = benchmark.Behind("x", "tiny", 512, 1024, 1e9, (1e15,), (10,))
    assert heavy.updating == pytest.approx(heavy.decoding / benchmark.DECODER_SHARE / benchmark.PEAK)


def test_status(tmp_path):
    states = found_states(read_plan(benchmark.make_plan(tmp_path / "plan", 20)))
    counts = {state: sum(each.state == state for each in states.values()) for state in (DONE, FAILED, LOST, WAITING)}
    assert counts == {DONE: 14, FAILED: 2, LOST: 2, WAITING: 2}
    benchmark.status(tasks=20, turns=1, output=tmp_path)
    (table,) = tmp_path.glob("study-status-*.csv")
    (row,) = csv.DictReader(table.read_text("utf-8").splitlines())
    assert row["Tasks"] == "20" and float(row["Status (s)"]) > 0
