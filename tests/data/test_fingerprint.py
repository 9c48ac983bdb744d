"""The fingerprint of data: bytes, not names; and a cache that nothing depends on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from whitebox.config import DataConfig
from whitebox.data import fingerprint as module
from whitebox.data.fingerprint import checksums, data_fingerprint, fingerprint
from whitebox.data.readers import FileSource, Pair, ShapesSource, label_table
from whitebox.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHITEBOX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path: Path) -> FileSource:
    pairs = []
    for name in ("a", "b"):
        image, label = tmp_path / "images" / f"{name}.png", tmp_path / "masks" / f"{name}.png"
        for path in (image, label):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(f"{path.parent.name} {name}".encode())
            os.utime(path, (1e9, 1e9))
        pairs.append(Pair(name, str(image), str(label)))
    return FileSource("two", ("x",), ((0, 0, 0),), pairs, label_table(1), "")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read."""
    read: list[Path] = []
    original = module._sha256
    monkeypatch.setattr(module, "_sha256", lambda file: (read.append(file), original(file))[1])
    return read


CONFIG = DataConfig(name="two", kind="folder")


def test_it_follows_the_bytes_of_images_and_labels(source: FileSource) -> None:
    before = data_fingerprint(CONFIG, source)
    seen = {before}
    for path in (source.pairs[0].image, source.pairs[1].label):
        size = os.path.getsize(path)
        Path(path).write_bytes(b"x" * size)  # the same name and size
        seen.add(data_fingerprint(CONFIG, source))
    assert len(seen) == 3


def test_it_follows_what_labels_mean_and_which_images(source: FileSource) -> None:
    found = [data_fingerprint(CONFIG, source), data_fingerprint(CONFIG, source, 1)]
    source.table_V = label_table(1, reduce_zero_label=True)
    found.append(data_fingerprint(CONFIG, source))
    assert len(set(found)) == 3
    source.names[0] = "c"
    assert data_fingerprint(CONFIG, source) not in found


def test_it_does_not_follow_the_place(source: FileSource, tmp_path: Path) -> None:
    before = data_fingerprint(CONFIG, source)
    for kind in ("images", "masks"):
        (tmp_path / kind).rename(tmp_path / f"moved-{kind}")
    source.pairs = [
        Pair(pair.name, pair.image.replace("images", "moved-images"), pair.label.replace("masks", "moved-masks"))
        for pair in source.pairs
    ]
    assert data_fingerprint(CONFIG, source) == before


def test_of_drawn_images(tmp_path: Path) -> None:
    seen = set()
    for config in (DataConfig(), DataConfig(shapes_seed=1), DataConfig(size=64), DataConfig(val_length=3)):
        seen.add(data_fingerprint(config, ShapesSource(config, "val")))
    assert len(seen) == 4
    assert data_fingerprint(DataConfig(), ShapesSource(DataConfig(), "val"), 3) in seen


def test_files_are_read_once(source: FileSource, hashed: list[Path]) -> None:
    first = data_fingerprint(CONFIG, source)
    assert len(hashed) == 4
    assert data_fingerprint(CONFIG, source) == first and len(hashed) == 4
    Path(source.pairs[0].image).write_bytes(b"longer than before")
    assert data_fingerprint(CONFIG, source) != first and len(hashed) == 5


def test_a_file_changed_just_now_is_read_again(tmp_path: Path, hashed: list[Path]) -> None:
    path = tmp_path / "new.png"
    path.write_bytes(b"1")
    assert checksums([path]) == checksums([path]) and len(hashed) == 2


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a.png": 3, "b.png": [1, 2, 3]}'])
def test_a_damaged_cache_is_harmless(source: FileSource, cache: Path, content: str, hashed: list[Path]) -> None:
    first = data_fingerprint(CONFIG, source)
    for kept in (cache / "checksums").iterdir():
        kept.write_text(content)
    assert data_fingerprint(CONFIG, source) == first and len(hashed) == 8


def test_a_cache_that_cannot_be_written_is_harmless(source: FileSource, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    assert data_fingerprint(CONFIG, source) == data_fingerprint(CONFIG, source)


def test_a_missing_file_is_named(source: FileSource) -> None:
    os.unlink(source.pairs[1].label)
    with pytest.raises(DataError, match=r"masks.b\.png cannot be opened .No such file"):
        data_fingerprint(CONFIG, source)


def test_order_plays_no_part() -> None:
    assert fingerprint([("a", 1), ("b", 2)]) == fingerprint([("b", 2), ("a", 1)]) != fingerprint([("a", 2), ("b", 1)])
