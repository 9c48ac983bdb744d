"""The benchmark of the operators: formulas equal counts, fits equal what is known, files say what was measured.

Times are never asserted.
"""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "attention.py"
spec = importlib.util.spec_from_file_location("attention_benchmark", FILE)
benchmark = importlib.util.module_from_spec(spec)
sys.modules["attention_benchmark"] = benchmark
spec.loader.exec_module(benchmark)


@pytest.mark.parametrize("name", benchmark.OPERATORS)
@pytest.mark.parametrize("length", [64, 128])
def test_formulas_are_what_is_computed(name, length):
    with torch.device("meta"):
        layer, tokens = benchmark.OPERATORS[name](), torch.empty(1, length, benchmark.WIDTH)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        assert layer(tokens).shape == tokens.shape
    assert counter.get_total_flops() == 2 * benchmark.MACS[name](length)


@pytest.mark.parametrize("name", benchmark.OPERATORS)
def test_operators_change_tokens_and_leave_no_gradients(name):
    torch.manual_seed(0)
    layer, tokens = benchmark.OPERATORS[name](), benchmark.tokens(32, "cpu")
    assert not torch.equal(layer(tokens), tokens)
    benchmark.work(layer, tokens)
    assert tokens.grad is None and all(parameter.grad is None for parameter in layer.parameters())


def test_straight_lines():
    exact = benchmark.straight_line({256: 30 + 2 * 256, 512: 30 + 2 * 512, 4096: 30 + 2 * 4096})
    assert exact.slope == pytest.approx(2) and exact.deviation < 1e-9
    assert benchmark.straight_line({n: n**2 for n in (256, 512, 1024, 2048)}).deviation > 0.5


def test_files(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "QUICK", (16, 32))
    monkeypatch.setattr(benchmark, "peak_memory", lambda name, length, device, threads: 1000 * length)
    benchmark.run(quick=True, output=tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [Path(name).suffix for name in names] == [".csv", ".md", ".tex", ".csv", ".md", ".pdf", ".png", ".tex"]
    assert all(name.startswith("attention-quick-") and torch.__version__.split("+")[0] in name for name in names)
    fits, costs = (
        path.read_text().splitlines() for path in sorted(tmp_path.glob("*.csv"), key=lambda p: "-fit" not in p.name)
    )
    assert costs[0] == "Operator,Tokens,GMACs,Time (ms),Time (ms) low,Time (ms) high,Memory (MB)"
    assert [line.split(",")[:2] for line in costs[1:]] == [[n, k] for n in benchmark.OPERATORS for k in ("16", "32")]
    for line in costs[1:]:
        _, length, _, median, low, high, memory = line.split(",")
        assert 0 < float(low) <= float(median) <= float(high)
        assert float(memory) == pytest.approx(1e-3 * int(length))
    assert len(fits) == 1 + len(benchmark.OPERATORS)
    for line in fits[1:]:
        slope, deviation = line.split(",")[3:]
        assert float(slope) == pytest.approx(1) and float(deviation) < 1e-6
    assert Image.open(next(tmp_path.glob("*.png"))).size[0] > 1000


@pytest.mark.skipif(sys.platform != "linux", reason="the peak memory of a process is read from Linux's /proc")
def test_peak_of_a_process(monkeypatch):
    # in processes of their own: this one has memory to reuse that others have freed
    used = {length: benchmark.peak_memory("MSSA", length, "cpu", 1) for length in (256, 4096)}
    assert used[4096] > 4096 * 4 * benchmark.WIDTH  # at least the tokens that come out
    assert used[4096] > used[256]
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match=r"peak CBSA 16 --device=cpu --threads=1 failed"):
        benchmark.peak_memory("CBSA", 16, "cpu", 1)
