"""One HTML file that looks into decoders: made of looks (`analysis.measures.look`) and records, it loads nothing.

Its code is in ``page/``: plain modules of JavaScript that are put one after another, and a style. A content security
policy lets nothing run but these, by their hashes, and nothing be loaded but pictures that are in the file. Text of
others (names of classes, files and runs) goes in as JSON, in which ``<`` is a code, and becomes text there, never HTML.

Arrays are base64 of deflated little-endian numbers; of several bytes all first ones come first, and so on, and int16
has its sign in the last bit (0, -1, 1, -2, ... are 0, 1, 2, 3, ...), so that what is small deflates well.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from html import escape, unescape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from analysis.maths.levels import TARGETS
from analysis.record import Record, RecordError
from analysis.show.spread import interval_words
from whitebox.files import write_text
from whitebox.text import shown

PAGE = Path(__file__).parent / "page"
MODULES = (  # each comes after what it takes from
    *(
        "data",
        "attention",
        "dom",
        "state",
        "canvas",
        "chart",
        "photo",
        "layers",
        "subspaces",
        "changes",
        "study",
        "main",
    ),
)
BUDGET = 3.0  # MB of a photo in a run
_JPEG = 85  # quality of the photo
_COLOURS = "inferno"  # of maps, as in figures


def write_page(path: Path, title: str, content: Mapping[str, Any]) -> Path:
    """Write a page of packed content (`packed`).

    Raises:
        OutputError: it cannot be written.
    """
    style, script = (PAGE / "page.css").read_text("utf-8"), bundled()
    data = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    data = data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    parts = {
        "title": escape(shown(title)),
        "style": style,
        "style_hash": _hash(style),
        "script": script,
        "script_hash": _hash(script),
        "data": data.encode(errors="replace").decode(),  # half characters of file names
    }
    template = (PAGE / "page.html").read_text("utf-8")
    return write_text(path, re.sub(r"\{(\w+)\}", lambda place: parts[place[1]], template))


def renewed(page: Path, path: Path) -> Path:
    """Write what a page holds again, with the code of today around it.

    Raises:
        RecordError: it is no such page.
        OutputError: it cannot be written.
    """
    text = page.read_text("utf-8")
    title = re.search(r"<title>(.*?)</title>", text, re.DOTALL)
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    if title is None or data is None:
        raise RecordError(f"{page} was not written by `whitebox explore`.")
    return write_page(path, unescape(title[1]), json.loads(data[1]))


def bundled() -> str:
    """The modules as one: without the lines that say what they give and take, since they share one scope."""
    parts = []
    for name in MODULES:
        text = (PAGE / f"{name}.js").read_text("utf-8")
        text = re.sub(r"^import .*?;\n", "", text, flags=re.MULTILINE)
        parts.append(re.sub(r"^export ", "", text, flags=re.MULTILINE))
    return "\n".join(parts)


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


_TYPES = {"float16": "f2", "float32": "f4", "int16": "i2", "uint8": "u1", "uint16": "u2"}


def packed(value: Any) -> Any:
    """Arrays (of the types above; of other numbers lists) and numbers as JSON; NaN and infinities become null."""
    if isinstance(value, np.ndarray):
        if value.dtype.name not in _TYPES:
            return packed(value.tolist())
        kind = _TYPES[value.dtype.name]
        if kind == "i2":
            value = ((value << 1) ^ (value >> 15)).view(np.uint16)
        data = np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<"), copy=False).view(np.uint8)
        planes = data.reshape(-1, value.dtype.itemsize).T.tobytes()
        text = base64.b64encode(zlib.compress(planes, 6)).decode("ascii")
        return {"t": kind, "s": list(value.shape), "d": text}
    if isinstance(value, Mapping):
        return {key: packed(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [packed(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def jpeg(image_HW3: NDArray[np.uint8]) -> str:
    """A photo as an address that holds it."""
    stream = io.BytesIO()
    Image.fromarray(image_HW3).save(stream, "JPEG", quality=_JPEG, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def colours() -> NDArray[np.uint8]:
    """The colours of maps, (256, 3)."""
    from matplotlib import colormaps

    return np.rint(255 * colormaps[_COLOURS](np.linspace(0, 1, 256))[:, :3]).astype(np.uint8)


# --- what fits -------------------------------------------------------------------------------------------------------


def fitted(look: Mapping[str, Any], budget: float) -> tuple[dict[str, Any], list[str]]:
    """A look, packed, in at most ``budget`` MB of text; and what had to be left out of it for that.

    Left out first is what can be done without: attention of the encoder, then maps of the classes at each depth, then
    predictions without heads; at last attention of the decoder's layers, those in the middle first.
    """
    found: dict[str, Any] = packed(look)
    left_out: list[str] = []
    steps: list[tuple[str, Callable[[], bool]]] = [
        (
            "attention of the encoder's patches",
            lambda: _without(found, lambda layer: _is(layer, "encoder.", "patches")),
        ),
        ("attention of the encoder's class token", lambda: _without(found, lambda layer: _is(layer, "encoder."))),
        ("the classes at each depth", lambda: _emptied(found, "depths") | _emptied(found, "stages")),
        ("predictions without heads", lambda: _whole_layers(found)),
    ]
    size = _size(found)
    for what, leave in steps:
        if size <= budget:
            return found, left_out
        if leave():
            left_out.append(what)
            size = _size(found)
    gone = []
    while size > budget and len(found["attention"]) > 1:
        gone.append(found["attention"].pop(len(found["attention"]) // 2)["name"])
        size = _size(found)
    if gone:
        left_out.append(f"attention of {', '.join(sorted(gone))}")
    return found, left_out


def _size(found: Any) -> float:
    """MB of the text."""
    return 1e-6 * len(json.dumps(found, separators=(",", ":")))


def _is(layer: Mapping[str, Any], start: str, of: str | None = None) -> bool:
    return layer["name"].startswith(start) and of in (None, layer["of"])


def _without(found: dict[str, Any], gone: Callable[[Mapping[str, Any]], bool]) -> bool:
    before = len(found["attention"])
    found["attention"] = [layer for layer in found["attention"] if not gone(layer)]
    return len(found["attention"]) < before


def _emptied(found: dict[str, Any], key: str) -> bool:
    had, found[key] = bool(found[key]), []
    return had


def _whole_layers(found: dict[str, Any]) -> bool:
    before = len(found["cases"])
    found["cases"] = [case for case in found["cases"] if case["head"] is None]
    return len(found["cases"]) < before


# --- what was measured of a run --------------------------------------------------------------------------------------


def measured_of(records: Sequence[Record]) -> dict[str, Any]:
    """What a page shows of a run's records: means of the data set along the layers, a noise curve, ablations.

    Of several records of a kind the newest counts.
    """
    ordered = sorted(records, key=lambda record: record.created)
    usual = {record.kind: record for record in ordered if not record.variant}
    against = {
        record.measured["of"]: record for record in ordered if record.kind == "against" and "of" in record.measured
    }
    return {
        "together": _together(usual, against),
        "noise": _noise(noise_record(records)),
        "causes": _causes(usual.get("ablate")),
    }


def noise_record(records: Sequence[Record]) -> Record | None:
    """The newest noise curve of parameters of the decoder, which predictions can be made for."""
    known = [record for record in records if record.kind == "parameter-noise" and record.measured.get("curve")]
    own = [record for record in known if record.settings["target"] not in ("all", "encoder", "input")]
    return max(own, key=lambda record: record.created, default=None)


_NAMES = {"R(Z) (nats)": "rate", "rate reduction (nats)": "reduction", "effective rank": "effective_rank"}


def _together(usual: Mapping[str, Record], against: Mapping[str, Record]) -> dict[str, Any] | None:
    layers: dict[str, dict[str, Any]] = {}
    words = []
    if ranks := usual.get("rank-analysis"):
        for layer in ranks.measured["layers"]:
            own = {key: layer.get(key) for key in ("rate", "reduction", "effective_rank", "zeros")}
            layers.setdefault(layer["name"], {"name": layer["name"]}).update(own)
        words.append(f"Rates and ranks: {_data(ranks)}; {interval_words(ranks)}.")
    if aligned := usual.get("alignment"):
        for layer in aligned.measured["layers"]:
            row = layers.setdefault(layer["name"], {"name": layer["name"]})
            row.setdefault("cosine", {})[layer["objective"]] = layer["cosine"]
        words.append(f"Cosines: {_data(aligned)}; {interval_words(aligned)}.")
    baseline: dict[str, dict[str, Any]] = {}
    for record in against.values():
        for each in record.measured["quantities"]:
            stored = each["against"].get("untrained")
            if stored is None:
                continue
            row = baseline.setdefault(each["place"], {"name": each["place"]})
            if each["name"] in _NAMES:
                row[_NAMES[each["name"]]] = stored
            elif each["name"] == "cosine" or each["name"].startswith("cosine, "):
                row.setdefault("cosine", {})[each["name"].partition(", ")[2] or "compression"] = stored
    if not layers and not baseline:
        return None
    return {"layers": list(layers.values()), "untrained": list(baseline.values()), "words": " ".join(words)}


def _data(record: Record) -> str:
    return f"{record.data.name} {record.data.split}, n = {record.n} images"


def _noise(record: Record | None) -> dict[str, Any] | None:
    if record is None:
        return None
    settings = record.settings
    return {
        "curve": [{"sigma": point["sigma"], "miou": point["miou"]} for point in record.measured["curve"]],
        "target": TARGETS[settings["target"]],
        "relative": settings["relative"],
        "data": f"{record.data.name} {record.data.split}",
        "words": f"{_data(record)}; mean of {settings['draws']} draws, 95 % interval over draws. {record.file_name}",
    }


def _causes(record: Record | None) -> dict[str, Any] | None:
    if record is None:
        return None
    rows = [
        row
        for row in record.measured["variants"]
        if row["kind"] == "head" or (row["kind"], row["number"]) == ("step", 0)
    ]
    return {
        "variants": [
            {"layer": row["layer"], "head": None if row["kind"] == "step" else int(row["number"]), "miou": row["miou"]}
            for row in rows
        ],
        "data": f"{record.data.name} {record.data.split}",
        "words": f"{_data(record)}; {interval_words(record)}. {record.file_name}",
    }
