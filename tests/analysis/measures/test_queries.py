"""Attention as queries and keys: rows that follow from them are the layers' own, whatever the decoder or encoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_runs import configured, tiny_model
from torch import Tensor

from analysis.measures.queries import TOLERANCE, Factors, factors, hearing
from whitebox.models import record, tap_names

WITH_ATTENTION = (
    ("depict-sa-tiny", {}),
    ("depict-ca-tiny", {}),
    ("cbsa-tiny", {"decoder__pool": 2}),
    ("crate-tiny", {}),
    ("segmenter-mask-tiny", {"decoder__heads": 2}),
    ("segvit-tiny", {"decoder__heads": 2, "decoder__encoder_layers": [0, 1]}),
)


def rows(found: Factors) -> Tensor:
    """As the page computes them."""
    q_HrM, k_HrC = (torch.from_numpy(each.astype(np.float32)) for each in found[:2])
    step_H11, b_H1C = torch.from_numpy(found.step_H)[:, None, None], torch.from_numpy(found.b_HC)[:, None]
    return (step_H11**2 * (q_HrM.mT @ k_HrC) + b_H1C).softmax(-1)


@pytest.mark.parametrize(("name", "changes"), WITH_ATTENTION, ids=lambda each: each if isinstance(each, str) else "")
def test_rows_are_those_of_the_layer(name: str, changes: dict[str, object]) -> None:
    model = tiny_model(configured(name, **changes))
    pixels = torch.rand(1, 3, 64, 80, generator=torch.Generator().manual_seed(1))
    heard: dict[str, tuple[Tensor, Tensor]] = {}
    taps = [tap for tap in tap_names(model) if tap.endswith(".attention")]
    with (
        torch.inference_mode(),
        record(model, *taps) as told,
        hearing(model, lambda tap, q, k: heard.update({tap: (q, k)})),
    ):
        model.masks(pixels)
    assert set(heard) == set(taps)
    assert any(tap.startswith("encoder.") for tap in taps) and any(tap.startswith("decoder.") for tap in taps)
    for tap, (q_HMP, k_HCP) in heard.items():
        found = factors(q_HMP, k_HCP)
        exact_HMC = told[tap][0]
        worst = ((rows(found) - exact_HMC).abs().amax(-1) / exact_HMC.amax(-1)).max()
        assert worst <= 1e-2, tap
        assert (found.q_HrM is found.k_HrC) == (q_HMP is k_HCP)
        assert found.k_HrC.dtype == found.q_HrM.dtype == np.int16


def test_nothing_is_heard_outside_the_block() -> None:
    model = tiny_model(configured("segvit-tiny", decoder__heads=2, decoder__encoder_layers=[0, 1]))
    heard: list[str] = []
    with hearing(model, lambda tap, q, k: heard.append(tap)):
        pass
    with torch.inference_mode():
        model.masks(torch.rand(1, 3, 32, 32))
    assert heard == []


@pytest.mark.parametrize("one", [True, False], ids=["queries are keys", "queries of their own"])
def test_no_more_directions_than_rows_need(one: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    wide_PP = torch.randn(2, 5, 64, generator=generator)
    k_HCP = torch.randn(2, 90, 5, generator=generator) @ wide_PP / 8 + 3  # five directions, and what all keys share
    q_HMP = k_HCP if one else torch.randn(2, 40, 64, generator=generator)
    found = factors(q_HMP, k_HCP)
    assert found.k_HrC.shape[1] == 5
    assert found.error <= TOLERANCE
    exact_HMC = (q_HMP @ k_HCP.mT).softmax(-1)
    assert ((rows(found) - exact_HMC).abs().amax(-1) / exact_HMC.amax(-1)).max() <= 2 * TOLERANCE


def test_coarser_steps_where_rows_may_be_further_off() -> None:
    k_HCP = torch.randn(1, 60, 16, generator=torch.Generator().manual_seed(0))
    fine, coarse = factors(k_HCP, k_HCP, 1e-3), factors(k_HCP, k_HCP, 1e-1)
    assert fine.error <= 1e-3 < coarse.error <= 1e-1
    assert fine.step_H[0] < coarse.step_H[0] / 10


def test_heads_that_see_nothing() -> None:
    zero_HCP = torch.zeros(2, 10, 4)
    assert torch.allclose(rows(factors(zero_HCP, zero_HCP)), torch.full((2, 10, 10), 0.1))
