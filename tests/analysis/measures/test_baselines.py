"""Baselines of measurements: what they change of a run, their numbers beside its own, and along a training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import no_bar, nothing
from child_runs import tiny
from tiny_runs import tiny_run

from analysis.consumed import Chosen, Images
from analysis.measurement import KINDS, Measurement, loaded
from analysis.measures.alignment import Alignment
from analysis.measures.baselines import (
    Wanted,
    against,
    at_weights,
    kept_weights,
    minus,
    over_draws,
    untrained,
    with_random_subspaces,
)
from analysis.measures.orthogonality import Orthogonality
from analysis.measures.rank_analysis import RankAnalysis
from analysis.record import Record, new_record
from analysis.show import against as shown
from whitebox.engine.log import Silent
from whitebox.engine.train import train
from whitebox.errors import ConfigError
from whitebox.models.attention import subspace_layers
from whitebox.runs import Run, open_run

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for model in ("depict-sa-tiny", "segmenter-linear-tiny"):
        tiny_run(folder / model, model)
    return folder


def opened(runs: Path, model: str = "depict-sa-tiny") -> Run:
    return open_run(runs / model, device="cpu")


def weights(run: Run, part: str) -> dict[str, torch.Tensor]:
    return {name: each for name, each in run.model.state_dict().items() if name.startswith(part)}


def beside(measurement: Measurement, run: Run, wanted: Wanted, folder: Path, **chosen: Any) -> tuple[Record, Record]:
    """The record of a run, and that of it beside baselines."""
    given = Chosen(**chosen)
    consumed = measurement.consumes(run, given)
    own = new_record(measurement.question(run, consumed), measurement.measure(run, consumed, nothing))
    return own, against(measurement, run, given, wanted, own, no_bar, folder)


class TestUntrained:
    def test_everything_is_drawn_anew(self, runs: Path) -> None:
        run = opened(runs)
        first, again, other = (untrained(run, seed) for seed in (0, 0, 1))
        for name, value in first.model.state_dict().items():
            torch.testing.assert_close(value, again.model.state_dict()[name])
        for part in ("encoder", "decoder"):
            basis = [name for name, each in weights(run, part).items() if each.dim() > 1]
            assert basis and not any(
                torch.equal(first.model.state_dict()[name], source.model.state_dict()[name])
                for name in basis
                for source in (run, other)
                if first.model.state_dict()[name].std() > 0
            )

    def test_a_frozen_encoder_stays(self, runs: Path) -> None:
        run = opened(runs)
        config = replace(run.config, encoder=replace(run.config.encoder, frozen=True))
        drawn = untrained(replace(run, config=config), 0)
        for name, value in weights(run, "encoder").items():
            assert torch.equal(value, drawn.model.state_dict()[name])
        name = "decoder.layers.0.basis"
        assert not torch.equal(run.model.state_dict()[name], drawn.model.state_dict()[name])


def test_random_subspaces_are_as_long_and_elsewhere(runs: Path) -> None:
    run = opened(runs)
    drawn = with_random_subspaces(run, 0)
    before, after = subspace_layers(run.model), subspace_layers(drawn.model)
    for name, layer in before.items():
        own, new = layer.bases.detach(), after[name].bases.detach()
        torch.testing.assert_close(own.norm(dim=(1, 2)), new.norm(dim=(1, 2)))
        assert torch.nn.functional.cosine_similarity(own.flatten(), new.flatten(), dim=0) < 0.9
    for name, value in run.model.state_dict().items():
        assert name.endswith(".basis") or torch.equal(value, drawn.model.state_dict()[name])


class TestNumbers:
    def test_of_draws_without_intervals_it_is_students(self) -> None:
        from scipy.stats import t

        values = [1.0, 2.0, 4.0, 3.0]
        found = over_draws([{"value": value, "low": None, "high": None} for value in values])
        low, high = t.interval(0.95, 3, np.mean(values), np.std(values, ddof=1) / 2)
        assert (found["low"], found["high"]) == (pytest.approx(low), pytest.approx(high))
        assert found["seeds"] == values
        assert over_draws([{"value": 1.0, "low": None, "high": None}] * 2)["low"] is None

    def test_a_difference_adds_squares(self) -> None:
        found = minus({"value": 5.0, "low": 2.0, "high": 6.0}, {"value": 1.0, "low": -3.0, "high": 5.0})
        assert (
            found["value"] == 4 and found["low"] == pytest.approx(4 - 5) and found["high"] == pytest.approx(4 + 17**0.5)
        )

    def test_without_an_interval_it_has_none_but_of_weights_alone(self) -> None:
        bare = {"value": 1.0, "low": None, "high": None}
        trained = {"value": 5.0, "low": 2.0, "high": 6.0}
        assert minus(trained, bare) == {"value": 4, "low": None, "high": None}
        assert minus(bare, trained) == {"value": -4, "low": None, "high": None}
        assert minus(trained, bare, exact=True) == {"value": 4, "low": 1, "high": 5}
        assert minus(bare, bare, exact=True)["low"] is None and minus({**bare, "value": None}, bare)["value"] is None


def test_each_objective_has_a_title_and_a_unit_of_its_own() -> None:
    number = {"value": 1.0, "low": 0.0, "high": 2.0}
    layers = [
        {"name": "decoder.layers.0", "objective": name, "cosine": number, "change": number, "gradient": number}
        for name in ("compression", "principal directions", "variational bound", "sparse rate")
    ]
    titles = {each.name for each in Alignment().quantities({"layers": layers})}
    assert titles >= {"cosine", "change (%)", "change, principal directions (points)", "cosine, variational bound"}
    assert titles >= {"change, variational bound (%)", "change by the gradient, sparse rate (nats)"}
    assert len(titles) == 12


@pytest.mark.parametrize("training", ["", "val"])
def test_images_are_not_held_against_themselves(runs: Path, tmp_path: Path, training: str) -> None:
    run = opened(runs)
    data = replace(run.config.data, train_split=training)
    run = replace(run, config=replace(run.config, data=data))
    _, found = beside(RankAnalysis(), run, Wanted(("train",)), tmp_path, limit=1)
    assert found.measured["baselines"] == []
    assert any("--against train does not apply" in note for note in found.measured["notes"])


def test_a_run_beside_its_baselines(runs: Path, tmp_path: Path) -> None:
    measurement, run = RankAnalysis(), opened(runs)
    own, found = beside(
        measurement, run, Wanted(("untrained", "random-subspaces", "train"), draws=2), tmp_path, limit=2
    )
    assert found.kind == "against" and found.variant == "rank-analysis" and found.measured["of"] == "rank-analysis"
    row = found.measured["quantities"][1]
    assert (row["name"], row["place"]) == ("R(Z) (nats)", "decoder.layers.0")
    assert row["trained"] == own.measured["layers"][1]["rate"]
    drawn = []
    for seed in (0, 1):
        answer = measurement.measure(untrained(run, seed), Images(run, Chosen(limit=2)), nothing)
        drawn.append(answer.measured["layers"][1]["rate"]["value"])
    assert row["against"]["untrained"]["seeds"] == pytest.approx(drawn)
    assert row["minus"]["untrained"]["value"] == pytest.approx(row["trained"]["value"] - np.mean(drawn))
    train_images = measurement.measure(run, Images(run, Chosen(split="train", limit=2)), nothing)
    expected = train_images.measured["layers"][1]["rate"]["value"]
    assert row["against"]["train"]["value"] == pytest.approx(expected)
    assert {each["name"] for each in found.measured["quantities"]} >= {"R^c before the layer (nats)", "effective rank"}
    tables = shown.tables([found])
    assert [column.name for column in tables[""].columns][4:6] == ["untrained", "trained minus untrained"]
    shown.figures([found], tmp_path / "against")
    assert (tmp_path / "against.png").is_file() and len(list((tmp_path / "records").glob("*.json"))) == 6


def test_what_does_not_apply_is_said(runs: Path, tmp_path: Path) -> None:
    _, found = beside(
        Alignment(draws=1), opened(runs, "segmenter-linear-tiny"), Wanted(("random-subspaces",)), tmp_path, limit=1
    )
    assert any("no subspaces of white-box layers" in note for note in found.measured["notes"])
    assert any("nothing to hold against" in note for note in found.measured["notes"])
    _, found = beside(Orthogonality(draws=2), opened(runs), Wanted(("train", "untrained"), draws=1), tmp_path)
    assert any("--against train does not apply" in note for note in found.measured["notes"])
    assert found.measured["baselines"] == ["untrained"]


@pytest.mark.parametrize("given", [(["nobody"], 3, None), ([], 0, None), ([], 3, "some")])
def test_unknown_words_are_refused(given: tuple[list[str], int, str | None]) -> None:
    with pytest.raises(ConfigError):
        Wanted.of(*given)


def test_names_may_be_joined() -> None:
    assert Wanted.of(["untrained,train", "train"], 3, None).names == ("untrained", "train") and not Wanted.of(
        [], 3, None
    )


def test_measurements_that_the_issue_names_have_numbers_to_compare() -> None:
    kinds = ("rank-analysis", "alignment", "orthogonality", "attention", "pca", "probe")
    assert all(loaded(KINDS[kind].measured).quantities is not Measurement.quantities for kind in kinds)


def test_weights_kept_along_a_training(tmp_path: Path, call: Call) -> None:
    config = tiny("depict-sa-tiny", train__keep_every=1)
    train(config, tmp_path / "run", Silent())
    kept = kept_weights(tmp_path / "run")
    assert list(kept) == [1.0, 2.0]
    run = open_run(tmp_path / "run", device="cpu")
    last, first = (at_weights(run, kept[epoch]).model.state_dict() for epoch in (2.0, 1.0))
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, last[name])
    assert not torch.equal(first["decoder.layers.0.basis"], last["decoder.layers.0.basis"])
    _, found = beside(RankAnalysis(), run, Wanted(epochs=True), tmp_path / "run", limit=1)
    row = found.measured["quantities"][0]
    assert row["epochs"][1]["value"] == pytest.approx(row["trained"]["value"]) and len(row["epochs"]) == 2
    assert "-epochs" in shown.tables([found])
    shown.figures([found], tmp_path / "along")
    assert (tmp_path / "along-epochs.png").is_file()
    code, _, err = call(
        "orthogonality", tmp_path / "run", "--checkpoints", "all", "--against", "untrained", "--draws", 2
    )
    assert code == 0, err
    assert list((tmp_path / "run" / "tables").glob("against-shapes-orthogonality*-epochs.md"))


def test_without_kept_weights_one_line_says_so(runs: Path, call: Call) -> None:
    code, _, err = call("orthogonality", runs / "depict-sa-tiny", "--checkpoints", "all")
    assert code == 2 and "keeps no weights of epochs" in err and "train.keep_every" in err
