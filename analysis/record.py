"""Questions and results records: one versioned JSON file a measurement.

A *question* is known before its answer: what is measured, on which weights (sha256) and data (fingerprint), with which
settings and seeds. Its identity names the file. A *record* is a question with its answer, and with what made it: code,
packages, hardware; and, where a paper states the value, ``reported`` beside ``measured``. Tables and figures are
rendered from records alone, so nothing in them depends on a model being at hand.

Layout of ``measured``: the module that measures says it (``analysis/measures``).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import Any

from whitebox.data.fingerprint import checksums
from whitebox.errors import OutputError, WhiteboxError
from whitebox.files import from_the_start, write_text
from whitebox.foreign import read_json
from whitebox.versions import versions

SCHEMA = 1
log = logging.getLogger("whitebox")


class RecordError(WhiteboxError):
    """A results record or log that is missing, unreadable, of another version, or in the way."""


@dataclass(frozen=True)
class Weights:
    """The weights a measurement was made on."""

    path: str  # relative, never of one machine
    sha256: str


@dataclass(frozen=True)
class Data:
    """The data a measurement was made on."""

    name: str
    split: str
    images: int
    fingerprint: str  # see `fingerprint`


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is to be measured, on what, and how. Paths in it become relative, see `_portable`."""

    kind: str  # "eval", "rank-analysis", ...; it fixes the layout of the answer
    model: str  # of the run, as figures and tables name it
    data: Data
    weights: Weights | None = None  # None: nothing trained was involved
    variant: str = ""  # tells settings apart in the file name: "multiscale"
    seeds: dict[str, int] = field(default_factory=dict)  # what was random, and its seed
    settings: dict[str, Any] = field(default_factory=dict)  # all that changes the numbers

    def __post_init__(self) -> None:
        plain = {"seeds": _plain(self.seeds), "settings": _portable(_plain(self.settings))}
        if self.weights is not None:
            plain["weights"] = Weights(_portable(self.weights.path), self.weights.sha256)
        for key, value in plain.items():
            object.__setattr__(self, key, value)

    @property
    def identity(self) -> str:
        """Eight hexadecimal digits of what is measured on what; equal for a repetition of the same measurement."""
        weights = self.weights.sha256 if self.weights else None
        parts = (self.kind, self.model, self.variant, weights, asdict(self.data), self.seeds, self.settings)
        return hashlib.sha256(json.dumps(_plain(parts), sort_keys=True).encode()).hexdigest()[:8]

    @property
    def file_name(self) -> str:
        """``KIND-DATASET-SPLIT[-VARIANT]-IDENTITY.json``."""
        parts = [self.kind, self.data.name, self.data.split, self.variant, self.identity]
        return "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts if part) + ".json"


def in_a_name(text: str) -> str:
    """A text as a part of a file's name."""
    return re.sub(r"[^\w.-]+", "_", text)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was measured.

    Attributes:
        measured: NumPy values are welcome; NaN and infinities become null.
        n: independent samples behind each number: images, unless the kind says otherwise.
        reported: the paper's values, ``{"miou": {"value": 40.5, "source": "DEPICT, Table 1"}}``.
    """

    measured: Mapping[str, Any]
    n: int
    reported: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, repr=False)
class Record(Question):
    """One measurement. `new_record` fills in what describes code and machine; `write_record` stores it."""

    measured: dict[str, Any]
    n: int
    reported: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    created: str = ""  # UTC, ISO 8601
    versions: dict[str, Any] = field(default_factory=dict)  # of the code and of what it stands on
    hardware: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    def __repr__(self) -> str:
        data = " ".join(part for part in (self.data.name, self.data.split) if part)
        return f"<Record {self.identity}: {self.kind} of {self.model} on {data}, n = {self.n}, {self.created}>"


def new_record(question: Question, answer: Answer, command: Sequence[str] | None = None) -> Record:
    """The record of what was just measured, here and now.

    Args:
        command: the command line; None: that of this process.
    """
    arguments = list(sys.argv if command is None else command)
    if arguments:
        arguments[0] = Path(arguments[0]).name
    return Record(
        **{each.name: getattr(question, each.name) for each in fields(Question)},
        measured=_plain(answer.measured),
        n=answer.n,
        reported=_plain(answer.reported),
        command=shlex.join(_portable(arguments)),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions=versions(),
        hardware=hardware(),
    )


def write_record(record: Record, folder: str | os.PathLike[str]) -> Path:
    """Store ``record`` in ``folder`` (made if need be) under its ``file_name``, atomically; returns the file's path.

    The name carries the identity of the measurement, so only a repetition of the same measurement is replaced. What was
    measured last counts, whatever the clocks said.

    A file of that name that is no record of it, as a damaged disk leaves one, is kept under another name.

    Raises:
        OutputError: the folder cannot be written.
    """
    path = from_the_start(Path(folder)) / record.file_name
    if path.exists() and not _is_repetition(path, record):
        aside = next(name for n in count(1) if not (name := path.with_name(f"{path.name}.damaged-{n}")).exists())
        log.warning("%s is no record of this measurement: it is called %s now.", path, aside.name)
        try:
            path.rename(aside)
        except OSError as error:
            raise OutputError(f"Cannot write {path}: {error.strerror}; choose another folder with -o.") from error
    text = json.dumps(plain_record(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return write_text(path, text)


def plain_record(record: Record) -> dict[str, Any]:
    """A record in JSON's own types, as it is stored."""
    found: dict[str, Any] = _plain(asdict(record))
    return found


