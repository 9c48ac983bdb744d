"""Runs on disk, opened for a command: the model on its device, its configuration, and where its results belong."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from whitebox.catalog import flatten
from whitebox.config import (
    BESIDE_LEARNING,
    MULTISCALE,
    DataConfig,
    InferenceConfig,
    RunConfig,
    change_shown,
    from_dict,
    to_dict,
)
from whitebox.data.readers import dataset_info
from whitebox.engine.header import RUNS, WEIGHTS, read_header
from whitebox.errors import CheckpointError, ConfigError, require
from whitebox.foreign import parse_json
from whitebox.interop.hub import Reference, weights_of
from whitebox.names import OPEN_VOCABULARY, TOPK, check_vocabulary

if TYPE_CHECKING:
    from whitebox.models import OpenSegmentor, Segmentor


FAMILY = "seeds.txt"  # in the folder above the trainings of one configuration: which seeds there are to be


@dataclass(frozen=True)
class Run:
    """A trained model.

    Attributes:
        name: of its folder, as figures and tables show it.
        weights: file they were read from.
        config: of the training, changed as the user asked.
        place: takes the run's records, tables and figures; None: the folder of its weights.
    """

    name: str
    weights: Path
    model: Segmentor = field(repr=False)
    config: RunConfig = field(repr=False)
    place: Path | None = None

    @property
    def folder(self) -> Path:
        return self.place or self.weights.parent

    @property
    def classes(self) -> tuple[str, ...]:
        return self.model.classes

    @property
    def data(self) -> DataConfig:
        return self.config.data

    @property
    def inference(self) -> InferenceConfig:
        return self.config.inference

    @property
    def open_vocabulary(self) -> bool:
        """Whether its classes are names, which may be others than it was trained with."""
        return self.model.decoder.open_vocabulary

    @property
    def seed(self) -> int:
        return self.config.train.seed

    @property
    def saved(self) -> Mapping[str, Any]:
        return to_dict(self.config)

    def open(self) -> Run:
        """Itself: its model is there."""
        return self


@dataclass(frozen=True)
class SavedRun:
    """A run on disk, whose model is loaded when it is asked for; what it is made of and shown is known before.

    Attributes:
        name, weights, place: see `Run`.
        classes: their names.
        data, inference: of the training, changed as the user asked.
        seed: of the training.
        saved: its whole configuration, as it was saved.
        load: loads it.
        altered: it was changed after its training (``whitebox intervene``).
    """

    name: str
    weights: Path
    classes: tuple[str, ...] = field(repr=False)
    data: DataConfig = field(repr=False)
    inference: InferenceConfig = field(repr=False)
    seed: int
    saved: Mapping[str, Any] = field(repr=False)
    load: Callable[[], Run] = field(repr=False)
    altered: bool = False
    place: Path | None = None

    @property
    def open_vocabulary(self) -> bool:
        """See `Run`."""
        return self.saved.get("decoder", {}).get("name") in OPEN_VOCABULARY

    @property
    def folder(self) -> Path:
        return self.place or self.weights.parent

    def open(self) -> Run:
        """With its model, which is loaded each time.

        Raises:
            CheckpointError: missing, cut short, unsafe, or made for another model.
            ConfigError: an unknown device.
        """
        return self.load()


def find_run(
    path: Path,
    dataset: str | None = None,
    data_root: Path | None = None,
    overrides: Sequence[str] = (),
    device: str | None = None,
    multiscale: bool = False,
    names: Sequence[str] | None = None,
    fast: bool = False,
    topk: int | None = None,
) -> SavedRun:
    """Find a run folder, a ``.safetensors``, ``hf-hub:ORG/NAME``, or an official checkpoint, which is read as a whole.

    A run of the Hub keeps what is measured of it below ``results/``.

    Args:
        dataset, data_root, overrides: see `whitebox.config.change`.
        device: None: the best there is.
        multiscale: average the official six scales and flips at inference.
        names: what an open-vocabulary model is prompted with; None: the classes of ``dataset``, else its own.
        fast: early rejection of an open-vocabulary model.
        topk: with ``fast``, how many classes of a place it keeps; None: 8, or as many as there are.

    Raises:
        CheckpointError: missing, or not what whitebox or its authors write.
        ConfigError: an unknown dataset or key; names, or ``fast``, for a model that has classes of its own; names or
            ``topk`` that cannot be.
    """
    weights, reference = weights_of(path), Reference.of(path)
    altered = False
    if weights.suffix == ".safetensors":
        header = read_header(weights)
        altered = "altered" in header
        saved, classes = header["config"], tuple(header["classes"])
        if not isinstance(saved, dict):
            raise CheckpointError(f"The header of {weights} cannot be used: its configuration is no mapping.")
        load: Callable[[], tuple[Segmentor, RunConfig]] = partial(_load, weights)
    else:
        loaded = _load(weights)
        saved, classes, load = to_dict(loaded[1]), loaded[0].classes, lambda: loaded

    shown = change_shown(saved, dataset, overrides, data_root)
    if multiscale:
        shown.inference = replace(shown.inference, scales=list(MULTISCALE), flip=True)
    name = _name(weights.resolve()) if reference is None else reference.name
    place = None if reference is None else RUNS / reference.folder
    own = classes
    if saved.get("decoder", {}).get("name") in OPEN_VOCABULARY:
        if names is None and dataset is not None:
            names = dataset_info(shown.data)[0]
        classes = classes if names is None else tuple(names)
        check_vocabulary(classes)
        if fast:
            known = topk is None or 1 <= topk <= len(classes)
            require(known, "topk", topk, f"there are {len(classes)} classes")
            shown.inference = replace(shown.inference, topk=topk or min(TOPK, len(classes)))
    elif names is not None or fast:
        what = "--fast is" if names is None else "other names are"
        raise ConfigError(f"{name} has the classes it was trained with: {what} for open-vocabulary models (SED).")

    def opened() -> Run:
        from whitebox.engine.distributed import join

        model, config = load()
        config = replace(config, data=shown.data, inference=shown.inference)
        if classes != own:
            cast("OpenSegmentor", model).set_vocabulary(classes)
        return Run(name, weights, model.to(join(device).device), config, place)

    seed = int(saved.get("train", {}).get("seed", 0))
    return SavedRun(name, weights, classes, shown.data, shown.inference, seed, saved, opened, altered, place)


def _name(weights: Path) -> str:
    """That of the folder, of a training of a family with that of the family; of weights that have one, their own."""
    if weights.suffix == ".safetensors" and weights.name != WEIGHTS:
        return weights.stem
    folder = weights.parent
    return f"{folder.parent.name}-{folder.name}" if (folder.parent / FAMILY).is_file() else folder.name


def open_run(
    path: Path,
    dataset: str | None = None,
    data_root: Path | None = None,
    overrides: Sequence[str] = (),
    device: str | None = None,
    multiscale: bool = False,
    names: Sequence[str] | None = None,
    fast: bool = False,
    topk: int | None = None,
) -> Run:
    """As `find_run`, with its model.

    Raises:
        CheckpointError: missing, cut short, unsafe, or made for another model.
        ConfigError: an unknown dataset, key or device.
    """
    return find_run(path, dataset, data_root, overrides, device, multiscale, names, fast, topk).open()


def _load(weights: Path) -> tuple[Segmentor, RunConfig]:
    from whitebox.api import load_run

    return load_run(weights)


def class_names(path: Path) -> tuple[str, ...]:
    """The classes of a run; where its weights have a header, that is all that is read.

    Raises:
        CheckpointError: see `open_run`.
    """
    weights = weights_of(path)
    return tuple(read_header(weights)["classes"]) if weights.suffix == ".safetensors" else _load(weights)[0].classes


def require_same_classes(paths: Sequence[Path]) -> None:
    """See, before anything is measured, that models can share a figure.

    Raises:
        ConfigError: one has other classes.
    """
    first = class_names(paths[0])
    for path in paths[1:]:
        names = class_names(path)
        if names != first and not (_unnamed(first, names) and len(names) == len(first)):
            raise ConfigError(
                f"{path} has other classes ({len(names)}: {', '.join(names[:3])}, ...) than {paths[0]} ({len(first)}: "
                f"{', '.join(first[:3])}, ...): name runs of one dataset."
            )


def _unnamed(*lists: tuple[str, ...]) -> bool:
    """Whether some classes have no names: some official checkpoints do not say theirs."""
    from whitebox.models.segmentor import unnamed_classes

    return any(names == unnamed_classes(len(names)) for names in lists)


def saved_runs(root: Path) -> list[tuple[Path, RunConfig]]:
    """The trained runs below ``root`` with their configuration, sorted by folder; reads headers only.

    Those that were altered after their training (``whitebox intervene``) are left out.

    Raises:
        CheckpointError: a weights file that whitebox has not written whole.
    """
    headers = {weights.parent: read_header(weights) for weights in sorted(root.glob(f"**/{WEIGHTS}"))}
    return [(folder, from_dict(header["config"])) for folder, header in headers.items() if "altered" not in header]


def finished_runs(root: Path = Path("results")) -> list[Path]:
    """Folders below ``root`` that hold the weights of a run, sorted.

    Raises:
        ConfigError: there are none.
    """
    runs = sorted(weights.parent for weights in root.glob(f"**/{WEIGHTS}"))
    if not runs:
        raise ConfigError(f"There are no runs below {root}/: name one, or make one with `whitebox train`.")
    return runs


@dataclass(frozen=True)
class Family:
    """Trainings of one configuration that differ in their seed; or one run alone.

    Attributes:
        name: as figures and tables show it.
        folder: takes what is measured of all of them.
        indices: of its runs, in the order of their seeds.
    """

    name: str
    folder: Path
    indices: tuple[int, ...]


def seed_folder(family: Path, seed: int) -> Path:
    """Where a family keeps one of its trainings."""
    return family / f"seed-{seed}"


def seeds_of(text: str) -> range:
    """``0:5`` -> 0 to 4.

    Raises:
        ConfigError: it is no such range.
    """
    first, colon, end = text.partition(":")
    if not (colon and first.isdecimal() and end.isdecimal() and int(first) < int(end)):
        raise ConfigError(f"--seeds {text} is impossible: give the first and the one after the last, as 0:5 for five.")
    return range(int(first), int(end))


def wanted_seeds(family: Path) -> set[int]:
    """The seeds that a family is to be trained with, one a line of its file; none without one.

    Raises:
        OSError, ValueError: the file cannot be read, or holds something else.
    """
    listed = family / FAMILY
    return {int(line) for line in listed.read_text("utf-8").split()} if listed.is_file() else set()


def ended(folder: Path) -> bool:
    """Whether a folder holds weights of the last step, as far as its log says; those without a log count as whole."""
    if not (folder / WEIGHTS).is_file():
        return False
    try:
        lines = (folder / "metrics.jsonl").read_bytes().splitlines()
    except OSError:
        return True
    train = read_header(folder / WEIGHTS)["config"].get("train", {})
    key, last = ("epoch", train.get("epochs")) if train.get("steps") is None else ("step", train["steps"])
    for line in reversed(lines):
        try:
            logged = parse_json(line)
        except ValueError:  # cut short
            continue
        if isinstance(logged, dict) and isinstance(logged.get(key), int | float) and isinstance(last, int):
            return bool(logged[key] >= last - 1e-9)
    return True


def _trainings(family: Path) -> dict[int, Path]:
    """Folders of trainings, finished or not, by seed."""
    folders = (each for each in family.glob("seed-*") if each.is_dir() and each.name[5:].isdecimal())
    return {int(each.name[5:]): each for each in folders}


def lacking_seeds(family: Path) -> list[int]:
    """The seeds, of those that have a folder or are to have one, whose weights are not there, or not the last ones.

    Raises:
        CheckpointError: what lists the seeds cannot be read.
    """
    try:
        wanted = {*_trainings(family), *wanted_seeds(family)}
    except (OSError, ValueError):
        raise CheckpointError(f"{family / FAMILY} lists no seeds: delete it, or train with --seeds again.") from None
    return [seed for seed in sorted(wanted) if not ended(seed_folder(family, seed))]


def members(path: Path) -> list[Path]:
    """The folders of the trainings that a family's folder holds, by seed; none where it is no family.

    Raises:
        CheckpointError: a training is missing or unfinished.
    """
    found = _trainings(path)
    if (path / WEIGHTS).is_file() or not found:
        return []
    if lacking := lacking_seeds(path):
        there = [str(each) for seed, each in sorted(found.items()) if seed not in lacking]
        cure = f", or name those that are there: {' '.join(there)}" if there else ""
        raise CheckpointError(
            f"{path} lacks the finished training of seed {', '.join(map(str, lacking))}: go on with `whitebox train "
            f"... --seeds A:B --resume`{cure}."
        )
    return [found[seed] for seed in sorted(found)]


def expanded(paths: Sequence[Path]) -> list[Path]:
    """Paths of runs, families replaced by their trainings.

    Raises:
        CheckpointError: see `members`.
        ConfigError: trainings in one family's folder differ in more than their seed.
    """
    found: list[Path] = []
    for path in paths:
        inside = members(path) if path.is_dir() else []
        _require_one_configuration(inside)
        found += inside or [path]
    return found


def require_family(folder: Path, config: RunConfig) -> None:
    """See, before any work, that the finished trainings in a family's folder are of this configuration.

    Raises:
        ConfigError: one differs in more than its seed.
        CheckpointError: weights that whitebox has not written whole.
    """
    for weights in sorted(folder.glob(f"seed-*/{WEIGHTS}")):
        ours, theirs = _but_seed(to_dict(config), read_header(weights)["config"])
        if unlike := _first_unlike(ours, theirs):
            raise ConfigError(
                f"{weights.parent} was trained with {unlike}={theirs.get(unlike)}, not {ours.get(unlike)}: trainings "
                "of one family differ in their seed alone; choose another name with --name."
            )


def _require_one_configuration(paths: Sequence[Path]) -> None:
    headers = [read_header(path / WEIGHTS) for path in paths]
    for path, header in zip(paths[1:], headers[1:], strict=True):
        if header["classes"] != headers[0]["classes"]:
            raise ConfigError(f"{path} has other classes than {paths[0]}: trainings of one family have the same.")
        ours, theirs = _but_seed(header["config"], headers[0]["config"])
        if unlike := _first_unlike(ours, theirs):
            raise ConfigError(
                f"{path} has {unlike}={ours.get(unlike)}, {paths[0]} has {theirs.get(unlike)}: trainings of one family "
                "differ in their seed alone; move it elsewhere."
            )


def _but_seed(*configs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What must be the same in trainings of a family: all but the seed, and what does not change what is learned.

    A key that one does not have and another one of its decoder has is of a later version, and has its default.
    """
    flat = [flatten(config) for config in configs]
    keys: dict[object, set[frozenset[str]]] = {}
    for each in flat:
        keys.setdefault(each.get("decoder.name"), set()).add(frozenset(each))
    whole = [  # only where it is needed: it loads PyTorch
        flatten(to_dict(from_dict(config))) if len(keys[each.get("decoder.name")]) > 1 else each
        for config, each in zip(configs, flat, strict=True)
    ]
    beside = BESIDE_LEARNING | {"train.seed"}
    return [{key: value for key, value in each.items() if key not in beside} for each in whole]


