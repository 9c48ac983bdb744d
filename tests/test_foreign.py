"""JSON and YAML of others: plain, small, shallow, or refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from whitebox.foreign import parse_json, read_json
from whitebox.interop.plain_yaml import read_yaml


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 5000 + "]" * 5000, "nested deeper than 64 levels"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested deeper than 64 levels"),
        ("[" * 70 + "]" * 70, "nested deeper than 64 levels"),
        (b"\xff\xfe", "it is not UTF-8|it is not JSON"),
        ("{", "it is not JSON"),
        ("1" * 5000, "digits"),
    ],
    ids=range(6),
)
def test_bad_json(text: str | bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": [' + "[" * 60 + "]" * 60 + "]}")
    assert set(read_json(tmp_path / "a.json")) == {"a"}
    with pytest.raises(ValueError, match="it has 0 MB, more than the 0 MB such a file may have"):
        read_json(tmp_path / "a.json", largest=100)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("a: 2020-99-99", {"a": "2020-99-99"}),
        ("a: 2020-01-01", {"a": "2020-01-01"}),
        ("a: !!python/tuple [1, 2]", {"a": (1, 2)}),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("<<: {a: 1}", {"<<": {"a": 1}}),
    ],
)
def test_yaml(tmp_path: Path, text: str, value: Any) -> None:
    (tmp_path / "a.yml").write_text(text)
    assert read_yaml(tmp_path / "a.yml") == value


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LAUGHS, "it stands for more than 100000 values"),
        ("a: &a [*a]", "nested deeper than 64 levels"),
        ("[" * 1500 + "]" * 1500, "nested deeper than 64 levels"),
        ("[" * 70 + "]" * 70, "nested deeper than 64 levels"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("{[1]: 2}", "unhashable key"),
        ("a: [1", "expected"),
        ("a: " + "1" * 5000, "digits"),
        ("a: !!timestamp 2020-99-99", "could not|month must|a value cannot be read"),
        ("x" * 2_000_000, "it has 2 MB, more than the 1 MB"),
    ],
    ids=range(10),
)
def test_bad_yaml(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "a.yml").write_text(text)
    with pytest.raises(ValueError, match=reason):
        read_yaml(tmp_path / "a.yml")


def test_yaml_of_other_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_bytes(b"a: \xff")
    with pytest.raises(ValueError, match="it is not UTF-8"):
        read_yaml(tmp_path / "a.yml")
