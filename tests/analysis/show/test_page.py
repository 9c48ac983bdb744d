"""`whitebox explore` in a real browser: maps equal Python's, pointers are linked, keys work, nothing is asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browsing import browser as a_browser
from browsing import visit
from conftest import REPOSITORY
from PIL import Image
from tiny_runs import configured, tiny_model
from typer.testing import CliRunner

from analysis.maths.attention import token_rows
from analysis.measures.samples import open_photo
from analysis.show.explorer import colours
from whitebox.cli import app
from whitebox.engine.checkpoint import save_model
from whitebox.models import record
from whitebox.models.attention import CBSA
from whitebox.runs import open_run

AWKWARD = "<script>alert(1)</script>"
CLASSES = ("background", AWKWARD, "square", "<b>bold</b>", 'quo"te', "cross", "x" * 90)
CHANGES: dict[str, dict[str, Any]] = {
    "depict-sa": {},
    "depict-ca": {},
    "cbsa": {"decoder__pool": 2},
    "crate": {},
    "tost": {},
    "segmenter-mask": {"decoder__heads": 2},
    "segmenter-linear": {},
    "segvit": {"decoder__heads": 2, "decoder__encoder_layers": [0, 1]},
}


ROWS = """([layer, query, patches]) =>
  whitebox.mapsOf(whitebox.runs[0].looks[0].attention[layer], query, patches).map((map) => Array.from(map))"""
PHOTO = """async () => {
  const shown = document.querySelector("#photo canvas.photo"), image = new Image();
  const canvas = document.createElement("canvas");
  image.src = JSON.parse(document.getElementById("data").textContent).photos[0].picture;
  await image.decode();
  canvas.width = shown.width; canvas.height = shown.height;
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  window.photoAlone = canvas;
}"""
PIXELS = """([canvas, h, w]) => {  // one of each patch, beside its middle
  const found = canvas === "photoAlone" ? window.photoAlone : document.querySelector("#photo canvas.photo");
  const at = (place, count, side) => Math.floor((place + 0.8) * side / count);
  return Array.from({length: h * w}, (_, n) => Array.from(found.getContext("2d").getImageData(
    at(n % w, w, found.width), at(Math.floor(n / w), h, found.height), 1, 1).data));
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with a_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    for name, changes in CHANGES.items():
        config = configured(f"{name}-tiny", **changes)
        save_model(root / name / "model.safetensors", tiny_model(config, classes=CLASSES), config)
    generator = np.random.default_rng(0)
    for name in ("photo.png", "other.png"):
        coarse = Image.fromarray(generator.integers(0, 256, (6, 9, 3), dtype=np.uint8))
        coarse.resize((96, 64), Image.Resampling.BICUBIC).save(root / name)
    Image.fromarray((np.arange(64 * 96).reshape(64, 96) // 900).astype(np.uint8)).save(root / "label.png")
    return root


def made(folder: Path, *arguments: object) -> Path:
    page = folder / f"{abs(hash(arguments))}.html"
    if not page.exists():
        done = CliRunner().invoke(app, ["explore", *map(str, arguments), "-o", str(page), "--device", "cpu"])
        assert done.exit_code == 0, done.output or done.exception
    return page


def violations(axe: Any, seen: Any) -> list[Any]:
    """Of the rules of axe-core, and what breaks them."""
    found = axe.Axe().run(seen.page).response["violations"]
    return [(each["id"], [node["html"][:120] for node in each["nodes"][:3]]) for each in found]


def quiet(seen: Any) -> None:
    assert seen.complaints == [] and seen.requests == []


@pytest.mark.parametrize("name", CHANGES)
def test_rows_are_pythons(browser: Any, folder: Path, name: str) -> None:
    """Every row of every head, of patches and of class embeddings, to 1e-2 of the row's largest value."""
    page = made(folder, folder / name, folder / "photo.png")
    run = open_run(folder / name, device="cpu")
    pixels = open_photo(folder / "photo.png", run).pixels_13hw
    K = run.model.num_classes
    with visit(browser, page) as seen:
        layers = seen.page.evaluate("whitebox.runs[0].looks[0].attention.map(({name, of}) => ({name, of}))")
        (h, w) = seen.page.evaluate("whitebox.runs[0].looks[0].grid")
        N = h * w
        compared = 0
        for index, layer in enumerate(layers):
            if layer["of"] in ("membership", "class token"):
                continue
            tap = f"{layer['name']}.attention"
            with torch.inference_mode(), record(run.model, tap) as heard:
                run.model.masks(pixels)
            weights_HMC = heard[tap][0].float()
            front = run.model.encoder.prefix_tokens if tap.startswith("encoder") else 0
            through = isinstance(run.model.get_submodule(layer["name"]), CBSA) if tap.startswith("decoder") else False
            queries = [] if layer["of"] == "classes" else [({"patch": n}, front + n) for n in range(N)]
            if tap.startswith("decoder"):
                first = 0 if layer["of"] == "classes" else N
                queries += [({"cls": k}, first + k) for k in range(K)] if layer["of"] != "patches" else []
            for query, row in queries:
                maps_HN = torch.tensor(seen.page.evaluate(ROWS, [index, query, N]))
                row_HC = token_rows(weights_HMC, row, through)
                first = front if layer["of"] != "classes" else row_HC.shape[1] - N
                off_HN = (maps_HN - row_HC[:, first : first + N]).abs() / row_HC.amax(-1, keepdim=True)
                assert off_HN.max() <= 1e-2, (layer, query)
                compared += 1
        assert compared > 0
        quiet(seen)


def test_the_map_under_the_pointer(browser: Any, folder: Path) -> None:
    """Pixel values: the colour of the attention of the patch that is pointed at, over the grey photo."""
    page = made(folder, folder / "depict-sa", folder / "photo.png")
    run = open_run(folder / "depict-sa", device="cpu")
    photo = open_photo(folder / "photo.png", run)
    (h, w), tap = photo.grid, "decoder.layers.2.attention"
    with torch.inference_mode(), record(run.model, tap) as heard:
        run.model.masks(photo.pixels_13hw)
    with visit(browser, page) as seen:
        canvas = seen.page.locator("#photo canvas.photo")
        box = canvas.bounding_box()
        row, column, head = 1, 2, 1
        seen.page.keyboard.press("1")
        seen.page.mouse.move(box["x"] + (column + 0.5) * box["width"] / w, box["y"] + (row + 0.5) * box["height"] / h)
        assert f"Patch {row}, {column}" in seen.page.locator("#photo .said").inner_text()
        quiet(seen)  # before the test reads pixels, which chromium warns of
        drawn_N4 = np.array(seen.page.evaluate(PIXELS, ["shown", h, w]))
        seen.page.evaluate(PHOTO)
        photo_N4 = np.array(seen.page.evaluate(PIXELS, ["photoAlone", h, w]))
        row_N = heard[tap][0, head, row * w + column, : h * w].numpy()
        level_N = np.rint(255 * row_N / row_N.max()).astype(int)
        alpha_N1 = (0.35 + 0.55 * level_N / 255)[:, None]
        wanted_N3 = alpha_N1 * colours()[level_N] + (1 - alpha_N1) * (photo_N4[:, :3] @ [0.299, 0.587, 0.114])[:, None]
        own = row * w + column  # its outline may lie there
        apart_N = np.abs(drawn_N4[:, :3] - wanted_N3).max(1)
        assert np.delete(apart_N, own).max() <= 8


def test_keys(browser: Any, folder: Path) -> None:
    page = made(folder, folder / "depict-sa", folder / "photo.png")
    with visit(browser, page) as seen:
        said, keyboard = seen.page.locator("#photo .said"), seen.page.keyboard
        seen.page.locator("#photo canvas.photo").focus()
        keyboard.press("ArrowUp")
        first = said.inner_text()
        keyboard.press("ArrowLeft")
        assert said.inner_text() != first and seen.page.evaluate("whitebox.state.pinned")
        keyboard.press("2")
        assert "head 2" in said.inner_text()
        keyboard.press("m")
        assert "mean of 3 heads" in said.inner_text()
        keyboard.press("-")
        assert "layers.1" in said.inner_text()
        keyboard.press("+")
        keyboard.press("+")
        assert "encoder" in said.inner_text()
        keyboard.press("Escape")
        assert not seen.page.evaluate("whitebox.state.pinned")
        quiet(seen)


def test_a_class_of_the_legend_and_its_name(browser: Any, folder: Path) -> None:
    page = made(folder, folder / "depict-sa", folder / "photo.png", "--truth", folder / "label.png")
    with visit(browser, page) as seen:
        button = seen.page.locator("#photo .legend button", has_text=AWKWARD)
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        assert f"Class {AWKWARD}." in seen.page.locator("#photo .said").inner_text()
        assert AWKWARD in seen.page.locator("#photo .view").inner_text()
        assert (
            seen.page.get_by_label("The class at each depth").locator("button").count() == 4
        )  # before, after each layer
        for show in ("label", "difference", "prediction", "photo", "attention"):
            seen.page.locator(f"[data-show={show}]").click()
        quiet(seen)


def test_two_runs_are_linked(browser: Any, folder: Path) -> None:
    page = made(folder, folder / "depict-sa", folder / "cbsa", folder / "photo.png", folder / "other.png")
    with visit(browser, page) as seen:
        canvases = seen.page.locator("#photo canvas.photo")
        assert canvases.count() == 2
        box = canvases.nth(0).bounding_box()
        seen.page.mouse.click(box["x"] + 5, box["y"] + 5)
        assert [text[:11] for text in seen.page.locator("#photo .said").all_inner_texts()] == ["Patch 0, 0:"] * 2
        seen.page.locator("[data-photo='1']").click()
        seen.page.wait_for_function("whitebox.state.photo === 1")
        assert canvases.nth(1).get_attribute("aria-label") == "cbsa: other"
        quiet(seen)


def test_sliders_and_switches(browser: Any, folder: Path) -> None:
    page = made(folder, folder / "depict-sa", folder / "photo.png")
    with visit(browser, page) as seen:
        seen.page.locator("#layers input[type=range]").fill("0")
        assert "input" in seen.page.locator("#layers output").inner_text()
        seen.page.locator("#noise input[type=range]").fill("8")
        assert "σ = 2.0" in seen.page.locator("#noise .said").inner_text()
        changed = json.loads(
            seen.page.evaluate("JSON.stringify(Array.from(whitebox.runs[0].looks[0].cases[0].labels.data))")
        )
        seen.page.locator("#causes button.switch").first.click()
        share = 100 * np.mean(
            np.array(changed) != np.array(seen.page.evaluate("Array.from(whitebox.runs[0].looks[0].patches.data)"))
        )
        assert f"{float(share):.3g}".rstrip("0") in seen.page.locator("#causes .said").inner_text() or share == 0
        quiet(seen)


def test_the_page_of_the_docs(browser: Any) -> None:
    """It runs, and all heads of its table of causes are in sight."""
    with visit(browser, REPOSITORY / "docs" / "explorer-example.html", width=1180) as seen:
        table = seen.page.locator("#causes .wide")
        assert table.evaluate("place => place.scrollWidth <= place.clientWidth")
        cell = seen.page.locator("#causes button.switch small").first
        assert cell.inner_text().startswith("[") and cell.inner_text().endswith("]")
        quiet(seen)


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible_and_as_wide_as_the_screen(browser: Any, folder: Path, width: int, scheme: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra test")
    page = made(folder, folder / "depict-sa", folder / "cbsa", folder / "photo.png", "--truth", folder / "label.png")
    with visit(browser, page, width=width, color_scheme=scheme) as seen:
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
        assert violations(axe, seen) == []


def test_study(browser: Any, tmp_path: Path) -> None:
    """Of the committed records of CamVid, no model needed."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra test")
    for name in ("rank_analysis-camvid-val-[0-9a-f]*", "parameter_noise-camvid-val-decoder-*"):
        for path in (REPOSITORY / "results" / "camvid").glob(f"*/records/{name}.json"):
            target = tmp_path / "study" / path.parent.parent.name / "records" / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    done = CliRunner().invoke(app, ["explore", str(tmp_path / "study"), "-o", str(tmp_path / "study.html")])
    assert done.exit_code == 0, done.output
    with visit(browser, tmp_path / "study.html") as seen:
        place = seen.page.locator("#kind-rank-analysis details").first
        rows = place.locator("tbody tr")
        first = [text.split("\t") for text in rows.all_inner_texts()]
        place.locator("th button").nth(2).click()  # largest first
        rates = [float(text.split("\t")[2].split()[0]) for text in rows.all_inner_texts()]
        assert rates == sorted(rates, reverse=True) and len(rates) == len(first)
        place.locator("button.value").first.click()
        dialog = seen.page.locator("dialog")
        assert "whitebox rank-analysis" in dialog.inner_text() and "Commit" in dialog.inner_text()
        assert (tmp_path / str(dialog.locator("a").get_attribute("href"))).is_file()
        dialog.locator("button").click()
        models = {row[0] for row in first}
        seen.page.locator(".filter label", has_text=sorted(models)[0]).locator("input").uncheck()
        assert {text.split("\t")[0] for text in rows.all_inner_texts()} == models - {sorted(models)[0]}
        with seen.page.expect_download() as saved:
            place.locator("button", has_text="Download").click()
        assert sorted(models)[0] in Path(saved.value.path()).read_text()
        dot = seen.page.locator("#kind-parameter-noise circle.dot").nth(3)
        dot.hover()
        assert "[" in seen.page.locator("#kind-parameter-noise .said").first.inner_text()  # its interval
        assert violations(axe, seen) == []
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= 1280
        quiet(seen)
