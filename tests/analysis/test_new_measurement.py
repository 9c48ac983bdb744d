"""docs/new_measurement.md: its two files and its line are what a measurement needs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_runs import tiny_run

import analysis.measures
import analysis.show
from analysis import measurement
from analysis.measurement import Kind, loaded
from analysis.record import read_records
from whitebox.cli.analysis import command_of
from whitebox.cli.app import app

PAGE = Path(__file__).resolve().parents[2] / "docs" / "new_measurement.md"
Call = Callable[..., tuple[int, str, str]]


def written(marker: str) -> str:
    (block,) = re.findall(rf"<!-- {re.escape(marker)} -->\n```\w+\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    return str(block)


@pytest.fixture
def margins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The measurement of the page, as if it were ours."""
    for package in (analysis.measures, analysis.show):
        room = package.__name__.split(".")[1]
        (tmp_path / room).mkdir()
        (tmp_path / room / "margins.py").write_text(written(f"file: analysis/{room}/margins.py"), "utf-8")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / room)])
    ((name, kind),) = eval("{" + written("line: analysis/measurement.py") + "}", {"Kind": Kind}).items()
    monkeypatch.setitem(measurement.KINDS, name, kind)
    before = list(app.registered_commands)
    app.command(name=name)(command_of(loaded(kind.measured)))
    yield
    app.registered_commands[:] = before
    for room in ("measures", "show"):
        sys.modules.pop(f"analysis.{room}.margins", None)


@pytest.mark.usefixtures("margins")
def test_a_measurement_is_two_files_and_a_line(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [tiny_run(tmp_path / name, f"{name}-tiny", seed=1) for name in ("depict-sa", "segmenter-linear")]
    arguments = ("margins", *runs, "--limit", 2, "--device", "cpu", "-o", tmp_path / "out")
    code, out, err = call(*arguments)
    assert code == 0, err
    assert "Margin, wrong" in out and "n = 2 images" in out
    records = read_records(tmp_path / "out" / "records")
    assert [record.model for record in records] == ["depict-sa", "segmenter-linear"]
    for record in records:
        measured = record.measured
        assert 0 <= measured["right"]["value"] <= 1 and 0 <= measured["accuracy"]["value"] <= 1
        assert record.settings["temperature"] == 1.0 and record.settings["window"] == 32
    assert len(list((tmp_path / "out" / "figures").glob("margins-shapes-val-2_models-*.png"))) == 1

    monkeypatch.setattr(loaded(measurement.KINDS["margins"].measured), "measure", None)
    assert call(*arguments)[1] == out  # read, not measured
    code, _, err = call(*arguments, "--temperature", 0)
    assert code == 2 and err == "error: --temperature=0.0 is impossible: it must be above 0.\n"
    code, out, _ = call("margins", "--help")
    assert code == 0 and "--temperature" in out and "--split" in out and "--again" in out


def test_the_page_is_formatted(tmp_path: Path) -> None:
    for room in ("measures", "show"):
        (tmp_path / f"{room}.py").write_text(written(f"file: analysis/{room}/margins.py"), "utf-8")
    config = PAGE.parents[1] / "pyproject.toml"
    for check in (["check", "--ignore", "D301"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *check, "--config", config, tmp_path], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout
