"""Tables and figures of `analysis.measures.rank_analysis`, from records alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.maths.conventions import SHARES, Convention
from analysis.record import Record
from analysis.show.figures import (
    COLUMN,
    MARKERS,
    PAGE,
    curves_behind,
    figure_style,
    legend_columns,
    new_figure,
    save_figure,
)
from analysis.show.spread import behind_words, bootstrap_words, shared_words
from analysis.show.tables import Cell, Column, Estimate, Table, estimate, estimates

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_PASSED = "decoder layers passed"
_NOTHING = 1e-10  # of the largest eigenvalue: below, there is rounding only


def tables(records: Sequence[Record]) -> dict[str, Table]:
    """Rates, ranks, projected rates and class embeddings; records of different conventions apart."""
    found: dict[str, Table] = {}
    for mark, group in _by_rule(records).items():
        found |= {f"{mark}{suffix}": table for suffix, table in _tables(group).items()}
    return found


def figures(records: Sequence[Record], stem: Path) -> None:
    """The same, at ``stem``-*."""
    for mark, group in _by_rule(records).items():
        _draw(group, f"{stem}{mark}")


def _by_rule(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records of one convention, by what their files' names end in."""
    ordered = sorted(records, key=lambda record: rule_of(record).name)
    found = {name: list(group) for name, group in groupby(ordered, key=lambda record: rule_of(record).name)}
    return {f"-{name}": group for name, group in found.items()} if len(found) > 1 else {"": list(records)}


def rule_of(record: Record) -> Convention:
    """The convention a record was measured by."""
    return Convention(**record.settings["convention"])


def _caption(records: Sequence[Record], measured: str = "") -> str:
    """Data, what was measured (empty: rates of tokens, by the convention), and how the intervals were drawn."""
    first = records[0]
    if all(record.data == first.data for record in records):
        data = f"{first.data.name} {first.data.split}, n = {first.n} images"
    else:
        data = "; ".join(f"{each.model} on {each.data.name} {each.data.split}, n = {each.n}" for each in records)
    window = first.settings["window"]
    shown = f"mean over an image's windows of {window} px" if window is not None else "each shown whole"
    measured = measured or _rates(rule_of(first), _tokens(rule_of(first)))
    return f"{data}, {shown}. {measured} Brackets: {shared_words(records)}; {bootstrap_words(first)}."


def _tokens(rule: Convention) -> str:
    which = "Patch tokens" if rule.which == "patches" else "All tokens"
    return f"{which} {'as they are' if rule.tokens == 'raw' else 'after LayerNorm'}"


def _rates(rule: Convention, tokens: str) -> str:
    unit = {"none": "not scaled", "token": "scaled to length 1", "projected": "scaled to length 1 after projection"}
    d = "its dimension P" if rule.prefactor == "subspace" else "the width D"
    return (
        f"{tokens}, {unit[rule.normalise]}; R = 1/2 ln det(I + d/(N eps^2) Z^T Z), eps = {rule.eps:g}, d = D, on a "
        f"subspace d is {d}; {rule.heads} over heads."
    )


def _tables(records: Sequence[Record]) -> dict[str, Table]:
    """The tables of records of one convention, by suffix."""
    caption = _caption(records)
    found = {"": _rate_table(records, caption), "-ranks": _rank_table(records, caption)}
    projected = [record for record in records if record.measured["projections"]]
    if projected:
        found["-projected"] = _projected_table(projected, "rate", f"R(P_l^T Z_j) in nats, j: layers passed. {caption}")
        found["-ratio"] = _projected_table(
            projected, "ratio", f"R(P_l^T Z_j) / R(Z_j) in percent, j: layers passed. {caption}"
        )
    with_classes = [record for record in records if record.measured["classes"]]
    if with_classes:
        found["-classes"] = _class_table(with_classes, caption)
    return found


