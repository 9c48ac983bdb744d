"""The benchmark of coding rates runs and says what it measured. Times are never asserted."""

import pytest
import torch
from benchmarking import load_benchmark
from child_runs import tiny

from whitebox.engine.checkpoint import save_model
from whitebox.models import build

benchmark = load_benchmark("coding_rate")


def rows(folder):
    (table,) = folder.glob("*.csv")
    assert sorted(path.suffix for path in folder.iterdir()) == [".csv", ".md", ".tex"]
    return [list(map(float, row.rsplit(",", 3)[1:])) for row in table.read_text().splitlines()[1:]]


def test_rates(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "PAIRS", 2)
    monkeypatch.setattr(benchmark, "TOKENS", 60)
    benchmark.rates(turns=2, threads=1, output=tmp_path)
    assert "2 turns" in " ".join(capsys.readouterr().out.split())
    found = rows(tmp_path)
    assert len(found) == 3 and all(0 < low <= median <= high for median, low, high in found)


def test_the_direct_form_is_the_same_quantity():
    z_BND = torch.nn.functional.normalize(torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    torch.testing.assert_close(benchmark.direct(z_BND).double(), benchmark.coding_rate(z_BND, 0.1), rtol=1e-5, atol=0)


def test_command(tmp_path, capsys):
    config = tiny(data__val_length=2)
    save_model(tmp_path / "run" / "model.safetensors", build(config.encoder, config.decoder, 7), config)
    benchmark.command(tmp_path / "run", limit=2, turns=1, threads=1, output=tmp_path / "out")
    assert "Resident memory" in " ".join(capsys.readouterr().out.split())
    found = rows(tmp_path / "out")
    assert len(found) == 3 and found[2][0] == pytest.approx(found[0][0] / found[1][0])
