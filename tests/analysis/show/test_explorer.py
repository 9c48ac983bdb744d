"""The page's file: what is in it comes out of it, nothing in it acts or is loaded, and what does not fit is said."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY

from analysis.record import RecordError
from analysis.show.explorer import MODULES, PAGE, bundled, fitted, measured_of, packed, renewed, write_page

AWKWARD = "</script><script>alert(1)</script><!-- & \u2028"


def unpacked(stored: Any) -> np.ndarray[Any, Any]:
    """The reverse of `packed`, as the page has it."""
    kind = "u2" if stored["t"] == "i2" else stored["t"]
    planes = np.frombuffer(zlib.decompress(base64.b64decode(stored["d"])), np.uint8).reshape(int(kind[1]), -1)
    values = planes.T.copy().view(f"<{kind}").reshape(stored["s"])
    return (values >> 1).astype(np.int16) ^ -(values & 1).astype(np.int16) if stored["t"] == "i2" else values


@pytest.mark.parametrize("kind", ["float16", "float32", "int16", "uint8", "uint16"])
def test_arrays_come_back(kind: str) -> None:
    values = (np.random.default_rng(0).random((3, 4, 5)) * 200).astype(kind)
    values = values - 100 if kind in ("int16", "float32") else values
    assert packed(values)["t"][0] == kind[0]
    for each in (values, values[:, ::2].transpose(1, 0, 2)):
        assert np.array_equal(unpacked(packed(each)), each)
    if kind == "int16":
        ends = np.array([-32768, -1, 0, 1, 32767], np.int16)
        assert np.array_equal(unpacked(packed(ends)), ends)


def test_other_numbers() -> None:
    assert packed({"a": float("nan"), "b": [1.5, float("inf")], "c": np.array([0.5, np.nan])}) == {
        "a": None,
        "b": [1.5, None],
        "c": [0.5, None],
    }


def test_text_of_others_stays_text(tmp_path: Path) -> None:
    path = write_page(tmp_path / "page.html", AWKWARD, {"kind": "runs", "name": AWKWARD, "half": "\udc80"})
    text = path.read_text("utf-8")
    assert text.count("<script") == 2 and text.count("</script>") == 2  # data and code
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert data is not None and "<" not in data[1]
    assert json.loads(data[1])["name"] == AWKWARD
    assert "alert(1)</script>" not in text.replace("&lt;", "")


def test_the_policy_lets_this_script_and_style_run_and_nothing_else(tmp_path: Path) -> None:
    text = write_page(tmp_path / "page.html", "a", {"kind": "runs"}).read_text("utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None and policy[1].startswith("default-src 'none'; ")
    for tag, rule in (('script type="module"', "script-src"), ("style", "style-src")):
        inside = re.search(rf"<{tag}>(.*?)</{tag.split()[0]}>", text, re.DOTALL)
        assert inside is not None
        digest = base64.b64encode(hashlib.sha256(inside[1].encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}'" in policy[1]
    assert "unsafe" not in policy[1] and "http" not in policy[1]


def test_the_page_of_the_docs_has_the_code_of_today(tmp_path: Path) -> None:
    """Script, style, policy and how data are written: else renew it, as CONTRIBUTING says."""
    page = REPOSITORY / "docs" / "explorer-example.html"
    assert renewed(page, tmp_path / "page.html").read_bytes() == page.read_bytes()


def test_a_page_is_written_again_with_its_title_and_its_data(tmp_path: Path) -> None:
    content = {"kind": "runs", "name": AWKWARD, "numbers": [0.1, 1e-7, None, 3], "letters": "äß–"}
    page = write_page(tmp_path / "page.html", AWKWARD, content)
    old = page.with_name("old.html")
    old.write_text(page.read_text("utf-8").replace(bundled(), "let old;"), "utf-8")
    assert renewed(old, tmp_path / "new.html").read_bytes() == page.read_bytes() != old.read_bytes()
    old.write_text("<html><title>another</title></html>")
    with pytest.raises(RecordError, match=r"old\.html was not written by `whitebox explore`"):
        renewed(old, tmp_path / "new.html")


def test_the_code_asks_for_nothing() -> None:
    code = bundled()
    assert not re.search(
        r"\b(fetch|XMLHttpRequest|WebSocket|EventSource|importScripts|eval|innerHTML|outerHTML)\b", code
    )
    assert not re.search(r"^\s*(import|export)\b", code, re.MULTILINE)
    assert {path.stem for path in PAGE.glob("*.js")} == set(MODULES)
    assert re.findall(r"https?://\S+", code) == ['http://www.w3.org/2000/svg",']  # a name, not an address


def test_names_of_the_modules_do_not_meet() -> None:
    names = re.findall(r"^(?:async )?(?:function|const|let|class) (\w+)", bundled(), re.MULTILINE)
    assert len(names) == len(set(names))


def look(layers: int, bytes_each: int) -> dict[str, Any]:
    noise = np.random.default_rng(0).integers(0, 256, bytes_each, dtype=np.uint8)
    attention = [{"name": f"decoder.layers.{index}", "of": "tokens", "keys": noise} for index in range(layers)]
    attention += [
        {"name": "encoder.layers.0", "of": "class token"},
        {"name": "encoder.layers.1", "of": "patches", "keys": noise},
    ]
    cases = [{"layer": "decoder.layers.0", "head": None}, {"layer": "decoder.layers.0", "head": 1}]
    return {"attention": attention, "depths": [1], "stages": [], "cases": cases}


def test_what_fits_stays() -> None:
    found, left_out = fitted(look(3, 1000), 1.0)
    assert left_out == [] and len(found["attention"]) == 5


def test_what_does_not_fit_is_left_out_and_said() -> None:
    found, left_out = fitted(look(3, 100_000), 0.45)
    assert left_out == ["attention of the encoder's patches"]
    found, left_out = fitted(look(24, 100_000), 0.45)
    assert found["attention"][0]["name"] == "decoder.layers.0"
    assert len(found["attention"]) <= 3
    assert left_out[:4] == [
        "attention of the encoder's patches",
        "attention of the encoder's class token",
        "the classes at each depth",
        "predictions without heads",
    ]
    assert "decoder.layers.12" in left_out[4]
    assert [case["head"] for case in found["cases"]] == [None]


def test_a_run_of_which_nothing_was_measured() -> None:
    assert measured_of([]) == {"together": None, "noise": None, "causes": None}
