"""Names that a user chooses: a list, a file, or the names themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from whitebox.data.vocabularies import read_names
from whitebox.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cat", ("cat",)),
        ("cat, sofa ,striped cushion", ("cat", "sofa", "striped cushion")),
        ("cat; sofa,couch;window;", ("cat", "sofa, couch", "window")),
        ("sofa, couch\nwindow", ("sofa, couch", "window")),
        (" , ", ()),
    ],
)
def test_names_in_a_text(text: str, names: tuple[str, ...]) -> None:
    assert read_names(text) == names


def test_names_in_files(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\ufeffcat\r\n\nsofa, couch\n", encoding="utf-8")
    assert read_names(str(tmp_path / "names.txt")) == ("cat", "sofa, couch")
    (tmp_path / "names.json").write_text(json.dumps(["bed ", "sofa, couch"]))
    assert read_names(str(tmp_path / "names.json")) == ("bed ", "sofa, couch")
    assert len(read_names("ade847")) == 847


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "No such file"),
        ("names.json", b'{"a": 1}', "holds a list of names"),
        ("names.json", b"[", "not JSON"),
        ("names.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("names.txt", b"a\n" * 2**20, "more than 1 MB"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as refused:
        read_names(str(tmp_path / name))
    assert "\n" not in str(refused.value)
