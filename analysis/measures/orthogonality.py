"""How orthogonal subspaces and class embeddings are: heat maps of U U^T and Q Q^T, and numbers beside random matrices.

Sources: arXiv 2411.03033 (DEPICT), figures 5, 6, 8 and its appendix. As there, a black-box layer shows its query
projection, the class embeddings are normalised, the bases are not. The learned class embeddings need no image. What a
derivation calls an orthonormal basis of the principal subspace are the embeddings *after* the decoder, which depend on
the image: they are measured on request. Which of the two the paper's figures show is not known to us.

Layout of ``measured``::

    {"layers": [{"name": "decoder.layers.0", "heads": 3, "dim": 100, "width": 192, "numbers": {"deviation": 0.4, ...},
                 "random": {"deviation": {"value", "low", "high"}, ...}, "unit": 0.5, "gram": PACKED}, ...],
     "classes": {"names": [...], "width": 192, "random": {...}, "learned": {"numbers": {"cosine": 0.1, ...},
                 "cosines": PACKED}, "after": {"numbers": {"cosine": {"value", "low", "high"}, ...},
                 "cosines": PACKED}},
     "notes": [...]}

``gram`` is U U^T in units of ``unit``, the mean of its diagonal; PACKED: see `packed`. Without class embeddings
``classes`` is null, without images ``after`` is absent.

Shapes: H heads, P dimensions of a subspace, D width, K classes, M rows, B windows of an image.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from analysis.maths.intervals import RESAMPLES, estimates
from analysis.maths.subspaces import Array, class_numbers, gram, head_numbers, random_numbers, unit_rows
from analysis.measures.images import Progress, Samples
from analysis.record import Data, Record, describe_weights, fingerprint, new_record
from analysis.show.figures import PAGE, figure_style, new_figure, save_figure
from analysis.show.tables import Cell, Column, Table, stored_cell
from whitebox.errors import ConfigError, ModelError
from whitebox.models.attention import subspace_layers
from whitebox.models.taps import record, tap_names
from whitebox.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

DRAWS = 100  # of random matrices
_ABREAST = 4  # heat maps of classes side by side, at most
_LEVELS = 127  # of a packed heat map, on each side of 0


def measure(
    run: Run,
    *,
    after: bool = False,
    draws: int = DRAWS,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    advance: Progress | None = None,
) -> Record:
    """Measure the subspaces of all layers and the class embeddings of a run.

    Args:
        after: also the class embeddings after the decoder, on the images of ``split`` (None: validation), the first
            ``limit``; otherwise no image is read.
        draws: random matrices of each shape.
        seed: of the draws, and of the bootstrap over images.

    Raises:
        ConfigError: ``draws`` below 2, or images are chosen that ``after`` does not ask for.
        ModelError: weights that are NaN or infinite.
        DataError: an image cannot be read.
    """
    if draws < 2:
        raise ConfigError(f"--draws {draws} is impossible: an interval needs at least 2.")
    if not after and (split is not None or limit is not None):
        raise ConfigError("--split and --limit choose images, but the weights alone are measured: add --after.")

    @cache
    def random_heads(*shape: int) -> dict[str, dict[str, float]]:
        return random_numbers(head_numbers, shape, draws, seed)

    notes: dict[str, None] = {}  # each once, in order
    layers = []
    found = {name: layer.bases for name, layer in subspace_layers(run.model).items()}
    for done, (name, bases) in enumerate(found.items(), start=1):
        bases_HPD = _finite(bases.detach().cpu().double().numpy(), name, run)
        H, P, D = bases_HPD.shape
        gram_MM = gram(bases_HPD)
        unit = float(np.trace(gram_MM)) / len(gram_MM)
        layers.append(
            {
                "name": name,
                "heads": H,
                "dim": P,
                "width": D,
                "numbers": head_numbers(bases_HPD),
                "random": random_heads(H, P, D),
                "unit": unit,
                "gram": packed(gram_MM / unit if unit else gram_MM),
            }
        )
        if H * P > D:
            notes[_overlap_note(H, P, D)] = None
        if advance is not None and not after:
            advance(done, len(found))
    if not layers:
        notes["has no subspaces: nothing to measure in its layers."] = None

    data, shown = Data(run.config.data.name, "", 0, fingerprint([])), {}  # weights alone
    classes = None
    if not hasattr(run.model.decoder, "class_embeddings"):
        notes["has no class embeddings."] = None
    else:
        learned_1KD = cast(Tensor, run.model.decoder.class_embeddings).detach()
        learned_KD = _finite(learned_1KD[0].cpu().double().numpy(), "the class embeddings", run)
        classes = {
            "names": list(run.model.classes),
            "width": learned_KD.shape[1],
            "random": random_numbers(class_numbers, learned_KD.shape, draws, seed),
            "learned": {"numbers": class_numbers(learned_KD), "cosines": packed(_cosines(learned_KD))},
        }
        tap = tap_after(run.model)
        if after and tap is not None:
            samples = Samples(run, split, limit)
            data, shown = samples.data, samples.settings
            classes["after"] = _after(run, tap, samples, seed, advance)
        elif after:
            notes["has no tap of class embeddings after its decoder."] = None
    return new_record(
        "orthogonality",
        model=run.name,
        data=data,
        measured={"layers": layers, "classes": classes, "notes": list(notes)},
        n=draws,  # of the random matrices; images are counted in data
        weights=describe_weights(run.weights),
        variant="after" if after else "",
        seeds={"random": seed, "bootstrap": seed},
        settings={**shown, "draws": draws, "resamples": RESAMPLES},
    )


def tap_after(model: nn.Module) -> str | None:
    """Where class embeddings leave a decoder: as masks compare them, else after the last cross-attention (SegViT)."""
    taps = tap_names(model)
    if "decoder.classes" in taps:
        return "decoder.classes"
    return next((name for name in reversed(taps) if fnmatchcase(name, "decoder.cross_layers.*.tokens")), None)


@torch.inference_mode()
def _after(run: Run, tap: str, samples: Samples, seed: int, advance: Progress | None) -> dict[str, Any]:
    """The class embeddings that ``tap`` gives: numbers of each window, meaned over an image's windows."""
    rows: list[dict[str, float]] = []
    sum_KK = np.zeros((run.model.num_classes, run.model.num_classes))
    for sample in samples.each(advance):
        with record(run.model, tap) as activations:
            run.model.masks(sample.pixels_B3HW)
        q_BKD = _finite(activations[tap].cpu().double().numpy(), f"{tap} of {sample.name}", run)
        windows = [class_numbers(q_KD) for q_KD in q_BKD]
        rows.append({name: float(np.mean([window[name] for window in windows])) for name in windows[0]})
        sum_KK += np.mean([_cosines(q_KD) for q_KD in q_BKD], axis=0)
    return {
        "numbers": {name: estimates([row[name] for row in rows], seed=seed) for name in rows[0]},
        "cosines": packed(sum_KK / len(samples)),
    }


