"""The loss from masks: equal to the plain formula, and never as large."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from whitebox.errors import ModelError
from whitebox.models import EncoderConfig, Segmentor, build, cross_entropy
from whitebox.models.cross_entropy import summed_cross_entropy
from whitebox.models.decoders.depict_sa import DepictSAConfig
from whitebox.models.precision import full_precision


def plain(masks: Tensor, labels: Tensor, patch: int) -> Tensor:
    """The formula: K maps of full size."""
    size = (masks.shape[2] * patch, masks.shape[3] * patch)
    H, W = labels.shape[1:]
    logits = F.interpolate(masks, size=size, mode="bilinear", align_corners=False)[..., :H, :W]
    return F.cross_entropy(logits, labels.long(), ignore_index=255, reduction="sum")


def case(
    grid: tuple[int, int], patch: int, cut: tuple[int, int], K: int = 6, ignored: float = 0.2
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(patch)
    masks = torch.randn(2, K, *grid, generator=generator) * 3
    sides = [length * patch - less for length, less in zip(grid, cut, strict=True)]
    labels = torch.randint(0, K, (2, *sides), dtype=torch.uint8, generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    return masks, labels


def value_and_gradient(function: object, masks: Tensor, labels: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    masks = masks.detach().clone().requires_grad_()
    loss = function(masks, labels, patch)  # type: ignore[operator]
    (loss * 0.3).backward()
    assert masks.grad is not None
    return loss.detach(), masks.grad


@pytest.mark.parametrize("patch", [1, 2, 3, 7, 14, 16, 32])
@pytest.mark.parametrize("grid", [(1, 1), (1, 3), (5, 4)])
@pytest.mark.parametrize("uneven", [False, True])
def test_equals_the_plain_formula(patch: int, grid: tuple[int, int], uneven: bool) -> None:
    masks, labels = case(grid, patch, (patch // 2, patch - 1) if uneven else (0, 0))
    loss, gradient = value_and_gradient(summed_cross_entropy, masks, labels, patch)
    assert loss.dtype == gradient.dtype == torch.float32
    expected_loss, expected_gradient = value_and_gradient(plain, masks.double(), labels, patch)
    assert abs(loss - expected_loss) <= 1e-6 * expected_loss
    assert (gradient - expected_gradient).norm() <= 1e-6 * expected_gradient.norm()


def test_equals_the_plain_formula_at_real_size() -> None:
    masks, labels = case((32, 32), 16, (0, 0), K=150)
    loss, gradient = value_and_gradient(summed_cross_entropy, masks, labels, 16)
    expected_loss, expected_gradient = value_and_gradient(plain, masks.double(), labels, 16)
    assert abs(loss - expected_loss) <= 1e-6 * expected_loss
    assert (gradient - expected_gradient).norm() <= 1e-6 * expected_gradient.norm()
    assert (gradient - expected_gradient).abs().max() <= 1e-6 * expected_gradient.abs().max()


@pytest.mark.parametrize("patch", [2, 3])
def test_gradient_in_float64(patch: int) -> None:
    masks, labels = case((2, 3), patch, (1, 0), K=4)
    masks = masks.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda m: summed_cross_entropy(m, labels, patch), (masks,))


def test_number_of_cells_at_once_changes_rounding_only(monkeypatch: pytest.MonkeyPatch) -> None:
    masks, labels = case((5, 4), 8, (3, 0))
    whole = value_and_gradient(summed_cross_entropy, masks, labels, 8)
    monkeypatch.setattr(cross_entropy, "_ON_CPU", 1)
    for one, other in zip(value_and_gradient(summed_cross_entropy, masks, labels, 8), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_nothing_of_full_size_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    masks, labels = case((8, 8), 16, (0, 0), K=20)
    monkeypatch.setattr(cross_entropy, "_ON_CPU", 10_000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with Largest() as seen:
        value_and_gradient(summed_cross_entropy, masks, labels, 16)
    corners = 2 * 9 * 9 * 4 * 20
    assert corners <= seen.elements < 2 * 9 * 9 * 16 * 16 * 2  # labels cell by cell, not logits: 655,360
    with Largest() as seen:
        value_and_gradient(plain, masks, labels, 16)
    assert seen.elements == 2 * 20 * 128 * 128


MEMORY = """
import re, torch
from whitebox.models.cross_entropy import summed_cross_entropy

