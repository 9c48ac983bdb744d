"""What a part of a batch takes of memory: analytic cases, and what is advised."""

from __future__ import annotations

import math

import pytest
import torch

from whitebox.engine import room
from whitebox.engine.room import Need, advice, halved, measured

CPU = torch.device("cpu")
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB."


def test_what_is_kept_for_the_backward_pass_is_counted() -> None:
    """A matrix whatever the images, and 4,000 bytes of each: the numbers that ``exp`` gave."""
    matrix = torch.zeros(1000, 1000, requires_grad=True)

    def step(images: int) -> None:
        shifted_B1 = torch.ones(images, 1000) @ matrix
        shifted_B1.exp().sum().backward()

    need = measured(step, CPU)
    assert need == Need(0.0, 8_000.0)  # of an image also what the product's gradient takes: its row of ones
    assert matrix.grad is not None


def test_the_matrix_counts_where_it_is_kept() -> None:
    matrix, rows = torch.zeros(1000, 1000), torch.ones(2, 1000, requires_grad=True)
    assert measured(lambda images: (rows[:images] @ matrix).sum().backward(), CPU) == Need(4e6, 0.0)


@pytest.mark.parametrize(
    ("batch", "below", "free", "largest"),
    [(16, 16, 1e9, 8), (16, 5, 1e9, 4), (6, 6, 1e9, 3), (12, 12, 500.0, 4), (8, 8, 100.0, 1), (8, 1, 1e9, None)],
)
def test_parts_divide_the_batch_and_fit(batch: int, below: int, free: float, largest: int | None) -> None:
    """100 bytes an image and 40 whatever their number, but one that ran; a tenth of what is free is not counted on."""
    assert Need(40.0, 100.0).largest(batch, below, free) == largest


def test_advice() -> None:
    assert advice(Need(1e9, 2e9), 16, 16, 2e10).startswith(
        "Set train.micro_batch=8 (2.0 GB an image and 1.0 GB were measured): the same loss and gradients in parts"
    )
    assert advice(Need(1e9, math.inf), 16, 16, 2e10).startswith("Set train.micro_batch=1: the same loss")
    none = "Not even one image would: take train.checkpointing=true, train.precision=bf16, a smaller data.crop"
    assert advice(None, 16, 16, 2e10).startswith(none) and advice(Need(1e9, 2e9), 16, 1, 2e10).startswith(none)
    assert halved(8, 8).startswith("Set train.micro_batch=4: ")
    assert halved(8, 1).startswith("Take train.checkpointing=true")
    assert halved(18, 9).startswith("Set train.micro_batch=3: ")  # two processes of 9: 4 would not divide the batch


@pytest.mark.parametrize(("fits", "each"), [(0, None), (1, math.inf)])
def test_small_parts_that_do_not_fit_either(fits: int, each: float | None) -> None:
    def step(images: int) -> None:
        if images > fits:
            raise RuntimeError(FULL)

    need = measured(step, CPU)
    assert (need if each is None else need and need.each) == each


def test_other_errors_stay_what_they_are() -> None:
    def step(images: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        measured(step, CPU)


def test_what_a_processor_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda: 123)
    assert room.free(CPU) == 123
