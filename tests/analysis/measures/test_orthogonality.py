"""`whitebox orthogonality`: what it measures of each decoder, its tables and figures, and how it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import asked, nothing, samples_of, shown
from child_runs import TINY

from analysis.consumed import Images
from analysis.maths.packing import packed, unpacked
from analysis.maths.subspaces import class_numbers, head_numbers
from analysis.measures.orthogonality import Orthogonality
from analysis.record import Record, read_record, write_record
from analysis.show.tables import Estimate, stored_cell
from whitebox.config import resolve
from whitebox.engine.checkpoint import save_model
from whitebox.errors import ConfigError, ModelError
from whitebox.models import build, intervene, record
from whitebox.runs import Run, open_run


def measure(run: Run, limit: int | None = None, advance: Any = nothing, **options: Any) -> Record:
    return asked(Orthogonality(**options), run, limit=limit, advance=advance)


SHAPE = {key: value for key, value in TINY.items() if key != "decoder.head_dim"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained runs: 3 heads of 10 in 24 dimensions overlap, Segmenter's 2 heads of 12 need not."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("runs")
    for name, own in {
        "depict-sa-tiny": {"decoder.head_dim": 10},
        "depict-ca-tiny": {"decoder.head_dim": 8},
        "segmenter-mask-tiny": {"decoder.heads": 2},
        "segmenter-linear-tiny": {},
        "segvit-tiny": {"encoder.depth": 12, "decoder.heads": 2},
    }.items():
        config = resolve(name, "shapes", {**SHAPE, **own})
        save_model(root / name / "model.safetensors", build(config.encoder, config.decoder, 7), config)
    return root


@pytest.fixture
def opened(folder: Path) -> Callable[[str], Run]:
    return lambda name: open_run(folder / name, device="cpu")


def test_numbers_are_those_of_the_bases(opened: Callable[[str], Run]) -> None:
    run = opened("depict-sa-tiny")
    measured = measure(run, draws=3).measured
    assert [layer["name"] for layer in measured["layers"]] == [f"decoder.layers.{index}" for index in range(3)]
    basis = run.model.decoder.layers[1].bases.detach().double().numpy()
    layer = measured["layers"][1]
    assert layer["numbers"] == pytest.approx(head_numbers(basis))
    assert (layer["heads"], layer["dim"], layer["width"]) == (3, 10, 24)
    stacked = basis.reshape(30, 24)
    assert layer["unit"] == pytest.approx(np.square(stacked).sum() / 30)
    np.testing.assert_allclose(unpacked(layer["gram"]), stacked @ stacked.T / layer["unit"], atol=0.02)
    assert layer["random"] == measured["layers"][0]["random"]  # one set of draws a shape
    assert measured["notes"] == [
        "3 heads of 10 dimensions are more than the width 24, so they cannot all be orthogonal."
    ]


def test_forced_angles_are_named(opened: Callable[[str], Run]) -> None:
    run = opened("depict-sa-tiny")
    for layer in run.model.decoder.layers:
        layer.head_dim, layer.basis = 20, torch.nn.Parameter(torch.randn(60, 24))
    (note,) = measure(run, draws=2).measured["notes"]
    assert note.endswith("of the 20 angles between two heads at least 16 are 0.")


def test_orthonormal_bases_score_perfectly(opened: Callable[[str], Run]) -> None:
    run = opened("depict-ca-tiny")
    with torch.no_grad():
        run.model.decoder.cross_layers[0].basis.copy_(torch.zeros(150, 24))
        for layer in run.model.decoder.layers:
            layer.basis.copy_(0.5 * torch.linalg.qr(torch.randn(24, 24))[0])
    layers = {layer["name"]: layer for layer in measure(run, draws=2).measured["layers"]}
    assert len(layers) == 6
    perfect = {"deviation": 0, "condition": 1, "overlap": 0, "angle": 90, "smallest_angle": 90}
    assert layers["decoder.layers.2"]["numbers"] == pytest.approx(perfect, abs=1e-3)
    assert layers["decoder.cross_layers.0"]["numbers"]["deviation"] is None  # all zero: not defined
    assert layers["decoder.cross_layers.0"]["unit"] == 0


def test_rotations_within_heads_change_no_number(opened: Callable[[str], Run]) -> None:
    run = opened("depict-sa-tiny")
    turned = Run(run.name, run.weights, intervene(run.model, "head_trans"), run.config)  # type: ignore[arg-type]
    for ours, theirs in zip(*(measure(each, draws=2).measured["layers"] for each in (run, turned)), strict=True):
        assert ours["numbers"] == pytest.approx(theirs["numbers"], abs=1e-4)
        assert ours["gram"] != theirs["gram"]


def test_segmenter_shows_its_query_projection(opened: Callable[[str], Run]) -> None:
    run = opened("segmenter-mask-tiny")
    measured = measure(run, draws=2).measured
    query = run.model.decoder.layers[0].attn.qkv.weight[:24].detach().double().numpy()
    assert measured["layers"][0]["numbers"] == pytest.approx(head_numbers(query.reshape(2, 12, 24)))
    assert measured["notes"] == []


def test_class_embeddings_before_and_after(opened: Callable[[str], Run]) -> None:
    run = opened("depict-sa-tiny")
    steps: list[tuple[int, int]] = []
    found = measure(run, after=True, draws=2, limit=2, advance=lambda *at: steps.append(at))
    assert steps == [(1, 2), (2, 2)] and found.data.images == 2 and found.variant == "after"
    classes = found.measured["classes"]
    learned = run.model.decoder.class_embeddings[0].detach().double().numpy()
    assert classes["learned"]["numbers"] == pytest.approx(class_numbers(learned))
    assert len(classes["names"]) == 7
    with record(run.model, "decoder.classes") as seen, torch.inference_mode():
        numbers = []
        for sample in samples_of(run, 2):
            run.model.masks(sample.pixels_B3HW)
            numbers.append(class_numbers(seen["decoder.classes"][0].double().numpy())["cosine"])
    assert classes["after"]["numbers"]["cosine"]["value"] == pytest.approx(np.mean(numbers))
    np.testing.assert_allclose(np.diag(unpacked(classes["after"]["cosines"])), 1, atol=0.01)


def test_a_decoder_that_compares_no_class_embeddings(opened: Callable[[str], Run]) -> None:
    run = opened("depict-sa-tiny")
    run.model.decoder.classes = torch.nn.Identity()  # no such activation
    measured = measure(run, after=True, draws=2, limit=1).measured
    assert "after" not in measured["classes"]
    assert measured["notes"][-1] == "has no tap of class embeddings after its decoder."


def test_class_queries_of_segvit_are_those_after_the_last_stage(opened: Callable[[str], Run]) -> None:
    run = opened("segvit-tiny")
    found = measure(run, after=True, draws=2, limit=1).measured["classes"]
    (sample,) = samples_of(run, 1)
    with record(run.model, "decoder.cross_layers.*.tokens") as seen, torch.inference_mode():
        run.model.masks(sample.pixels_B3HW)
    expected = class_numbers(list(seen.values())[-1][0].double().numpy())
    assert list(seen)[-1] == "decoder.cross_layers.8.tokens"  # three layers in each of three stages
    assert {name: each["value"] for name, each in found["after"]["numbers"].items()} == pytest.approx(expected)


def test_without_images_none_is_read(opened: Callable[[str], Run], monkeypatch: pytest.MonkeyPatch) -> None:
    run = opened("depict-sa-tiny")
    monkeypatch.setattr(Images, "each", None)
    found = measure(run, draws=2)
    assert found.data.images == 0 and "after" not in found.measured["classes"]
    assert found.file_name.startswith("orthogonality-shapes-") and found.n == 2


def test_seeds_decide_the_draws(opened: Callable[[str], Run]) -> None:
    run = opened("depict-sa-tiny")
    first, again, other = (measure(run, draws=3, seed=seed).measured["layers"][0] for seed in (0, 0, 1))
    assert first == again and first["random"] != other["random"] and first["numbers"] == other["numbers"]


def test_a_linear_decoder_has_nothing_to_measure(opened: Callable[[str], Run], tmp_path: Path) -> None:
    found = measure(opened("segmenter-linear-tiny"), draws=2)
    assert found.measured["layers"] == [] and found.measured["classes"] is None
    assert found.measured["notes"][0].startswith("has no subspaces") and len(found.measured["notes"]) == 2
    assert shown([found], tmp_path / "x") == {} and list(tmp_path.iterdir()) == []


def test_what_it_refuses(opened: Callable[[str], Run]) -> None:
    run = opened("depict-sa-tiny")
    with pytest.raises(ConfigError, match="--draws 1 is impossible"):
        measure(run, draws=1)
    with pytest.raises(ConfigError, match="add --after"):
        measure(run, limit=3)
    with torch.no_grad():
        run.model.decoder.layers[1].basis[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"NaN or infinite values in decoder\.layers\.1 of depict-sa-tiny"):
        measure(run, draws=2)
    broken = opened("depict-ca-tiny")
    with torch.no_grad():
        broken.model.decoder.class_embeddings[0, 0, 0] = torch.inf
    with pytest.raises(ModelError, match="in the class embeddings of depict-ca-tiny"):
        measure(broken, draws=2)


def test_packing_keeps_a_heat_map() -> None:
    rows = np.random.default_rng(0).standard_normal((9, 4))
    matrix = rows @ rows.T
    stored = json.loads(json.dumps(packed(matrix)))
    np.testing.assert_allclose(unpacked(stored), matrix, atol=np.abs(matrix).max() / 254 * 1.001)
    np.testing.assert_array_equal(unpacked(stored), unpacked(stored).T)
    np.testing.assert_array_equal(unpacked(packed(np.zeros((3, 3)))), np.zeros((3, 3)))


def test_tables_and_figures_come_from_records_alone(opened: Callable[[str], Run], tmp_path: Path) -> None:
    names = ("depict-sa-tiny", "depict-ca-tiny", "segmenter-mask-tiny", "segmenter-linear-tiny")
    records = [measure(opened(name), after="ca" in name, draws=2, limit=1 if "ca" in name else None) for name in names]
    read = [read_record(write_record(each, tmp_path / "records")) for each in records]
    tables = shown(read, tmp_path / "figure")
    assert list(tables) == ["-subspaces", "-classes"]
    subspaces, classes = tables.values()
    assert [row[1] for row in subspaces.rows[:3]] == ["layers.0", "layers.1", "layers.2"]
    assert len(subspaces.rows) == 3 + 6 + 2 + subspaces.summary_rows and subspaces.summary_rows == 4
    assert subspaces.rows[-1][2] == "2 x 12 of 24" and isinstance(subspaces.rows[-1][3], Estimate)
    assert [row[1] for row in classes.rows] == ["learned", "learned", "after the decoder", "learned", None]
    assert "2 standard normal matrices" in subspaces.caption and "mean over 1 images of shapes val" in classes.caption
    assert len(list(tmp_path.glob("figure-*.p*"))) == 4
    assert all(path.stat().st_size > 5000 for path in tmp_path.glob("figure-*.png"))


def test_null_is_a_dash() -> None:
    assert str(stored_cell(None)) == "nan" and stored_cell(0.5) == 0.5
    assert str(stored_cell({"value": 1.0, "low": None, "high": None})) == str(Estimate(1.0))


def test_the_command(folder: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    runs = folder / "depict-sa-tiny", folder / "segmenter-mask-tiny"
    code, out, err = call("orthogonality", *runs, "--draws", 2, "--device", "cpu", "-o", tmp_path)
    assert code == 0, err
    assert "3 x 10 of 24" in out and "cannot all be orthogonal" in out
    assert len(list((tmp_path / "records").iterdir())) == 2
    assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {".png", ".pdf"}
    assert {path.suffix for path in (tmp_path / "tables").iterdir()} == {".csv", ".md", ".tex"}
    code, _, err = call("orthogonality", runs[0], "--split", "val", "--device", "cpu", "-o", tmp_path)
    assert code == 2 and err.startswith("error: --split and --limit choose images") and err.count("\n") == 1
