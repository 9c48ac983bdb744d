"""Tables and figures of `analysis.measures.probe`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.record import Record
from analysis.show.figures import MARKERS, PAGE, figure_style, legend_columns, new_figure, save_figure
from analysis.show.spread import bootstrap_words, together_words
from analysis.show.tables import Cell, Column, Estimate, Table, estimate, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def tables(records: Sequence[Record]) -> dict[str, Table]:
    """Readers and geometry of each layer; of each class what the probe finds, rates, and energies."""
    found = {"": _layer_table(records), "-classes": _class_table(records), "-rates": _rate_table(records)}
    if any(record.measured["energies"] for record in records):
        found["-energies"] = _energy_table(records)
    return found


def figures(records: Sequence[Record], stem: Path) -> None:
    """Along the layers at STEM; energies at ``STEM-energies`` where a model has subspaces."""
    _draw_layers(records, stem)
    if with_subspaces := [record for record in records if record.measured["energies"]]:
        _draw_energies(with_subspaces, stem.with_name(f"{stem.name}-energies"))


def _caption(records: Sequence[Record]) -> str:
    first = records[0]
    fitted, judged = first.measured["fitted"], first.measured["judged"]
    tokens = "after LayerNorm" if first.settings["tokens"] == "normed" else "as they are"
    return (
        f"{first.data.name} {first.data.split}, n = {first.n} images. Patch tokens {tokens}; readers fitted on "
        f"{fitted['patches']:.0f} labelled patches of {fitted['images']:.0f} images of "
        f"{first.settings['fitted']['split']}, read on {judged['patches']:.0f}; geometry and rates of "
        f"{judged['sample']:.0f} of these, eps = {first.settings['eps']:g}. Brackets: {together_words(records)}; "
        f"{bootstrap_words(first)}, NMI, ARI, NC and rates by the jackknife."
    )


def _layer_table(records: Sequence[Record]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for record in records:
        for layer in record.measured["layers"]:
            shares = (percent(layer[key]) for key in ("miou", "nearest"))
            others = ("nmi", "ari", "nc1", "lengths", "angles", "rate", "reduction")
            rows.append((record.model, layer["name"], *shares, *(estimate(layer[key]) for key in others)))
        rows.append((record.model, "output", percent(record.measured["output"]["miou"]), *[None] * 8))
    numbers = (
        *(Column("Probe mIoU (%)"), Column("Nearest mean mIoU (%)"), Column("NMI", 3), Column("ARI", 3)),
        *(
            Column("NC1", 2),
            Column("NC2 lengths", 2),
            Column("NC2 angles", 2),
            Column("R(Z)"),
            Column("Rate reduction"),
        ),
    )
    meaning = (
        "mIoU of patches, not of pixels; output: of what the decoder says of them. NMI, ARI: of k-means clusters, as "
        "many as classes, with the ground truth; by chance ARI is 0, and NMI the higher the more classes and the fewer "
        "patches there are. NC1: within classes over between; NC2: spread of the lengths of class "
        "means, and how far their cosines are from -1 / (K - 1); 0: collapsed. Rates in nats."
    )
    return Table((Column("Model"), Column("Tokens after"), *numbers), tuple(rows), f"{meaning} {_caption(records)}")


def _class_table(records: Sequence[Record]) -> Table:
    """A row a class, a column a layer of a model."""
    heads, columns = [], []
    for record in records:
        every = [(layer["name"], layer["iou"]) for layer in record.measured["layers"]]
        for name, values in [*every, ("output", record.measured["output"]["iou"])]:
            heads.append(_head(records, record, name))
            columns.append([percent(value) for value in values])
    caption = f"IoU of the linear probe, patches, in percent. {_caption(records)}"
    return _by_class(records[0].measured["classes"], heads, columns, caption)


def _rate_table(records: Sequence[Record]) -> Table:
    heads, columns = [], []
    for record in records:
        for layer in record.measured["layers"]:
            heads.append(_head(records, record, layer["name"]))
            columns.append([estimate(value) for value in layer["class_rates"]])
    caption = f"Coding rate R(Z_c) of the tokens of a class, in nats. {_caption(records)}"
    return _by_class(records[0].measured["classes"], heads, columns, caption)


def _energy_table(records: Sequence[Record]) -> Table:
    heads, columns, random = [], [], []
    for record in records:
        for layer in record.measured["energies"]:
            for head in range(len(layer["random"])):
                heads.append(_head(records, record, f"{layer['position']}.{head}"))
                columns.append([percent(shares[head]) for shares in layer["shares"]])
                random.append(100 * layer["random"][head])
    meaning = (
        "Share of the energy of a class's tokens, as layer l (counted from 1) sees them, in the subspace of its head "
        "h, in percent, as l.h; random: of a random subspace of its dimension. Subspaces may overlap."
    )
    rows = _by_class(records[0].measured["classes"], heads, columns, f"{meaning} {_caption(records)}")
    return Table(rows.columns, (*rows.rows, ("random", *random)), rows.caption, summary_rows=1)


def _head(records: Sequence[Record], record: Record, name: str) -> str:
    """Of a column: the layer, and of several models which."""
    short = name.removeprefix("decoder.")
    return f"{record.model} {short}" if len(records) > 1 else short


def _by_class(
    classes: Sequence[str], heads: Sequence[str], columns: Sequence[Sequence[Estimate]], caption: str
) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (name, *(column[index] for column in columns)) for index, name in enumerate(classes)
    ]
    return Table((Column("Class"), *map(Column, heads)), tuple(rows), caption, ranked=1)


# What is drawn along the layers: title, and of each line its key, how it is drawn, its name, and a factor.
_PANELS: tuple[tuple[str, tuple[tuple[str, Any, str, float], ...]], ...] = (
    ("mIoU of patches (%)", (("miou", "-", "linear probe", 100), ("nearest", "--", "nearest class mean", 100))),
    ("k-means and truth; by chance: ARI 0", (("nmi", "-", "NMI", 1), ("ari", "--", "ARI", 1))),
    ("NC1: within / between classes", (("nc1", "-", "NC1", 1),)),
    ("NC2 of class means", (("lengths", "-", "lengths", 1), ("angles", "--", "angles", 1))),
    ("rates (nats)", (("rate", "-", "R(Z)", 1), ("class_rate", "--", "mean of R(Z_c)", 1))),
    ("rate reduction ΔR (nats)", (("reduction", "-", "ΔR", 1),)),
)


def _draw_layers(records: Sequence[Record], stem: Path) -> None:
    """Six panels, a colour a model; dotted: what the decoder says."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    with figure_style(len(records)) as colours:
        figure = new_figure(4.6 + 0.13 * len(records), PAGE)
        panels = figure.subplots(2, 3, sharex=True)
        for axes, (title, lines) in zip(panels.flat, _PANELS, strict=True):
            axes.set_title(title, fontsize=8)
            for index, record in enumerate(records):
                x = [layer["position"] for layer in record.measured["layers"]]
                for key, dashes, _, factor in lines:
                    values = [_number(layer, key, factor) for layer in record.measured["layers"]]
                    _line(axes, x, values, colours[index], dashes, MARKERS[index % len(MARKERS)])
                if lines[0][0] == "miou":
                    said = percent(record.measured["output"]["miou"]).value
                    axes.axhline(said, color=colours[index], linewidth=0.8, linestyle=":")
            if len(lines) > 1 or lines[0][0] == "miou":
                own = [Line2D([], [], color="0.3", linestyle=dashes, label=name) for _, dashes, name, _ in lines]
                own += [Line2D([], [], color="0.3", linestyle=":", label="decoder's output")] * (lines[0][0] == "miou")
                axes.legend(handles=own, fontsize=6, handlelength=1.8)
            if lines[0][0] == "nc1" and _spread_out(records):
                axes.set_yscale("log")
            else:
                low, high = axes.get_ylim()
                axes.set_ylim(min(0.0, low), 1.05 * high)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        encoder = any(layer["position"] < 0 for record in records for layer in record.measured["layers"])
        for axes in panels[1]:
            axes.set_xlabel("layers passed (encoder: < 0)" if encoder else "decoder layers passed")
        handles = [
            Line2D([], [], color=colours[index], marker=MARKERS[index % len(MARKERS)], markersize=3, label=each.model)
            for index, each in enumerate(records)
        ]
        columns = legend_columns([each.model for each in records], PAGE)
        figure.legend(handles=handles, loc="outside upper center", ncols=columns)
        figure.supxlabel(fill(_caption(records), int(20 * PAGE)), fontsize=5.5, color="0.3")
        save_figure(figure, stem)


