"""Stores of rows: what is written is read, what was begun is gone on with, and what is damaged is said."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from whitebox.engine import rows
from whitebox.engine.rows import RowStore, remove, require_room, stores, stores_folder
from whitebox.errors import ConfigError, OutputError, StoreError

QUESTION = {"encoder": "abc", "views": 2}
CONTENT = {row: bytes([row]) * (row + 1) for row in range(6)}


def made(folder: Path, wanted: list[int], writer: str = "0") -> RowStore:
    store = RowStore(QUESTION, 6, folder)
    store.begin()
    assert list(store.write(((row, CONTENT[row]) for row in wanted), writer)) == wanted
    store.refresh()
    return store


def test_rows_come_back(tmp_path: Path) -> None:
    store = made(tmp_path, [3, 0, 5])
    assert store.missing() == [1, 2, 4]
    assert [store.read(row) for row in (0, 3, 5)] == [CONTENT[row] for row in (0, 3, 5)]
    with pytest.raises(StoreError, match=r"Row 1 of the store .* was never made"):
        store.read(1)


def test_rows_of_any_number(tmp_path: Path) -> None:
    store = RowStore(QUESTION, None, tmp_path)
    store.begin()
    list(store.write([(2**64 - 1, b"last"), (7, b"seven")]))
    store.refresh()
    assert store.missing() == []
    assert (2**64 - 1 in store, 8 in store, store.read(7)) == (True, False, b"seven")
    assert [(stored.done, stored.rows) for stored in stores(tmp_path)] == [(2, None)]


def test_several_writers_make_one_store(tmp_path: Path) -> None:
    made(tmp_path, [0, 1, 2], writer="0")
    store = made(tmp_path, [3, 4, 5], writer="1")
    assert store.missing() == []
    assert [store.read(row) for row in range(6)] == list(CONTENT.values())
    again = pickle.loads(pickle.dumps(store))  # as a loading process gets it
    assert again.read(4) == CONTENT[4]


def test_a_writer_that_was_killed_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not flushed is made again; half an entry is cut off."""
    monkeypatch.setattr(rows, "FLUSHED", 2)
    store = RowStore(QUESTION, 6, tmp_path)
    store.begin()
    writing = store.write((row, CONTENT[row]) for row in range(6))
    for _ in range(4):
        next(writing)
    writing.close()
    with (store.folder / "index-0.bin").open("ab") as index:
        index.write(b"half")
    again = RowStore(QUESTION, 6, tmp_path)
    left = again.missing()
    assert {0, 1} <= set(range(6)) - set(left) < set(range(6))
    list(again.write((row, CONTENT[row]) for row in left))
    again.refresh()
    assert [again.read(row) for row in range(6)] == list(CONTENT.values())


def test_another_question_has_another_store(tmp_path: Path) -> None:
    made(tmp_path, list(range(6)))
    assert RowStore({**QUESTION, "views": 3}, 6, tmp_path).missing() == list(range(6))
    assert RowStore(QUESTION, 7, tmp_path).missing() == list(range(7))
    assert RowStore(QUESTION, 6, tmp_path).missing() == []


def test_damage_is_said_with_its_cure(tmp_path: Path) -> None:
    store = made(tmp_path, list(range(6)))
    data, about = store.folder / "rows-0.bin", store.folder / "store.json"
    whole = data.read_bytes()
    data.write_bytes(b"x" + whole[1:])
    with pytest.raises(StoreError, match=f"is damaged; delete it with `whitebox cache rm {store.key}`"):
        RowStore(QUESTION, 6, tmp_path).read(0)
    data.write_bytes(whole[:-1])
    with pytest.raises(StoreError, match="is cut short"):
        RowStore(QUESTION, 6, tmp_path)
    data.unlink()
    with pytest.raises(StoreError, match="is cut short"):
        RowStore(QUESTION, 6, tmp_path)
    data.write_bytes(whole)
    for text, reason in (
        (json.dumps({**json.loads(about.read_text()), "format": 0}), "is of version 0"),
        ("[]", "is of version None"),
        ("{", "cannot be read"),
        (json.dumps({"format": rows.FORMAT, "question": 3, "rows": 6}), "does not say what it holds"),
        (json.dumps({"format": rows.FORMAT, "question": {}, "rows": 6}), "is not what its name says"),
    ):
        about.write_text(text)
        with pytest.raises(StoreError, match=reason):
            RowStore(QUESTION, 6, tmp_path)


def test_listing_and_removing(tmp_path: Path) -> None:
    store = made(tmp_path, [0, 1])
    (tmp_path / "other").mkdir()
    by_key = {stored.key: stored for stored in stores(tmp_path)}
    assert (by_key[store.key].done, by_key[store.key].rows, by_key[store.key].question) == (2, 6, QUESTION)
    assert by_key[store.key].bytes > 0
    assert (by_key["other"].done, by_key["other"].question) == (0, {})
    remove(by_key[store.key])
    assert not store.folder.exists()
    assert stores(tmp_path / "nowhere") == []


def test_a_store_that_would_not_fit(tmp_path: Path) -> None:
    require_room(2**30, 1.0, tmp_path / "not" / "yet", "8 views", "fewer views")
    with pytest.raises(ConfigError, match=r"8 views would take 2 GiB, more than store.gib=1: fewer views"):
        require_room(2**31, 1.0, tmp_path, "8 views", "fewer views")
    with pytest.raises(ConfigError, match=r"GiB left: fewer views, or set WHITEBOX_CACHE to another disk"):
        require_room(2**60, 2.0**40, tmp_path, "8 views", "fewer views")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        RowStore(QUESTION, 6, tmp_path / "file").begin()


def test_where_stores_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WHITEBOX_CACHE", str(tmp_path))
    assert stores_folder() == tmp_path / "tokens"
    monkeypatch.delenv("WHITEBOX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert stores_folder() == tmp_path / "whitebox" / "tokens"