def _rate_table(records: Sequence[Record], caption: str) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for record in records:
        before, after = _own_rates(record)
        for layer in record.measured["layers"]:
            position = layer["position"]
            rows.append(
                (
                    record.model,
                    layer["name"],
                    estimate(layer["rate"]),
                    estimate(layer["reduction"]),
                    before.get(position),
                    after.get(position),
                )
            )
    headings = ("R(Z)", "Rate reduction", "R^c before", "R^c after")
    columns = (Column("Model"), Column("Tokens after"), *(Column(heading) for heading in headings))
    meaning = (
        "In nats. Rate reduction: by the ground truth. R^c: sum over heads of the rate on the layer's own "
        "subspaces, of the tokens before and after it."
    )
    return Table(columns, tuple(rows), f"{meaning} {caption}")


def _own_rates(record: Record) -> tuple[dict[int, Estimate], dict[int, Estimate]]:
    """R^c on each layer's own subspaces, of the tokens that enter and leave it, by the position of the layer."""
    before: dict[int, Estimate] = {}
    after: dict[int, Estimate] = {}
    for projection in record.measured["projections"]:
        if projection["tokens"] == "Z":
            columns = {position: column for column, position in enumerate(projection["positions"])}
            for subspace, rates in zip(projection["subspaces"], projection["rate"], strict=True):
                position = subspace["position"]
                factor = subspace["heads"] if rule_of(record).heads == "mean" else 1
                for found, at in ((before, position - 1), (after, position)):
                    if at in columns:
                        found[position] = estimate(rates[columns[at]], factor)
    return before, after


def _rank_table(records: Sequence[Record], caption: str) -> Table:
    some_zeros = any(map(_has_zeros, records))
    rows: list[tuple[Cell, ...]] = [
        (
            record.model,
            layer["name"],
            *(estimate(layer[key]) for key in ("effective_rank", "stable_rank", "numerical_rank")),
            *map(estimate, layer["components"]),
            *([_zeros(layer)] if some_zeros else []),
        )
        for record in records
        for layer in record.measured["layers"]
    ]
    ranks = ("Effective", "Stable", "Numerical", *(f"{100 * share:g} %" for share in SHARES))
    headings = (*ranks, "Zeros (%)") if some_zeros else ranks
    columns = (Column("Model"), Column("Tokens after"), *(Column(heading) for heading in headings))
    meaning = (
        "Effective, stable and numerical rank (at most D), and how many components hold a share of the energy (second "
        f"moment, not centred).{' Zeros: among the entries of Z as they are.' if some_zeros else ''}"
    )
    return Table(columns, tuple(rows), f"{meaning} {caption}")


def _zeros(layer: Mapping[str, Any]) -> Estimate:
    """Percent; NaN in records older than this quantity."""
    return estimate(layer.get("zeros", {}), 100)


def _has_zeros(record: Record) -> bool:
    return any(_zeros(layer).value > 0 for layer in record.measured["layers"])


def _projected_table(records: Sequence[Record], quantity: str, caption: str) -> Table:
    """One row a subspace, one column a number of layers the tokens have passed."""
    factor = 100 if quantity == "ratio" else 1
    rows: list[tuple[str, str, dict[int, Estimate]]] = []
    for record in records:
        for projection in record.measured["projections"]:
            first = projection["subspaces"][0]["position"] - 1
            steps = [position - first for position in projection["positions"]]
            for subspace, values in zip(projection["subspaces"], projection[quantity], strict=True):
                cells = {step: estimate(value, factor) for step, value in zip(steps, values, strict=True)}
                rows.append((record.model, f"{projection['tokens']} on {subspace['name']}", cells))
    steps = sorted({step for *_, cells in rows for step in cells})
    columns = (Column("Model"), Column("Subspaces"), *(Column(f"j = {step}") for step in steps))
    return Table(columns, tuple((*head, *(cells.get(step) for step in steps)) for *head, cells in rows), caption)


