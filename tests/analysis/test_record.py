import dataclasses
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
from asking import made_up

from analysis.measures.evaluation import measured_scores
from analysis.record import (
    Data,
    Record,
    RecordError,
    Weights,
    describe_weights,
    read_record,
    read_records,
    write_record,
)
from whitebox.data.fingerprint import fingerprint
from whitebox.errors import DataError, OutputError

DATA = Data("camvid", "test", 233, "ab" * 32)


def example(**changes) -> Record:
    values = {"model": "depict-ca-tiny", "data": DATA, "measured": {"miou": {"value": 0.5}}, "n": 233}
    return made_up("eval", **{**values, **changes})


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    record = example(
        weights=Weights("model.safetensors", "cd" * 32),
        seeds={"bootstrap": 3},
        settings={"window": 512},
        reported={"miou": {"value": 0.405, "source": "DEPICT, Table 1"}},
        variant="multiscale",
        command=["whitebox", "eval", "results/x"],
    )
    path = write_record(record, tmp_path / "records")
    assert path.name == f"eval-camvid-test-multiscale-{record.identity}.json"
    assert read_record(path) == record
    assert record.command == "whitebox eval results/x"
    assert record.versions["torch"] and record.hardware["cores"] >= 1


def test_numpy_values_are_stored_and_what_is_not_finite_becomes_null(tmp_path: Path) -> None:
    measured = {"a": np.float32(0.25), "b": np.array([1, 2]), "c": (math.nan, math.inf, 1.5), "d": np.array([np.nan])}
    path = write_record(example(measured=measured), tmp_path)
    assert read_record(path).measured == {"a": 0.25, "b": [1, 2], "c": [None, None, 1.5], "d": [None]}
    assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()


def test_a_repetition_replaces_and_another_measurement_does_not(tmp_path: Path) -> None:
    first = write_record(example(), tmp_path)
    again = write_record(example(measured={"miou": {"value": 0.6}}), tmp_path)
    assert again == first and read_record(first).measured == {"miou": {"value": 0.6}}
    others = [
        example(settings={"window": 256}),
        example(seeds={"bootstrap": 1}),
        example(weights=Weights("model.safetensors", "00" * 32)),
        example(data=dataclasses.replace(DATA, fingerprint="00" * 32)),
        example(model="depict-sa-tiny"),
    ]
    assert len({write_record(other, tmp_path) for other in others} | {first}) == 6
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".json"] == []


def test_the_last_measurement_counts_whatever_the_clock_said(tmp_path: Path) -> None:
    """A clock that was set back, or a machine whose clock is behind, must not cost a measurement that has been made."""
    early = write_record(dataclasses.replace(example(), created="2999-01-01T00:00:00+00:00"), tmp_path)
    late = example()
    assert write_record(late, tmp_path) == early
    assert read_record(early) == late


@pytest.mark.parametrize("content", [b"mine", b"", b"\xff\0", b"[]", b'{"schema": 999}', b"[" * 100_000])
def test_a_foreign_file_in_the_way_is_kept(content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = example()
    path = tmp_path / record.file_name
    for number in (1, 2):
        path.write_bytes(content)
        assert read_record(write_record(record, tmp_path)) == record
        assert (tmp_path / f"{path.name}.damaged-{number}").read_bytes() == content
    assert "is no record of this measurement: it is called" in caplog.text


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as caught:
        write_record(example(), tmp_path / "file" / "records")
    assert "\n" not in str(caught.value)


def test_no_path_of_this_machine_enters_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "project"
    here.mkdir()
    monkeypatch.chdir(here)
    record = example(
        command=[str(tmp_path / "bin" / "whitebox"), "eval", str(here / "results" / "x"), f"data.root={tmp_path}/data"],
        settings={"root": str(tmp_path / "data"), "list": [str(Path(tmp_path.anchor) / "elsewhere" / "deep")]},
        weights=Weights(str(here / "results" / "x" / "model.safetensors"), "cd" * 32),
    )
    assert record.command == "whitebox eval results/x data.root=../data"
    assert record.settings == {"root": "../data", "list": ["deep"]}
    assert record.weights == Weights("results/x/model.safetensors", "cd" * 32)
    assert str(tmp_path) not in write_record(record, here).read_text()


def spoil(**changes):
    def change(stored: dict) -> str:
        return json.dumps({key: value for key, value in {**stored, **changes}.items() if value is not ...})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda stored: json.dumps(stored)[:100], "not JSON"),
        (lambda stored: "[1]", "no key 'schema'"),
        (spoil(schema=...), "no key 'schema'"),
        (spoil(schema=99), "schema version 99"),
        (spoil(measured=...), "missing key 'measured'"),
        (spoil(data={"name": "camvid"}), "missing key 'split'"),
        (spoil(data=None), "expected an object"),
        (spoil(colour="red"), "unknown key 'colour'"),
        (spoil(n="many"), "'n' is 'many', not of type int"),
        (spoil(measured=[1]), "'measured' is .* not of type dict"),
        (spoil(weights={"path": "x", "sha256": 1}), "'sha256' is 1, not of type str"),
    ],
)
def test_a_spoiled_record_is_one_line_naming_the_file(tmp_path: Path, change, message: str) -> None:
    path = write_record(example(), tmp_path)
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(RecordError, match=message) as caught:
        read_record(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_record_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"none\.json cannot be read"):
        read_record(tmp_path / "none.json")