def _cosines(q_KD: Array) -> Array:
    unit_KD = unit_rows(q_KD)
    return np.asarray(unit_KD @ unit_KD.T)


def _finite(values: Array, what: str, run: Run) -> Array:
    if not np.isfinite(values).all():
        raise ModelError(f"NaN or infinite values in {what} of {run.name}: look at its weights and at its training.")
    return values


def _overlap_note(heads: int, dim: int, width: int) -> str:
    together = f"{heads} heads of {dim} dimensions are more than the width {width}, so they cannot all be orthogonal"
    shared = 2 * dim - width
    if heads < 2 or shared <= 0:
        return f"{together}."
    return f"{together}; of the {dim} angles between two heads at least {shared} are 0."


def packed(symmetric_MM: Array) -> dict[str, Any]:
    """A symmetric matrix for a heat map: its upper triangle, row by row, as bytes in base64, in steps of peak / 127.

    Tables hold numbers of the full matrix; the packed one is for looking at.
    """
    peak = float(np.abs(symmetric_MM).max())
    triangle = symmetric_MM[np.triu_indices(len(symmetric_MM))]
    levels = np.rint(triangle / (peak or 1.0) * _LEVELS).astype(np.int8)
    return {"side": len(symmetric_MM), "peak": peak, "values": base64.b64encode(levels.tobytes()).decode("ascii")}


