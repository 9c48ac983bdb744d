"""The table of all models: which records stand side by side, what is missing, and what the table and figure show."""

import dataclasses
import math
from pathlib import Path

import pytest
from asking import made_up
from PIL import Image

from analysis.record import Data, Record, RecordError, Weights, write_record
from analysis.show.summary import COST, Summary, figure, find_records, summarise, table
from analysis.show.tables import Table

VAL = Data("shapes", "val", 8, "f")


def record(kind: str, model: str, measured: dict, data: Data = VAL, created: str = "2026-01-01", **changes) -> Record:
    weights = changes.pop("weights", Weights(f"{model}/model.safetensors", model))
    made = made_up(kind, model=model, data=data, measured=measured, n=data.images, weights=weights, **changes)
    return dataclasses.replace(made, created=created)


def shown(summary: Summary, stem: Path) -> Table:
    figure(summary, stem)
    return table(summary)


def evaluation(model: str, miou: float, **changes) -> Record:
    return record("eval", model, {"miou": {"value": miou, "low": miou - 0.1, "high": miou + 0.1}}, **changes)


def profile(model: str, threads: int = 1, speed: float = 5.0, **changes) -> Record:
    keys = {"size": 256, "classes": 11, "batch": 1, "precision": "fp32", "device": "cpu", "threads": threads}
    scopes = {"model": {"parameters": 5_000_000, "macs": 10**9}, "decoder": {"parameters": 2000, "macs": 25 * 10**7}}
    speeds = {"model": {"value": speed, "low": speed - 1, "high": speed + 1}}
    measured = {"scopes": scopes, "images_per_second": speeds}
    return record("profile", model, measured, Data("random", "256px", 1, "r"), settings=keys, **changes)


def noise(model: str, sigma: float, relative: bool = False, target: str = "decoder", **changes) -> Record:
    settings = {"target": target, "relative": relative, "draws": 5, "antithetic": False}
    measured = {"sigma_50": {"value": sigma, "low": sigma / 2, "high": sigma * 2}}
    return record("parameter-noise", model, measured, settings=settings, seeds={"noise": 0}, **changes)


def rows(records: list[Record], folder: Path, split: str | None = None) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in shown(summarise(records, split), folder / "summary").shown()}


def test_a_row_is_what_the_records_of_one_model_say(tmp_path: Path) -> None:
    records = [evaluation("a", 0.3), profile("a"), noise("a", 0.02), noise("a", 3.0, relative=True)]
    records += [evaluation("b", 0.4), profile("b", speed=7.5), noise("b", 0.1), noise("b", 1.0, target="queries")]
    shown = rows(records, tmp_path)
    assert list(shown) == ["b", "a"]  # by falling mIoU
    cost = ["5.00", "0.002", "0.500"]
    assert shown["a"] == ["30.0 [20.0, 40.0]", *cost, "5.0 [4.0, 6.0]", "0.020 [0.010, 0.040]", "3.00 [1.50, 6.00]"]
    assert shown["b"] == ["40.0 [30.0, 50.0]", *cost, "7.5 [6.5, 8.5]", "0.100 [0.050, 0.200]", "–"]
    assert summarise(records).missing == [
        "b: no parameter-noise under the same conditions; `whitebox robustness --noise LEVELS --relative`"
    ]
    assert Image.open(tmp_path / "summary.png").size[0] > 1000 and (tmp_path / "summary.pdf").is_file()


def test_outlines_and_calibration_where_they_are_there(tmp_path: Path) -> None:
    """The same ratio for all; who lacks them is shown without, and nothing is missed."""

    def also(kind: str, key: str, model: str, value: float, **changes) -> Record:
        return record(kind, model, {key: {"value": value, "low": value - 0.05, "high": value + 0.05}}, **changes)

    records = [evaluation("a", 0.5), evaluation("b", 0.4), evaluation("c", 0.3), also("calibration", "ece", "a", 0.1)]
    for model, value, ratio in (("a", 0.2, 0.02), ("b", 0.3, 0.02), ("c", 0.9, 0.005)):
        records.append(also("boundary", "miou", model, value, settings={"boundary_ratio": ratio}))
    summary = summarise(records)
    assert not any("boundary" in line or "calibration" in line for line in summary.missing)
    made = shown(summary, tmp_path / "summary")
    assert [column.name for column in made.columns][1:4] == ["mIoU (%)", "Boundary IoU (%)", "ECE (%)"]
    assert [row[2] for row in made.shown()] == ["20.0 [15.0, 25.0]", "30.0 [25.0, 35.0]", "–"]
    assert [row[3] for row in made.shown()] == ["10.0 [5.0, 15.0]", "–", "–"]
    assert "Boundary IoU and ECE: intervals alike." in made.caption
    assert len(table(summarise(records[:3])).columns) == 8  # not there, not shown


