"""Stochastic depth follows the numbers it is given."""

from __future__ import annotations

import pytest
import torch
from timm.layers import DropPath
from training_models import model

from whitebox.engine.stochastic_depth import SampleDropPath, StochasticDepth


def test_the_numbers_decide_who_skips() -> None:
    layer = SampleDropPath(0.25)
    layer.uniform_B = torch.tensor([0.0, 0.7499, 0.7501, 1.0])
    x_BND = torch.ones(4, 2, 3)
    assert layer(x_BND)[:, 0, 0].tolist() == pytest.approx([4 / 3, 4 / 3, 0, 0])
    assert layer(x_BND.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(layer.eval()(x_BND), x_BND)


def test_as_often_as_in_timm() -> None:
    layer, timm_layer = SampleDropPath(0.3), DropPath(0.3)
    torch.manual_seed(0)
    layer.uniform_B = torch.rand(20_000)
    ours, theirs = layer(torch.ones(20_000, 1)), timm_layer(torch.ones(20_000, 1))
    assert ours.unique().tolist() == theirs.unique().tolist()
    assert ours.mean().item() == pytest.approx(1, abs=0.02)  # standard error 0.005
    assert theirs.mean().item() == pytest.approx(1, abs=0.02)


def test_parts_of_a_batch_are_the_batch() -> None:
    whole = model("depict-sa-tiny")
    depth = StochasticDepth(whole)
    assert len(depth.layers) == 4  # two of each block but the first, which never skips
    assert not any(type(module) is DropPath for module in whole.encoder.modules())
    images = torch.rand(6, 3, 32, 32)
    uniform_LB = depth.draw(seed=3, batch_size=6)
    assert torch.equal(uniform_LB, depth.draw(seed=3, batch_size=6))
    assert not torch.equal(uniform_LB, depth.draw(seed=4, batch_size=6))
    depth.use(uniform_LB)
    expected = whole(images)
    for part in (slice(0, 2), slice(1, None, 2)):
        depth.use(uniform_LB[:, part])
        torch.testing.assert_close(whole(images[part]), expected[part])
