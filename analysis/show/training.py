"""The curves of a training, from its log."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.record import RecordError
from analysis.show.figures import figure_style, new_figure, save_figure
from whitebox.foreign import parse_json

if TYPE_CHECKING:
    import pandas as pd


def read_metrics(path: str | os.PathLike[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The log of a training, ``metrics.jsonl``: one JSON object a line.

    Returns:
        The training lines (``step``, ``loss``, ``lr``, ...) and the evaluation lines (``step``, ``miou`` as a
        fraction, ...), both by ascending step. Of lines with the same step, as a resumed run may write them, the last
        counts. A last line cut short, as a killed run leaves it, is left out.

    Raises:
        RecordError: no such file, a broken line before the last, or no training line.
    """
    import pandas as pd

    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise RecordError(f"The training log {os.fspath(path)} cannot be read: {error.strerror}.") from error
    entries: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = parse_json(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise RecordError(f"{os.fspath(path)}, line {number} is not JSON; remove that line.") from error
        if not isinstance(entry, dict) or "step" not in entry:
            raise RecordError(f"{os.fspath(path)}, line {number} has no key 'step'; remove that line.")
        for key in ("step", "loss", "lr", "miou"):
            if not isinstance(entry.get(key), int | float | None):
                raise RecordError(f"{os.fspath(path)}, line {number}: {key} is no number; remove that line.")
        entries.append(entry)
    evaluations = [entry for entry in entries if "miou" in entry]
    training = [entry for entry in entries if "loss" in entry and "miou" not in entry]
    if not training:
        raise RecordError(f"{os.fspath(path)} has no training steps yet; nothing to draw.")

    def table(rows: list[dict[str, Any]], needed: list[str]) -> pd.DataFrame:
        frame = pd.DataFrame(rows, columns=list(dict.fromkeys([*needed, *(key for row in rows for key in row)])))
        frame = frame.astype(dict.fromkeys(needed, float))
        return frame.drop_duplicates("step", keep="last").sort_values("step", ignore_index=True)

    return table(training, ["step", "loss", "lr"]), table(evaluations, ["step", "miou"]).dropna(subset="miou")


def training_curves(metrics: str | os.PathLike[str], output: str | os.PathLike[str]) -> list[Path]:
    """Loss (as logged, and smoothed), validation mIoU and learning rate over the steps of one training.

    Args:
        metrics: a run's ``metrics.jsonl``, see `read_metrics`.
        output: the PNG's path; a PDF is written beside it.

    Raises:
        RecordError: the log cannot be read or holds no step.
        OutputError: the folder cannot be written.
    """
    from matplotlib.ticker import EngFormatter, MaxNLocator

    training, validation = read_metrics(metrics)
    window = max(1, len(training) // 25)
    smooth = training["loss"].rolling(2 * window + 1, center=True, min_periods=1).mean()
    dots = "o" if len(training) < 10 else ""  # a line through one point is invisible
    has_validation = not validation.empty
    heights = [3.0, 3.0, 1.5] if has_validation else [3.0, 1.5]
    with figure_style() as colours:
        figure = new_figure(0.5 + 0.42 * sum(heights))
        panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
        loss, rate = panels[0], panels[-1]
        loss.plot(training["step"], training["loss"], color=colours[0], alpha=0.3, linewidth=0.7, label="as logged")
        mean = f"mean of {2 * window + 1} points"
        loss.plot(training["step"], smooth, color=colours[0], linewidth=1.4, marker=dots, markersize=2.5, label=mean)
        loss.set_ylabel("training loss")
        loss.legend(loc="upper right")
        if has_validation:
            miou = 100 * validation["miou"]
            # the last value is the result: choosing the best would be a choice on the evaluation's own images
            last = f"last: {miou.iloc[-1]:.1f}"
            panels[1].plot(
                validation["step"], miou, color=colours[2], linewidth=1.4, marker="o", markersize=2.5, label=last
            )
            panels[1].set_ylabel("val mIoU (%)")
            panels[1].set_ylim(0, 1.08 * max(1.0, miou.max()))
            panels[1].legend(loc="lower right")
        rate.plot(training["step"], training["lr"], color=colours[7], linewidth=1.4, marker=dots, markersize=2.5)
        rate.set_ylim(bottom=0)
        rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        rate.locator_params(axis="y", nbins=3)
        rate.set_ylabel("learning\nrate")
        rate.set_xlabel("optimiser step")
        rate.set_xlim(0, 1.02 * training["step"].max())
        rate.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        rate.xaxis.set_major_formatter(EngFormatter(sep=""))  # 120k
        figure.align_ylabels(list(panels))
        return save_figure(figure, output)
