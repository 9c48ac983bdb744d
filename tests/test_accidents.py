"""What a lab meets in a week, while real commands run: killed, stopped, their folders, disks and loaders taken away.

Each command runs in a process of its own and meets its accident when it has done some of its work. It then says one
line or nothing, never a traceback; and the same command, run again, gives what one gives that nothing happened to.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import json
import os
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blank_pictures import save_blank
from child_runs import TINY, alone, die
from matplotlib.figure import Figure
from PIL import Image
from tiny_runs import tiny_run

from analysis import record
from whitebox.cli import main, progress
from whitebox.data import loading

Accident = Callable[[], None]


@dataclass
class Command:
    """A command of whitebox that can be run again and again in its folder.

    Attributes:
        folder: where it runs.
        arguments: of the command line.
        output: the folder it writes, below its own.
        results: what counts of that folder.
    """

    folder: Path
    arguments: list[str]
    output: str
    results: Callable[[Path], Any]

    def run(self, accident: Accident | None = None, before: Accident | None = None) -> tuple[int, str]:
        """Exit code and output; ``accident`` happens at the third piece of work, ``before`` at the start."""
        return alone(_run, self.folder, self.arguments, accident, before, folder=self.folder.parent / "output")


def _run(folder: Path, arguments: Sequence[str], accident: Accident | None, before: Accident | None) -> None:
    os.setsid()  # of its own, so that signals reach nobody else
    os.chdir(folder)
    pieces = 0

    def piece() -> None:
        nonlocal pieces
        pieces += 1
        if pieces == 3 and accident is not None:
            accident()

    bar = progress.image_progress

    @contextlib.contextmanager
    def image_progress(*given: Any) -> Any:
        with bar(*given) as advance:
            yield lambda *at: (advance(*at), piece())

    def and_then(method: Any) -> Any:
        return lambda *given: (method(*given), piece())

    progress.image_progress = image_progress
    progress.TrainingProgress.stepped = and_then(progress.TrainingProgress.stepped)  # type: ignore[method-assign]
    progress.TransferProgress.advance = and_then(progress.TransferProgress.advance)  # type: ignore[method-assign]
    Figure.savefig = save_blank  # type: ignore[assignment,method-assign]
    if before is not None:
        before()
    sys.argv = ["whitebox", *arguments]
    main()


def records(folder: Path) -> Any:
    """What records say was measured, by their names, and the rows of sweeps by their keys."""
    found = {path.name: json.loads(path.read_text())["measured"] for path in folder.rglob("records/*.json")}
    rows = [json.loads(line) for path in folder.rglob("sweeps/*.jsonl") for line in path.read_text().splitlines()[1:]]
    return found, sorted((json.dumps(row["key"], sort_keys=True), row["images"]) for row in rows)


def trained(folder: Path) -> Any:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return (folder / "model.safetensors").read_bytes(), [(line["step"], line.get("loss")) for line in lines]


def tree(folder: Path) -> Any:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make(name: str, folder: Path) -> Command:
    """One of the commands, with what it needs in ``folder``."""
    folder.mkdir(parents=True)
    if name == "train":
        settings = [f"{key}={value}" for key, value in {**TINY, "train.workers": 1}.items()]
        return Command(
            folder, ["train", "depict-sa-tiny", "--resume", "--name", "run", *settings], "results/run", trained
        )
    if name == "prepare":
        images = np.random.default_rng(0).integers(0, 255, (4, 96, 96, 3), dtype=np.uint8)
        for split in ("training", "validation"):
            for index, image in enumerate(images):
                for part, array, suffix in (("images", image, "jpg"), ("annotations", image[..., 0] // 2, "png")):
                    path = (
                        folder / "source" / "ADEChallengeData2016" / part / split / f"ADE_{split}_{index:08d}.{suffix}"
                    )
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(array).save(path)
        arguments = ["data", "prepare", "ade20k", "--from", "source", "--data-root", "data", "--allow-partial"]
        return Command(folder, arguments, "data", tree)
    runs = ["depict-sa-tiny"] if name != "reproduce" else ["depict-sa-tiny", "depict-ca-tiny", "segmenter-mask-tiny"]
    for run in runs:
        tiny_run(folder / "results" / f"{run}-shapes", run, data__val_length=6)
    run = "results/depict-sa-tiny-shapes"
    if name == "eval":
        return Command(folder, ["eval", run], run, records)
    if name == "robustness":
        return Command(folder, ["robustness", run, "--noise", "0.1,0.3", "--draws", "2", "--no-sigma-50"], run, records)
    arguments = ["reproduce", "depict-fig7", "--dataset", "shapes", "--draws", "2", "--noise", "0.1,1", "--limit", "3"]
    return Command(folder, arguments, "results/depict", records)


COMMANDS = ("train", "eval", "robustness", "reproduce", "prepare")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The results of a command that nothing happened to."""
    known: dict[str, Any] = {}

    def result(name: str) -> Any:
        if name not in known:
            command = make(name, tmp_path_factory.mktemp(name) / "here")
            code, output = command.run()
            assert code == 0, output
            known[name] = command.results(command.folder / command.output)
        return known[name]

    return result


def in_one_line(output: str) -> str:
    """The error of a command that ended with one."""
    assert "Traceback" not in output
    (line,) = [line for line in output.splitlines() if line.startswith("error:")]
    return line


