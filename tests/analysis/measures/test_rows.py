"""Rows on disk: kept, repaired, shared."""

from __future__ import annotations

import base64
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from child_runs import alone, die, together

from analysis.measures.rows import Counts, Key, Rows
from analysis.record import RecordError
from whitebox.engine.distributed import join
from whitebox.errors import DataError, InUseError, OutputError

SHAPE = (4, 3, 5)
BELONGS: dict[str, Any] = {"weights": "abc", "data": {"images": 4}}


def counted(key: Key) -> Counts:
    """Counts that tell keys apart."""
    return np.random.default_rng(key["draw"]).integers(0, 2**31, SHAPE)


def keys(count: int) -> list[Key]:
    return [{"target": "decoder", "sigma": 0.1 * draw, "draw": draw} for draw in range(count)]


def opened(folder: Path, belongs_to: dict[str, Any] | None = None) -> Rows:
    join("cpu")
    return Rows(folder, "run a/camvid val", belongs_to or BELONGS, SHAPE)


def filled(folder: Path, count: int) -> Path:
    with opened(folder) as rows:
        for key in keys(count):
            rows.add(key, counted(key))
        return rows.path


def test_rows_come_back(tmp_path: Path) -> None:
    path = filled(tmp_path / "new" / "sweeps", 3)
    assert path.name.startswith("run_a_camvid_val-") and path.suffix == ".jsonl"
    with opened(path.parent) as rows:
        assert len(rows) == 3 and {"draw": 0, "sigma": 0.0, "target": "decoder"} in rows  # whatever the order
        assert {"target": "decoder", "sigma": 0.1, "draw": 0} not in rows
        for key in keys(3):
            np.testing.assert_array_equal(rows.counts(key), counted(key))
    first, second, *_ = [json.loads(line) for line in path.read_text().splitlines()]
    assert first["belongs_to"] == BELONGS and second["key"] == keys(1)[0]
    assert second["right"] == counted(keys(1)[0])[:, 0].sum(0).tolist()


def test_only_missing_rows_are_measured(tmp_path: Path) -> None:
    path = filled(tmp_path, 2)
    asked, seen = [], []

    def measure(key: Key) -> Counts:
        asked.append(key["draw"])
        return counted(key)

    with opened(path.parent) as rows:
        rows.complete([*keys(4), keys(4)[3]], measure, lambda *at: seen.append(at))
        rows.complete(keys(4), measure, lambda *at: seen.append(at))
        rows.merge()
    assert asked == [2, 3] and seen == [(0, 2), (1, 2), (2, 2)]


def test_other_checkpoints_images_and_settings_have_files_of_their_own(tmp_path: Path) -> None:
    path = filled(tmp_path, 2)
    for other in ({**BELONGS, "weights": "abd"}, {**BELONGS, "data": {"images": 5}}, {**BELONGS, "window": 3}):
        with opened(tmp_path, other) as rows:
            assert len(rows) == 0 and rows.path != path
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("left", [1, 20, -1])
def test_a_row_cut_short_is_measured_again(tmp_path: Path, left: int) -> None:
    path = filled(tmp_path, 3)
    whole = path.read_bytes()
    *lines, last = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines) + last[:left])
    with opened(tmp_path) as rows:
        assert len(rows) == 2
        rows.complete(keys(3), counted, lambda *_: None)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("junk", [b"\0\0\0\0\n", b'{"key": 1}\n', b"junk", b'{"key": {}, "images": "AAAA"}\n'])
def test_junk_at_the_end_is_cut_off(tmp_path: Path, junk: bytes) -> None:
    path = filled(tmp_path, 2)
    whole = path.read_bytes()
    path.write_bytes(whole + junk)
    with opened(tmp_path) as rows:
        assert len(rows) == 2
    assert path.read_bytes() == whole


def test_a_first_line_cut_short_is_written_again(tmp_path: Path) -> None:
    path = filled(tmp_path, 0)
    whole = path.read_bytes()
    for part in (b"", whole[:10]):
        path.write_bytes(part)
        filled(tmp_path, 0)
        assert path.read_bytes() == whole