def _class_table(records: Sequence[Record], caption: str) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for record in records:
        for stage in record.measured["classes"]:
            overlapping = None if stage["overlap"] is None else estimate(stage["overlap"], 100)
            rows.append((record.model, stage["name"], estimate(stage["rate"]), overlapping, None, None, None))
        if (angles := record.measured["angles"]) is not None:
            degrees = [estimate(angle) for angle in angles["degrees"]]
            chance = 100 * min(1.0, angles["classes"] / angles["width"])
            rows.append(
                (record.model, "output", None, estimate(angles["overlap"], 100), chance, degrees[0], degrees[-1])
            )
    names = ("R(Q) (nats)", "Overlap (%)", "Random (%)", "Smallest angle (deg)", "Largest angle (deg)")
    columns = (Column("Model"), Column("Class embeddings after"), *(Column(name) for name in names))
    meaning = (
        "Overlap: mean squared cosine of the principal angles between the span of the K class embeddings and the K "
        "leading principal directions of the patch tokens beside them (in cross-attention and at the output: those "
        "that the masks compare); random: of random subspaces, K / D."
    )
    return Table(columns, tuple(rows), f"{meaning} {caption}")


def _draw(records: Sequence[Record], stem: str) -> None:
    """The figures of records of one convention, at ``stem``-*."""
    _draw_layers(records, Path(f"{stem}-layers"))
    _draw_spectra(records, Path(f"{stem}-spectra"))
    _draw_angles(records, Path(f"{stem}-angles"))
    _draw_projected(records, "Z", Path(f"{stem}-projected"))
    _draw_projected(records, "Q", Path(f"{stem}-projected-classes"))
    _draw_zeros(records, Path(f"{stem}-zeros"))


def _with_encoder(records: Sequence[Record]) -> bool:
    return any(layer["position"] < 0 for record in records for layer in record.measured["layers"])


def _passed(records: Sequence[Record]) -> str:
    """Of an axis of layers whose tokens are patch tokens."""
    return "layers passed (encoder: < 0)" if _with_encoder(records) else _PASSED


def _line(axes: Axes, x: Sequence[float], values: Sequence[Estimate], **look: Any) -> None:
    """A line with its interval as a band, and those of single trainings behind it."""
    axes.plot(x, [value.value for value in values], linewidth=1.2, markersize=3, **look)
    curves_behind(axes, x, values, look["color"])
    low, high = [value.low for value in values], [value.high for value in values]
    axes.fill_between(x, low, high, color=look["color"], alpha=0.12, linewidth=0)


def _finish(figure: Figure, records: Sequence[Record], handles: Sequence[Line2D], caption: str, stem: Path) -> None:
    """Legend above, in as many columns as fit; caption below; both files."""
    width = figure.get_figwidth()
    if handles:
        columns = legend_columns([str(handle.get_label()) for handle in handles], width)
        figure.legend(handles=handles, loc="outside upper center", ncols=columns)
    caption = f"{caption}{behind_words(records, 'lines')}".replace("Z^T Z", "ZᵀZ").replace("eps^2", "eps²")
    figure.supxlabel(fill(caption, int(20 * width)), fontsize=5.5, color="0.3")
    save_figure(figure, stem)


def _models(records: Sequence[Record], colours: Sequence[Any]) -> list[Line2D]:
    """One handle a model: its colour, marker and name."""
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=colours[index], marker=MARKERS[index % len(MARKERS)], markersize=3, label=each.model)
        for index, each in enumerate(records)
    ]