def unpacked(stored: Mapping[str, Any]) -> Array:
    """The matrix that `packed` was given, to a half step."""
    levels = np.frombuffer(base64.b64decode(stored["values"]), np.int8).astype(np.float64)
    matrix = np.zeros((stored["side"], stored["side"]))
    matrix[np.triu_indices(stored["side"])] = levels * (stored["peak"] / _LEVELS)
    return np.triu(matrix) + np.triu(matrix, 1).T


# ---- rendering -------------------------------------------------------------------------------------------------------

_HEADS = {
    "deviation": Column("Deviation", 2),
    "condition": Column("Condition", 1),
    "overlap": Column("Overlap", 2),
    "angle": Column("Mean angle", 1),
    "smallest_angle": Column("Smallest angle", 1),
}
_CLASSES = {
    "deviation": Column("Deviation", 2),
    "cosine": Column("Mean |cos|", 3),
    "largest_cosine": Column("Max |cos|", 2),
    "condition": Column("Condition", 1),
}
_STATES = {"learned": "learned", "after": "after the decoder"}


def render(records: Sequence[Record], stem: Path) -> dict[str, Table]:
    """Heat maps ``STEM-subspaces`` and ``STEM-classes``, and a table for each; see `analysis.show.render`."""
    tables = {}
    layered = [each for each in records if each.measured["layers"]]
    if layered:
        _draw_subspaces(layered, stem.with_name(f"{stem.name}-subspaces"))
        tables["-subspaces"] = _subspaces_table(layered)
    classed = [each for each in records if each.measured["classes"]]
    if classed:
        _draw_classes(classed, stem.with_name(f"{stem.name}-classes"))
        tables["-classes"] = _classes_table(classed)
    return tables


