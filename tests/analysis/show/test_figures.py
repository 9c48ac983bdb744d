import dataclasses
import json
import math
import warnings
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from asking import made_up
from matplotlib.axis import Tick
from matplotlib.figure import Figure
from PIL import Image

from analysis.record import Data, Record, RecordError
from analysis.show import evaluation, figures, training
from analysis.show.evaluation import per_class_bars
from analysis.show.figures import (
    COLUMN,
    PAGE,
    figure_style,
    legend_columns,
    new_figure,
)
from analysis.show.tables import Estimate
from analysis.show.training import read_metrics, training_curves
from whitebox.errors import OutputError


def write_log(path: Path, tail: str = "") -> Path:
    lines = []
    for step in range(10, 210, 10):
        lines.append({"step": step, "epoch": step // 100, "loss": 2 - step / 200, "lr": 1e-3 * (1 - step / 200)})
        if step % 100 == 0:
            lines.append({"step": step, "epoch": step // 100, "split": "val", "miou": step / 400, "aacc": 0.9})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return path


def eval_record(model: str = "depict-ca-tiny", ious: tuple[float, ...] = (0.4, math.nan, 0.8), **changes) -> Record:
    def about(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.1, "high": value + 0.1}

    per_class = [
        {"name": name, "iou": about(iou), "acc": about(iou), "label_share": 0.3}
        for name, iou in zip(("Car", "Fence", "Sky"), ious, strict=True)
    ]
    measured = {"miou": about(float(np.nanmean(ious))), "macc": about(0.7), "aacc": about(0.8), "per_class": per_class}
    values = {"data": Data("camvid", "test", 233, "ab" * 32), "n": 233, **changes}
    return made_up("eval", model=model, measured=measured, **values)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list:
    """The figures drawn, instead of files."""
    caught: list = []
    for module in (evaluation, training):
        monkeypatch.setattr(module, "save_figure", lambda figure, output: caught.append(figure) or [])
    return caught


def test_the_log_is_split_into_training_and_evaluation(tmp_path: Path) -> None:
    training, validation = read_metrics(write_log(tmp_path / "metrics.jsonl"))
    assert list(training["step"]) == list(range(10, 210, 10))
    assert list(validation["miou"]) == [0.25, 0.5]


def test_a_last_line_cut_short_is_left_out(tmp_path: Path) -> None:
    training, _ = read_metrics(write_log(tmp_path / "metrics.jsonl", '{"step": 210, "lo'))
    assert training["step"].max() == 200


def test_of_lines_with_the_same_step_the_last_counts(tmp_path: Path) -> None:
    tail = '{"step": 190, "loss": 7.0, "lr": 0.1}\n{"step": 200, "split": "val", "miou": null}\n'
    training, validation = read_metrics(write_log(tmp_path / "metrics.jsonl", tail))
    assert list(training["step"]) == list(range(10, 210, 10))
    assert training["loss"].iloc[-2] == 7.0
    assert list(validation["step"]) == [100]  # one without a score cannot be drawn


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"step": 1\n{"step": 2, "loss": 1, "lr": 1}\n', "line 1 is not JSON"),
        ('{"step": 1, "loss": 1, "lr": 1}\n{"loss": 2}\n', "line 2 has no key 'step'"),
        ('{"step": "a"}\n{"step": 2, "loss": 1, "lr": 1}\n', "line 1: step is no number; remove that line"),
        ('{"step": 1, "loss": [1], "lr": 1}\n{"step": 2}\n', "line 1: loss is no number"),
        ('{"step": 1}\n' + "[" * 5000 + "\n{}", "line 2 is not JSON"),
        ("", "no training steps yet"),
        ('{"step": 1, "split": "val", "miou": 0.1}\n', "no training steps yet"),
    ],
)
def test_a_log_that_cannot_be_drawn_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    with pytest.raises(RecordError, match=message) as caught:
        training_curves(path, tmp_path / "curves.png")
    assert "\n" not in str(caught.value) and not (tmp_path / "curves.png").exists()


def test_a_missing_log_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot be read"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_curves_show_loss_miou_in_percent_and_learning_rate(tmp_path: Path, drawn: list) -> None:
    training_curves(write_log(tmp_path / "metrics.jsonl"), tmp_path / "curves.png")
    loss, miou, rate = drawn[0].axes
    assert loss.lines[0].get_ydata()[0] == pytest.approx(1.95)
    assert loss.lines[1].get_ydata()[5] == pytest.approx(np.mean([2 - step / 200 for step in (50, 60, 70)]))
    assert list(miou.lines[0].get_ydata()) == [25.0, 50.0]
    assert miou.lines[0].get_label() == "last: 50.0"
    assert rate.lines[0].get_ydata()[-1] == pytest.approx(0.0)


def test_a_small_learning_rate_is_legible(tmp_path: Path, drawn: list) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "loss": 1.0, "lr": 1.1e-5}\n{"step": 2, "split": "val", "miou": 0.07}\n')
    training_curves(path, tmp_path / "curves.png")
    ticks = [label.get_text() for label in drawn[0].axes[-1].get_yticklabels()]
    assert "1.0" in ticks and not any("$" in text for text in ticks)


def test_curves_without_an_evaluation_have_two_panels(tmp_path: Path, drawn: list) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "loss": 1.0, "lr": 0.1}\n{"step": 20, "loss": 0.5, "lr": 0.05}\n')
    training_curves(path, tmp_path / "curves.png")
    assert len(drawn[0].axes) == 2


