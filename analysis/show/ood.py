"""Tables and figures of `analysis.measures.ood`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from analysis.record import Record
from analysis.show.figures import PAGE, figure_style, legend_columns, new_figure, save_figure
from analysis.show.spread import together_words
from analysis.show.tables import Cell, Column, Table, percent

_NUMBERS = ("auroc", "ap", "fpr95")
_HEADS = (Column("AUROC (%)"), Column("AP (%)"), Column("FPR95 (%)"))


def tables(records: Sequence[Record]) -> dict[str, Table]:
    """Patches of held-out classes, and corrupted photos."""
    found = {}
    if any(record.measured["scores"] for record in records):
        rows: list[tuple[Cell, ...]] = [
            (
                record.model,
                ", ".join(record.measured["held_out"]),
                each["name"],
                *(percent(each[key]) for key in _NUMBERS),
            )
            for record in records
            for each in record.measured["scores"]
        ]
        shares = "; ".join(f"{record.model} {_guess(record):.1f}" for record in records if record.measured["scores"])
        caption = (
            "Patches of foreign classes among all others that have a label. AP of a guess, percent: "
            f"{shares}. {_caption(records)}"
        )
        found[""] = Table((Column("Model"), Column("Foreign"), Column("Score"), *_HEADS), tuple(rows), caption)
    if any(record.measured["corruptions"] for record in records):
        photos: list[tuple[Cell, ...]] = [
            (record.model, change["kind"], change["severity"], each["name"], *(percent(each[key]) for key in _NUMBERS))
            for record in records
            for change in record.measured["corruptions"]
            for each in change["scores"]
        ]
        caption = f"Corrupted photos among as many clean ones, by the mean score of a photo. {_caption(records)}"
        heads = (Column("Model"), Column("Corruption"), Column("Severity"), Column("Score"), *_HEADS)
        found["-corruptions"] = Table(heads, tuple(photos), caption)
    return found


def figures(records: Sequence[Record], stem: Path) -> None:
    """ROC of patches at STEM; AUROC of corrupted photos at ``STEM-corruptions``."""
    if shown := [record for record in records if record.measured["scores"]]:
        _draw_roc(shown, stem)
    if shown := [record for record in records if record.measured["corruptions"]]:
        _draw_corruptions(shown, stem.with_name(f"{stem.name}-corruptions"))


def _guess(record: Record) -> float:
    """Percent of patches that are foreign."""
    return float(100 * record.measured["foreign"] / (record.measured["known"] + record.measured["foreign"]))


def _caption(records: Sequence[Record]) -> str:
    first = records[0]
    measured = first.measured
    return (
        f"{first.data.name} {first.data.split}, n = {first.n} images. 50 % AUROC: a guess. Scores over the other "
        f"classes; distance: share of a token's length outside the {measured['directions']:.0f} leading "
        f"directions of tokens of {measured['fitted']['images']:.0f} images of {measured['fitted']['split']}. "
        f"Brackets: {together_words(records)}, by the jackknife."
    )


def _draw_roc(records: Sequence[Record], stem: Path) -> None:
    """A panel a score, a line a model."""
    from matplotlib.lines import Line2D

    scores = [each["name"] for each in records[0].measured["scores"]]
    with figure_style(len(records)) as colours:
        figure = new_figure(2.9, PAGE)
        panels = figure.subplots(1, len(scores), sharey=True)
        for index, (axes, name) in enumerate(zip(panels, scores, strict=True)):
            axes.plot([0, 100], [0, 100], color="0.6", linewidth=0.8, linestyle=":")
            for record, colour in zip(records, colours, strict=False):
                each = record.measured["scores"][index]
                axes.plot(
                    np.linspace(0, 100, len(each["roc"])), 100 * np.array(each["roc"]), color=colour, linewidth=1.2
                )
            values = ", ".join(f"{percent(record.measured['scores'][index]['auroc']).value:.1f}" for record in records)
            axes.set_title(f"{name}\nAUROC {values}" if len(records) < 4 else name, fontsize=8)
            axes.set_xlabel("known patches taken\nfor foreign (%)")
        panels[0].set_ylabel("foreign patches found (%)")
        handles: list[Any] = [
            Line2D([], [], color=colour, label=f"{each.model}: {', '.join(each.measured['held_out'])}")
            for each, colour in zip(records, colours, strict=False)
        ]
        columns = legend_columns([str(handle.get_label()) for handle in handles], PAGE)
        figure.legend(handles=handles, loc="outside upper center", ncols=columns)
        figure.supxlabel(fill(_caption(records), int(20 * PAGE)), fontsize=5.5, color="0.3")
        save_figure(figure, stem)


def _draw_corruptions(records: Sequence[Record], stem: Path) -> None:
    """A panel a model: scores down, corruptions across."""
    with figure_style():
        most = max(len(record.measured["corruptions"]) for record in records)
        figure = new_figure(1.0 + 1.5 * len(records), min(PAGE, 2.2 + 0.5 * most))
        panels = figure.subplots(len(records), 1, squeeze=False)[:, 0]
        for axes, record in zip(panels, records, strict=True):
            changes = record.measured["corruptions"]
            names = [each["name"] for each in changes[0]["scores"]]
            shown = np.array(
                [[percent(each["scores"][row]["auroc"]).value for each in changes] for row in range(len(names))]
            )
            image = axes.imshow(shown, cmap="RdBu_r", vmin=0, vmax=100, aspect="auto")
            axes.grid(visible=False)
            axes.tick_params(length=0, pad=1)
            axes.set_xticks(
                range(len(changes)),
                [f"{each['kind']} {each['severity']}" for each in changes],
                rotation=45,
                ha="right",
                fontsize=6,
            )
            axes.set_yticks(range(len(names)), names, fontsize=6)
            axes.set_title(record.model, fontsize=7)
            if len(changes) <= 15:
                for (row, column), value in np.ndenumerate(shown):
                    shade = "white" if abs(value - 50) > 38 else "black"
                    axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=5.5, color=shade)
        bar = figure.colorbar(image, ax=panels, shrink=0.7, aspect=25)
        bar.set_label("AUROC (%); 50: a guess", fontsize=7)
        figure.supxlabel(fill(_caption(records), int(20 * figure.get_figwidth())), fontsize=5.5, color="0.3")
        save_figure(figure, stem)
