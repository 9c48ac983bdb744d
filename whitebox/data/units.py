"""Which images of a dataset are independent of each other: what intervals resample.

Frames of one drive, or photos of one city, resemble each other, so their number says little about how sure a score is.
Images that belong together are a *unit*. Where a dataset is a few long clips, these are cut into *blocks* of
consecutive frames, long enough that one block hardly depends on the next: the interval is then about other stretches of
the same clips, not about other clips.
"""

from __future__ import annotations

import csv
import io
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whitebox.data.fingerprint import fingerprint
from whitebox.errors import ConfigError, DataError, short
from whitebox.text import composed

if TYPE_CHECKING:
    from whitebox.config import DataConfig

UNITS_FILE = "units.csv"
_parser = import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")
_LONGEST = 500  # characters of a pattern
_MOST = 2e7  # ways to fit one name, which take a second at most
_SECONDS = 20  # for all names


@dataclass(frozen=True)
class Units:
    """The unit of each of N images.

    Attributes:
        name: what a unit is called: image, city, drive, ...
        of_N: names of units, equal for images that belong together.
        clips: how many clips blocks were cut from; 0: units were not cut.
        block: frames of a block, about; 0: not cut.
    """

    name: str
    of_N: tuple[str, ...]
    clips: int = 0
    block: int = 0

    def __len__(self) -> int:
        return len(set(self.of_N))

    @property
    def described(self) -> dict[str, Any]:
        """For the settings of a record: all that captions say, and which image is of which unit."""
        found: dict[str, Any] = {"name": self.name, "count": len(self), "of": fingerprint(enumerate(self.of_N))[:16]}
        return {**found, "clips": self.clips, "block": self.block} if self.block else found


def units_of(config: DataConfig, names: Sequence[str]) -> Units:
    """The units of some images of a dataset, as ``data.unit`` and ``data.block`` say, else as the dataset itself does.

    Args:
        names: of the images, as readers name them.

    Raises:
        ConfigError: a pattern that is none, or has not one group.
        DataError: the file or the pattern names no unit for an image, or an empty one.
    """
    name, clip_N, block = _clips(config, names)
    block = block if config.block is None else config.block
    if block and name != "image":
        return Units(name, _blocks(names, clip_N, block), len(set(clip_N)), block)
    return Units(name, tuple(clip_N))


def with_unit(config: DataConfig, chosen: str) -> DataConfig:
    """The data with another unit than its own.

    Args:
        chosen: ``image``; ``clip``: whole clips, where the dataset cuts them; ``block:N``: clips cut into blocks of N
            frames; else as ``data.unit``.

    Raises:
        ConfigError: a number of frames that is none.
    """
    if chosen == "clip":
        return replace(config, block=0)
    word, colon, frames = chosen.partition(":")
    if colon and word == "block":
        if not frames.isdecimal() or int(frames) < 1:
            raise ConfigError(f"--unit {short(chosen)} is impossible: say of how many frames, as block:10.")
        return replace(config, block=int(frames))
    return replace(config, unit=chosen, block=None)


def _clips(config: DataConfig, names: Sequence[str]) -> tuple[str, list[str], int]:
    """What a clip is called, the clip of each image, and into blocks of how many frames it is cut."""
    if config.unit == "image":
        return "image", list(names), 0
    if config.unit == "folder":
        return "sequence", [name.rpartition("/")[0] for name in names], 0
    if config.unit:
        return "unit", _matched(config.unit, names), 0
    if config.kind in _OWN:
        own, clip_of, block = _OWN[config.kind]
        return own, [clip_of(name) for name in names], block
    listed = Path(config.root, config.path, UNITS_FILE)
    if config.kind == "folder" and listed.is_file():
        return "unit", _listed(listed, names), 0
    return "image", list(names), 0


def _drive(name: str) -> str:
    """``0016E5_08027`` -> ``0016E5``."""
    return name.rpartition("/")[2].rpartition("_")[0]


def _city(name: str) -> str:
    """``frankfurt/frankfurt_000000_000294`` -> ``frankfurt``."""
    return name.rpartition("/")[2].partition("_")[0]


# What a clip is called, how an image's name says it, and frames of a block. CamVid has a frame or two a second; the
# autocorrelation of its per-image mIoU is 0.37 (val) and 0.62 (test) at lag 1 (docs/statistics.md).
_OWN: Mapping[str, tuple[str, Callable[[str], str], int]] = {
    "camvid": ("drive", _drive, 10),
    "cityscapes": ("city", _city, 0),
}


