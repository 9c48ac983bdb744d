"""What people expect of any command line, and of objects in a notebook."""

from __future__ import annotations

import inspect
import io
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
import pytest
import torch
import typer
from own_data import make_folder
from PIL import Image
from tiny_runs import tiny_run
from typer.models import OptionInfo

import whitebox
from analysis.record import Data, Record, read_records, write_record
from analysis.show.tables import Column, Estimate, Table
from whitebox import terminal
from whitebox.catalog import model_names
from whitebox.cli import app
from whitebox.cli.app import RENAMED
from whitebox.errors import DataError, ModelError
from whitebox.runs import find_run

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("habits") / "sa")


def commands(command: Any = None, before: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, below in getattr(command or typer.main.get_command(app), "commands", {}).items():
        if hasattr(below, "commands"):
            yield from commands(below, f"{before}{name} ")
        else:
            yield f"{before}{name}", below


COMMANDS = dict(commands())


# --- options


def test_version(call: Call) -> None:
    code, out, _ = call("--version")
    assert code == 0
    assert f"whitebox {whitebox.__version__}" in out and f"torch {torch.__version__.split('+')[0]}" in out
    assert "timm " in out and "CUDA" in out


@pytest.mark.parametrize("arguments", [[], ["eval"], ["data", "check"], ["rank-analysis"]])
def test_short_help(call: Call, arguments: list[str]) -> None:
    assert call(*arguments, "-h")[:2] == call(*arguments, "--help")[:2]


def test_every_command_can_be_quiet_and_verbose() -> None:
    for name, command in COMMANDS.items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert {"--quiet", "-q", "--verbose", "-v"} <= options, name
        without = {"predict", "convert", "push", "export", "cache rm", "data prepare", "data show"}
        assert ("--json" in options) == (name not in without), name


def test_an_option_is_of_one_kind_in_all_commands() -> None:
    """One type of value, which some commands take several of."""
    known: dict[str, tuple[str, Any]] = {}
    for name, (option, annotation) in declared():
        kind = re.sub(r"\blist\[(\w+)\]|\s*\|\s*None", r"\1", str(annotation).removeprefix("typing."))
        kind = re.sub(r"<class '(?:\w+\.)*(\w+)'>|pathlib\.(?:_local\.)?", r"\1", kind)
        first, before = known.setdefault(option, (name, kind))
        assert before == kind, f"{option} takes a {before} in {first} and a {kind} in {name}"


def declared() -> Iterator[tuple[str, tuple[str, Any]]]:
    """Each option of each command, and what it takes."""
    for each in app.registered_commands:
        assert each.callback is not None
        for name, parameter in inspect.signature(each.callback).parameters.items():
            annotation, *described = get_args(parameter.annotation)
            if isinstance(described[0], OptionInfo):
                said = [described[0].default, *(described[0].param_decls or ())]  # the first name comes as a default
                own = [each for each in said if isinstance(each, str) and each.startswith("--")]
                yield str(each.name), ((own or [f"--{name.replace('_', '-')}"])[0], annotation)


def test_an_option_means_one_thing_in_all_commands() -> None:
    """Those that had another's name are understood under their old one, too, for now."""
    for command, options in RENAMED.items():
        taken = {option for each in COMMANDS[command].params for option in [*each.opts, *each.secondary_opts]}
        assert set(options.values()) <= taken and not set(options) & taken


def test_the_old_name_of_an_option(call: Call, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    code, out, err = call("power", "--sd-seed", 1, "--sd-unit", 3, "--sd-residual", 1, "--units", 10, "--seeds=3")
    assert code == 0, err
    assert "--seeds is called --trainings now" in caplog.text and "3" in out


# --- what is said


def test_json_is_the_record(call: Call, run: Path, tmp_path: Path) -> None:
    code, out, _ = call("eval", run, "--limit", 2, "-o", tmp_path, "--json")
    assert code == 0
    (told,) = json.loads(out)
    (path,) = (tmp_path / "records").glob("*.json")
    assert told == json.loads(path.read_text())
    code, out, _ = call("render", path, "-o", tmp_path / "drawn", "--tables", "--json")
    assert code == 0 and json.loads(out) == [told]
    assert list((tmp_path / "drawn" / "tables").glob("*.md"))


def test_json_of_several_runs_has_each_record_once(call: Call, run: Path, tmp_path: Path) -> None:
    other = tiny_run(tmp_path / "linear", "segmenter-linear-tiny")
    code, out, _ = call("eval", run, other, "--limit", 2, "-o", tmp_path / "out", "--json")
    assert code == 0
    assert sorted(each["model"] for each in json.loads(out)) == ["linear", "sa"]
    code, out, _ = call("compare", run, other, "--limit", 2, "-o", tmp_path / "out", "--json")
    assert code == 0 and [each["kind"] for each in json.loads(out)] == ["compare"]


@pytest.mark.parametrize(
    ("arguments", "first"),
    [
        ("models depict-sa-t*", {"model": "depict-sa-tiny"}),
        ("datasets", {"dataset": "ade20k"}),
        ("encoders", {}),
        ("recipes", {}),
        ("reproduce --list", {}),
        ("power --sd-seed 1 --sd-unit 3 --sd-residual 1 --units 10", {}),
        ("data check shapes data.train_length=2 data.val_length=2", {"dataset": "shapes", "problems": []}),
    ],
)
def test_json_of_tables(call: Call, arguments: str, first: dict[str, Any]) -> None:
    code, out, _ = call(*arguments.split(), "--json")
    told = json.loads(out)
    assert code == 0 and len(told) >= 1
    assert first.items() <= told[0].items()


def test_json_of_a_check_that_found_something(call: Call, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "d")
    next((root / "masks" / "val").iterdir()).unlink()
    code, out, _ = call("data", "check", "folder", f"data.path={root}", "--json")
    (told,) = json.loads(out)
    assert code == 1 and len(told["problems"]) >= 1


def test_an_error_is_no_json(call: Call) -> None:
    code, out, err = call("eval", "nothing", "--json")
    assert code == 1 and out == "" and err.startswith("error: ")


def test_quiet(call: Call, run: Path, tmp_path: Path) -> None:
    assert call("eval", run, "--limit", 2, "-o", tmp_path, "-q") == (0, "", "")
    assert list((tmp_path / "tables").iterdir())
    code, out, err = call("eval", "nothing", "-q")
    assert code == 1 and out == "" and "There is no file or folder nothing" in err


def test_verbose_says_what_is_read(call: Call, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for read in (False, True):
        caplog.clear()
        assert call("eval", run, "--limit", 2, "-o", tmp_path, "-v")[0] == 0
        assert ("eval-shapes-val-" in caplog.text) == read
    caplog.clear()
    assert call("eval", run, "--limit", 2, "-o", tmp_path)[0] == 0
    assert caplog.text == ""


def test_models_like_a_pattern(call: Call) -> None:
    code, out, _ = call("models", "depict")
    shown = [line.split()[0] for line in out.splitlines()[1:]]
    assert code == 0 and shown == [name for name in model_names() if "depict" in name]
    code, out, _ = call("models", "*-tiny")
    assert " depict-ca-tiny " in out and "-small" not in out
    code, out, err = call("models", "depikt-sa-tiny")
    assert code == 2 and out == "" and "did you mean 'depict-sa-tiny'?" in err


# --- a screen


def record_of(classes: int, model: str = "wide") -> Record:
    value = {"value": 0.5, "low": 0.4, "high": 0.6}
    rows = [
        {"name": f"class {k}", "iou": {**value, "value": k / classes}, "acc": value, "label_share": 1 / classes}
        for k in range(classes)
    ]
    return Record(
        kind="eval",
        model=model,
        data=Data("ade20k", "val", 2000, "0" * 64),
        seeds={"bootstrap": 0},
        settings={"resamples": 1000, "unit": {"name": "image", "count": 2000}},
        measured={"miou": value, "macc": value, "aacc": value, "per_class": rows},
        n=2000,
        created="2026-01-01T00:00:00+00:00",
    )


def test_a_long_table_shows_its_ends(call: Call, tmp_path: Path) -> None:
    write_record(record_of(150), tmp_path / "records")
    code, out, _ = call("render", tmp_path / "records", "-o", tmp_path / "drawn", "--tables")
    assert code == 0
    assert len(out.splitlines()) <= terminal.SCREEN + 4
    assert "class 149" in out and "class 0 " in out and "mIoU" in out and "class 75 " not in out
    assert "more lines; -v shows all, the files above have all" in out
    code, out, _ = call("render", tmp_path / "records", "-o", tmp_path / "drawn", "--tables", "-v")
    assert "class 75 " in out and len(out.splitlines()) > 150 and "more lines" not in out
    assert len(next((tmp_path / "drawn" / "tables").glob("*.csv")).read_text().splitlines()) == 154


def test_many_groups_fit_on_a_screen(call: Call, tmp_path: Path) -> None:
    for number in range(20):
        write_record(record_of(30, f"model-{number}"), tmp_path / f"run-{number}" / "records")
    code, out, _ = call("render", tmp_path, "-o", tmp_path / "drawn", "--tables")
    assert code == 0 and len(out.splitlines()) <= terminal.SCREEN + 4
    assert int(re.search(r"and (\d+) more lines", out)[1]) > 19 * 30  # also of tables that were never laid out
    assert len(list((tmp_path / "drawn").glob("run-*/tables/*.md"))) == 20


def test_a_short_table_is_shown_as_it_is(call: Call, tmp_path: Path) -> None:
    write_record(record_of(7), tmp_path / "records")
    code, out, _ = call("render", tmp_path / "records", "-o", tmp_path / "drawn", "--tables")
    assert code == 0 and "class 3" in out and "..." not in out and "2000 images" in out


def test_ends() -> None:
    rows = tuple((f"row {index}", float((7 * index) % 10)) for index in range(10))
    table = Table((Column("Row"), Column("Value")), (*rows, ("mean", 4.5)), "", summary_rows=1)
    names = [row[0] for row in table.ends(6).rows]
    assert names == ["row 0", "row 1", "... 6 more", "row 8", "row 9", "mean"]
    assert table.ends(11) is table
    ranked = Table(table.columns, table.rows, "", summary_rows=1, ranked=1)
    assert [row[0] for row in ranked.ends(6).rows] == ["row 7", "row 4", "... 6 more", "row 3", "row 0", "mean"]
    unknown = Table(table.columns, (("nothing", float("nan")), *table.rows), "", summary_rows=1, ranked=1)
    assert "nothing" not in [row[0] for row in unknown.ends(6).rows]


# --- suggestions


def test_runs_that_are_there_are_suggested(
    call: Call, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("eval", "depict")[2] == "error: There is no file or folder depict.\n"
    for name in ("depict-sa-camvid", "camvid/cbsa", "other"):
        shutil.copytree(run, tmp_path / "results" / name)
    assert "did you mean results/depict-sa-camvid?" in call("eval", "depict-sa-canvid")[2]
    assert "did you mean results/camvid/cbsa?" in call("eval", "cbsb")[2]
    assert "; there are results/camvid/cbsa, results/depict-sa-camvid, results/other." in call("eval", "zzzzzz")[2]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")])
def test_a_lack_of_memory_is_one_line(error: Exception, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise error

    monkeypatch.setattr(sys.modules["whitebox.cli.app"], "app", full)
    code, _, err = call("models")
    assert code == 1 and err.count("\n") == 1
    assert err.startswith("error: Memory ran out (") and "inference.batch=1" in err


def test_an_unknown_dataset_suggests_a_folder(call: Call) -> None:
    assert "any other is --dataset folder data.path=DIR" in call("train", "depict-sa-tiny", "--dataset", "med01")[2]


PROGRAM = "#!{python}\nimport sys\nsys.argv[0] = 'whitebox'\nfrom whitebox.cli import main\nmain()\n"
SHELLS = {  # where completion is installed, what a shell asks, and how it is asked in that shell: {last} from 0
    "bash": (
        ".bash_completions/whitebox.sh",
        {"COMP_WORDS": "{line}", "COMP_CWORD": "{last}", "_WHITEBOX_COMPLETE": "complete_bash"},
        'source "$HOME/.bash_completions/whitebox.sh"; COMP_WORDS=({words}); COMP_CWORD={last}; '
        '_whitebox_completion whitebox; printf "%s\\n" "${{COMPREPLY[@]}}"',
    ),
    "zsh": (
        ".zfunc/_whitebox",
        {"_TYPER_COMPLETE_ARGS": "{line}", "_WHITEBOX_COMPLETE": "complete_zsh"},
        'compdef() {{ }}; _arguments() {{ print -r -- "$@" }}; source "$HOME/.zfunc/_whitebox"; '
        "words=({words}); CURRENT={last}+1; _whitebox_completion",
    ),
    "fish": (
        ".config/fish/completions/whitebox.fish",
        {
            "_TYPER_COMPLETE_ARGS": "{line}",
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
            "_WHITEBOX_COMPLETE": "complete_fish",
        },
        "complete --do-complete '{line}'",
    ),
}


@pytest.mark.parametrize("shell", SHELLS)
def test_completion(shell: str, run: Path, tmp_path: Path) -> None:
    """As it is installed, in the shell itself; where that is not here, what it would ask."""
    installed, questions, script = SHELLS[shell]
    shutil.copytree(run, tmp_path / "results" / "mine")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "whitebox").write_text(PROGRAM.format(python=sys.executable))
    (tmp_path / "bin" / "whitebox").chmod(0o755)
    at_home = {
        **{key: value for key, value in os.environ.items() if not key.startswith("XDG_")},
        "HOME": str(tmp_path),
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }

    def said(command: list[str], **asked: str) -> str:
        done = subprocess.run(command, env={**at_home, **asked}, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, done.stderr
        return done.stdout

    said(["whitebox", "--install-completion", shell], _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert (tmp_path / installed).is_file()

    def completed(line: str) -> list[str]:
        """Words that are offered, without what is said of them."""
        words = [*line.split(), *([""] if line.endswith(" ") else [])]
        quoted, last = " ".join(shlex.quote(word) for word in words), str(len(words) - 1)
        if shutil.which(shell):
            found = said([shell, "-c", script.format(line=line, words=quoted, last=last)])
        else:
            found = said(["whitebox"], **{key: each.format(line=line, last=last) for key, each in questions.items()})
        offered = re.findall(r'(?:\(\(|\n)"([^"]+)"', found) if shell == "zsh" else found.splitlines()
        return [text.split("\t")[0] for text in offered if text.strip()]

    assert completed("whitebox rank") == ["rank-analysis"]
    assert completed("whitebox train depict-sa-t") == ["depict-sa-tiny"]
    assert completed("whitebox eval ") == ["results/mine"]


# --- from Python


def test_dir_names_what_there_is() -> None:
    assert set(whitebox.__all__) <= set(dir(whitebox))
    assert all(getattr(whitebox, name) is not None for name in whitebox.__all__)


@pytest.fixture
def photo() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)


def test_photos_of_numpy_and_pillow_are_images(run: Path, photo: np.ndarray[Any, Any]) -> None:
    model = whitebox.load_model(run)
    images = torch.from_numpy(photo).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = model(images)
        assert torch.equal(model(photo), expected)
        assert torch.equal(model(Image.fromarray(photo)), expected)
        assert torch.equal(model(np.stack([photo, photo]))[1:], expected)
        assert torch.equal(model.masks(photo), model.masks(images))
        assert torch.equal(model(np.ascontiguousarray(photo.transpose(2, 0, 1))[None]), expected)
    with pytest.raises(ModelError, match="not str"):
        model("photo.png")
    with pytest.raises(ModelError, match=r"these are torch\.int64"):
        model(photo.astype(np.int64))


def test_a_segmentation_shows_itself(run: Path, photo: np.ndarray[Any, Any], call: Call, tmp_path: Path) -> None:
    Image.fromarray(photo).save(tmp_path / "photo.png")
    found = whitebox.segment(whitebox.load_model(run), photo)
    assert call("predict", run, tmp_path / "photo.png", "-o", tmp_path / "out")[0] == 0
    labels = np.asarray(Image.open(tmp_path / "out" / "photo_labels.png"))
    assert np.array_equal(found.labels, labels)
    assert np.array_equal(whitebox.segment(run, tmp_path / "photo.png").labels, labels)
    assert sum(found.shares.values()) == pytest.approx(1)
    assert repr(found).startswith("<Segmentation, 48 x 40 px: ") and " %" not in repr(found) and "%" in repr(found)
    shown = Image.open(io.BytesIO(found._repr_png_()))
    assert shown.size[0] >= 48 and np.array_equal(np.asarray(shown), found.overlay())
    found.save(tmp_path / "labels")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "labels")), labels)
    fresh = whitebox.create_model("segmenter-linear-tiny", 3, encoder={"width": 24, "depth": 1, "heads": 2})
    assert whitebox.segment(fresh, Image.fromarray(photo)).labels.shape == (40, 48)
    with pytest.raises(DataError, match="RGB uint8"):
        whitebox.segment(fresh, photo[..., 0])


def test_reprs(run: Path, tmp_path: Path, call: Call) -> None:
    assert call("eval", run, "--limit", 2, "-o", tmp_path)[0] == 0
    (record,) = read_records(tmp_path / "records")
    assert repr(record).startswith(f"<Record {record.identity}: eval of sa on shapes val, n = 2, ")
    found = find_run(run)
    assert repr(found).startswith("SavedRun(name='sa', ") and len(repr(found)) < 300
    assert repr(found.open()).startswith("Run(name='sa', ") and len(repr(found.open())) < 300
    assert "7 classes: background, disc," in repr(found.open().model)
    table = Table((Column("Class"), Column("IoU (%)")), (("a|b", Estimate(1.25, 1.0, 2.0)), ("cd", 3.0)), "Two.")
    assert repr(table).splitlines() == ["Class  IoU (%)", "a|b    1.2 [1.0, 2.0]", "cd     3.0", "Two."]
    assert table._repr_markdown_() == table.to_markdown()
    assert table.to_rows()[0] == {"Class": "a|b", "IoU (%)": {"value": 1.25, "low": 1.0, "high": 2.0}}


def test_logging_is_as_before_after_a_command(call: Call) -> None:
    log = logging.getLogger("whitebox")
    before = log.level, list(log.handlers)
    assert call("models", "-v")[0] == 0 and call("models", "-q")[0] == 0
    assert (log.level, log.handlers) == before
