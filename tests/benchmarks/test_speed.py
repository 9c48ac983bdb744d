"""The benchmark: both paths do the same, and the tables say what was measured. Times are never asserted."""

import csv
import shutil
import sys

import pytest
import torch
from benchmarking import load_benchmark
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends
from typer.testing import CliRunner

speed = load_benchmark("speed")

SMALL = speed.Setting(size=64, classes=5, batch=2)


@pytest.fixture
def bench():
    return speed.Bench("depict-ca-tiny", SMALL)


def test_both_paths_predict_the_same(bench):
    assert (bench.forward("plain") == bench.forward("ours")).float().mean() > 0.999
    for multi in (False, True):
        plain, ours = (bench.evaluate(path, multi) for path in speed.PATHS)
        assert plain.shape == ours.shape == (64, 85) and len(ours.unique()) > 1
        assert (plain == ours).float().mean() > 0.999


def test_both_paths_train_the_same(bench):
    other = speed.Bench("depict-ca-tiny", SMALL)
    for _ in range(3):
        assert bench.step("plain").item() == pytest.approx(other.step("ours").item(), rel=1e-5)
    before = speed.Bench("depict-ca-tiny", SMALL).model.decoder.class_embeddings
    assert not torch.equal(before, other.model.decoder.class_embeddings)


def test_plain_has_no_fused_attention(bench):
    with bench.context("plain"):
        assert _cur_sdpa_kernel_backends() == [SDPBackend.MATH]
    with bench.context("ours"):
        assert SDPBackend.FLASH_ATTENTION in _cur_sdpa_kernel_backends()


def test_compiling_changes_ours_only():
    bench = speed.Bench("depict-ca-tiny", SMALL)
    bench.compiled = lambda images: torch.zeros(len(images), 5, 4, 4)
    with bench.context("ours"):
        assert not bench.model.masks(bench.images).any()
    with bench.context("plain"):
        assert bench.model.masks(bench.images).any()


def test_measured_rows():
    rows = speed.measure("depict-ca-tiny", SMALL, repeats=2, multi=False)
    found = {row.what: row for row in rows}
    assert set(found) == {
        *(speed.FORWARD, speed.STEP, speed.IMAGE),
        *(f"{what}: the limit" for what in (speed.FORWARD, speed.STEP, speed.IMAGE)),
        *(f"{what}: {part}" for what in (speed.STEP, speed.IMAGE) for part in speed.PARTS),
        *(f"{what}: arithmetic" for what in (speed.FORWARD, speed.STEP)),
    }
    for row in rows:
        assert len(row.plain) == len(row.ours) == 2 and all(value > 0 for value in row.plain + row.ours)
    assert found["training step: the limit"].plain == found[speed.STEP].plain
    forward, arithmetic = found[speed.FORWARD], found["forward: arithmetic"]
    assert arithmetic.ours[0] * forward.ours[0] == pytest.approx(arithmetic.plain[1] * forward.plain[1])


def test_limits_are_of_ours_and_in_the_unit_of_their_row(monkeypatch):
    paths = []
    monkeypatch.setattr(speed.Bench, "step", lambda bench, path: paths.append(path))

    def limit(task, synchronise):
        paths.clear()
        task()
        return 0.25 if paths == ["ours"] else 0.5  # of an update, or of something else

    monkeypatch.setattr(speed, "limit", limit)
    found = {row.what: row for row in speed.measure("depict-ca-tiny", SMALL, repeats=1, multi=False)}
    assert (found["training step: the limit"].ours, found["training step: the limit"].unit) == ([0.25], "s")
    assert found["forward: the limit"].ours == [0.5]
    assert (found["eval, one scale: the limit"].ours, found["eval, one scale: the limit"].unit) == ([2.0], "images/s")


def test_arithmetic_is_that_of_the_field():
    """perf.md: 10.4 and 2.9 GMACs for encoder and DEPICT-SA decoder at 512."""
    bench = speed.Bench("depict-sa-tiny", speed.Setting(size=512, classes=150, batch=1))
    assert bench.gflop() == pytest.approx(26.7, rel=0.02)


def test_tables(tmp_path):
    rows = [speed.Row("depict-sa-tiny", speed.STEP, "s", [2.0, 4.0, 3.0], [1.0, 1.0, 3.0])]
    table, text = speed.write(rows, speed.Setting(threads=2), tmp_path)
    assert table.stem == text.stem and f"2-threads-fp32-torch-{torch.__version__.split('+')[0]}" in table.stem
    assert "| depict-sa-tiny | training step | s | 3 (2 to 4) | 1 (1 to 3) | 0.50 | 3 |" in text.read_text()
    lines = list(csv.DictReader(table.open()))
    assert [float(line["value"]) for line in lines if line["path"] == "ours"] == [1, 1, 3]


def test_peak_memory_of_a_process(monkeypatch):
    arguments = ["peak", "depict-ca-tiny", speed.STEP, "ours", "--size=32", "--classes=3", "--batch=1"]
    done = CliRunner().invoke(speed.app, arguments)
    assert done.exit_code == 0, done.output
    assert 0.1 < float(done.output.split()[-1]) < 100
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(RuntimeError, match=r"peak depict-ca-tiny training step ours --size=64 .* failed"):
        speed.peak_memory("depict-ca-tiny", speed.STEP, "ours", SMALL)


def test_share_of_products_in_tasks(tmp_path):
    speed.products(model=["depict-sa-tiny"], repeats=1, output=tmp_path, size=32, classes=3, batch=1, threads=1)
    (path,) = tmp_path.glob("products-*.csv")
    rows, name = list(csv.DictReader(path.open())), "Products (% of its time)"
    assert [row["Task"] for row in rows] == [speed.STEP, speed.IMAGE, speed.MULTI]
    for row in rows:
        assert 0 < float(row[f"{name} low"]) <= float(row[name]) <= float(row[f"{name} high"]) < 100
