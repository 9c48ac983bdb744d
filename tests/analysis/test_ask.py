"""Asked once it is measured, asked twice it is read."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from asking import no_bar
from PIL import Image
from tiny_runs import tiny_run

from analysis.ask import ask, measure_runs, stored
from analysis.consumed import Chosen
from analysis.measures.attention import Attention
from analysis.measures.orthogonality import Orthogonality
from analysis.record import Answer, Data, Question, RecordError, read_record, read_records
from whitebox.runs import find_run

Call = Callable[..., tuple[int, str, str]]
QUESTION = Question(kind="eval", model="x", data=Data("shapes", "val", 3, "f"), settings={"window": 32})


def answer(value: float) -> Callable[[], Answer]:
    return lambda: Answer(measured={"miou": value}, n=3)


def never() -> Answer:
    raise AssertionError("measured again")


def test_a_question_is_measured_once(tmp_path: Path) -> None:
    assert stored(QUESTION, tmp_path) is None
    first = ask(QUESTION, answer(0.5), tmp_path)
    assert ask(QUESTION, never, tmp_path) == first == read_record(tmp_path / QUESTION.file_name)
    again = ask(QUESTION, answer(0.6), tmp_path, again=True)
    assert again.measured == {"miou": 0.6} and stored(QUESTION, tmp_path) == again


def test_a_question_is_known_before_its_answer(tmp_path: Path) -> None:
    other = Question(kind="eval", model="x", data=QUESTION.data, settings={"window": 64})
    assert other.identity != QUESTION.identity
    ask(QUESTION, answer(0.5), tmp_path)
    assert stored(other, tmp_path) is None


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"schema": 1}', '{"schema": 2}'])
def test_a_damaged_answer_is_named_and_never_lost(tmp_path: Path, content: str) -> None:
    ask(QUESTION, answer(0.5), tmp_path)
    path = tmp_path / QUESTION.file_name
    path.write_text(content)
    with pytest.raises(RecordError) as raised:
        ask(QUESTION, never, tmp_path)
    assert str(path) in str(raised.value) and str(raised.value).endswith("With --again it is measured anew.")
    ask(QUESTION, answer(0.7), tmp_path, again=True)
    assert stored(QUESTION, tmp_path).measured == {"miou": 0.7}  # type: ignore[union-attr]
    assert path.with_name(f"{path.name}.damaged-1").read_text() == content


def test_an_answer_to_another_question_is_none(tmp_path: Path) -> None:
    other = Question(kind="eval", model="y", data=QUESTION.data)
    ask(other, answer(0.5), tmp_path)
    (tmp_path / other.file_name).rename(tmp_path / QUESTION.file_name)
    with pytest.raises(RecordError, match="does not hold what its name says"):
        ask(QUESTION, never, tmp_path)


def test_runs_are_asked_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [find_run(tiny_run(tmp_path / name), device="cpu") for name in ("one", "two")]
    measurement = Orthogonality(draws=2)
    records = measure_runs(measurement, runs, Chosen(), no_bar)
    assert [record.model for record in records] == ["one", "two"]
    assert [read_records(run.folder / "records") for run in runs] == [[record] for record in records]
    monkeypatch.setattr(Orthogonality, "measure", lambda *_: never())
    assert measure_runs(measurement, runs, Chosen(), no_bar) == records
    with pytest.raises(AssertionError, match="measured again"):
        measure_runs(measurement, runs, Chosen(), no_bar, again=True)


def test_photos_are_found_where_they_lie_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = find_run(tiny_run(tmp_path / "run"), device="cpu")
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save("photo.png")
    (first,) = measure_runs(Attention(), [run], Chosen(photos=(Path("photo.png"),)), no_bar)
    Path("moved").mkdir()
    Path("photo.png").rename("moved/photo.png")
    (again,) = measure_runs(Attention(), [run], Chosen(photos=(Path("moved/photo.png"),)), no_bar)
    assert again.identity == first.identity and again.created == first.created
    assert again.measured["photos"][0]["path"] == "moved/photo.png"


HEAVY = {"torch", "torchvision", "timm", "accelerate", "matplotlib", "pandas", "scipy", "mmseg"}


@pytest.mark.parametrize("command", [["rank-analysis", "--limit", "2"], ["orthogonality", "--draws", "2"], ["eval"]])
def test_reading_loads_nothing_heavy(tmp_path: Path, call: Call, command: list[str]) -> None:
    arguments = [command[0], str(tiny_run(tmp_path / "run")), *command[1:], "--device", "cpu"]
    code, out, err = call(*arguments)
    assert code == 0, err
    code = (
        "import sys; from whitebox.cli import main\n"
        f"sys.argv = ['whitebox', *{arguments}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print('LOADED', *(name for name in sys.modules if '.' not in name))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    again, loaded = done.stdout.split("LOADED")
    assert again == out and not HEAVY & set(loaded.split())