def peak():  # not ru_maxrss: a child inherits that of its parent
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

torch.set_num_threads(1)
masks = torch.randn(4, 150, 32, 32, requires_grad=True)
labels = torch.zeros(4, 512, 512, dtype=torch.uint8)
before = peak()
summed_cross_entropy(masks, labels, 16).backward()
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux to know the peak memory of a process")
def test_memory() -> None:
    """The logits alone are 629 MB. A heap that cannot shrink between small and large tensors would double that."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert 0 < int(done.stdout) < 150e6


def test_only_ignored_pixels() -> None:
    masks, labels = case((2, 2), 4, (0, 0), ignored=2)
    loss, gradient = value_and_gradient(summed_cross_entropy, masks, labels, 4)
    assert loss == 0 and not gradient.any()


def test_float32_inside_autocast_and_low_matmul_precision() -> None:
    masks, labels = case((3, 3), 16, (0, 0))
    half = masks.bfloat16()
    expected = value_and_gradient(summed_cross_entropy, half.float(), labels, 16)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            loss, gradient = value_and_gradient(summed_cross_entropy, half, labels, 16)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert loss.dtype == torch.float32 and gradient.dtype == torch.bfloat16
    assert torch.equal(loss, expected[0]) and torch.equal(gradient, expected[1].bfloat16())


def test_full_precision_ends_with_an_error_too() -> None:
    before = torch.get_float32_matmul_precision()
    with pytest.raises(ValueError, match="stop"), full_precision(torch.device("cpu")):
        raise ValueError("stop")
    assert torch.get_float32_matmul_precision() == before


def test_no_gradient_where_none_is_wanted() -> None:
    masks, labels = case((3, 3), 4, (0, 0))
    assert not summed_cross_entropy(masks, labels, 4).requires_grad
    with torch.no_grad():
        assert summed_cross_entropy(masks, labels, 4) == summed_cross_entropy(masks.requires_grad_(), labels, 4)


def test_labels_that_do_not_fit() -> None:
    masks = torch.zeros(2, 3, 4, 4)
    for shape in ((2, 60, 48), (2, 65, 64), (1, 64, 64), (2, 64)):
        with pytest.raises(ModelError, match=r"do not fit 2 images of 4 x 4 patches of 16 px"):
            summed_cross_entropy(masks, torch.zeros(shape, dtype=torch.uint8), 16)
    with pytest.raises(IndexError, match="Target 3 is out of bounds"):
        summed_cross_entropy(masks, torch.full((2, 64, 64), 3), 16)


class TestModel:
    """The loss as a model's forward pass."""

    def model(self) -> Segmentor:
        torch.manual_seed(0)
        encoder = EncoderConfig(image_size=64, width=48, depth=1, heads=3, drop_path=0)
        return build(encoder, DepictSAConfig(head_dim=16), 5)

    def batch(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1)
        images = torch.randint(0, 256, (2, 3, 50, 67), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 5, (2, 50, 67), dtype=torch.uint8, generator=generator)
        labels[:, :10] = 255
        return images, labels

    def gradients(self, module: torch.nn.Module, loss: Tensor) -> list[Tensor]:
        module.zero_grad()
        loss.backward()
        return [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]

    def assert_same(self, found: list[Tensor], expected: list[Tensor]) -> None:
        assert len(found) == len(expected) > 10
        for one, other in zip(found, expected, strict=True):
            assert (one - other).norm() <= 1e-5 * other.norm() + 1e-5

    def test_equals_cross_entropy_of_the_logits(self) -> None:
        model, (images, labels) = self.model(), self.batch()
        loss = model(images, labels)
        expected = F.cross_entropy(model(images), labels.long(), ignore_index=255, reduction="sum")
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        self.assert_same(self.gradients(model, loss), self.gradients(model, expected))

    def test_distributed(self) -> None:
        model, (images, labels) = self.model(), self.batch()
        expected = self.gradients(model, model(images, labels))
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            wrapped = torch.nn.parallel.DistributedDataParallel(model)
            self.assert_same(self.gradients(model, wrapped(images, labels)), expected)
        finally:
            dist.destroy_process_group()

    def test_compiled(self) -> None:
        model, (images, labels) = self.model(), self.batch()
        expected = self.gradients(model, model(images, labels))
        compiled = torch.compile(model, backend="eager")
        self.assert_same(self.gradients(model, compiled(images, labels)), expected)
