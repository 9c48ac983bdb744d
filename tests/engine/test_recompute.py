"""Recomputed activations give the same gradients from less memory."""

from __future__ import annotations

import copy

import pytest
import torch
from training_models import MODELS, gradients, model

from whitebox.engine.recompute import recompute_layers
from whitebox.models import Segmentor


@pytest.mark.parametrize("name", MODELS)
def test_recomputing_keeps_gradients_and_less(name: str) -> None:
    """Also where dropout and stochastic depth draw random numbers; a copy recomputes itself, not the original."""
    images = torch.rand(2, 3, 32, 32)
    plain = model(name)
    recomputing = copy.deepcopy(plain)
    recompute_layers(recomputing)
    copied = copy.deepcopy(recomputing)
    expected = gradients(plain, images)
    for each in (recomputing, copied):
        found = gradients(each, images)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)

    def kept(of: Segmentor) -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
            of(images)
        return sum(sizes)

    assert kept(recomputing) < 0.8 * kept(plain)


def test_recomputing_runs_once_without_gradients() -> None:
    images = torch.rand(1, 3, 32, 32)
    plain = model("depict-ca-tiny").eval()
    recomputing = copy.deepcopy(plain)
    recompute_layers(recomputing)
    with torch.no_grad():
        assert torch.equal(recomputing(images), plain(images))