def _is_repetition(path: Path, record: Record) -> bool:
    try:
        return read_record(path).identity == record.identity
    except RecordError:
        return False


def read_record(path: str | os.PathLike[str]) -> Record:
    """The record stored in the file ``path``. Values that were NaN or infinite come back as None.

    Raises:
        RecordError: no such file, not JSON, another schema version, or a key is missing, unknown or of a wrong type.
    """
    path = Path(path)
    try:
        loaded = read_json(path)
    except OSError as error:
        raise RecordError(f"The record {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise RecordError(f"{path} is not a results record: {error}. Measure again.") from error
    if not isinstance(loaded, dict) or "schema" not in loaded:
        raise RecordError(f"{path} is not a results record: it has no key 'schema'. Measure again.")
    if loaded["schema"] != SCHEMA:
        raise RecordError(
            f"{path} has schema version {loaded['schema']!r}, this whitebox reads {SCHEMA}; measure again, "
            "or read it with the version that wrote it (key 'versions')."
        )
    try:
        return _build(Record, loaded)
    except ValueError as error:
        raise RecordError(f"{path} is not a whole results record: {error}. Measure again.") from error


def read_records(folder: str | os.PathLike[str], kind: str | None = None) -> list[Record]:
    """All records of a folder, or those of one kind, oldest first, equally old ones by model; empty without a folder.

    Raises:
        RecordError: a JSON file in it is no record.
    """
    records = [read_record(path) for path in sorted(Path(folder).glob("*.json"))]
    return sorted(
        (record for record in records if kind in (None, record.kind)), key=lambda record: (record.created, record.model)
    )


@contextmanager
def laid_out(what: str) -> Iterator[None]:
    """Show or compare records that were read: what fails there is theirs, since anyone may have written them.

    Args:
        what: how to call them.

    Raises:
        RecordError: they lack what their kind has, or hold values of other types.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise RecordError(
            f"{what} are not laid out as this version of whitebox writes them ({reason}): measure again."
        ) from error


def notes(records: Sequence[Record]) -> list[str]:
    """What the measurements have to say beside their numbers, ``measured["notes"]``: what does not apply to a model."""
    return [f"{record.model}: {note}" for record in records for note in record.measured.get("notes", ())]


def describe_weights(path: str | os.PathLike[str]) -> Weights:
    """Path and sha256 of a weights file.

    Raises:
        RecordError: the file cannot be read.
    """
    try:
        open(path, "rb").close()
    except OSError as error:
        raise RecordError(f"The weights {os.fspath(path)} cannot be read: {error.strerror}.") from error
    return Weights(os.fspath(path), checksums([path])[0])


def hardware() -> dict[str, Any]:
    """``cpu`` (model name), ``cores`` (logical) and ``gpus`` (names, empty without one)."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"cpu": _cpu_model(), "cores": os.cpu_count(), "gpus": gpus}


def _plain(value: Any) -> Any:
    """``value`` in JSON's own types: NumPy and tuples unpacked, NaN and infinities None."""
    if hasattr(value, "tolist"):  # of NumPy, which is not loaded for this
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _portable(value: Any) -> Any:
    """``value`` with the absolute paths in it (also in KEY=PATH) made relative, or cut to their last part."""
    if isinstance(value, Mapping):
        return {key: _portable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_portable(item) for item in value]
    if not isinstance(value, str):
        return value
    key, equals, path = value.rpartition("=")
    if not os.path.isabs(path):
        return value
    try:
        here = Path.cwd()
    except FileNotFoundError:  # deleted while this was measured
        return f"{key}{equals}{Path(path).name}"
    near = Path(path).is_relative_to(here.parent)
    return f"{key}{equals}{os.path.relpath(path, here) if near else Path(path).name}"


def _build(kind: type, loaded: Any) -> Any:
    """A `Record`, `Data` or `Weights` from its JSON object; ValueError says what is wrong."""
    if not isinstance(loaded, dict):
        raise ValueError(f"expected an object, found {loaded!r}")
    known = {item.name: item for item in fields(kind)}
    if unknown := sorted(loaded.keys() - known.keys()):
        raise ValueError(f"unknown key {unknown[0]!r}")
    for name, item in known.items():
        if name not in loaded and item.default is MISSING and item.default_factory is MISSING:
            raise ValueError(f"missing key {name!r}")
    values = dict(loaded)
    if kind is Record:
        values["data"] = _build(Data, loaded["data"])
        values["weights"] = None if loaded.get("weights") is None else _build(Weights, loaded["weights"])
    for name, value in values.items():
        expected = {"str": str, "int": int}.get(str(known[name].type), dict)
        if name not in ("data", "weights") and not isinstance(value, expected):
            raise ValueError(f"{name!r} is {value!r}, not of type {expected.__name__}")
    return kind(**values)


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