def _spread_out(records: Sequence[Record]) -> bool:
    """Whether NC1 is of several orders of magnitude, and so is drawn on a logarithmic axis."""
    known = [layer["nc1"]["value"] or 0.0 for record in records for layer in record.measured["layers"]]
    return min(known) > 0 and max(known) > 10 * min(known)


def _number(layer: Mapping[str, Any], key: str, factor: float) -> Estimate:
    if key != "class_rate":
        return estimate(layer[key], factor)
    known = [each["value"] for each in layer["class_rates"] if each["value"] is not None]
    return Estimate(float(np.mean(known)) if known else math.nan)


def _line(axes: Axes, x: Sequence[float], values: Sequence[Estimate], colour: Any, dashes: str, marker: str) -> None:
    axes.plot(
        x, [each.value for each in values], color=colour, linestyle=dashes, marker=marker, linewidth=1.2, markersize=3
    )
    low, high = ([getattr(each, end) for each in values] for end in ("low", "high"))
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def _draw_energies(records: Sequence[Record], stem: Path) -> None:
    """A panel a model: classes down, heads of all layers across; numbers where there is room for them."""
    classes = records[0].measured["classes"]
    named = len(classes) <= 40
    with figure_style():
        figure = new_figure(0.9 + (0.5 + (0.13 if named else 0.04) * len(classes)) * len(records), PAGE * 0.75)
        panels = figure.subplots(len(records), 1, squeeze=False)[:, 0]
        top = max(
            [
                100 * (head["value"] or 0)
                for each in records
                for layer in each.measured["energies"]
                for shares in layer["shares"]
                for head in shares
            ]
        )
        absent = False
        for axes, record in zip(panels, records, strict=True):
            layers = record.measured["energies"]
            shares_KX = np.array(
                [
                    [percent(head).value for layer in layers for head in layer["shares"][index]]
                    for index in range(len(classes))
                ]
            )
            absent |= bool(np.isnan(shares_KX).any())
            image = axes.imshow(shares_KX, cmap="viridis", vmin=0, vmax=top, aspect="auto")
            axes.grid(visible=False)
            axes.tick_params(length=0, pad=1)
            heads = [(layer, head) for layer in layers for head in range(len(layer["random"]))]
            axes.set_xticks(
                range(len(heads)),
                [f"{layer['position']}.{head}\n{100 * layer['random'][head]:.0f}" for layer, head in heads],
                fontsize=6,
            )
            axes.set_yticks(range(len(classes)) if named else [], classes if named else [], fontsize=6)
            axes.set_title(record.model, fontsize=7)
            if not named:
                axes.set_ylabel(f"{len(classes)} classes, in the order of the table", fontsize=6.5)
            for edge in np.cumsum([len(layer["random"]) for layer in layers])[:-1]:
                axes.axvline(edge - 0.5, color="white", linewidth=1.2)
            if len(heads) <= 16 and len(classes) <= 24:
                for (row, column), share in np.ndenumerate(shares_KX):
                    if not math.isnan(share):
                        shade = "black" if share > 0.6 * top else "white"
                        axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=5.5, color=shade)
        unseen = "; white: a class without patches" if absent else ""
        below = f"layer.head; below: percent that a random subspace of its dimension holds{unseen}"
        panels[-1].set_xlabel(below, fontsize=6.5)
        bar = figure.colorbar(image, ax=panels, shrink=0.6, aspect=30)
        bar.set_label("energy of a class's tokens\nin the head's subspace (%)", fontsize=7)
        figure.supxlabel(fill(_caption(records), int(20 * PAGE * 0.75)), fontsize=5.5, color="0.3")
        save_figure(figure, stem)
