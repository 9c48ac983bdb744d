import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.measurement import Kind
from analysis.record import Data, Record, RecordError, write_record
from analysis.show import render
from analysis.show.tables import Column, Table

Call = Callable[..., tuple[int, str, str]]


def made(kind: str, model: str) -> Record:
    return Record(kind=kind, model=model, data=Data("shapes", "val", 3, "f"), measured={"notes": ["hello"]}, n=3)


class Shown:
    """What shows a kind, instead of a module."""

    def __init__(self, *suffixes: str) -> None:
        self.suffixes, self.drawn = suffixes, []

    def tables(self, records: Sequence[Record]) -> dict[str, Table]:
        rows = tuple((record.model,) for record in records)
        return {suffix: Table((Column("Model"),), rows, "caption") for suffix in self.suffixes}

    def figures(self, records: Sequence[Record], stem: Path) -> None:
        self.drawn.append((len(records), stem.parent.name))


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """Kinds a and b, and what draws them."""
    shown = Shown("")
    monkeypatch.setattr(render, "KINDS", {"a": Kind("shown"), "b": Kind("shown")})
    monkeypatch.setitem(sys.modules, "shown", shown)
    return shown


def test_records_of_one_kind_are_drawn_together(
    tmp_path: Path, shown: Shown, capsys: pytest.CaptureFixture[str]
) -> None:
    render.render([made("b", "x"), made("a", "x"), made("a", "y")], tmp_path)
    assert shown.drawn == [(2, "figures"), (1, "figures")]
    written = sorted(path.name for path in (tmp_path / "tables").iterdir())
    assert len(written) == 6 and written[0].startswith("a-shapes-val-2_models-")
    out = capsys.readouterr().out
    assert "x: hello" in out and out.count("Figures and tables: ") == 2


def test_variants_and_data_are_shown_apart(tmp_path: Path, shown: Shown) -> None:
    other = replace(made("a", "x"), variant="relative")
    elsewhere = replace(made("a", "x"), data=Data("shapes", "test", 3, "g"))
    render.render([made("a", "x"), other, elsewhere, made("a", "y")], tmp_path, "name")
    assert [count for count, _ in shown.drawn] == [2, 1, 1]
    assert len({path.stem for path in (tmp_path / "tables").iterdir()}) == 3


def test_nothing_to_show_is_said_alone(tmp_path: Path, shown: Shown, capsys: pytest.CaptureFixture[str]) -> None:
    shown.suffixes = ()
    render.render([made("a", "x")], tmp_path)
    assert capsys.readouterr().out == "x: hello\n" and not list(tmp_path.iterdir())


def test_a_folder_of_folders_is_rendered_as_it_lies(tmp_path: Path, shown: Shown, call: Call) -> None:
    for place in ("records", "one/records", "two/records"):
        write_record(made("a", place), tmp_path / "results" / place)
    code, _, err = call("render", tmp_path / "results", "-o", tmp_path / "out", "--tables")
    assert code == 0, err
    for place in (".", "one", "two"):
        assert (tmp_path / "out" / place / "tables" / "a-shapes-val.md").is_file()
    assert shown.drawn == []
    assert call("render", tmp_path / "results" / "one", "-o", tmp_path / "more")[0] == 0
    assert (tmp_path / "more" / "tables" / "a-shapes-val.md").is_file() and shown.drawn == [(1, "figures")]


def test_a_hash_tells_apart_what_has_the_same_name(tmp_path: Path, shown: Shown) -> None:
    for fingerprint in "fg":
        write_record(replace(made("a", "x"), data=Data("shapes", "val", 3, fingerprint)), tmp_path / "records")
    render.render_folders([tmp_path], tmp_path / "out")
    names = {path.stem for path in (tmp_path / "out" / "tables").iterdir()}
    assert len(names) == 2 and all(re.fullmatch("a-shapes-val-[0-9a-f]{8}", name) for name in names)


def test_what_cannot_be_rendered(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no records to render"):
        render.render([], tmp_path)
    with pytest.raises(RecordError, match=r"holds 'profil'; did you mean 'profile'\? What can be rendered: "):
        render.render([made("profil", "x")], tmp_path)
    with pytest.raises(RecordError, match="There are no records in"):
        render.render_folders([tmp_path], tmp_path / "out")


HEAVY = {"torch", "torchvision", "timm", "accelerate", "cv2"}


@pytest.mark.slow
def test_showing_loads_no_torch(tmp_path: Path) -> None:
    """Neither importing what shows each kind, nor `whitebox render`."""
    ranged = {"value": 0.5, "low": 0.4, "high": 0.6}
    row = {"name": "road", "iou": ranged, "acc": {"value": 0.5}, "label_share": 1.0}
    measured = {"miou": ranged, "macc": ranged, "aacc": ranged, "per_class": [row]}
    path = write_record(replace(made("eval", "x"), measured=measured), tmp_path / "records")
    code = (
        "import sys; from importlib import import_module; from analysis.measurement import KINDS\n"
        "for kind in KINDS.values(): import_module(kind.shown)\n"
        "import analysis.show.summary, analysis.show.training\n"
        "from whitebox.cli import main\n"
        f"sys.argv = ['whitebox', 'render', {str(path)!r}, '-o', {str(tmp_path / 'out')!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print('LOADED', *(name for name in sys.modules if '.' not in name))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stdout.split("LOADED")[-1].split())
    assert (tmp_path / "out" / "figures" / "eval-shapes-val.png").is_file()


@pytest.mark.parametrize(
    ("key", "value"), [("miou", 3), ("miou", {"value": "x"}), ("per_class", None), ("per_class", [1]), ("macc", [])]
)
def test_records_with_values_of_other_types(tmp_path: Path, call: Call, key: str, value: object) -> None:
    ranged = {"value": 0.5, "low": 0.4, "high": 0.6}
    row = {"name": "road", "iou": ranged, "acc": {"value": 0.5}, "label_share": 1.0}
    measured = {"miou": ranged, "macc": ranged, "aacc": ranged, "per_class": [row]}
    path = write_record(replace(made("eval", "x"), measured={**measured, key: value}), tmp_path)
    code, _, err = call("render", path, "-o", tmp_path / "out")
    assert code == 1 and err.count("\n") == 1
    assert "are not laid out as this version of whitebox writes them" in err or "lacks measured.macc.value" in err


def test_records_that_are_none(tmp_path: Path, call: Call) -> None:
    for text in ("[" * 5000 + "]" * 5000, '{"schema": 1}', "3", '{"schema": [1]}', ""):
        (tmp_path / "a.json").write_text(text)
        code, _, err = call("render", tmp_path / "a.json", "-o", tmp_path / "out")
        assert code == 1 and err.count("\n") == 1, err
