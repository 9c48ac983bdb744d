"""`whitebox explore`: what cannot be done is one line, before any work; what is left out is said in the page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_runs import configured, tiny_model, tiny_run

from whitebox.engine.checkpoint import save_model

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explore")
    tiny_run(folder / "sa")
    tiny_run(folder / "linear", "segmenter-linear-tiny")
    config = configured("depict-sa-tiny")
    model = tiny_model(config, classes=tuple("abcdefghi"))
    save_model(folder / "other" / "model.safetensors", model, config)
    many = configured("depict-sa-tiny", decoder__layers=24, decoder__heads=4)
    save_model(folder / "deep" / "model.safetensors", tiny_model(many, classes=tuple(map(str, range(150)))), many)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    (folder / "broken.png").write_bytes((folder / "photo.png").read_bytes()[:200])
    (folder / "empty").mkdir()
    (folder / "bad" / "records").mkdir(parents=True)
    (folder / "bad" / "records" / "x.json").write_text("{}")
    return folder


@pytest.fixture(autouse=True)
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)


def content(page: Path) -> Any:
    stored = re.search(r'id="data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)
    assert stored is not None
    return json.loads(stored[1])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("sa", "There are no records below sa: measure something there, or name a photo"),
        ("empty", "There are no records below empty"),
        ("nothing-there", "nothing-there is no folder of records, and no photo is named"),
        ("bad", "is not a results record"),
        ("sa missing.png", "missing.png"),
        ("sa broken.png", "broken.png"),
        ("nothing-there photo.png", "nothing-there"),
        ("sa other photo.png", "has other classes"),
        ("sa photo.png --budget 0", "--budget"),
        ("sa photo.png -o empty", "it is a folder; name a file"),
        ("sa photo.png -o photo.png/page.html", "Cannot write photo.png/page.html"),
        ("sa photo.png --truth a.png --truth b.png", "1 photos and 2 labels"),
        ("sa photo.png --truth missing.png", "missing.png"),
    ],
)
def test_one_line(call: Call, arguments: str, said: str) -> None:
    code, _, err = call("explore", *arguments.split(), *([] if "-o" in arguments else ["-o", "never.html"]))
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code != 0 and len(lines) == 1 and said in lines[0]
    assert not Path("never.html").exists()


def test_a_decoder_without_layers_says_what_it_lacks(call: Call, made: Path) -> None:
    assert call("explore", "linear", "photo.png", "-o", "linear.html")[0] == 0
    (run,) = content(made / "linear.html")["runs"]
    assert run["subspaces"] == [] and run["cosines"] is None
    assert run["looks"][0]["cases"] == [] and run["looks"][0]["depths"] == []


def test_many_layers_and_classes(call: Call, made: Path) -> None:
    code, out, err = call("explore", "deep", "photo.png", "-o", "deep.html", "--budget", "0.1")
    assert code == 0, err
    found = content(made / "deep.html")
    look = found["runs"][0]["looks"][0]
    assert len(look["chosen"]) <= 24
    assert [case["head"] for case in look["cases"]] == [None] * 24
    assert "96 heads are too many" in " ".join(found["runs"][0]["notes"])
    assert len(look["attention"]) < 24 and "Left out to stay below 0.1 MB" in found["words"][0]
    assert out.startswith("deep.html: ")


def test_what_was_measured_stands_beside(call: Call, made: Path) -> None:
    assert call("ablate", "sa", "--limit", "2", "--draws", "1", "-o", "elsewhere")[0] == 0
    assert call("explore", "sa", "photo.png", "--records", "elsewhere", "-o", "with.html")[0] == 0
    (run,) = content(made / "with.html")["runs"]
    layers = {(row["layer"], row["head"]) for row in run["causes"]["variants"]}
    assert ("decoder.layers.0", None) in layers and ("decoder.layers.2", 1) in layers
    assert call("explore", "linear", "photo.png", "--records", "elsewhere", "-o", "without.html")[0] == 0
    assert content(made / "without.html")["runs"][0]["causes"] is None