def test_only_comparable_records_stand_side_by_side(tmp_path: Path) -> None:
    two_threads = [profile("a", threads=2, speed=9), profile("a", threads=1), profile("b", threads=1)]
    records = [evaluation("a", 0.3), evaluation("b", 0.2), *two_threads]
    assert [row[4] for row in rows(records, tmp_path).values()] == ["5.0 [4.0, 6.0]"] * 2
    lonely = summarise([*records[:2], profile("b", threads=2, created="2027"), profile("a")])
    assert set(lonely.chosen[COST]) == {"b"} and len(lonely.missing) == 5  # as many of either: the newest


def test_the_newest_record_counts_and_multiscale_is_another_thing(tmp_path: Path) -> None:
    records = [
        evaluation("a", 0.5, created="2026-02"),
        evaluation("a", 0.3),
        evaluation("a", 0.9, variant="multiscale"),
    ]
    assert rows(records, tmp_path)["a"][0] == "50.0 [40.0, 60.0]"


def test_the_split_can_be_chosen(tmp_path: Path) -> None:
    test = Data("shapes", "test", 4, "t")
    records = [evaluation("a", 0.3), evaluation("b", 0.2), evaluation("a", 0.6, data=test), noise("a", 1.0, data=test)]
    assert list(rows(records, tmp_path)) == ["a", "b"]
    assert rows(records, tmp_path, "test") == {"a": ["60.0 [50.0, 70.0]", *"––––", "1.000 [0.500, 2.000]", "–"]}
    with pytest.raises(RecordError, match="no evaluation of the split train"):
        summarise(records, "train")
    with pytest.raises(RecordError, match="`whitebox eval RUN` makes one"):
        summarise([profile("a")])


def test_accuracy_and_noise_are_of_one_split(tmp_path: Path) -> None:
    test = Data("shapes", "test", 4, "t")
    both = [evaluation("a", 0.3), evaluation("a", 0.6, data=test, created="2027"), noise("a", 1.0)]
    assert rows(both, tmp_path)["a"][0] == "30.0 [20.0, 40.0]"
    assert rows(both[:2], tmp_path)["a"][0] == "60.0 [50.0, 70.0]"  # as many of either: the newest
    elsewhere = [evaluation(name, 0.9, data=Data("camvid", "val", 101, "c"), created="2028") for name in "bc"]
    assert list(rows([*both, noise("a", 1.0, relative=True), *elsewhere], tmp_path)) == ["a"]


def test_images_that_only_noise_was_measured_on_hide_no_evaluation(tmp_path: Path) -> None:
    few = Data("shapes", "val", 3, "g")  # --limit 3
    swept = [noise(name, 1.0, data=few, created="2027") for name in "ab"]
    assert rows([evaluation("a", 0.3), *swept], tmp_path)["a"][0] == "30.0 [20.0, 40.0]"


def test_a_model_without_sigma_50_and_one_without_weights(tmp_path: Path) -> None:
    none = dataclasses.replace(noise("a", 1.0), measured={"sigma_50": {"value": None, "low": None, "high": None}})
    assert rows([evaluation("a", 0.3), none, profile("new", weights=None)], tmp_path)["a"][5] == "–"
    unfinished = dataclasses.replace(none, measured={})
    assert math.isnan(shown(summarise([evaluation("a", 0.3), unfinished]), tmp_path / "x").rows[0][6].value)


def test_command(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for each in (evaluation("a", 0.3), profile("a")):
        write_record(each, "results/a/records")
    write_record(evaluation("b", 0.4), "results/deep/b/records")
    assert [each.model for each in find_records([Path("results"), Path("results/a")])] == ["a", "a", "b"]
    code, out, err = call("summary")
    assert code == 0, err
    assert "b: no profile under the same conditions; `whitebox profile`" in out
    assert Path("results/tables/summary.csv").read_text().startswith("Model,mIoU (%),mIoU (%) low,mIoU (%) high,Param")
    assert call("summary", "results/a", "-o", "out")[0] == 0 and Path("out/figures/summary.pdf").is_file()
    code, _, err = call("summary", "nowhere")
    assert code == 2 and err == "error: nowhere is no folder: name one that holds results, as results/camvid.\n"
