import csv
import io
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from asking import made_up
from rich.console import Console

from analysis.record import Data, RecordError
from analysis.show.evaluation import per_class_table
from analysis.show.tables import Column, Estimate, Table, stored_cell
from whitebox.errors import OutputError

TABLE = Table(
    columns=(Column("Model_A"), Column("IoU (%)"), Column("n", decimals=0), Column("speed", decimals=2)),
    rows=(
        ("a & b", Estimate(45.34, 43.06, 47.0), 5, 1.0),
        ("c_d", Estimate(12.0), 12345, math.nan),
        ("mean", Estimate(math.nan), None, 0.126),
    ),
    caption="50 % of it.",
    summary_rows=1,
)


def eval_record(**changes):
    measured = {
        "miou": {"value": 0.5, "low": 0.4, "high": 0.6},
        "macc": {"value": 0.7, "low": 0.65, "high": 0.75},
        "aacc": {"value": 0.9, "low": 0.88, "high": 0.92},
        "per_class": [
            {"name": "Sky", "iou": {"value": 0.5, "low": 0.4, "high": 0.6}, "acc": {"value": 0.7}, "label_share": 1.0},
            {
                "name": "Fence",
                "iou": {"value": math.nan, "low": math.nan, "high": math.nan},
                "acc": {"value": math.nan},
                "label_share": 0.0,
            },
        ],
    }
    values = {
        "model": "depict-ca-tiny",
        "data": Data("camvid", "test", 233, "ab" * 32),
        "n": 233,
        "settings": {"resamples": 1000},
        "seeds": {"bootstrap": 0},
    }
    return made_up("eval", measured={**measured, **changes}, **values)


def test_markdown() -> None:
    assert TABLE.to_markdown() == (
        "| Model\\_A | IoU (%) | n | speed |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| a & b | 45.3 [43.1, 47.0] | 5 | 1.00 |\n"
        "| c\\_d | 12.0 | 12345 | – |\n"
        "| **mean** | **–** |  | **0.13** |\n"
        "\n50 % of it.\n"
    )


def test_latex_is_escaped_and_has_a_rule_above_the_summary() -> None:
    assert TABLE.to_latex().splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{50 \% of it.}",
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r"Model\_A & IoU (\%) & n & speed \\",
        r"\midrule",
        r"a \& b & 45.3 [43.1, 47.0] & 5 & 1.00 \\",
        r"c\_d & 12.0 & 12345 & -- \\",
        r"\midrule",
        r"mean & -- &  & 0.13 \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def test_latex_escapes_every_special_character() -> None:
    table = Table((Column("x"),), (("\\ ~ ^ & % $ # _ { }",),), "")
    assert r"\textbackslash{} \textasciitilde{} \textasciicircum{} \& \% \$ \# \_ \{ \} \\" in table.to_latex()


def test_csv_keeps_all_digits_and_both_ends_of_intervals() -> None:
    rows = list(csv.reader(io.StringIO(TABLE.to_csv())))
    assert rows[0] == ["Model_A", "IoU (%)", "IoU (%) low", "IoU (%) high", "n", "speed"]
    assert rows[1] == ["a & b", "45.34", "43.06", "47.0", "5", "1.0"]
    assert rows[2] == ["c_d", "12.0", "", "", "12345", ""]
    assert rows[3] == ["mean", "", "", "", "", "0.126"]


def test_the_terminal_shows_the_same_text() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(TABLE.to_rich())
    shown = console.file.getvalue()
    assert all(text in shown for row in TABLE.shown() for text in row)
    assert "Model_A" in shown and "50 % of it." in shown


def test_square_brackets_in_class_names_are_no_markup() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(Table((Column("class"),), (("[red]car[/red]",),), "").to_rich())
    assert "[red]car[/red]" in console.file.getvalue()


def test_writing_gives_three_files(tmp_path: Path) -> None:
    paths = TABLE.write(tmp_path / "new" / "eval-1.5")
    assert [path.name for path in paths] == ["eval-1.5.csv", "eval-1.5.md", "eval-1.5.tex"]
    assert [path.read_text(encoding="utf-8") for path in paths] == [
        TABLE.to_csv(),
        TABLE.to_markdown(),
        TABLE.to_latex("eval-1.5"),
    ]


def test_writing_where_there_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        TABLE.write(tmp_path / "file" / "table")


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="2 cells under 1 columns"):
        Table((Column("x"),), ((1, 2),), "")


