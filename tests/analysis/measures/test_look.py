"""What a page shows of a photo: predictions, numbers and maps are those of the commands that measure them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import asked
from PIL import Image
from tiny_runs import CLOSED, tiny_run

from analysis.measures.attention import Attention
from analysis.measures.look import CASES, Noise, about, look, picture
from analysis.measures.samples import open_photo, predicted_patches
from whitebox.errors import ModelError
from whitebox.models import record, replace
from whitebox.models.changes import zero
from whitebox.runs import Run, open_run

CHANGES: dict[str, dict[str, Any]] = {
    "cbsa": {"decoder__pool": 2},
    "segmenter-mask": {"decoder__heads": 2},
    "segvit": {"decoder__heads": 2, "decoder__encoder_layers": [0, 1]},
}
NAMES = sorted(name for name in CLOSED if name != "segvit-shrunk")
LEVELS = Noise(sigmas=(0.1, 3.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("look")
    for name in NAMES:
        tiny_run(root / name, f"{name}-tiny", **CHANGES.get(name, {}))
    pixels = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "photo.png")
    Image.fromarray((np.arange(50 * 90).reshape(50, 90) // 700).astype(np.uint8)).save(root / "label.png")
    return root


def opened(folder: Path, name: str) -> Run:
    return open_run(folder / name, device="cpu")


def seen(folder: Path, name: str, **options: Any) -> tuple[Run, dict[str, Any]]:
    run = opened(folder, name)
    return run, look(run, folder / "photo.png", options.get("label"), options.get("table_256"), LEVELS)


@pytest.mark.parametrize("name", NAMES)
def test_each_decoder(folder: Path, name: str) -> None:
    run, found = seen(folder, name)
    (h, w), K = found["grid"], run.model.num_classes
    photo = open_photo(folder / "photo.png", run)
    assert (h, w) == photo.grid
    assert np.array_equal(found["patches"], predicted_patches(run, photo).numpy())
    assert found["prediction"].max() < K and found["prediction"].shape == tuple(found["shown"])
    assert found["label"] is None and found["labels"] is None
    assert sorted(found["chosen"]) == list(range(K))
    names = [layer["name"] for layer in found["attention"]]
    assert any(each.startswith("encoder.") for each in names)
    assert any(each.startswith("decoder.") for each in names) == (name != "segmenter-linear")
    for layer in found["energies"]:
        assert np.abs(layer["shares"].astype(int).sum(0) - 255).max() <= len(layer["shares"])
    if name != "segmenter-linear":
        assert len(found["depths"]) > 1 and len(found["cases"]) > 1
        assert np.array_equal(found["depths"][-1]["labels"], found["patches"])
        assert found["depths"][0]["classes"].shape == (K, h * w)
        assert {layer["name"] for layer in found["layers"]} >= {layer["name"] for layer in found["untrained"]} != set()
    assert found["noise"]["labels"].shape == (2, h, w)
    described = about(run)
    assert described["classes"] == list(run.model.classes)
    assert all(each["pooled"].shape == (each["heads"] * each["cells"],) * 2 for each in described["subspaces"])


def test_without_a_layer_and_without_a_head(folder: Path) -> None:
    run, found = seen(folder, "depict-sa")
    photo = open_photo(folder / "photo.png", run)
    layers = [case["layer"] for case in found["cases"] if case["head"] is None]
    assert layers == [f"decoder.layers.{index}" for index in range(3)]
    assert len(found["cases"]) == 3 + 9 <= CASES
    for case in found["cases"]:
        tap, change = ("update", zero()) if case["head"] is None else ("projected", zero(heads=[case["head"]]))
        with replace(run.model, {f"{case['layer']}.{tap}": change}):
            assert np.array_equal(case["labels"], predicted_patches(run, photo).numpy())
    with replace(run.model, {f"decoder.layers.{index}.update": zero() for index in (1, 2)}):
        assert np.array_equal(found["depths"][1]["labels"], predicted_patches(run, photo).numpy())


def test_memberships_and_class_token_are_those_of_attention(folder: Path) -> None:
    from analysis.maths.packing import unpack

    run, found = seen(folder, "tost")
    maps = asked(Attention(layer="all", head="all"), run, photos=(folder / "photo.png",)).measured["photos"][0]["maps"]
    layers = {layer["name"]: layer["values"] for layer in found["attention"] if layer["of"] == "membership"}
    assert len(maps) == sum(len(values) for values in layers.values())
    for each in maps:
        stored = layers[each["layer"]][int(each["head"])].reshape(found["grid"])
        assert np.allclose(stored.astype(np.float64), unpack(each["values"]), atol=1e-3)


def test_the_numbers_of_a_layer_are_rank_analysis_and_alignment(folder: Path) -> None:
    from analysis.maths.coding_rate import coding_rate
    from analysis.maths.conventions import Convention
    from analysis.maths.moves import compression, cosine, steepest
    from analysis.maths.tokens import Tokens

    run, found = seen(folder, "depict-sa")
    pixels = open_photo(folder / "photo.png", run).pixels_13hw
    with torch.inference_mode(), record(run.model, "decoder.layers.1.*") as heard:
        run.model.masks(pixels)
    known = {name: value[0].double() for name, value in heard.items() if name.count(".") == 3}
    row = next(each for each in found["layers"] if each["name"] == "decoder.layers.1")
    patches = found["grid"][0] * found["grid"][1]
    tokens = Tokens(known["decoder.layers.1.tokens"][None, :patches], Convention())
    assert row["rate"] == pytest.approx(float(coding_rate(tokens.vectors_BND, 0.1)), rel=1e-6)
    move = compression(
        run.model.decoder.layers[1],  # type: ignore[index, arg-type]
        known["decoder.layers.1.tokens"].clone(),
        known["decoder.layers.1.update"].clone(),
        known["decoder.layers.1.projected"].clone(),
    )
    assert row["cosine"]["compression"] == pytest.approx(
        float(cosine(move.update_MD, steepest(move, move.x_MD))), abs=1e-6
    )


def test_labels(folder: Path) -> None:
    run = opened(folder, "depict-sa")
    table_256 = np.array([*range(7), *[255] * 249], np.uint8)
    found = look(run, folder / "photo.png", folder / "label.png", table_256, LEVELS)
    assert found["label"].shape == found["prediction"].shape
    assert found["labels"].shape == tuple(found["grid"])
    assert set(np.unique(found["label"])) == set(range(7))


def test_a_huge_photo_is_shown_smaller(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.measures.look.PATCHES", 6)
    _, found = seen(folder, "depict-sa")
    assert found["grid"][0] * found["grid"][1] <= 6
    assert "is shown to the model at" in found["notes"][0]
    small, size = picture(folder / "photo.png", opened(folder, "depict-sa"))
    assert size == (50, 90) and small.shape == (50, 90, 3)


def test_a_model_that_is_not_finite_is_refused(folder: Path) -> None:
    run = opened(folder, "depict-sa")
    with torch.no_grad():
        next(iter(run.model.decoder.layers[0].parameters())).fill_(float("nan"))  # type: ignore[index]
    with pytest.raises(ModelError, match="NaN or infinite"):
        look(run, folder / "photo.png", None, None, LEVELS)
