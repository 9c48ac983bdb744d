"""Tables and figures of `analysis.measures.alignment`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.maths.conventions import MULTIPLES
from analysis.record import Record, RecordError
from analysis.show.figures import (
    PAGE,
    curves_behind,
    figure_style,
    legend_columns,
    new_figure,
    save_figure,
    trainings_behind,
)
from analysis.show.spread import behind_words, bootstrap_words, figure_words, shared_words
from analysis.show.tables import Cell, Column, Table, estimate, number, stored_cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def word(record: Record) -> str:
    """What tells records apart that share no figure, beside their variant: the distortion, in early records."""
    eps = f"eps_{record.settings['eps']:g}"
    return "" if record.settings["eps"] == 0.1 or eps in record.variant else eps


def tables(records: Sequence[Record]) -> dict[str, Table]:
    """Directions, changes, heads; class embeddings, sparse rates and other distortions where a decoder has them.

    Raises:
        RecordError: measured under different conventions or on different images.
    """
    _require_alike(records)
    layers = [(each.model, layer) for each in records for layer in each.measured["layers"]]
    if not layers:
        return {}
    compressing = [(model, layer) for model, layer in layers if _sense(layer) < 0]
    refining = [(model, layer) for model, layer in layers if layer["objective"] == "principal directions"]
    convention = _convention(records)
    found = {
        "": _directions_table(layers, convention),
        "-change": _change_table(compressing, convention),
        "-heads": _heads_table(layers, convention),
    }
    if refining:
        found["-classes"] = _classes_table(refining, convention)
    if sparse := [(model, layer) for model, layer in layers if "parts" in layer]:
        found["-sparse"] = _sparse_table(sparse, convention)
    if ranged := [(model, layer) for model, layer in layers if "range" in layer]:
        found["-range"] = _range_table(ranged, records[0].settings["distortions"], convention)
    return found


def figures(records: Sequence[Record], stem: Path) -> None:
    """Cosines and changes over eps at STEM; at one eps at ``STEM-directions``; along the update at ``STEM-steps``.

    Older records, of one eps, have their directions at STEM.

    Raises:
        RecordError: see `tables`.
    """
    _require_alike(records)
    if shown := [each for each in records if each.measured["layers"]]:
        ranged = [each for each in shown if any("range" in layer for layer in each.measured["layers"])]
        if ranged:
            _draw_range(ranged, stem)
        _draw_directions(shown, stem.with_name(f"{stem.name}-directions") if ranged else stem)
        _draw_steps(shown, stem.with_name(f"{stem.name}-steps"))


def _require_alike(records: Sequence[Record]) -> None:
    for key in ("eps", "at"):
        if len({each.settings[key] for each in records}) > 1:
            raise RecordError(f"These alignments were measured with different {key}; render them apart.")
    if any(each.data != records[0].data for each in records):
        raise RecordError("These alignments were measured on different images; render them apart.")


_Layers = Sequence[tuple[str, Mapping[str, Any]]]  # model, and an entry of measured["layers"]


def _directions_table(layers: _Layers, convention: str) -> Table:
    rows = [
        _row(
            model,
            layer,
            *(layer["cosine"], layer["random"]["cosine"], layer["derived"], layer["step"], layer["multiple"]),
        )
        for model, layer in layers
    ]
    bound = _DERIVED if not _one_objective(layers, "principal directions") else ""
    columns = (Column("Cosine", 3), Column("random", 3), Column("Derived", 3), Column("Step", 2), Column("Multiple", 2))
    caption = (
        "Cosine of a layer's update with the steepest way to improve its objective: lower R^c; for cross_layers, class "
        "embeddings inside the principal subspace of the patch tokens. 1: a perfect gradient step; below 0: the wrong "
        f"way. Derived: the same for softmax - 1, before -Z is dropped{bound}. Step: learned. Multiple: of the update, "
        f"best along its line in [{MULTIPLES[0]:.0f}, {MULTIPLES[-1]:.0f}]; 1: the learned step is optimal. "
        f"{convention}"
    )
    return Table((*_FIRST, *columns), tuple(rows), caption)


def _change_table(layers: _Layers, convention: str) -> Table:
    keys = ["before", "change", "random", "gradient", *_paths(layers), "best"]
    given = any("given" in layer for _, layer in layers)
    rows = [
        _row(
            model,
            layer,
            *(layer["random"]["change"] if key == "random" else layer[key] for key in keys),
            *([layer.get("given")] if given else []),
        )
        for model, layer in layers
    ]
    names = {"before": "R^c before" if _one_objective(layers) else "Before (nats)", "change": "Change (%)"}
    columns = [Column(names.get(key, key)) for key in keys] + ([Column("Given (%)")] if given else [])
    before = "R^c" if _one_objective(layers) else "The objective"
    path = _path_words(layers)
    caption = (
        f"{before} in nats before a layer, and its change by the layer's update; by random updates that move each "
        f"token as far; by the best step along the negative gradient that is at most as long; {path}by the best "
        f"multiple of the update. Below 0: compressed. {_GIVEN if given else ''}{convention}"
    )
    return Table((*_FIRST, *columns), tuple(rows), caption)


_GIVEN = "Given: change of the rate of tokens given what their representatives say of them. "


def _paths(layers: _Layers) -> list[str]:
    return ["path"] if any("path" in layer for _, layer in layers) else []


def _path_words(layers: _Layers) -> str:
    return "on a path of small gradient steps that are together as long (path); " if _paths(layers) else ""


def _one_objective(layers: _Layers, *beside: str) -> bool:
    """Whether all are judged by R^c alone."""
    return {layer["objective"] for _, layer in layers} <= {"compression", *beside}


_DERIVED = " (of bounds and representatives: the layer's direction with U in the place of its output map)"


def _sparse_table(layers: _Layers, convention: str) -> Table:
    """Of CRATE: what MSSA and ISTA each do to the sparse rate reduction and its parts."""
    rows: list[tuple[Cell, ...]] = []
    for model, layer in layers:
        place = str(layer["name"]).removeprefix("decoder.")
        for name, words in _PARTS.items():
            parts = (layer["parts"][name][when] for when in ("before", "by_mssa", "by_ista"))
            rows.append((model, place, words, *map(stored_cell, parts), None, None, None))
        by = (layer["random"]["change"], layer["gradient"], layer["path"])
        own = map(stored_cell, (layer["before"], layer["change"]))
        before, change = own
        rows.append((model, place, "R - lambda |Z|_1 of ISTA", before, None, change, *map(stored_cell, by)))
    columns = ("Term (nats)", "Before", "by MSSA", "by ISTA", "random", "gradient", "path")
    caption = (
        "The sparse rate reduction of the tokens that enter a layer, and how much its MSSA and its ISTA add to it and "
        "to its parts; tokens before ISTA after its LayerNorm, all of a token on average. MSSA is derived to lower "
        "R^c; ISTA to raise R - lambda |Z|_1, from what it starts from (last row of a layer): beside it random updates "
        "as long, the best step along the gradient at most as long, and a path of small ones. lambda is the layer's. "
        f"{convention}"
    )
    return Table((*_FIRST, *map(Column, columns)), tuple(rows), caption)


_PARTS = {
    "total": "R - R^c - lambda |Z|_1",
    "rate": "R",
    "compression": "R^c",
    "sparsity": "lambda |Z|_1",
}


def _range_table(layers: _Layers, distortions: Sequence[float], convention: str) -> Table:
    rows = []
    for model, layer in layers:
        for index, eps in enumerate(distortions):
            found = [
                (layer["range"][key] or [None] * len(distortions))[index] for key in ("cosine", "derived", "change")
            ]
            rows.append(
                (model, _short(layer), f"{eps:g}", *(None if each is None else stored_cell(each) for each in found))
            )
    columns = (Column("eps"), Column("Cosine", 3), Column("Derived", 3), Column("Change (%)"))
    caption = (
        "The same update held against its objective at other distortions: cosine with the steepest improvement, that "
        f"of the derived direction, and change of the objective (ISTA: in nats). {convention}"
    )
    return Table((*_FIRST, *columns), tuple(rows), caption)


def _heads_table(layers: _Layers, convention: str) -> Table:
    rows = [
        _row(model, layer, index, head["cosine"], head["change"])
        for model, layer in layers
        for index, head in enumerate(layer["heads"])
    ]
    caption = (
        "Cosine: what one head adds, with the negative gradient of its own term of R^c (cross_layers: with the "
        "gradient of the whole objective); a black-box head has none. Change: of the head's own term by the whole "
        f"update. {convention}"
    )
    return Table((*_FIRST, Column("Head"), Column("Cosine", 3), Column("Change (%)")), tuple(rows), caption)


def _classes_table(layers: _Layers, convention: str) -> Table:
    rows = [
        _row(
            *(model, layer, layer["before"], layer["change"], layer["random"]["change"], layer["gradient"]),
            *(layer.get(key) for key in _paths(layers)),
            *(layer["captured"][when] for when in ("before", "after")),
        )
        for model, layer in layers
    ]
    names = ("Inside (%)", "Change", "random", "gradient", *_paths(layers), "Captured (%)", "captured after")
    columns = map(Column, names)
    path = f", {_path_words(layers)[:-2]}" if _paths(layers) else ""
    caption = (
        "Inside: energy of the class embeddings in the principal subspace of the unit patch tokens (as many dimensions "
        "as classes, not centred) before a layer, and its change in percentage points by the layer's update; by random "
        f"updates as long; by the best step along the gradient that is at most as long{path}. Captured: energy of the "
        f"patch tokens in the span of the class embeddings, over the most that so many dimensions can hold. "
        f"{convention}"
    )
    return Table((*_FIRST, *columns), tuple(rows), caption)


_FIRST = (Column("Model"), Column("Layer"))


def _row(model: str, layer: Mapping[str, Any], *stored: Any) -> tuple[Cell, ...]:
    return (model, _short(layer), *map(stored_cell, stored))


_OWN = {
    "variational bound": ("bound", "ToST's variational bound of R^c"),
    "contraction": ("representatives", "R of CBSA's representatives"),
    "sparse rate": ("ISTA", "R - lambda |Z|_1 of the tokens that CRATE's ISTA takes and gives"),
}


def _convention(records: Sequence[Record]) -> str:
    first = records[0]
    settings, data = first.settings, first.data
    known = {layer["objective"] for each in records for layer in each.measured["layers"]}
    own = "".join(f" {word[0].upper()}{word[1:]}: {words}." for name, (word, words) in _OWN.items() if name in known)
    path = f", {settings['path']} small steps a path" if "path" in settings else ""
    some = f" ({settings['windows']} of each image, by chance)" if settings.get("windows") else ""
    tokens = {"tokens": "tokens through the layer's LayerNorm", "normed": "Z the layer's normalised tokens"}
    return (
        f"R^c: {tokens[settings['at']]}, all tokens of a window{some}, eps = {settings['eps']:g}, P / (N eps^2), sum "
        f"over heads, natural log.{own} {data.name} {data.split}, n = {first.n} images; brackets: "
        f"{shared_words(records)}; {bootstrap_words(first)}; of random: {_of_random(first)}, {settings['draws']} "
        f"draws a window{path}, seed {first.seeds['random']}."
    )


def _of_random(first: Record) -> str:
    """What the brackets of random updates are: since records hold both, those of their mean."""
    means = all("single" in layer["random"]["cosine"] for layer in first.measured["layers"])
    return "the same of their mean" if means else "2.5 % and 97.5 % percentiles of single updates"


def _shown_on(first: Record, *, at_one_eps: bool = True) -> str:
    eps = f", eps = {first.settings['eps']:g}" if at_one_eps else ""
    return (
        f"{first.data.name} {first.data.split}, n = {first.n} images, {figure_words(first)}; Rᶜ of "
        f"{first.settings['at']}{eps}."
    )


def _sense(layer: Mapping[str, Any]) -> int:
    return 1 if layer["objective"] in ("principal directions", "sparse rate") else -1


def _short(layer: Mapping[str, Any]) -> str:
    own = _OWN.get(layer["objective"])
    return str(layer["name"]).removeprefix("decoder.") + ("" if own is None else f" {own[0]}")


def _improvement(records: Sequence[Record]) -> str:
    """The label of an axis."""
    known = {layer["objective"] for each in records for layer in each.measured["layers"]}
    if not known & _OWN.keys():
        return "improvement: Rᶜ (%), inside (points)"
    return "improvement: rates (%), inside (points), ISTA (nats)"


def _draw_range(records: Sequence[Record], stem: Path) -> None:
    """Two panels a model: cosine and improvement over eps, a line a layer; dashed: by an objective of its own."""
    columns = min(3, len(records))
    lines = -(-len(records) // columns)
    distortions = records[0].settings["distortions"]
    handles: dict[str, Any] = {}
    with figure_style() as colours:
        figure = new_figure(0.9 + 3.6 * lines, PAGE)
        panels = figure.subplots(2 * lines, columns, sharex=True, sharey="row", squeeze=False)
        for axes in panels.flat:
            axes.set_axis_off()
        for index, each in enumerate(records):
            above, below = (panels[2 * (index // columns) + row][index % columns] for row in (0, 1))
            ranged = [layer for layer in each.measured["layers"] if "range" in layer]
            places = list(dict.fromkeys(layer["name"] for layer in ranged))
            for layer in ranged:
                colour = colours[places.index(layer["name"]) % len(colours)]
                own = layer["objective"] in _OWN
                dashes, label = ("--", f"{_short(layer)}") if own else ("-", _short(layer))
                for axes, key, factor in ((above, "cosine", 1), (below, "change", _sense(layer))):
                    curve = [estimate(stored, factor) for stored in layer["range"][key]]
                    low, high = [each.low for each in curve], [each.high for each in curve]
                    axes.fill_between(distortions, low, high, color=colour, alpha=0.2, linewidth=0)
                    value = [each.value for each in curve]
                    (handles[label],) = axes.plot(distortions, value, dashes, color=colour, linewidth=1.2)
                    curves_behind(axes, distortions, curve, colour, dashes)
                if layer["range"]["derived"]:
                    derived = [estimate(stored) for stored in layer["range"]["derived"]]
                    above.plot(distortions, [each.value for each in derived], ":", color=colour, linewidth=0.9)
                    curves_behind(above, distortions, derived, colour, ":")
            above.set_title(each.model, fontsize=8)
            for axes in (above, below):
                axes.set_axis_on()
                axes.axhline(0, color="0.3", linewidth=0.6)
                axes.set_xscale("log")
            below.set_xlabel("eps")
            below.tick_params(labelbottom=True)
            below.xaxis.set_major_formatter("{x:g}")
            below.set_yscale("symlog", linthresh=1)
            below.yaxis.set_major_formatter("{x:g}")
            if index % columns == 0:
                above.set_ylabel("cosine")
                nats = ", ISTA: nats" if "nats" in _improvement(records) else ""
                below.set_ylabel(f"improvement (%{nats})", fontsize=7)
        shown = f"{_shown_on(records[0], at_one_eps=False)}{behind_words(records, 'lines')}"
        figure.supxlabel(
            f"cosine: with the steepest improvement; dotted: of the derived direction. {shown}", fontsize=6.5
        )
        names = sorted(handles, key=lambda name: (len(name.split()), name))
        columns = legend_columns(names, PAGE)
        figure.legend([handles[name] for name in names], names, loc="outside upper center", ncols=columns)
        save_figure(figure, stem)


def _draw_directions(records: Sequence[Record], stem: Path) -> None:
    """A row a layer; left the cosines, right by how much the objective improves: to the right is better in both."""
    labels: list[str] = []
    with figure_style() as colours:
        figure = new_figure(1.3 + 0.2 * sum(len(each.measured["layers"]) for each in records), PAGE)
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1, 1.3])
        for each in records:
            for layer in each.measured["layers"]:
                row, sense = len(labels), _sense(layer)
                labels.append(f"{each.model}  {_short(layer)}")
                for axes, key, factor in ((left, "cosine", 1), (right, "change", sense)):
                    drawn = [factor * number(layer["random"][key][end]) for end in ("low", "high")]
                    axes.plot(
                        drawn, [row, row], color="0.75", linewidth=5, solid_capstyle="butt", label="random updates"
                    )
                _dot(left, row, layer["cosine"], 1, "o", colours[0], "update")
                _dot(left, row, layer["derived"], 1, "D", colours[1], "derived direction")
                _dot(right, row, layer["best"], sense, "|", colours[0], "best multiple of it")
                _dot(right, row, layer["gradient"], sense, "^", colours[2], "gradient step")
                _dot(right, row, layer.get("path"), sense, "v", colours[4], "path of small steps")
                _dot(right, row, layer["change"], sense, "o", colours[0], "update")
            if each is not records[-1]:
                left.axhline(len(labels) - 0.5, color="0.6", linewidth=0.6)
                right.axhline(len(labels) - 0.5, color="0.6", linewidth=0.6)
        for axes in (left, right):
            axes.axvline(0, color="0.3", linewidth=0.6)
        left.set_ylim(len(labels) - 0.5, -0.5)
        left.set_yticks(range(len(labels)), labels)
        left.set_xlabel("cosine with the steepest improvement")
        right.set_xscale("symlog", linthresh=1)
        right.xaxis.set_major_formatter("{x:g}")
        right.set_xlabel(_improvement(records))
        handles: dict[str, Any] = {}  # each label once
        for axes in (right, left):
            known, names = axes.get_legend_handles_labels()
            handles |= dict(zip(names, known, strict=True))
        figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=len(handles))
        figure.supxlabel(f"{_shown_on(records[0])}{behind_words(records, 'ticks')}", fontsize=6.5)
        save_figure(figure, stem)


def _dot(axes: Axes, row: int, stored: Any, sense: int, marker: str, colour: Any, label: str) -> None:
    if stored is None or stored["value"] is None:
        return
    shown = estimate(stored, sense)
    axes.plot([shown.low, shown.high], [row, row], color=colour, linewidth=1)
    axes.plot(shown.value, row, marker, color=colour, markersize=5 if marker != "|" else 8, label=label)
    trainings_behind(axes, shown, row, colour)


def _draw_steps(records: Sequence[Record], stem: Path) -> None:
    """A panel a model: how the objective improves along the line of each layer's update."""
    columns = min(3, max(2, len(records)))
    lines = -(-len(records) // columns)
    names = sorted({_short(layer) for each in records for layer in each.measured["layers"]}, key=lambda n: (len(n), n))
    handles: dict[str, Any] = {}
    with figure_style(len(names)) as colours:
        figure = new_figure(0.8 + 2.1 * lines, PAGE)
        panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for axes in panels.flat[len(records) :]:
            axes.set_axis_off()
        for axes, each in zip(panels.flat, records, strict=False):
            for layer in each.measured["layers"]:
                curve = [estimate(each, _sense(layer)) for each in layer["curve"]]
                name = _short(layer)
                colour, dashes = colours[names.index(name) % len(colours)], "-" if _sense(layer) < 0 else "--"
                low, high = [each.low for each in curve], [each.high for each in curve]
                axes.fill_between(MULTIPLES, low, high, color=colour, alpha=0.2, linewidth=0)
                value = [each.value for each in curve]
                (handles[name],) = axes.plot(MULTIPLES, value, dashes, color=colour, linewidth=1.2)
                curves_behind(axes, MULTIPLES, curve, colour, dashes)
            axes.axvline(1, color="0.3", linewidth=0.6)
            axes.axhline(0, color="0.3", linewidth=0.6)
            axes.set_title(each.model, fontsize=8)
            axes.set_xlabel("multiple of the update")
            axes.set_yscale("symlog", linthresh=1)
            axes.yaxis.set_major_formatter("{x:g}")
        caption = f"1: the learned step. {_shown_on(records[0])}{behind_words(records, 'lines')}"
        figure.supxlabel(caption, fontsize=6.5)
        figure.supylabel(_improvement(records), fontsize=8)
        across = min(6, legend_columns(names, PAGE))
        figure.legend([handles[name] for name in names], names, loc="outside upper center", ncols=across)
        save_figure(figure, stem)
