"""The borders of text: what a layer would read more in than letters arrives as it is written, or as a code."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.progress import Progress

from analysis.show.figures import figure_style, new_figure, save_figure
from analysis.show.tables import Column, Estimate, Table
from whitebox.errors import ConfigError
from whitebox.terminal import Console, PlainColumn, plain, print_line
from whitebox.text import composed, csv_text, latex, markdown, require_text, shown

ACTIVE = "a\x1b]0;x\x07\x1b[2J\u202eb\r\n\u2028\x9b"


def test_shown() -> None:
    assert shown(ACTIVE) == "aU+001B]0;xU+0007U+001B[2JU+202EbU+000DU+000AU+2028U+009B"
    assert shown("\udcff") == "U+DCFF"
    for kept in ("lane [/red]", "ñandú", "中文 🦔", "שלום", "a\u200d"):
        assert shown(kept) == kept


def test_require_text() -> None:
    assert require_text("né", "The name") == "né"
    with pytest.raises(ConfigError, match=r"^The name 'aU\+DCFF' is no text in UTF-8: rename it.$"):
        require_text("a\udcff", "The name")


def test_composed() -> None:
    assert composed("cafe\u0301") == "café"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b*_`\\", "a\\|b\\*\\_\\`\\\\"),
        ("<script>x</script>", "&lt;script&gt;x&lt;/script&gt;"),
        ("[x](javascript:y)", "\\[x\\](javascript:y)"),
        ("&lt; a & b", "&amp;lt; a & b"),
        ("$a$ ~~b~~", "\\$a\\$ \\~\\~b\\~\\~"),
        ("a\nb", "aU+000Ab"),
    ],
)
def test_markdown(text: str, expected: str) -> None:
    assert markdown(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\input{x}", r"\textbackslash{}input\{x\}"),
        ("50 % & $a_1^2$ #~", r"50 \% \& \$a\_1\textasciicircum{}2\$ \#\textasciitilde{}"),
        ("[2ex] *", "{[}2ex] {*}"),  # behind the end of a row they would be arguments of it
        ("a\n\nb", "aU+000AU+000Ab"),
    ],
)
def test_latex(text: str, expected: str) -> None:
    assert latex(text) == expected


@pytest.mark.parametrize("start", ["=", "+", "-", "@"])
def test_csv(start: str) -> None:
    assert csv_text(f"{start}cmd|' /C calc'!A0") == f"'{start}cmd|' /C calc'!A0"
    assert csv_text("a=b") == "a=b"


def test_tables_escape_text_and_no_number() -> None:
    table = Table(
        (Column("=Model"), Column("mIoU", 1)), (("[x] <b>", Estimate(-1.0, -2.0, 0.5)), ("-y\x1b", -3.0)), "of [x]"
    )
    assert table.to_csv() == ("'=Model,mIoU,mIoU low,mIoU high\n[x] <b>,-1.0,-2.0,0.5\n'-yU+001B,-3.0,,\n")
    assert "| \\[x\\] &lt;b&gt; | -1.0 [-2.0, 0.5] |\n" in table.to_markdown()
    assert r"{[}x] \textless{}b\textgreater{} & $-$1.0 [$-$2.0, 0.5] \\" in table.to_latex()
    screen = io.StringIO()
    Console(file=screen, width=80).print(table.to_rich())
    assert "[x] <b>" in screen.getvalue() and "-yU+001B" in screen.getvalue()


def test_terminal() -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=200)
    console.print("[red]x[/red] :smile:", plain("[/] \x1b[2J"), end="\n")
    print_line(console, "lane [/red]\x1b]0;t\x07 " + "x" * 300)
    with Progress(PlainColumn("{task.description}"), console=console) as bars:
        bars.add_task("[/red] {task}")
    text = screen.getvalue()
    assert "[red]x[/red] :smile: [/] U+001B[2J\n" in text
    assert f"lane [/red]U+001B]0;tU+0007 {'x' * 300}\n" in text
    assert "[/red] {task}" in text


def test_figures(tmp_path: Path) -> None:
    """Dollars are no formulas, letters that are missing are codes, and names that begin with _ are in the legend."""
    with figure_style():
        figure = new_figure(2)
        axes = figure.subplots()
        axes.plot([0, 1], label="_run $a$")
        axes.set_yticks([0, 1], ["$b$ $", "中 [/red]"])
        axes.set_title("x" * 200 + "\n\x1b")
        legend = figure.legend(loc="outside upper center")
        save_figure(figure, tmp_path / "a.png")
    assert [text.get_text() for text in legend.get_texts()] == [" _run $a$"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["$b$ $", "U+4E2D [/red]"]
    assert not any(text.get_parse_math() for text in (*legend.get_texts(), *axes.get_yticklabels()))
    assert re.fullmatch(r"x{24}…x{23}\nU\+001B", axes.get_title())
    assert (tmp_path / "a.pdf").stat().st_size > 1000
