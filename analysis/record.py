"""Results records: one versioned JSON file a measurement.

A record says what was measured, on which weights (sha256) and data (fingerprint), by which code, packages and hardware,
with which settings and seeds, on how many samples; and, where a paper states the value, ``reported`` beside
``measured``. Tables and figures are rendered from records alone, so nothing in them depends on a model being at hand.

Layout of ``measured`` for ``kind="eval"``, as `measured_scores` makes it (fractions; low and high bound the 95 %
interval over images; null where a class does not occur)::

    {"miou": {"value": 0.453, "low": 0.431, "high": 0.470}, "macc": {...}, "aacc": {...},
     "per_class": [{"name": "Sky", "iou": {...}, "acc": {"value": 0.912}, "label_share": 0.172}, ...]}
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from whitebox.engine.metrics import bootstrap, scores
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
class Record:
    """One measurement. `new_record` fills in what describes code and machine; `write_record` stores it."""

    kind: str  # "eval", "robustness", ...
    model: str  # of the run, as figures and tables name it
    data: Data
    measured: dict[str, Any]  # layout by kind, see above
    n: int  # independent samples behind each number: images, unless the kind says otherwise
    weights: Weights | None = None  # None: nothing trained was involved
    variant: str = ""  # tells settings apart in the file name: "multiscale"
    seeds: dict[str, int] = field(default_factory=dict)  # what was random, and its seed
    settings: dict[str, Any] = field(default_factory=dict)  # all that changes the numbers
    reported: dict[str, Any] = field(default_factory=dict)  # {"miou": {"value": 40.5, "source": "DEPICT, Table 1"}}
    command: str = ""
    created: str = ""  # UTC, ISO 8601
    versions: dict[str, Any] = field(default_factory=dict)  # of the code and of what it stands on
    hardware: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def identity(self) -> str:
        """Eight hexadecimal digits of what was measured on what; equal for a repetition of the same measurement."""
        weights = self.weights.sha256 if self.weights else None
        parts = (self.kind, self.model, self.variant, weights, asdict(self.data), self.seeds, self.settings)
        text = json.dumps(_plain(parts), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def file_name(self) -> str:
        """``KIND-DATASET-SPLIT[-VARIANT]-IDENTITY.json``."""
        parts = [self.kind, self.data.name, self.data.split, self.variant, self.identity]
        return "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts if part) + ".json"


def new_record(
    kind: str,
    *,
    model: str,
    data: Data,
    measured: Mapping[str, Any],
    n: int,
    weights: Weights | None = None,
    variant: str = "",
    seeds: Mapping[str, int] | None = None,
    settings: Mapping[str, Any] | None = None,
    reported: Mapping[str, Any] | None = None,
    command: Sequence[str] | None = None,
) -> Record:
    """A record of what was just measured, here and now.

    Args:
        kind: ``"eval"``, ...; it fixes the layout of ``measured``.
        model: name of the run, as figures and tables show it.
        data: what was measured on.
        measured: NumPy values are welcome; NaN and infinities become null.
        n: independent samples behind each number.
        weights: see `describe_weights`; None where nothing trained was involved.
        variant: short word for the file name, where settings differ from the usual.
        seeds: what was random, and its seed.
        settings: all that changes the numbers (window, scales, resamples, ...).
        reported: the paper's values, ``{"miou": {"value": 40.5, "source": "DEPICT, Table 1"}}``.
        command: the command line; None: that of this process.

    Paths below the working directory or its parent are stored relative to the former, others by their last part.
    """
    arguments = list(sys.argv if command is None else command)
    if arguments:
        arguments[0] = Path(arguments[0]).name
    return Record(
        kind=kind,
        model=model,
        data=data,
        measured=_plain(measured),
        n=n,
        weights=None if weights is None else Weights(_portable(weights.path), weights.sha256),
        variant=variant,
        seeds=_plain(seeds or {}),
        settings=_portable(_plain(settings or {})),
        reported=_plain(reported or {}),
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
    text = json.dumps(_plain(asdict(record)), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return write_text(path, text)


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
    """All records of a folder, or those of one kind, oldest first; empty where there is no such folder.

    Raises:
        RecordError: a JSON file in it is no record.
    """
    records = [read_record(path) for path in sorted(Path(folder).glob("*.json"))]
    return sorted((record for record in records if kind in (None, record.kind)), key=lambda record: record.created)


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


def measured_scores(
    counts_N3K: NDArray[np.int64],
    classes: Sequence[str],
    *,
    resamples: int = 1000,
    seed: int = 0,
    mean_over: str = "occurring",
) -> dict[str, Any]:
    """``measured`` of an evaluation, from the per-image counts of N images and K classes.

    Args:
        counts_N3K: intersection, prediction and label, as `whitebox.engine.evaluate` keeps them.
        classes: the K names.
        resamples: bootstrap draws of the 95 % intervals; note it as ``settings["resamples"]``.
        seed: of the draws; note it as ``seeds["bootstrap"]``.
        mean_over: see `whitebox.engine.metrics.scores`; note it in ``settings`` where it is not ``occurring``.

    Raises:
        DataError: there are no images.
        ConfigError: ``resamples`` below 1.
    """
    found = scores(counts_N3K, mean_over)
    interval = bootstrap(counts_N3K, resamples, seed, mean_over=mean_over)
    labels_K = counts_N3K[:, 2].sum(0)
    share_K = labels_K / max(1, int(labels_K.sum()))

    def ranged(value: float, low_high: Sequence[float]) -> dict[str, float]:
        return {"value": float(value), "low": float(low_high[0]), "high": float(low_high[1])}

    return {
        "miou": ranged(found.miou, interval.miou),
        "macc": ranged(found.macc, interval.macc),
        "aacc": ranged(found.aacc, interval.aacc),
        "per_class": [
            {
                "name": name,
                "iou": ranged(found.iou_K[index], interval.iou_K2[index].tolist()),
                "acc": {"value": float(found.acc_K[index])},
                "label_share": float(share_K[index]),
            }
            for index, name in enumerate(classes)
        ],
    }


def describe_weights(path: str | os.PathLike[str]) -> Weights:
    """Path and sha256 of a weights file.

    Raises:
        RecordError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise RecordError(f"The weights {os.fspath(path)} cannot be read: {error.strerror}.") from error
    return Weights(os.fspath(path), digest.hexdigest())


def fingerprint(entries: Iterable[tuple[str, int | str]]) -> str:
    """sha256 over sorted pairs such as (file name, size or checksum): whether two measurements saw the same data."""
    return hashlib.sha256(json.dumps(sorted(entries), separators=(",", ":")).encode()).hexdigest()


def hardware() -> dict[str, Any]:
    """``cpu`` (model name), ``cores`` (logical) and ``gpus`` (names, empty without one)."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"cpu": _cpu_model(), "cores": os.cpu_count(), "gpus": gpus}


def _plain(value: Any) -> Any:
    """``value`` in JSON's own types: NumPy and tuples unpacked, NaN and infinities None."""
    if isinstance(value, np.ndarray | np.generic):
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
