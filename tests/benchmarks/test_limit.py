"""The arithmetic limit: every product of a task is noted as often as it occurs, whatever way it is computed in."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from benchmarking import load_benchmark

benchmark = load_benchmark("limit")


def noted(task):
    with benchmark._Noted() as found:
        task()
    return found.times.total()


def test_products_of_both_passes_are_counted():
    weight = torch.randn(5, 4, requires_grad=True)
    x = torch.randn(3, 4, requires_grad=True)

    def task():
        for _ in range(2):
            F.gelu(F.linear(x, weight)).sum().backward()

    assert noted(task) == 2 * 3  # forward, and towards x and weight


def test_attention_and_products_without_gradients_are_counted():
    q = torch.randn(2, 3, 8, 4)
    with torch.inference_mode():
        assert noted(lambda: F.scaled_dot_product_attention(q, q, q)) == 1
        assert noted(lambda: q @ q.transpose(2, 3)) == 1
        assert noted(lambda: q.exp().sum()) == 0


def test_equal_products_are_measured_once_and_count_as_often_as_they_occur(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: float(next(clock)))
    a, b = torch.randn(4, 4), torch.randn(6, 4)
    assert benchmark.limit(lambda: [a @ a, a @ a, b @ a]) == pytest.approx(3.0)  # each takes a tick


def test_synchronises_before_it_looks_at_the_clock():
    calls = []
    benchmark.limit(lambda: torch.ones(2, 2) @ torch.ones(2, 2), lambda: calls.append(1))
    assert len(calls) >= 6 and len(calls) % 2 == 0


def test_share_of_products_within_a_task():
    a = torch.randn(256, 256)
    assert 0 < benchmark.share(lambda: (a @ a).exp()) < 1
    assert benchmark.share(lambda: a.exp()) == 0.0


def test_share_is_of_the_time_of_operators_by_themselves(monkeypatch):
    times = {"aten::mm": 50, "aten::mkldnn_convolution": 10, "aten::matmul": 3, "aten::exp": 36, "autograd": 1}
    events = [SimpleNamespace(key=key, self_cpu_time_total=time) for key, time in times.items()]
    seen = SimpleNamespace(key_averages=lambda: events)
    monkeypatch.setattr(benchmark, "profile", lambda activities: nullcontext(seen))
    assert benchmark.share(lambda: None) == pytest.approx(0.63)