def test_per_class_table_is_in_percent_with_the_means_last() -> None:
    table = per_class_table(eval_record())
    assert table.shown() == [
        ["Sky", "50.0 [40.0, 60.0]", "70.0", "100.0"],
        ["Fence", "–", "–", "0.0"],
        ["mIoU", "50.0 [40.0, 60.0]", "", ""],
        ["mAcc", "", "70.0 [65.0, 75.0]", ""],
        ["aAcc", "", "90.0 [88.0, 92.0]", ""],
    ]
    assert table.summary_rows == 3
    assert table.caption == (
        "depict-ca-tiny on camvid test, n = 233 images. "
        "Brackets: 95 % interval over images as independent; one training, whose spread is unknown; 1000 resamples, "
        "seed 0."
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"miou": {}}, r"lacks measured\.miou\.value"),
        ({"per_class": [{"name": "Sky"}]}, r"lacks measured\.per_class\.iou"),
        (
            {"per_class": [{"name": "Sky", "iou": {}, "acc": {}, "label_share": 0.0}]},
            r"lacks measured\.per_class\.iou\.value",
        ),
    ],
)
def test_an_incomplete_evaluation_is_one_line(changes: dict, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        per_class_table(eval_record(**changes))


def test_another_kind_of_record_is_one_line() -> None:
    record = made_up("robustness", model="x", data=Data("camvid", "test", 1, ""), measured={}, n=1)
    with pytest.raises(RecordError, match="not an evaluation"):
        per_class_table(record)


def test_cells_of_a_record() -> None:
    assert stored_cell({"value": 1.5, "low": 1.0, "high": 2.0}) == Estimate(1.5, 1.0, 2.0)
    assert stored_cell(3) == 3 and isinstance(stored_cell(3), int) and stored_cell(0.5) == 0.5
    assert math.isnan(stored_cell(None))


def test_what_is_above_0_is_never_shown_as_0() -> None:
    table = Table((Column("p", 3, positive=True), Column("d", 3)), ((0.0004, 0.0004), (0.0006, 0.0)), "")
    assert table.shown() == [["<0.001", "0.000"], ["0.001", "0.000"]]
    assert "0.0004" in table.to_csv()
    assert "$<$0.001 & 0.000" in table.to_latex()


def test_latex_has_true_minus_signs_in_numbers_alone_and_a_label() -> None:
    table = Table((Column("Model"), Column("x", 2)), (("sa-tiny", Estimate(-0.5, -1.0, 0.25)),), "c-d")
    text = table.to_latex("compare-camvid_val 2")
    assert r"sa-tiny & $-$0.50 [$-$1.00, 0.25] \\" in text and r"\caption{c-d}" in text
    assert r"\label{tab:compare-camvid-val-2}" in text.splitlines()


def test_an_interval_without_a_width_is_none() -> None:
    """All draws alike: nothing is known of the spread; and what is not 0 is not shown as 0.00 [0.00, 0.00]."""
    columns = (Column("x", 2),)
    shown = [
        Table(columns, ((each,),), "").shown()[0][0]
        for each in (
            Estimate(0.0, 0.0, 0.0),
            Estimate(3.0, 3.0, 3.0),
            Estimate(0.0012, 0.0003, 0.0021),
            Estimate(0.0, -0.4, 0.4),
            Estimate(0.3, 0.1, 0.5, decimals=3),
        )
    ]
    assert shown == ["0.00", "3.00", "0.0012 [0.0003, 0.0021]", "0.00 [-0.40, 0.40]", "0.300 [0.100, 0.500]"]


TEX = next((engine for engine in ("pdflatex", "lualatex", "xelatex", "tectonic") if shutil.which(engine)), None)


def test_latex_compiles(tmp_path: Path) -> None:
    """With a TeX engine where there is one; else what TeX asks of it: braces, environments, columns of each row."""
    awkward = Table(
        (Column("a_b & c"), Column("x (%)", 2)),
        (("[a] \\ ~ ^ # $ { }", Estimate(-1.0, -2.0, 0.5, sd=0.1)), ("50 % \u2013 <b>", math.nan), ("z", -0.001)),
        "R^c of _all_ & 95 % of [it]",
        summary_rows=1,
    )
    awkward.write(tmp_path / "table")
    text = (tmp_path / "table.tex").read_text("utf-8")
    begun, ended = (re.findall(rf"\\{word}{{(\w+)}}", text) for word in ("begin", "end"))
    assert begun == ended[::-1] == ["table", "tabular"]
    bare = re.sub(r"\\[{}%&#$_]", "", text)
    assert bare.count("{") == bare.count("}")
    assert all(len(re.findall(r"&", row)) == 1 for row in bare.splitlines() if row.endswith(r"\\"))
    if TEX is not None:
        (tmp_path / "paper.tex").write_text(
            "\\documentclass{article}\\IfFileExists{booktabs.sty}{\\usepackage{booktabs}}"
            "{\\let\\toprule\\hline\\let\\midrule\\hline\\let\\bottomrule\\hline}\\begin{document}\\input{table.tex}"
            "See table~\\ref{tab:table}.\\end{document}\n"
        )
        options = [] if TEX == "tectonic" else ["-interaction=nonstopmode", "-halt-on-error"]
        done = subprocess.run([TEX, *options, "paper.tex"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:]
        assert (tmp_path / "paper.pdf").stat().st_size > 1000