def test_damage_before_the_end_is_said(tmp_path: Path) -> None:
    path = filled(tmp_path, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    changed = json.loads(lines[2])
    changed["right"][0] += 1
    huge = base64.b64encode(zlib.compress(bytes(2**24))).decode()
    bomb = json.dumps({**changed, "images": huge}).encode() + b"\n"
    for wrong in (
        b"{}\n",
        b"[1]\n",
        b"3\n",
        b"[" * 5000 + b"]" * 5000 + b"\n",
        bomb,
        json.dumps(changed).encode() + b"\n",
    ):
        path.write_bytes(lines[0] + lines[1] + wrong + lines[3])
        with pytest.raises(RecordError, match=r"jsonl, line 3 is damaged: remove that line"), opened(tmp_path):
            pass
    path.write_bytes(b'{"schema": 1}\n' + b"".join(lines[1:]))
    with pytest.raises(RecordError, match="holds rows of something else: move it away"), opened(tmp_path):
        pass


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    refused = pytest.raises(
        InUseError, match=r"\.jsonl is being written by process \d+ on .*choose another folder with -o"
    )
    with opened(tmp_path), refused, opened(tmp_path):
        pass
    with opened(tmp_path) as rows:
        assert len(rows) == 0


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match=r"Cannot write .*: File exists; choose another folder with -o"),
        opened(tmp_path / "file"),
    ):
        pass


def test_a_full_disk_loses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = filled(tmp_path, 1)
    write = os.write

    def full(file: int, data: bytes) -> int:
        if len(data) < 100:
            raise OSError(28, "No space left on device")
        return write(file, data[: len(data) // 2])

    with opened(tmp_path) as rows:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OutputError, match="No space left on device; the rows before this are kept"):
            rows.add(keys(2)[1], counted(keys(2)[1]))
    monkeypatch.undo()
    with opened(tmp_path) as rows:
        assert len(rows) == 1
        rows.add(keys(2)[1], counted(keys(2)[1]))
    assert filled(tmp_path / "again", 2).read_bytes() == path.read_bytes()


def shared_sweep(folder: Path, count: int, dies_at: int | None = None, fails_at: int | None = None) -> None:
    """A sweep as one of several processes does it."""
    state = join("cpu")

    def measure(key: Key) -> Counts:
        if key["draw"] == dies_at:
            die()
        if key["draw"] == fails_at:
            raise DataError(f"draw {fails_at} cannot be read.")
        (folder / f"asked-{key['draw']}-{state.process_index}").touch(exist_ok=False)
        return counted(key)

    with opened(folder / "rows") as rows:
        rows.complete(keys(count), measure, lambda *_: None)
        assert len(rows) == count
        for key in keys(count):
            np.testing.assert_array_equal(rows.counts(key), counted(key))
        rows.merge()


def test_two_processes_share_the_rows(tmp_path: Path) -> None:
    ended = together(2, shared_sweep, tmp_path, 5, folder=tmp_path / "output")
    assert [code for code, _ in ended] == [0, 0], ended
    assert sorted(path.name for path in tmp_path.glob("asked-*")) == [f"asked-{draw}-{draw % 2}" for draw in range(5)]
    (path,) = (tmp_path / "rows").iterdir()
    with opened(tmp_path / "rows") as rows:
        assert len(rows) == 5 and rows.path == path


def test_a_killed_sweep_goes_on(tmp_path: Path) -> None:
    """kill -9 in the third row; then two processes, one of which fails; then one."""
    code, _ = alone(shared_sweep, tmp_path, 3, 2, folder=tmp_path / "output")
    assert code == -9
    ended = together(2, shared_sweep, tmp_path, 6, None, 5, folder=tmp_path / "output")
    assert [code for code, _ in ended] == [1, 1]
    assert all("DataError: draw 5 cannot be read." in output for _, output in ended)
    assert len(list((tmp_path / "rows").iterdir())) == 2
    code, output = alone(shared_sweep, tmp_path, 6, folder=tmp_path / "output")
    assert code == 0, output
    assert len(list(tmp_path.glob("asked-*"))) == 6
    assert len(list((tmp_path / "rows").iterdir())) == 1


def test_a_row_is_on_the_disk_before_the_next_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    flush = os.fsync

    def fsync(handle: int) -> None:
        flush(handle)
        flushed.append(os.fstat(handle).st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    with opened(tmp_path) as rows:
        for key in keys(2):
            rows.add(key, counted(key))
            assert flushed[-1] == rows.path.stat().st_size
    assert len(flushed) == 3  # what the rows belong to, and two rows
