"""Many commands on many machines: a plan in YAML, its tasks, and what has become of each.

A task is a list of whitebox commands that can be repeated: each goes on where it stopped. `submitit` starts tasks, here
or on a cluster, and what has become of one stands in a file of its own, written by whoever knows: there is no other
state.

    SWEEP/NAME.json    what was asked for, by which job, and how it ended
    SWEEP/NAME.log     all that its commands have printed
    SWEEP/NAME.lock    held while it runs (`whitebox.lock`)
    SWEEP/jobs/        submitit's own files

A plan (docs/cluster.md)::

    folder: results/small-study        # of the runs; the sweep's own files are in its folder "sweep"
    data_root: data
    train:                             # every combination
      models: [depict-sa-small, segmenter-linear-small]
      datasets: [camvid]
      encoders: [dinov2-small]
      seeds: 0:3
      recipe: frozen
      overrides: [data.views=4]
      variants: {wide: [decoder.layers=6], plain: []}
    then: [eval --split test, "robustness --noise 0.1:0.5"]      # of each run, after its training
    reproduce: foundation --dataset camvid                         # instead of `train`: the missing runs of a study
    job: {hours: 4, cpus: 8, gpus: 1, memory: 32, partition: gpu, options: {account: lab}}
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from whitebox.catalog import nearest
from whitebox.errors import ConfigError, InUseError, OutputError
from whitebox.files import write_text
from whitebox.lock import Lock

if TYPE_CHECKING:
    from whitebox.config import RunConfig

    ConfigOf: TypeAlias = Callable[[Sequence[str]], RunConfig]  # of a command's words
    Planned: TypeAlias = tuple["Task", RunConfig | None]

WAITING, SUBMITTED, RUNNING, DONE, FAILED, LOST = "waiting", "submitted", "running", "done", "failed", "lost"
_KEYS = {
    "": ("folder", "data_root", "train", "then", "reproduce", "job"),
    "train": ("models", "datasets", "encoders", "seeds", "recipe", "frozen", "overrides", "variants"),
    "job": ("hours", "cpus", "gpus", "memory", "partition", "options"),
}


@dataclass(frozen=True)
class Job:
    """What a task is given.

    Attributes:
        hours: then it is stopped, and queued again. memory: GB. options: of sbatch, as ``{account: lab}``.
    """

    hours: float = 24.0
    cpus: int = 4
    gpus: int = 0
    memory: float = 16.0
    partition: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """Commands that are carried out one after another.

    Attributes:
        commands: words after ``whitebox``.
        first: the task that makes what it shares with others, the tokens of an encoder; None: it waits for nobody.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    first: str | None = None


@dataclass(frozen=True)
class Plan:
    """Tasks, where they are kept, and what each is given."""

    folder: Path
    tasks: tuple[Task, ...]
    job: Job
    trained: Mapping[str, RunConfig] = field(default_factory=dict)  # by the task's name, where the plan was checked

    @property
    def place(self) -> Path:
        """Of the files of its tasks."""
        return self.folder / "sweep"


def read_plan(path: Path, config_of: ConfigOf | None = None) -> Plan:
    """A plan, checked before anything is done.

    Args:
        config_of: what a command trains, or ConfigError; without it nobody knows which tasks share tokens or whether
            models and overrides can be, and nothing heavy is loaded: enough to ask what has become of the tasks.

    Raises:
        ConfigError: it cannot be read, has an unknown key, or asks for the same run twice.
    """
    import yaml

    try:
        written = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read the plan {path}: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())[:200]}") from None
    values = _mapping(written, "", path)
    folder = Path(str(values.get("folder") or Path("results") / path.stem))
    if ("train" in values) == ("reproduce" in values):
        raise ConfigError(f"{path} needs `train` or `reproduce`, one of the two.")
    then = [shlex.split(line) for line in _words(values.get("then"), "then", path)]
    root = ["--data-root", str(values["data_root"])] if values.get("data_root") else []
    if "train" in values:
        planned = list(_trainings(_mapping(values["train"], "train", path), folder, then, root, path, config_of))
    else:
        if then:
            raise ConfigError(f"{path}: a study measures what it needs; leave `then` out.")
        planned = list(_missing_runs(shlex.split(str(values["reproduce"])), folder, root, config_of))
    names = [task.name for task, _ in planned]
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        raise ConfigError(f"{path} asks for {twice} twice: give variants other names.")
    job = _job(_mapping(values.get("job") or {}, "job", path), path)
    trained = {task.name: config for task, config in planned if config is not None}
    return Plan(folder, tuple(_in_order([task for task, _ in planned], trained)), job, trained)