def _matched(pattern: str, names: Sequence[str]) -> list[str]:
    """The unit of each image: the one group of a pattern in its name."""
    if len(pattern) > _LONGEST:
        raise ConfigError(f"data.unit has {len(pattern)} characters: a pattern has at most {_LONGEST}.")
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"data.unit {short(pattern)} is no pattern: {error}.") from None
    if compiled.groups != 1:
        raise ConfigError(
            f"data.unit {short(pattern)} has {compiled.groups} groups: put the part of the file name that tells units "
            "apart in one pair of brackets, as ([^_]+)_.*, or choose image or folder."
        )
    longest = max(map(len, names), default=0)
    if _ways(_parser.parse(pattern), longest) > math.log(_MOST):
        raise ConfigError(
            f"data.unit {short(pattern)} can fit a name of {longest} characters in too many ways to try them all: use "
            "fewer of * + ? |, and none inside another, as ([^_]+)_.*"
        )
    found, until = [], time.monotonic() + _SECONDS
    for name in names:
        found.append(compiled.match(name))
        if time.monotonic() > until:
            raise ConfigError(
                f"data.unit {short(pattern)} took more than {_SECONDS} s for {len(found)} of {len(names)} names: use "
                "fewer of * + ? |, or list the units in units.csv."
            )
    missing = [name for name, match in zip(names, found, strict=True) if match is None or not match[1]]
    if missing:
        raise DataError(
            f"data.unit {short(pattern)} finds no unit in the name {missing[0]}{_more(missing)}: it must fit "
            "all of them."
        )
    return [match[1] for match in found if match is not None]


def _ways(parsed: Any, longest: int) -> float:
    """In how many ways a parsed pattern can fit names of so many characters, at most; their logarithm.

    A match may have to try them all. Patterns come with configurations that others wrote, and one like ``(a+)+b`` would
    be tried for ever.
    """
    ways = 0.0
    for operation, details in parsed:
        kind = str(operation)
        if kind in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            least, most, inner = details
            most = min(int(most), max(longest, int(least)))
            ways += math.log(most - int(least) + 1) + most * _ways(inner, longest)
        elif kind in ("BRANCH", "GROUPREF_EXISTS"):
            each_of = details[1] if kind == "BRANCH" else details[1:]
            branches = [_ways(each, longest) for each in each_of if each is not None]
            ways += math.log(len(branches) or 1) + max(branches, default=0.0)
        elif kind in ("SUBPATTERN", "ASSERT", "ASSERT_NOT"):
            ways += _ways(details[-1], longest)
        elif kind == "ATOMIC_GROUP":
            ways += _ways(details, longest)
    return ways


def _listed(path: Path, names: Sequence[str]) -> list[str]:
    """The unit of each image, from a table with the columns image and unit."""
    from whitebox.data.readers import read_text

    rows = csv.DictReader(io.StringIO(read_text(path)), skipinitialspace=True)
    if not {"image", "unit"} <= set(rows.fieldnames or ()):
        raise DataError(f"{path} has no columns image and unit: begin it with the line image,unit.")
    known: dict[str, str] = {}
    for number, row in enumerate(rows, start=2):
        image, unit = (composed((row[key] or "").strip()) for key in ("image", "unit"))
        if not image or not unit:
            raise DataError(f"Line {number} of {path} has no {'unit' if image else 'image'}: give it one.")
        if known.setdefault(image, unit) != unit:
            raise DataError(f"Line {number} of {path} gives {image} another unit than a line before: keep one of them.")
    stems = {re.sub(r"\.[A-Za-z]{3,4}$", "", image): unit for image, unit in known.items()}
    found = [known.get(name) or stems.get(name) for name in names]
    if missing := [name for name, unit in zip(names, found, strict=True) if unit is None]:
        raise DataError(
            f"{path} names no unit for the image {missing[0]}{_more(missing)}: give each image a line, or choose "
            "--unit image."
        )
    return [unit for unit in found if unit is not None]


def _more(names: Sequence[str]) -> str:
    return f" (and for {len(names) - 1} more)" if len(names) > 1 else ""


def _blocks(names: Sequence[str], clip_N: Sequence[str], frames: int) -> tuple[str, ...]:
    """Clips in the order of their frames' names, cut into parts of about ``frames``, all of about the same length."""
    lengths, seen = Counter(clip_N), Counter[str]()
    block_N = [""] * len(names)
    for index in sorted(range(len(names)), key=lambda index: _natural(names[index])):
        clip = clip_N[index]
        parts = max(1, round(lengths[clip] / frames))
        block_N[index] = f"{clip} {seen[clip] * parts // lengths[clip] + 1}/{parts}"
        seen[clip] += 1
    return tuple(block_N)


def _natural(name: str) -> list[tuple[int, str]]:
    """Numbers in a name count as numbers: frame9 comes before frame10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