def test_records_of_a_folder_come_oldest_first(tmp_path: Path) -> None:
    newer = dataclasses.replace(example(), created="2021-01-01T00:00:00+00:00")
    older = dataclasses.replace(example(variant="multiscale"), created="2020-01-01T00:00:00+00:00")
    other = dataclasses.replace(example(), kind="robustness", created="2019-01-01T00:00:00+00:00")
    for record in (newer, older, other):
        write_record(record, tmp_path)
    assert read_records(tmp_path) == [other, older, newer]
    assert read_records(tmp_path, "eval") == [older, newer]
    assert read_records(tmp_path / "none") == []


def test_measured_scores_of_counts_done_by_hand() -> None:
    # two images, three classes, the last one absent: intersection, prediction, label
    counts = np.array([[[6, 2, 0], [8, 2, 0], [6, 4, 0]], [[6, 2, 0], [8, 2, 0], [6, 4, 0]]])
    measured = measured_scores(counts, ("sky", "road", "fence"), resamples=20)
    assert measured["aacc"]["value"] == pytest.approx(16 / 20)
    assert measured["miou"]["value"] == pytest.approx((6 / 8 + 2 / 4) / 2)
    assert measured["macc"]["value"] == pytest.approx((1 + 2 / 4) / 2)
    sky, road, fence = measured["per_class"]
    assert sky["name"] == "sky" and sky["acc"]["value"] == 1.0 and sky["label_share"] == pytest.approx(12 / 20)
    assert road["iou"]["value"] == 0.5 and math.isnan(road["iou"]["low"])  # of two images there is no interval
    assert math.isnan(fence["iou"]["value"]) and math.isnan(fence["iou"]["low"]) and fence["label_share"] == 0


def test_measured_scores_intervals_follow_the_seed_and_enclose_the_value() -> None:
    counts = np.random.default_rng(0).integers(1, 50, (40, 1, 2)).repeat(3, axis=1)
    counts[:, 1] += np.random.default_rng(1).integers(0, 50, (40, 2))
    first, again, other = (measured_scores(counts, ("a", "b"), seed=seed)["miou"] for seed in (0, 0, 1))
    assert first == again != other
    assert first["low"] < first["value"] < first["high"]


def test_measured_scores_need_images() -> None:
    with pytest.raises(DataError):
        measured_scores(np.zeros((0, 3, 2), dtype=np.int64), ("a", "b"))


def test_weights_are_described_by_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights" * 400_000)
    assert describe_weights(path) == Weights(str(path), hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(RecordError, match=r"none\.pth cannot be read"):
        describe_weights(tmp_path / "none.pth")


def test_the_fingerprint_knows_names_and_sizes_but_no_order() -> None:
    entries = [("a.png", 10), ("b.png", 20)]
    assert fingerprint(entries) == fingerprint(reversed(entries))
    assert fingerprint(entries) != fingerprint([("a.png", 20), ("b.png", 10)])
    assert fingerprint(entries) != fingerprint(entries[:1])
