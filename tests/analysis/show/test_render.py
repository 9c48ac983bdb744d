from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.record import Data, Record, RecordError, write_record
from analysis.show import render
from analysis.show.tables import Column, Table

Call = Callable[..., tuple[int, str, str]]


def made(kind: str, model: str) -> Record:
    return Record(kind=kind, model=model, data=Data("shapes", "val", 3, "f"), measured={"notes": ["hello"]}, n=3)


def test_records_of_one_kind_are_drawn_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def draw(records: Sequence[Record], stem: Path) -> dict[str, Table]:
        seen.append((len(records), stem.parent.name))
        return {"": Table((Column("Model"),), tuple((record.model,) for record in records), "caption")}

    monkeypatch.setattr(render, "renderers", lambda: {"a": draw, "b": draw})
    records = [made("b", "x"), made("a", "x"), made("a", "y")]
    render.render(records, tmp_path)
    assert seen == [(2, "figures"), (1, "figures")]
    written = sorted(path.name for path in (tmp_path / "tables").iterdir())
    assert len(written) == 6 and written[0].startswith("a-shapes-val-2_models-")
    out = capsys.readouterr().out
    assert "x: hello" in out and out.count("Figures and tables: ") == 2


def test_nothing_to_show_is_said_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(render, "renderers", lambda: {"a": lambda *_: {}})
    render.render([made("a", "x")], tmp_path)
    assert capsys.readouterr().out == "x: hello\n" and not list(tmp_path.iterdir())


def test_what_cannot_be_rendered(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no records to render"):
        render.render([], tmp_path)
    with pytest.raises(RecordError, match="holds 'poem'; what can be rendered: "):
        render.render([made("poem", "x")], tmp_path)


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


def test_names_tell_comparisons_apart() -> None:
    first, second, third = (made("a", model) for model in "xyz")
    assert render.joint_name([first]) == first.file_name.removesuffix(".json")
    assert render.joint_name([first, second]) != render.joint_name([first, third])
    assert render.joint_name([first, second]) == render.joint_name([second, first])