def goes_on(command: Command, expected: Any) -> None:
    """Run again, it gives what one gives that nothing happened to, and nothing is left of the accident."""
    code, output = command.run()
    assert code == 0, output
    assert command.results(command.folder / command.output) == expected
    left = [path.name for path in command.folder.rglob(".*") if path.name != ".whitebox.json"]
    assert left == []


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt_twice() -> None:
    os.killpg(0, signal.SIGINT)
    time.sleep(0.6)
    os.killpg(0, signal.SIGINT)


@pytest.mark.parametrize(
    ("accident", "name", "codes"),
    [
        *((die, name, {-signal.SIGKILL}) for name in COMMANDS),
        *((interrupt_twice, name, {130}) for name in COMMANDS),
        *((terminate, name, {-signal.SIGTERM}) for name in ("eval", "prepare")),  # of training: tests/engine
    ],
)
def test_stopped(
    accident: Accident, name: str, codes: set[int], undisturbed: Callable[[str], Any], tmp_path: Path
) -> None:
    command = make(name, tmp_path / "here")
    code, output = command.run(accident)
    assert code in codes, output
    assert "Traceback" not in output
    goes_on(command, undisturbed(name))


def fill_the_disk() -> None:
    """No file may grow, which is what a full disk does to those who write."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))  # more than its output, less than its results


def kill_workers() -> None:
    """Each loading process dies at its third sample."""
    load, main_process, loaded = loading.ErrorsAsValues.__getitem__, os.getpid(), 0

    def get(self: Any, key: Any) -> Any:
        nonlocal loaded
        loaded += 1
        if os.getpid() != main_process and loaded == 3:
            die()
        return load(self, key)

    loading.ErrorsAsValues.__getitem__ = get  # type: ignore[method-assign]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_disk_is_full(name: str, undisturbed: Callable[[str], Any], tmp_path: Path) -> None:
    command = make(name, tmp_path / "here")
    code, output = command.run(fill_the_disk)
    assert code == 1, output
    assert re.search(r"(Cannot write .*|cannot be written \()File too large", in_one_line(output)), output
    goes_on(command, undisturbed(name))


@pytest.mark.parametrize("name", ["train", "eval", "robustness"])
def test_the_system_kills_a_loading_process(name: str, undisturbed: Callable[[str], Any], tmp_path: Path) -> None:
    command = make(name, tmp_path / "here")
    code, output = command.run(before=kill_workers)
    assert code == 1, output
    assert "A data loading process was killed" in in_one_line(output)
    goes_on(command, undisturbed(name))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_folder_it_writes_is_removed(name: str, tmp_path: Path) -> None:
    """It ends in one line, or with what it measured in a new folder."""
    command = make(name, tmp_path / "here")
    code, output = command.run(partial(shutil.rmtree, command.output, ignore_errors=True))
    assert "Traceback" not in output
    if code == 0:
        assert command.results(command.folder / command.output)[0]
    else:
        assert code == 1 and command.output in in_one_line(output), output


@pytest.mark.parametrize("name", COMMANDS)
def test_the_working_folder_is_removed(name: str, undisturbed: Callable[[str], Any], tmp_path: Path) -> None:
    """What is elsewhere is written; nothing that was measured is lost."""
    command = make(name, tmp_path / "here")
    (tmp_path / "gone").mkdir()
    command.arguments = [
        str(command.folder / each) if each.startswith(("results", "source")) else each for each in command.arguments
    ]
    if name == "prepare":
        command.arguments[command.arguments.index("--data-root") + 1] = str(command.folder / "data")
    if name in ("train", "reproduce"):
        command.arguments += ["-o", str(command.folder / command.output).removesuffix("/run")]
    if name == "reproduce":
        command.arguments += ["--runs", str(command.folder / "results")]
    here, command.folder = command.folder, tmp_path / "gone"
    code, output = command.run(partial(os.rmdir, tmp_path / "gone"))
    assert code == 0, output
    assert "Traceback" not in output
    assert command.results(here / command.output) == undisturbed(name)


def obey_permissions() -> None:
    """As those who are not root have to: without the capabilities to read and write whatever there is (capset(2))."""

    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    class Sets(ctypes.Structure):
        _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))

    libc, header, sets = ctypes.CDLL(None, use_errno=True), Header(0x20080522, 0), (Sets * 2)()
    assert libc.capget(ctypes.byref(header), sets) == 0
    sets[0].effective &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    sets[0].permitted &= ~0b110
    assert libc.capset(ctypes.byref(header), sets) == 0


def worked() -> None:
    raise AssertionError("some work was done")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_must_not_be_written(name: str, tmp_path: Path) -> None:
    """Is said before any work."""
    command = make(name, tmp_path / "here")
    for path in [command.folder, *(path for path in command.folder.rglob("*") if path.is_dir())]:
        path.chmod(0o555)
    before = tree(command.folder)
    code, output = command.run(worked, obey_permissions)
    assert code == 1, output
    assert re.search("Permission denied", in_one_line(output)), output
    assert tree(command.folder) == before


def set_back() -> None:
    class Past(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return datetime.datetime.now(tz) - datetime.timedelta(days=400)

    clock = time.time
    time.time = lambda: clock() - 400 * 86400  # type: ignore[assignment]
    record.datetime = Past  # type: ignore[misc]


@pytest.mark.parametrize("name", ["eval", "train"])
def test_a_clock_that_is_set_back(name: str, undisturbed: Callable[[str], Any], tmp_path: Path) -> None:
    command = make(name, tmp_path / name)
    assert command.run()[0] == 0
    code, output = command.run(before=set_back)
    assert code == 0, output
    assert command.results(command.folder / command.output) == undisturbed(name)
