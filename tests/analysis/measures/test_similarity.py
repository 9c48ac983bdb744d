"""`whitebox similarity`: pairs of runs, their heads, what is refused, tables and figures from records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import nothing, shown
from tiny_runs import configured, tiny_model, tiny_run

from analysis.consumed import Chosen
from analysis.measures.similarity import Setting, similarity
from analysis.record import Record
from whitebox.engine.checkpoint import save_model
from whitebox.errors import ConfigError, ModelError
from whitebox.models import intervene
from whitebox.runs import SavedRun, find_run, open_run

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        tiny_run(root / f"sa-{seed}", seed=seed, train__seed=seed)
    config = configured("depict-sa-tiny")
    save_model(root / "turned" / "model.safetensors", intervene(tiny_model(config), "head_trans", seed=1), config)
    tiny_run(root / "linear", "segmenter-linear-tiny")
    tiny_run(root / "wide", encoder__width=48)
    tiny_run(root / "shrunk", "segvit-tiny", encoder__shrink=1, decoder__encoder_layers=[0, 1])
    tiny_run(root / "windows", inference__window=16, inference__stride=16)
    return root


@pytest.fixture
def pair(folder: Path, tmp_path: Path) -> Callable[..., Record]:
    def measured(first: str, second: str, limit: int | None = None, **options: Any) -> Record:
        one = find_run(folder / first, device="cpu")
        other: SavedRun = one if first == second else find_run(folder / second, device="cpu")
        names, chosen = (first, second), Chosen(limit=limit)
        return similarity(one, other, names, chosen, Setting(**{"draws": 3, **options}), nothing, tmp_path)

    return measured


def test_the_same_subspaces_in_other_bases(pair: Callable[..., Record]) -> None:
    """MSSA does not change when heads are rotated within themselves: CKA 1, angles 0."""
    found = pair("sa-0", "turned").measured
    names = ["decoder.input", *(f"decoder.layers.{index}" for index in range(3))]
    assert found["first"] == found["second"] == names
    for index in range(4):
        assert found["cka"][index][index]["value"] == pytest.approx(1, abs=1e-4)
    assert [layer["name"] for layer in found["layers"]] == names[1:] and found["notes"] == []
    for layer in found["layers"]:
        assert layer["matched"] == [[0, 0], [1, 1], [2, 2]]
        assert layer["numbers"]["same_overlap"] == pytest.approx(1, abs=1e-5)
        assert layer["numbers"]["same_angle"] == pytest.approx(0, abs=0.01)
        assert layer["random"]["same_angle"]["low"] > 10


def test_a_run_alone(pair: Callable[..., Record]) -> None:
    found = pair("sa-0", "sa-0").measured
    assert found["layers"] == [] and found["notes"] == []
    for row in range(4):
        for column in range(4):
            assert found["cka"][row][column]["value"] == pytest.approx(found["cka"][column][row]["value"])
    others = [each for row, line in enumerate(found["cka"]) for column, each in enumerate(line) if row != column]
    assert all(each["low"] <= each["value"] <= each["high"] for each in others)


def test_decoders_of_another_kind(pair: Callable[..., Record]) -> None:
    found = pair("sa-0", "linear", limit=2, encoder=True).measured
    assert found["second"][:2] == ["encoder.layers.0", "encoder.layers.1"]
    assert found["layers"] == [] and "no layers of the same name" in found["notes"][0]


@pytest.mark.parametrize(
    ("second", "error", "message"),
    [
        ("wide", ModelError, "Tokens of the decoder have 24 numbers in sa-0 and 48 in wide: layers and subspaces are"),
        ("windows", ConfigError, r"sa-0 and windows are shown images in another way \(window 32 and 16, stride 32 and"),
    ],
)
def test_what_it_refuses(pair: Callable[..., Record], second: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pair("sa-0", second, limit=1)


def test_layers_of_other_grids_within_a_model(pair: Callable[..., Record]) -> None:
    with pytest.raises(ModelError, match="shrunk and shrunk have 1 windows of 1 tokens, 1 windows of 4 tokens and"):
        pair("shrunk", "shrunk", limit=1, encoder=True)


def test_nan(folder: Path, tmp_path: Path) -> None:
    run, broken = open_run(folder / "sa-0", device="cpu"), open_run(folder / "sa-1", device="cpu")
    with torch.no_grad():
        broken.model.decoder.layers[1].basis[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"NaN or infinite values in decoder\.layers\.1\.tokens .* of sa-1"):
        similarity(run, broken, ("a", "b"), Chosen(limit=1), Setting(draws=1), nothing, tmp_path)


def test_it_is_read_when_asked_again(pair: Callable[..., Record], monkeypatch: pytest.MonkeyPatch) -> None:
    first = pair("sa-0", "sa-1", limit=1)
    monkeypatch.setattr("analysis.measures.similarity._measured", None)
    assert pair("sa-0", "sa-1", limit=1).measured == first.measured
    with pytest.raises(TypeError):
        pair("sa-0", "sa-1", limit=1, draws=2)


def test_the_command(folder: Path, tmp_path: Path, call: Call) -> None:
    runs = [folder / f"sa-{seed}" for seed in range(3)]
    code, out, err = call("similarity", *runs, "--limit", 2, "--draws", 2, "--device", "cpu", "-o", tmp_path)
    assert code == 0, err
    assert len(list((tmp_path / "records").glob("similarity-*.json"))) == 3
    assert "all pairs" in out and "layers.2" in out
    assert list((tmp_path / "figures").glob("similarity*.png"))
    code, _, err = call("similarity", runs[0], folder / "wide", "--limit", 1, "--device", "cpu", "-o", tmp_path)
    assert code == 1 and err.startswith("error: Tokens of the decoder have 24 numbers") and err.count("\n") == 1


def test_tables_and_figures_come_from_records_alone(pair: Callable[..., Record], tmp_path: Path) -> None:
    records = [pair("sa-0", "sa-1", limit=1), pair("sa-0", "linear", limit=1), pair("sa-0", "sa-0", limit=1)]
    tables = shown(records, tmp_path / "figure")
    assert [len(table.rows) for table in tables.values()] == [12, 3]
    assert tables[""].columns[2].name == "input" and tables["-heads"].rows[0][0] == "sa-0 | sa-1"
    assert list(shown(records[2:], tmp_path / "alone")) == [""] and (tmp_path / "alone.png").exists()