def _subspaces_table(records: Sequence[Record]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    random: dict[str, tuple[Cell, ...]] = {}
    for each in records:
        for layer in each.measured["layers"]:
            shape = f"{layer['heads']} x {layer['dim']} of {layer['width']}"
            rows.append((each.model, layer["name"].removeprefix("decoder."), shape, *_cells(_HEADS, layer["numbers"])))
            random[shape] = ("random", None, shape, *_cells(_HEADS, layer["random"]))
    caption = (
        "Subspaces U_h (Segmenter: query projection), means over heads or pairs of heads. Deviation: |G - cI| / |G| of "
        "a head's G = U_h U_h^T, c = trace / P (0: orthogonal rows of one length). Condition: of U_h. Overlap: cosine "
        "between U_h^T U_h and U_g^T U_g (0: orthogonal heads). Mean angle: of all principal angles between two heads, "
        f"degrees (90: orthogonal). Smallest angle: of all pairs. {_random_caption(records[0])}"
    )
    columns = (Column("Model"), Column("Layer"), Column("Subspaces"), *_HEADS.values())
    return Table(columns, (*rows, *random.values()), caption, summary_rows=len(random))


def _classes_table(records: Sequence[Record]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    random: dict[str, tuple[Cell, ...]] = {}
    caption = (
        "Class embeddings Q as unit vectors. Deviation: |C - I| / |C| of their cosines C (0: orthonormal). |cos|: of "
        f"two classes. Condition: of Q. {_random_caption(records[0])}"
    )
    for each in records:
        classes = each.measured["classes"]
        shape = f"{len(classes['names'])} in {classes['width']}"
        random[shape] = ("random", None, shape, *_cells(_CLASSES, classes["random"]))
        for state, title in _STATES.items():
            if state in classes:
                rows.append((each.model, title, shape, *_cells(_CLASSES, classes[state]["numbers"])))
    seen = [each for each in records if "after" in each.measured["classes"]]
    if seen:
        data, settings, seeds = seen[0].data, seen[0].settings, seen[0].seeds
        caption += (
            f" After the decoder: mean over {data.images} images of {data.name} {data.split} [95 % interval over "
            f"images, {settings['resamples']} bootstrap resamples, seed {seeds['bootstrap']}]."
        )
    columns = (Column("Model"), Column("Q"), Column("Shape"), *_CLASSES.values())
    return Table(columns, (*rows, *random.values()), caption, summary_rows=len(random))


def _cells(columns: Mapping[str, Column], numbers: Mapping[str, Any]) -> list[Cell]:
    return [stored_cell(numbers[name]) for name in columns]


def _random_caption(first: Record) -> str:
    return (
        f"random: mean [2.5 %, 97.5 % percentile] of {first.settings['draws']} standard normal matrices of the same "
        f"shape, seed {first.seeds['random']}."
    )


def _draw_subspaces(records: Sequence[Record], stem: Path) -> None:
    """A line of three layers after another, a model begins a new line."""
    lines = [
        (each.model, each.measured["layers"][start : start + 3])
        for each in records
        for start in range(0, len(each.measured["layers"]), 3)
    ]
    with figure_style():
        figure = new_figure(0.3 + 1.72 * len(lines), 5.4)
        panels = figure.subplots(len(lines), 3, squeeze=False)
        for row, (model, layers) in zip(panels, lines, strict=True):
            for axes in row:
                axes.set_axis_off()
            for axes, layer in zip(row, layers, strict=False):
                image = _heat_map(axes, layer["gram"], limit=0.5)
                axes.set_title(
                    f"{model}\n{layer['name'].removeprefix('decoder.')}, unit {layer['unit']:.2g}", fontsize=6.5
                )
                _heads(axes, layer["heads"], layer["dim"])
        bar = figure.colorbar(image, ax=panels, shrink=0.6, aspect=30, extend="both")
        bar.set_label("U Uᵀ of all heads, in units of the mean of its diagonal")
        save_figure(figure, stem, dpi=150)  # what looks like noise does not compress


def _heads(axes: Axes, heads: int, dim: int) -> None:
    """Boundaries between heads, and their indices."""
    for boundary in range(1, heads):
        for line in (axes.axhline, axes.axvline):
            line(dim * boundary - 0.5, color="0.2", linewidth=0.4)
    centres = [dim * (head + 0.5) - 0.5 for head in range(heads)]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(centres, [f"{head}" if heads <= 8 else "" for head in range(heads)], fontsize=6)
    axes.set_xlabel("head", fontsize=6, labelpad=1)


def _draw_classes(records: Sequence[Record], stem: Path) -> None:
    """Models side by side: learned embeddings, and below them those after the decoder, where there are any."""
    states = [state for state in _STATES if any(state in each.measured["classes"] for each in records)]
    columns = min(_ABREAST, max(2, len(records)))
    lines = len(states) * math.ceil(len(records) / columns)
    with figure_style():
        figure = new_figure(0.6 + ((PAGE - 1.6) / columns + 0.35) * lines, PAGE)
        panels = figure.subplots(lines, columns, squeeze=False)
        for axes in panels.flat:
            axes.set_axis_off()
        for number, each in enumerate(records):
            block, column = divmod(number, columns)
            classes = each.measured["classes"]
            for index, state in enumerate(states):
                axes = panels[block * len(states) + index, column]
                if state in classes:
                    image = _heat_map(axes, classes[state]["cosines"], limit=1)
                    images = f", {each.data.images} images" if state == "after" else ""
                    axes.set_title(f"{each.model}\n{_STATES[state]}{images}", fontsize=7 if columns < _ABREAST else 6)
                    names = classes["names"] if len(classes["names"]) <= 30 else []
                    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=5)
                    axes.set_yticks(range(len(names)), names, fontsize=5)
                    axes.label_outer()
        bar = figure.colorbar(image, ax=panels, shrink=0.6, aspect=30)
        bar.set_label("cosine between class embeddings")
        save_figure(figure, stem)


def _heat_map(axes: Axes, stored: Mapping[str, Any], limit: float) -> AxesImage:
    axes.set_axis_on()
    axes.grid(visible=False)
    axes.tick_params(length=0, pad=1)
    return axes.imshow(unpacked(stored), cmap="RdBu_r", vmin=-limit, vmax=limit)