def _panels(count: int, height: float, rows: int = 1) -> tuple[Figure, Any]:
    """A figure with ``count`` columns of ``rows`` panels, four side by side, and the panels (blocks, rows, columns).

    Unused ones are hidden.
    """
    columns = min(4, count)
    blocks = -(-count // columns)
    figure = new_figure(0.8 + height * rows * blocks, COLUMN if columns == 1 else PAGE * (0.4 + 0.15 * columns))
    panels = figure.subplots(rows * blocks, columns, sharey="row" if rows > 1 else True, squeeze=False)
    panels = panels.reshape(blocks, rows, columns)
    for number in range(count, blocks * columns):
        for axes in panels[number // columns, :, number % columns]:
            axes.set_visible(False)
    return figure, panels


def _draw_layers(records: Sequence[Record], stem: Path) -> None:
    """R(Z), R(Q), rate reduction and ranks along the layers, one line a model."""
    from matplotlib.ticker import MaxNLocator

    shown = (
        ("layers", "rate", "R(Z) (nats)"),
        ("layers", "reduction", "rate reduction ΔR (nats)"),
        ("classes", "rate", "R(Q) (nats)"),
        ("layers", "effective_rank", "effective rank of Z"),
        ("layers", "stable_rank", "stable rank of Z"),
        ("classes", "overlap", "overlap of Q with Z (%)"),
    )
    with figure_style(len(records)) as colours:
        figure = new_figure(4.2, PAGE)
        panels = figure.subplots(2, 3, sharex="col")
        handles = _models(records, colours)
        for axes, (part, key, title) in zip(panels.flat, shown, strict=True):
            axes.set_title(title, fontsize=8)
            top = 0.0
            for record, handle in zip(records, handles, strict=True):
                known = [stage for stage in record.measured[part] if stage[key] is not None]
                values = [estimate(stage[key], 100 if key == "overlap" else 1) for stage in known]
                look = {"color": handle.get_color(), "marker": handle.get_marker()}
                _line(axes, [stage["position"] for stage in known], values, **look)
                ends = (each for value in values for each in (value.value, value.high, *value.seeds))
                top = max([top, *(each for each in ends if not math.isnan(each))])
            axes.set_ylim(0, 1.08 * top or 1.0)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
            if part == "layers" and _with_encoder(records):
                axes.axvline(-0.5, color="0.5", linewidth=0.8, linestyle=":")
        for axes, label in zip(panels[1], (_passed(records), _passed(records), _PASSED), strict=True):
            axes.set_xlabel(label)
        _finish(figure, records, handles, _caption(records), stem)


def _draw_projected(records: Sequence[Record], tokens: str, stem: Path) -> None:
    """As figure 7 of DEPICT: one column a model, one line a subspace, dashed where its own layer has acted."""
    from matplotlib.lines import Line2D

    drawn = [
        (record, projection)
        for record in records
        for projection in record.measured["projections"]
        if projection["tokens"] == tokens
    ]
    if not drawn:
        return
    kind = "layer" if tokens == "Z" else "cross-attention"
    labels = (f"R(Pₗᵀ{tokens}) (nats)", f"R(Pₗᵀ{tokens}) / R({tokens}) (%)")
    with figure_style() as colours:
        figure, panels = _panels(len(drawn), 1.5, rows=2)
        for number, (record, projection) in enumerate(drawn):
            block, column = divmod(number, panels.shape[2])
            upper, lower = panels[block, :, column]
            first = projection["subspaces"][0]["position"] - 1
            x = [position - first for position in projection["positions"]]
            for axes, quantity, factor in ((upper, "rate", 1), (lower, "ratio", 100)):
                for index, (subspace, values) in enumerate(
                    zip(projection["subspaces"], projection[quantity], strict=True)
                ):
                    colour, marker = colours[index % len(colours)], MARKERS[index % len(MARKERS)]
                    axes.axvline(subspace["position"] - first, color=colour, linewidth=0.8, linestyle="--")
                    _line(axes, x, [estimate(value, factor) for value in values], color=colour, marker=marker)
                axes.set_xlim(min(x) - 0.25, max(x) + 0.25)
                axes.set_xticks(x)
            upper.set_title(record.model, fontsize=7)
            lower.set_xlabel(f"{kind}s passed by {tokens}")
        for block in panels:
            for axes, label in zip(block[:, 0], labels, strict=True):
                axes.set_ylabel(label)
        most = max(len(projection["subspaces"]) for _, projection in drawn)
        handles = [
            Line2D(
                [],
                [],
                color=colours[index % len(colours)],
                marker=MARKERS[index % len(MARKERS)],
                markersize=3,
                label=f"P{_small(index + 1)}",
            )
            for index in range(most)
        ]
        handles.append(Line2D([], [], color="0.5", linewidth=0.8, linestyle="--", label="own layer"))
        rule = rule_of(records[0])
        tokens_are = _tokens(rule) if tokens == "Z" else "Class embeddings as they are"
        _finish(figure, records, handles, _caption(records, _rates(rule, tokens_are)), stem)


def _small(number: int) -> str:
    """A number as a subscript."""
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def _draw_spectra(records: Sequence[Record], stem: Path) -> None:
    """Eigenvalues of Z^T Z / N, one panel a model, one line a layer."""
    import seaborn as sns

    with figure_style():
        figure, panels = _panels(len(records), 2.2)
        largest = smallest = 0.0
        for axes, record in zip(panels.flat, records, strict=False):
            layers = record.measured["layers"]
            colours = sns.color_palette("viridis_r", len(layers) + 1)[1:]  # the first is too pale
            named = set(np.linspace(0, len(layers) - 1, min(5, len(layers))).round().astype(int))
            for index, layer in enumerate(layers):
                spectrum, colour = layer["spectrum"], colours[index]
                x, values = spectrum["component"], estimates(spectrum)
                label = layer["name"] if index in named else None
                axes.plot(x, spectrum["value"], color=colour, linewidth=1.1, label=label)
                curves_behind(axes, x, values, colour)
                if None not in spectrum["low"]:  # a single image has no interval
                    axes.fill_between(x, spectrum["low"], spectrum["high"], color=colour, alpha=0.2, linewidth=0)
                largest = max(largest, spectrum["value"][0])
                above = [value for value in spectrum["value"] if value > _NOTHING * spectrum["value"][0]]
                smallest = min([smallest or largest, *above])
            axes.set_title(record.model, fontsize=7)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.legend(loc="lower left", fontsize=6, handlelength=1.2)
        if largest > 0:
            panels.flat[0].set_ylim(smallest / 3, 3 * largest)
        for axes in panels[-1, -1]:
            axes.set_xlabel("component")
        for axes in panels[:, :, 0].flat:
            axes.set_ylabel("eigenvalue of ZᵀZ / N")
        rule = rule_of(records[0])
        scaled = "not scaled" if rule.normalise == "none" else "scaled to length 1"
        _finish(figure, records, [], _caption(records, f"{_tokens(rule)}, {scaled}, not centred."), stem)


def _draw_angles(records: Sequence[Record], stem: Path) -> None:
    """Principal angles at the output, one line a model, beside those of random subspaces."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    drawn = [record for record in records if record.measured["angles"] is not None]
    if not drawn:
        return
    with figure_style(len(drawn)) as colours:
        handles = _models(drawn, colours)
        shapes: dict[tuple[int, int], list[Estimate]] = {}
        figure = new_figure(3.1 + 0.13 * len(drawn))
        axes = figure.subplots()
        for record, handle in zip(drawn, handles, strict=True):
            angles = record.measured["angles"]
            look = {"color": handle.get_color(), "marker": handle.get_marker()}
            _line(axes, range(1, len(angles["degrees"]) + 1), [estimate(each) for each in angles["degrees"]], **look)
            shapes[angles["classes"], angles["width"]] = [estimate(each) for each in angles["random"]]
        for (classes, width), values in shapes.items():
            _line(axes, range(1, len(values) + 1), values, color="0.5", linestyle=":")
            label = f"random: {classes} of {width} dimensions, {records[0].settings['draws']} draws"
            handles.append(Line2D([], [], color="0.5", linestyle=":", label=label))
        axes.set_ylim(0, 92)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.set_xlabel("principal angle, smallest first")
        axes.set_ylabel("span of Q to leading\ndirections of Z (°)")
        compared = "Class embeddings and patch tokens as the masks compare them, not centred."
        _finish(figure, drawn, handles, _caption(drawn, compared), stem)


def _draw_zeros(records: Sequence[Record], stem: Path) -> None:
    """Zeros among the entries of Z along the layers; no figure where no model has any."""
    from matplotlib.ticker import MaxNLocator

    if not any(map(_has_zeros, records)):
        return
    with figure_style(len(records)) as colours:
        figure = new_figure(2.5 + 0.13 * len(records))
        axes = figure.subplots()
        handles = _models(records, colours)
        for record, handle in zip(records, handles, strict=True):
            layers = record.measured["layers"]
            look = {"color": handle.get_color(), "marker": handle.get_marker()}
            _line(axes, [layer["position"] for layer in layers], [_zeros(layer) for layer in layers], **look)
        axes.set_ylim(-3, 103)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.set_xlabel(_passed(records))
        axes.set_ylabel("zeros among the entries of Z (%)")
        as_they_are = replace(rule_of(records[0]), tokens="raw")
        _finish(figure, records, handles, _caption(records, f"{_tokens(as_they_are)}."), stem)