def _first_unlike(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    return next((key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)), None)


def families(runs: Sequence[SavedRun | Run]) -> list[Family]:
    """Which runs are trainings of one configuration, in the order in which each family first comes.

    A run that has the seed of another one of its configuration is no part of a family.
    """
    groups: dict[str, list[int]] = {}
    configs = _but_seed(*(run.saved for run in runs))
    for index, (run, config) in enumerate(zip(runs, configs, strict=True)):
        altered = index if isinstance(run, SavedRun) and run.altered else None
        common = json.dumps([config, run.classes, altered], sort_keys=True, default=str)
        groups.setdefault(common, []).append(index)
    found: list[Family] = []
    for indices in groups.values():
        seeds = [runs[index].seed for index in indices]
        if len(indices) > 1 and len(set(seeds)) == len(seeds):
            together = sorted(indices, key=lambda index: runs[index].seed)
            found.append(_family([runs[index] for index in together], tuple(together)))
        else:
            found += [Family(runs[index].name, runs[index].folder, (index,)) for index in indices]
    return sorted(found, key=lambda family: min(family.indices))


def _family(runs: Sequence[SavedRun | Run], indices: tuple[int, ...]) -> Family:
    """Named as its folder; of runs that lie elsewhere, as what their names have in common."""
    above = {run.folder.resolve().parent for run in runs}
    if len(above) == 1 and all(run.folder.name == f"seed-{run.seed}" for run in runs):
        return Family(above.pop().name, runs[0].folder.parent, indices)
    bare = {re.sub(r"[-_.]?(seed|s)?[-_]?\d+$", "", run.name) for run in runs}
    name = bare.pop() if len(bare) == 1 else ""
    common = Path(os.path.commonpath([run.folder.resolve() for run in runs]))
    return Family(name or f"{runs[0].name}+{len(runs) - 1}", common, indices)