def _in_order(tasks: Sequence[Task], trained: Mapping[str, RunConfig]) -> Iterator[Task]:
    """Each behind the first of those that share an encoder's tokens."""
    if not trained:
        yield from tasks
        return
    from whitebox.engine.views import shared_store

    makers: dict[str, str] = {}
    for task in tasks:
        shared = shared_store(trained[task.name])
        first = task.name if shared is None else makers.setdefault(shared, task.name)
        yield task if first == task.name else replace(task, first=first)


def _mapping(value: Any, where: str, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {where or 'a plan'} has keys and values.")
    for key in value:
        if key not in _KEYS[where]:
            place = f" in `{where}`" if where else ""
            raise ConfigError(f"{path}: unknown key {key!r}{place}{nearest(str(key), list(_KEYS[where]))}")
    return value


def _words(value: Any, key: str, path: Path) -> list[str]:
    """A list of texts; a single one is a list of one."""
    listed = [value] if isinstance(value, str | int) else value or []
    if not isinstance(listed, list) or not all(isinstance(each, str | int) for each in listed):
        raise ConfigError(f"{path}: {key} takes a list, [a, b].")
    return [str(each) for each in listed]


def _job(values: Mapping[str, Any], path: Path) -> Job:
    for key, value in values.items():
        number = key in ("hours", "cpus", "gpus", "memory")
        least = 0 if key == "gpus" else 1e-6
        if number and (isinstance(value, bool) or not isinstance(value, int | float) or value < least):
            raise ConfigError(f"{path}: job.{key}={value!r} is impossible: it takes a number above 0.")
        if key == "options" and not isinstance(value, dict):
            raise ConfigError(f"{path}: job.options takes options of sbatch, {{account: lab}}.")
    return Job(**values)


def _trainings(
    train: Mapping[str, Any],
    folder: Path,
    then: Sequence[Sequence[str]],
    root: Sequence[str],
    path: Path,
    config_of: ConfigOf | None,
) -> Iterator[Planned]:
    """A task a run: its training, then what is measured of it."""
    from whitebox.runs import seeds_of

    models = _words(train.get("models"), "train.models", path)
    if not models:
        raise ConfigError(f"{path}: train.models names no model.")
    seeds = seeds_of(str(train["seeds"])) if "seeds" in train else range(1)
    variants = train.get("variants") or {"": []}
    if not isinstance(variants, dict):
        raise ConfigError(f"{path}: train.variants takes names with overrides, {{wide: [decoder.layers=6]}}.")
    recipe, frozen = train.get("recipe"), train.get("frozen")
    if not isinstance(recipe, str | None):
        raise ConfigError(f"{path}: train.recipe takes a name.")
    if not isinstance(frozen, bool | None):
        raise ConfigError(f"{path}: train.frozen takes true or false.")
    datasets = _words(train.get("datasets"), "train.datasets", path) or ["shapes"]
    encoders: list[str | None] = [*_words(train.get("encoders"), "train.encoders", path)]
    listed = (models, datasets, encoders or [None])
    for model, dataset, encoder, variant in itertools.product(*listed, variants):
        own = _words(variants[variant], f"train.variants.{variant}", path)
        overrides = [*_words(train.get("overrides"), "train.overrides", path), *own]
        options = [
            *("--dataset", dataset),
            *(("--encoder", encoder) if encoder else ()),
            *(("--recipe", recipe) if recipe else ()),
            *(("--frozen",) if frozen else ()),
            *root,
        ]
        config = None if config_of is None else config_of(("train", model, *overrides, *options))
        for seed in seeds:
            name = "-".join(str(part) for part in (model, encoder, dataset, variant, seed) if part not in (None, ""))
            place = ("-o", str(folder), "--name", name, "--resume")
            training = ("train", model, *overrides, f"train.seed={seed}", *options, *place)
            measured = [(line[0], str(folder / name), *line[1:], *root) for line in then]
            trained = None if config is None else replace(config, train=replace(config.train, seed=seed))
            yield Task(name, (training, *measured)), trained


def _missing_runs(
    words: Sequence[str], folder: Path, root: Sequence[str], config_of: ConfigOf | None
) -> Iterator[Planned]:
    """A task a decoder and seed of the study on a frozen encoder."""
    from experiments.foundation import DECODERS, SEEDS
    from experiments.foundation import NAME as FOUNDATION
    from whitebox.runs import seeds_of

    name, *options = words or [""]
    if name != FOUNDATION:
        raise ConfigError(f"reproduce: {name!r} has no tasks of its own; what has: {FOUNDATION}.")
    seeds = [seed for given in _taken(options, "--seeds")[-1:] for seed in seeds_of(given)] or SEEDS
    decoders = _taken(options, "--decoder") or DECODERS
    common = ("reproduce", name, *options, *root, "-o", str(folder))
    commands = {decoder: (*common, "--decoder", decoder) for decoder in decoders}
    configs = {decoder: config_of and config_of(command) for decoder, command in commands.items()}
    for seed, (decoder, command) in itertools.product(seeds, commands.items()):
        yield Task(f"{decoder}-{seed}", ((*command, "--seeds", f"{seed}:{seed + 1}"),)), configs[decoder]


def _taken(options: list[str], name: str) -> list[str]:
    """The values of an option, which is taken out of the words."""
    found, left = [], []
    words = iter(options)
    for word in words:
        key, equals, value = word.partition("=")
        if key == name:
            found.append(value if equals else next(words, ""))
        else:
            left.append(word)
    options[:] = left
    return found


@dataclass(frozen=True)
class Found:
    """What has become of a task.

    Attributes:
        state: waiting, submitted, running, done, failed, or lost: it was begun, and nobody is at it.
        seconds: that its commands took, in all tries.
        last: the last line it printed, where it failed.
    """

    state: str
    job: str | None = None
    on: str | None = None
    seconds: float = 0.0
    last: str = ""


def _written(place: Path, name: str) -> dict[str, Any]:
    """A task's file; empty: there is none, or it is being written."""
    try:
        found = json.loads((place / f"{name}.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def found_states(plan: Plan) -> dict[str, Found]:
    """What has become of all tasks; what was done by other commands than the plan's has not begun."""
    names = {entry.name for entry in os.scandir(plan.place)} if plan.place.is_dir() else set[str]()
    there = {task.name: _written(plan.place, task.name) for task in plan.tasks if f"{task.name}.json" in names}
    slurm = _asked_of_slurm(plan, there)
    return {
        task.name: _state(plan, task, there.get(task.name), f"{task.name}.lock" in names, slurm) for task in plan.tasks
    }


def _state(plan: Plan, task: Task, written: Mapping[str, Any] | None, locked: bool, slurm: Mapping[str, str]) -> Found:
    if not written:
        return Found(WAITING)
    busy = locked and task_lock(plan.place, task.name).held()
    if not busy and written.get("commands") != [list(command) for command in task.commands]:
        return Found(WAITING)
    state, job, on = written.get("state", WAITING), written.get("job"), written.get("on")
    if state in (SUBMITTED, RUNNING):
        if job is not None and job in slurm:
            state = slurm[job]
        elif not busy:
            young = state == SUBMITTED and time.time() - written.get("submitted", 0) < _STARTING
            state = state if young else LOST
    if busy:
        state = RUNNING
    return Found(state, job, on, float(written.get("seconds", 0.0)), str(written.get("last", "")))


_STARTING = 60.0  # s that a local job may take until its Python runs
_SLURM = {"PENDING": SUBMITTED, "REQUEUED": SUBMITTED, "READY": SUBMITTED, "SUSPENDED": SUBMITTED}
_SLURM |= {"RUNNING": RUNNING, "COMPLETING": RUNNING, "CONFIGURING": RUNNING}


def _asked_of_slurm(plan: Plan, there: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The state of jobs that the queue knows as unfinished, by their number: one question for all."""
    jobs = [
        str(each["job"])
        for each in there.values()
        if each.get("on") == "slurm" and each.get("state") in (SUBMITTED, RUNNING)
    ]
    if not jobs:
        return {}
    require_submitit()
    import submitit

    asked: dict[str, Any] = {job: submitit.SlurmJob(folder=plan.place / "jobs", job_id=job) for job in jobs}
    states: dict[str, str] = {job: each.state.split()[0].rstrip("+") for job, each in asked.items()}
    return {job: _SLURM.get(state, SUBMITTED if state == "UNKNOWN" else LOST) for job, state in states.items()}


def require_submitit() -> None:
    """See that the extra is there.

    Raises:
        ConfigError: it is not; how to install it.
    """
    from whitebox.extras import require_extra

    require_extra("cluster", "whitebox sweep")


def task_lock(place: Path, name: str) -> Lock:
    """Held by whoever carries out a task."""
    return Lock(place / f"{name}.lock", f"the task {name}", "look at `whitebox sweep PLAN --status`")


class Work:
    """Carries out a task, as submitit calls it; what comes of it is in the task's file, and in no pickle.

    Attributes:
        place: of the task's files. folder: where the commands run.
    """

    def __init__(self, place: Path, task: Task, on: str) -> None:
        self.place, self.task, self.on, self.folder = place.absolute(), task, on, Path.cwd()
        self.child: subprocess.Popen[bytes] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "child": None}

    def note(self, **values: Any) -> None:
        """Write what is known into the task's file; what was there stays beside it."""
        before = _written(self.place, self.task.name)
        commands = [list(command) for command in self.task.commands]
        known = before if before.get("commands") == commands else {}
        path = self.place / f"{self.task.name}.json"
        write_text(path, json.dumps({**known, "commands": commands, "on": self.on, **values}, indent=1))

    def __call__(self) -> int:
        """Carry out the commands; the exit code of the first that fails, else 0."""
        try:
            with task_lock(self.place, self.task.name):
                return self._carried_out()
        except InUseError:
            return 0  # another job is at it

    def _carried_out(self) -> int:
        begun, passed = time.time(), float(_written(self.place, self.task.name).get("seconds", 0.0))
        self.note(state=RUNNING, host=socket.gethostname(), process=os.getpid(), begun=begun, last="")
        log, code = self.place / f"{self.task.name}.log", 0
        for command in self.task.commands:
            with log.open("ab") as written:
                written.write(f"$ whitebox {shlex.join(command)}\n".encode())
                written.flush()
                words = [sys.executable, "-m", "whitebox.with_parent", str(os.getpid()), *command]
                self.child = subprocess.Popen(words, cwd=self.folder, stdout=written, stderr=subprocess.STDOUT)
                code = self.child.wait()
            self.note(seconds=passed + time.time() - begun)
            if code:
                break
        self.child = None
        self.note(state=FAILED if code else DONE, code=code, last=last_line(log) if code else "", ended=time.time())
        return code

    def checkpoint(self) -> Any:
        """Called by submitit before the job's time is over, or where it is preempted: stop, and be queued again."""
        import submitit

        if self.child is not None:
            self.child.send_signal(signal.SIGTERM)  # a training saves its state
            self.child.wait()
        self.note(state=SUBMITTED)
        return submitit.helpers.DelayedSubmission(self)


def last_line(log: Path) -> str:
    """The last line that says something, of the last 4,000 bytes; frames around it say nothing."""
    try:
        with log.open("rb") as written:
            written.seek(max(0, log.stat().st_size - 4000))
            lines = written.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    plain = (line.strip(" \t│╭╮╰╯─┃┏┓┗┛━") for line in reversed(lines))
    return next((line for line in plain if line), "")


def executor_for(plan: Plan, on: str, at_once: int) -> Any:
    """Of submitit.

    Raises:
        ConfigError: submitit is not there, or there is no SLURM here.
        OutputError: its folder cannot be made.
    """
    require_submitit()
    import submitit

    jobs = plan.place / "jobs"
    try:
        jobs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Cannot write to {jobs}: {error.strerror}.") from None
    try:
        executor = submitit.AutoExecutor(
            folder=str(jobs), cluster=on, **({"slurm_max_num_timeout": 1000} if on == "slurm" else {})
        )
    except RuntimeError as error:
        raise ConfigError(f"--on {on} is impossible here: {' '.join(str(error).split())}") from None
    job = plan.job
    more: dict[str, Any] = {}
    if on == "slurm":
        more = {"slurm_array_parallelism": at_once, "mem_gb": job.memory}
        if job.partition:
            more["slurm_partition"] = job.partition
        if job.options:
            more["slurm_additional_parameters"] = dict(job.options)
    executor.update_parameters(
        name=plan.folder.name,
        timeout_min=max(1, round(60 * job.hours)),
        cpus_per_task=int(job.cpus),
        gpus_per_node=int(job.gpus),
        **more,
    )
    return executor