def test_bars_show_percent_sorted_with_the_mean_on_top(drawn: list) -> None:
    per_class_bars([eval_record(), eval_record("segmenter", (0.3, math.nan, 0.7))], "unused")
    axes = drawn[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["mIoU", "Sky", "Car", "Fence"]
    assert [bar.get_width() for bar in axes.containers[0]] == pytest.approx([60, 80, 40, 0])
    assert [bar.get_width() for bar in axes.containers[1]] == pytest.approx([50, 70, 30, 0])
    intervals = [tuple(line.get_xdata()) for line in axes.lines if len(set(line.get_ydata())) == 1]
    assert any(ends == pytest.approx((70, 90)) for ends in intervals)
    assert [text.get_text() for text in axes.texts] == ["–", "–"]  # Fence has no value in either
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["depict-ca-tiny", "segmenter"]


@pytest.mark.parametrize("count", [3, 10, 13])
def test_every_model_has_a_colour_of_its_own(drawn: list, count: int) -> None:
    per_class_bars([eval_record(f"model-{index}") for index in range(count)], "unused")
    colours = {bars[0].get_facecolor() for bars in drawn[0].axes[0].containers}
    assert len(colours) == count


@pytest.mark.parametrize("count", [1, 2, 7, 10])
@pytest.mark.parametrize("width", [COLUMN, PAGE])
def test_legends_fit_above_their_figure(count: int, width: float) -> None:
    names = ["segmenter-linear-tiny-camvid", "sa", "depict-ca-tiny"] * 4
    with figure_style():
        figure = new_figure(4, width)
        axes = figure.subplots()
        for name in names[:count]:
            axes.plot([0, 1], label=name)
        columns = legend_columns(names[:count], width)
        legend = figure.legend(loc="outside upper center", ncols=columns)
        figure.canvas.draw()
        assert legend.get_window_extent().width <= figure.bbox.width
    assert 1 <= columns <= count and (count == 1 or width < PAGE or columns > 1)


def test_bars_name_the_variant(drawn: list) -> None:
    per_class_bars([eval_record(variant="multiscale")], "unused")
    assert drawn[0].legends[0].get_texts()[0].get_text() == "depict-ca-tiny (multiscale)"


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "no evaluations to draw"),
        ([eval_record(), eval_record(data=Data("ade20k", "val", 2000, ""))], "other data"),
        ([eval_record(), dataclasses.replace(eval_record(), kind="robustness")], "not an evaluation"),
    ],
)
def test_bars_that_cannot_be_compared_are_one_line(tmp_path: Path, records: list[Record], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        per_class_bars(records, tmp_path / "bars.png")


def test_bars_of_other_classes_are_one_line(tmp_path: Path) -> None:
    other = eval_record()
    other.measured["per_class"][0]["name"] = "Bus"
    with pytest.raises(RecordError, match="other classes"):
        per_class_bars([eval_record(), other], tmp_path / "bars.png")


@pytest.mark.slow
def test_files_are_the_same_each_time_and_leave_no_state_behind(tmp_path: Path) -> None:
    log = write_log(tmp_path / "metrics.jsonl")
    settings = dict(mpl.rcParams)
    for folder in ("first", "second"):
        written = training_curves(log, tmp_path / folder / "curves.png")
        written += per_class_bars([eval_record()], tmp_path / folder / "bars-1.5")
        names = ["curves.png", "curves.pdf", "bars-1.5.png", "bars-1.5.pdf"]
        assert written == [tmp_path / folder / name for name in names]
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    with Image.open(tmp_path / "first" / "curves.png") as picture:
        assert picture.width == round(figures.COLUMN * figures.DPI)
    assert (tmp_path / "first" / "curves.pdf").read_bytes().startswith(b"%PDF")
    assert dict(mpl.rcParams) == settings and plt.get_fignums() == []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        per_class_bars([eval_record()], tmp_path / "file" / "bars.png")


def test_powers_are_drawn_as_powers_and_names_as_they_are(tmp_path: Path) -> None:
    """Mathtext is off for names, but what matplotlib writes at an axis of powers is mathtext of its own."""
    with figure_style():
        figure = new_figure(2.0)
        axes = figure.add_subplot()
        axes.plot([1, 1e4], [0, 1])
        axes.set_xscale("log")
        axes.set_yticks([0, 1], ["$a$", "b"])
        figures.save_figure(figure, tmp_path / "powers")
    drawn = {label.get_text(): label.get_parse_math() for label in (*axes.get_xticklabels(), *axes.get_yticklabels())}
    powers = [text for text in drawn if "mathdefault" in text]
    assert powers and all(drawn[text] for text in powers)
    assert not drawn["$a$"]


def test_powers_have_the_minor_ticks_alone_that_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out = figures._lay_out

    def longer(figure: Figure, dpi: int) -> None:
        late.extend(figure.axes[0].xaxis.get_major_ticks(30)[-1:])  # as where finding places makes an axis longer
        lay_out(figure, dpi)

    late: list[Tick] = []
    monkeypatch.setattr(figures, "_lay_out", longer)
    with figure_style():
        figure = new_figure(2.0)
        for axes, limits in zip(figure.subplots(1, 2), ((1, 1e4), (2, 60)), strict=True):
            axes.set_xscale("log")
            axes.set_xlim(*limits)
        figures.save_figure(figure, tmp_path / "powers")
    wide, narrow = (axes.xaxis.get_minor_ticks() for axes in figure.axes)
    assert wide == []
    named = [tick.label1 for tick in narrow if tick.label1.get_text()]
    assert named and all(label.get_parse_math() for label in named)
    assert [tick.label1.get_parse_math() for tick in late] == [True]


def test_labels_and_titles_are_not_cut_at_an_edge(tmp_path: Path) -> None:
    """Lines are broken where words end; what fits stays as it was, and ticks at the left move the middle."""
    with figures.figure_style():
        figure = figures.new_figure(4.0)
        axes = figure.subplots()
        axes.set_yticks([0, 1], ["a name that takes much room", "b"])
        axes.set_ylabel("the energy of what is seen of it by all the heads of a layer, in units of it")
        axes.set_xlabel("percentage points, paired 95 % interval over 10 blocks of about 10 frames\nfits")
        axes.set_title("short")
        axes.set_title("a title at the left that is much longer than the figure is wide, so it is broken", loc="left")
        figures.save_figure(figure, tmp_path / "x")
    left = axes.get_title("left")
    texts = [
        each
        for each in figure.findobj(mpl.text.Text)
        if each.get_text() in (axes.get_xlabel(), axes.get_ylabel(), left)
    ]
    assert len(texts) == 3 and "\n" in axes.get_ylabel() and "\n" in left and axes.get_title() == "short"
    assert axes.get_xlabel().endswith("\nfits") and axes.get_xlabel().count("\n") >= 2
    figure.set_dpi(figures.DPI)
    figure.draw_without_rendering()
    for text in texts:
        extent = text.get_window_extent()
        assert extent.x0 >= 0 and extent.x1 <= figure.bbox.width, text.get_text()
        assert extent.y0 >= 0 and extent.y1 <= figure.bbox.height, text.get_text()


def test_curves_of_trainings_lie_behind_their_mean() -> None:
    with figures.figure_style():
        axes = figures.new_figure(2.0).subplots()
        several = [Estimate(2.0, seeds=(1.0, 3.0)), Estimate(5.0, seeds=(4.0, 6.0))]
        figures.curves_behind(axes, [0, 1], several, "red")
        assert [line.get_ydata().tolist() for line in axes.lines] == [[1.0, 4.0], [3.0, 6.0]]
        figures.curves_behind(axes, [0, 1], [Estimate(2.0), Estimate(5.0)], "red")
        figures.curves_behind(axes, [], [], "red")
        assert len(axes.lines) == 2 and all(line.get_alpha() < 0.5 for line in axes.lines)


@pytest.mark.parametrize("models", [1, 2])
def test_of_many_classes_the_extremes_are_drawn(drawn: list, models: int) -> None:
    """150 classes make no figure of 5,800 px: best, most changed and worst; the table has all."""
    names = [f"class-{index:03d}" for index in range(150)]

    def record(number: int) -> Record:
        found = eval_record(f"model-{number}")
        values = [(149 - index) / 150 for index in range(150)]
        values[70:90] = [values[70 + index] + 0.3 * number * (index % 2) for index in range(20)]
        per_class = [
            {
                "name": name,
                "iou": {"value": value, "low": value, "high": value},
                "acc": {"value": 0.5},
                "label_share": 0,
            }
            for name, value in zip(names, values, strict=True)
        ]
        return dataclasses.replace(found, measured={**found.measured, "per_class": per_class})

    per_class_bars([record(number) for number in range(models)], "unused")
    (axes,) = drawn[0].axes
    shown = [label.get_text() for label in axes.get_yticklabels()][1:]
    count = figures.FEW // (2 if models == 1 else 4)
    assert shown[0] == "class-000" and shown[-1] == "class-149" and len(shown) == len(set(shown)) <= figures.FEW
    assert shown[-count:] == names[-count:]
    if models == 2:
        assert set(shown[count : 2 * count]) == {names[71 + 2 * index] for index in range(10)}
    assert f"the {count} worst of 150 classes" in axes.get_xlabel() and drawn[0].get_figheight() < 10


def test_unknown_classes_are_among_no_extremes() -> None:
    values = {f"{index}": [math.nan if index > 45 else float(index)] for index in range(60)}
    names, rules, words = figures.extremes(values)
    assert names[0] == "45" and names[-1] == "0" and rules == [20] and "60 classes" in words
    few = {"a": [1.0], "b": [math.nan], "c": [3.0]}
    assert figures.extremes(few) == (["c", "a", "b"], [], "")


def test_an_axis_that_is_linear_and_logarithmic_says_so(tmp_path: Path) -> None:
    with figure_style():
        figure = new_figure(3.0)
        upper, lower = figure.subplots(2, 1)
        upper.set_xscale("symlog", linthresh=0.01)
        upper.set_xlabel("noise")
        lower.set_yscale("symlog", linthresh=1)
        figure.supylabel("improvement")
        for _ in range(2):  # once, however often it is saved
            figures.save_figure(figure, tmp_path / "x")
    assert upper.get_xlabel() == "noise\n(linear up to 0.01, then logarithmic)"
    assert figure.get_supylabel() == "improvement\n(linear up to 1, then logarithmic)"


def test_a_figure_too_low_for_its_labels_grows(tmp_path: Path) -> None:
    with warnings.catch_warnings(), figure_style():
        warnings.simplefilter("error")
        figure = new_figure(0.8)
        figure.subplots().set_xlabel("what is seen of it by all the heads of a layer and in units of these heads " * 3)
        figures.save_figure(figure, tmp_path / "x")
    assert figure.get_figheight() > 0.8 and figure.axes[0].get_window_extent().height > 5


# Machado, Oliveira and Fernandes 2009, table 1, severity 1: linear RGB as dichromats see it
DICHROMATS = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(linear_N3: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """CIE L*a*b* (D65) of linear sRGB."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x_N3 = linear_N3 @ to_xyz.T / to_xyz.sum(1)
    f_N3 = np.where(x_N3 > (6 / 29) ** 3, np.cbrt(x_N3), x_N3 / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f_N3[:, 1] - 16, 500 * (f_N3[:, 0] - f_N3[:, 1]), 200 * (f_N3[:, 1] - f_N3[:, 2])], axis=1)


@pytest.mark.parametrize("seen", [None, *DICHROMATS])
def test_colours_are_told_apart_without_a_kind_of_cones(seen: str | None) -> None:
    """Every two colours differ by 10 or more (CIE 1976; 2.3 is just seen), also as dichromats see them."""
    with figure_style(10) as colours:
        srgb_N3 = np.array(colours)
    linear_N3 = np.where(srgb_N3 <= 0.04045, srgb_N3 / 12.92, ((srgb_N3 + 0.055) / 1.055) ** 2.4)
    if seen is not None:
        linear_N3 = np.clip(linear_N3 @ np.array(DICHROMATS[seen]).T, 0, 1)
    lab_N3 = lab(linear_N3)
    distances = np.linalg.norm(lab_N3[:, None] - lab_N3[None], axis=-1)[np.triu_indices(10, 1)]
    assert distances.min() >= 10, distances.min()
