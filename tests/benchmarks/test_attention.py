"""The benchmark of the operators: formulas equal counts, fits equal what is known, files say what was measured.

Times are never asserted.
"""

from pathlib import Path

import pytest
import torch
from benchmarking import load_benchmark
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

benchmark = load_benchmark("attention")


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
    monkeypatch.setattr(benchmark, "TOGETHER", 64)
    monkeypatch.setattr(benchmark, "peak_memory", lambda layer, z_BND: 1000 * z_BND.shape[1])
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


def test_peak_memory_is_that_of_the_tensors():
    class Twice(torch.nn.Module):
        def forward(self, z_BND):
            return (2 * z_BND).exp()

    tokens = benchmark.tokens(1000, "cpu")
    size = 4 * tokens.numel()
    # 2 z and exp(2 z); later exp(2 z), which the backward pass needs, and the gradient
    assert benchmark.peak_memory(Twice(), tokens) == pytest.approx(2 * size, abs=1000)


def test_memory_is_a_straight_line_in_the_number_of_tokens():
    for name in ("MSSA", "CBSA", "TSSA"):  # of MSSA because its attention is fused
        layer = benchmark.OPERATORS[name]()
        used = {n: benchmark.peak_memory(layer, benchmark.tokens(n, "cpu")) for n in (256, 1024, 4096)}
        assert benchmark.straight_line(used).deviation < 0.1
