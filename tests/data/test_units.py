"""Which images belong together: what each dataset says, and what a user says of a folder."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from whitebox.config import DataConfig
from whitebox.data.units import Units, units_of
from whitebox.errors import ConfigError, DataError

CAMVID = DataConfig(name="camvid", kind="camvid")
DRIVE = [f"0016E5_{7959 + 2 * index:05d}" for index in range(101)]


def folder(path: Path, **keys: object) -> DataConfig:
    return replace(DataConfig(name="mine", kind="folder", root=str(path), path="."), **keys)  # type: ignore[arg-type]


def test_camvid_is_blocks_of_its_drives() -> None:
    names = [f"0001TP_{index:06d}" for index in range(62)] + [f"Seq05VD_f{index:05d}" for index in range(171)]
    found = units_of(CAMVID, names)
    assert (found.name, found.clips, found.block, len(found)) == ("drive", 2, 10, 6 + 17)
    sizes = Counter(found.of_N)
    assert set(sizes.values()) <= {10, 11}
    assert all(found.of_N[index].startswith("0001TP ") for index in range(62))
    one = units_of(CAMVID, DRIVE)
    assert (one.clips, len(one)) == (1, 10) and one.described["count"] == 10 and one.described["block"] == 10


def test_blocks_are_of_consecutive_frames_whatever_the_order() -> None:
    names = [f"a_{index}" for index in range(20)]  # as text, a_10 comes before a_9
    found = units_of(replace(CAMVID, block=5), sorted(names))
    by_name = dict(zip(sorted(names), found.of_N, strict=True))
    assert [by_name[name] for name in names] == [f"a {1 + index // 5}/4" for index in range(20)]


def test_cities_images_and_drives_as_a_whole() -> None:
    cities = DataConfig(name="cityscapes", kind="cityscapes")
    found = units_of(cities, ["frankfurt/frankfurt_000000_000294", "lindau/lindau_000000_000019", "lindau/lindau_1_2"])
    assert (found.name, found.of_N, found.block) == ("city", ("frankfurt", "lindau", "lindau"), 0)
    assert "block" not in found.described
    scenes = units_of(DataConfig(name="ade20k", kind="ade20k"), ["ADE_val_1", "ADE_val_2"])
    assert (scenes.name, len(scenes)) == ("image", 2)
    assert units_of(replace(CAMVID, unit="image"), DRIVE) == Units("image", tuple(DRIVE))
    assert len(units_of(replace(CAMVID, block=0), DRIVE)) == 1


def test_a_folder_says_it_by_a_file(tmp_path: Path) -> None:
    names = ["a1", "a2", "b/b1"]
    assert units_of(folder(tmp_path), names).name == "image"
    (tmp_path / "units.csv").write_text("image,unit\na1,anna\na2.png, anna\nb/b1,bert\nother,x\n", "utf-8")
    assert units_of(folder(tmp_path), names) == Units("unit", ("anna", "anna", "bert"))
    assert units_of(folder(tmp_path, unit="image"), names).name == "image"
    assert units_of(folder(tmp_path, block=1), names).of_N == ("anna 1/2", "anna 2/2", "bert 1/1")


def test_or_by_a_pattern_or_its_folders() -> None:
    names = ["p1/s1_a", "p1/s2_a", "p2/s1_b"]
    assert units_of(folder(Path("x"), unit="(p[0-9])/.*"), names) == Units("unit", ("p1", "p1", "p2"))
    assert units_of(folder(Path("x"), unit="folder"), names) == Units("sequence", ("p1", "p1", "p2"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("picture,unit\na,b\n", "no columns image and unit"),
        ("image,unit\na,\n", "Line 2 .* has no unit"),
        ("image,unit\n,b\n", "Line 2 .* has no image"),
        ("image,unit\na,b\na,c\n", "Line 3 .* another unit"),
        ("image,unit\nz,b\n", r"no unit for the image a \(and for 1 more\)"),
        ("image,unit\na,b\n", "no unit for the image b: "),
    ],
)
def test_a_file_that_does_not_say_it(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "units.csv").write_text(text, "utf-8")
    with pytest.raises(DataError, match=message):
        units_of(folder(tmp_path), ["a", "b"])


@pytest.mark.parametrize(
    ("unit", "kind", "message"),
    [
        ("(a", ConfigError, "is no pattern"),
        ("a_.*", ConfigError, "has 0 groups"),
        ("(a)_(b)", ConfigError, "has 2 groups"),
        ("(a)_.*", DataError, r"no unit in the name b_1 \(and for 1 more\)"),
        ("(x*).*", DataError, "no unit in the name a_1"),
    ],
)
def test_a_pattern_that_does_not_fit(unit: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        units_of(folder(Path("x"), unit=unit), ["a_1", "b_1", "b_2"])


@pytest.mark.parametrize(
    "unit",
    [
        "(a+)+b", "((?:a|a)*)b", "((?:a*)*)b", "(a{1,90}){1,90}b", ".*.*.*.*.*(x)", "(a?" + "a?" * 40 + ")b",
        "(?=(a+)+)b", "(" + "(?:a|aa)" * 40 + ")b", "(" * 300 + "a" + ")" * 300, "x" * 501, "(a)(?(1)(?:a+)+|b)",
    ],
)  # fmt: skip
def test_a_pattern_that_would_be_tried_for_ever(unit: str) -> None:
    """It may come with a foreign configuration."""
    with pytest.raises(ConfigError, match=r"too many ways|at most 500|groups|is no pattern"):
        units_of(folder(Path("x"), unit=unit), ["a" * 60])


def test_a_pattern_that_takes_long_for_many_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whitebox.data.units._SECONDS", -1)
    with pytest.raises(ConfigError, match="took more than -1 s for 1 of 2 names"):
        units_of(folder(Path("x"), unit="(.*)"), ["a", "b"])


@pytest.mark.parametrize("unit", ["([^_]+)_.*", "(.*)_[0-9]+_[0-9]+", "(?:left|right)/([a-z]{1,8})-?.*", "(.{6}).*"])
def test_usual_patterns_are_taken(unit: str) -> None:
    assert len(units_of(folder(Path("x"), unit=unit), ["left/aa_bb_1_2", "left/aa_bb_3_4"]))


def test_a_block_cannot_be_negative() -> None:
    with pytest.raises(ConfigError, match=r"data\.block=-1"):
        DataConfig(block=-1)
