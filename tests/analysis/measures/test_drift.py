"""How far layers are from their start: numbers that are known, of models drawn from the seed of their training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import asked
from tiny_runs import configured

from analysis.measures.drift import Drift
from analysis.measures.families import averaged
from analysis.record import Record
from analysis.show.drift import figures, tables
from whitebox.data.shapes import CLASSES
from whitebox.engine.checkpoint import save_model
from whitebox.models import Segmentor, build
from whitebox.runs import find_run

Change = Callable[[Segmentor], object]


def measured(folder: Path, change: Change, model: str = "depict-sa-tiny", seed: int = 3) -> Record:
    """Of a model that training, drawn from seed 3, has changed."""
    layers = {} if "linear" in model else {"decoder__layers": 2}
    config = configured(model, train__seed=3, encoder__depth=1, **layers)
    torch.manual_seed(seed)
    made = build(config.encoder, config.decoder, len(CLASSES), CLASSES)
    with torch.no_grad():
        change(made)
    save_model(folder / "model.safetensors", made, config)
    return asked(Drift(), find_run(folder))


def value(layer: dict[str, Any], key: str) -> float:
    return float(layer[key]["value"])


def test_nothing_has_moved_without_training(tmp_path: Path) -> None:
    record = measured(tmp_path, lambda made: None)
    for layer in record.measured["layers"]:
        assert value(layer, "alike") == pytest.approx(1.0) and layer["step"] == layer["start"]
    assert [layer["name"] for layer in record.measured["layers"]] == ["decoder.layers.0", "decoder.layers.1"]
    assert record.measured["notes"] == []


def test_a_turned_step_and_a_basis_in_other_directions(tmp_path: Path) -> None:
    def change(made: Segmentor) -> None:
        first, second = made.decoder.layers
        first.step_size.neg_()
        basis = second.basis
        other = torch.randn(basis.shape, generator=torch.Generator().manual_seed(0))
        other -= (other * basis).sum() / basis.square().sum() * basis  # at a right angle, as one vector
        basis += other * basis.norm() / other.norm()

    first, second = measured(tmp_path, change).measured["layers"]
    assert value(first, "alike") == pytest.approx(1.0) and value(first, "step") == -value(first, "start")
    assert value(second, "alike") == pytest.approx(2**-0.5) and second["step"] == second["start"]


def test_another_start_is_said(tmp_path: Path) -> None:
    record = measured(tmp_path, lambda made: None, seed=4)
    assert all(abs(value(layer, "alike")) < layer["random"] for layer in record.measured["layers"])
    assert "no more alike to this start than random" in record.measured["notes"][0]


def test_decoders_without_such_a_step_or_subspaces(tmp_path: Path) -> None:
    (layer, _) = measured(tmp_path / "cbsa", lambda made: None, "cbsa-tiny").measured["layers"]
    assert "step" not in layer and value(layer, "alike") == pytest.approx(1.0)
    linear = measured(tmp_path / "linear", lambda made: None, "segmenter-linear-tiny")
    assert linear.measured == {"layers": [], "notes": ["has no layers with subspaces."]} and tables([linear]) == {}


def test_a_row_a_layer_and_signs_over_trainings(tmp_path: Path) -> None:
    kept = measured(tmp_path / "a", lambda made: None)
    turned = measured(tmp_path / "b", lambda made: made.decoder.layers[0].step_size.neg_())
    (table,) = tables([kept]).values()
    assert [row[-1] for row in table.rows] == ["1 of 1", "1 of 1"]
    together = averaged([kept, turned])
    family = Record(
        kind="drift", model="both", data=kept.data, weights=None, measured=together.measured, n=1, seeds={}, settings={}
    )
    (table,) = tables([family]).values()
    assert [row[-1] for row in table.rows] == ["1 of 2", "2 of 2"]
    figures([kept, family], tmp_path / "figure")
    assert {path.suffix for path in tmp_path.glob("figure*")} == {".png", ".pdf"}
