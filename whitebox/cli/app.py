"""The Typer app, its entry point, and what its commands share."""

from __future__ import annotations

import functools
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from whitebox.errors import OutputError, WhiteboxError
from whitebox.extras import opencv_explained
from whitebox.text import require_text, shown


class App(typer.Typer):
    """A Typer app whose commands share what comes before their work.

    In paths ``~`` is the home directory, which a shell does not make of ``-o=~/x``; and results must be writable.
    """

    def command(self, *names: Any, **settings: Any) -> Callable[[Any], Any]:
        register = super().command(*names, **settings)

        def decorate(function: Any) -> Any:
            @functools.wraps(function)
            def expanded(**given: Any) -> Any:
                given = {key: _expanded(value) for key, value in given.items()}
                _look_before_work(given)
                return function(**given)

            register(expanded)
            return function

        return decorate


def _expanded(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_expanded(each) for each in value]
    return value.expanduser() if isinstance(value, Path) else value


def _look_before_work(given: Mapping[str, Any]) -> None:
    """See that paths can be such, and that a command can write: at ``--output``, else in the folders of its runs."""
    from whitebox.data.preflight import preflight, require_path

    for value in given.values():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Path) or (
                isinstance(item, str) and isinstance(value, list) and "=" not in item and "://" not in item
            ):
                require_path(Path(item))
    if "output" in given and given["output"] is None:
        named = [given.get("run"), *(given["runs"] if isinstance(given.get("runs"), list) else ())]
        for run in (Path(each) for each in named if each and os.path.exists(each)):
            preflight(run if run.is_dir() else run.parent)
    elif given.get("output") is not None:
        preflight(given["output"])


app = App(
    name="whitebox",
    help="Train, evaluate and dissect white-box decoders for semantic segmentation.",
    epilog="Any command with --debug shows the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, e.g. optim.lr=0.01 train.epochs=20.")
]
DataRoot = Annotated[
    Path | None, typer.Option(help="Folder of the datasets. Default: $WHITEBOX_DATA, else ./data.", show_default=False)
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps. Default: the best there is.")]
Encoder = Annotated[
    str | None, typer.Option(help="A name of `whitebox encoders`. Default: the ViT of the model's size.")
]
Multiscale = Annotated[bool, typer.Option("--multiscale", help="Average six scales and their mirror images.")]
Unit = Annotated[
    str | None,
    typer.Option(
        help="What is independent: image; clip; block:N, of N frames; a pattern of file names with one group, as "
        "'([^_]+)_.*'. Default: as the dataset says.",
        show_default=False,
    ),
]
RunsAndOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RUN]... [KEY=VALUE]...",
        help="Run folders, model.safetensors files, official checkpoints (default: all below results/); overrides.",
    ),
]
RunPath = Annotated[Path, typer.Argument(help="A run folder, a model.safetensors, or an official checkpoint.pth.")]


def runs_and_overrides(items: list[str] | None) -> tuple[list[Path], list[str]]:
    """Runs are what has no ``=`` (or is there as a file); without any, all finished runs below results/.

    A folder that holds a family stands for its trainings.
    """
    from whitebox.runs import expanded, finished_runs

    overrides = [item for item in items or () if "=" in item and not os.path.exists(item)]
    runs = [Path(item).expanduser() for item in items or () if item not in overrides]
    return expanded(runs) or finished_runs(), overrides


def common_folder(folders: Sequence[Path]) -> Path:
    """The folder above all of them, where what compares them belongs; absolute and relative ones may be mixed."""
    from whitebox.files import from_the_start

    common = os.path.commonpath([from_the_start(folder).resolve() for folder in folders])
    try:
        return Path(os.path.relpath(common))
    except FileNotFoundError:  # the working folder was deleted
        return Path(common)


@contextmanager
def together(device: str | None) -> Iterator[None]:
    """Inside the block the processes that a launcher has started, if any, work as one.

    Raises:
        ConfigError: there is no such device.
    """
    known = device is None or re.fullmatch(r"(cpu|cuda|mps|xpu)(:\d+)?", device) is not None
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and known:
        yield  # nothing is loaded for it
        return
    from whitebox.engine.distributed import join, leave

    join(device)
    yield
    leave()


def main_process() -> bool:
    """Whether this process speaks for all that a launcher has started."""
    return os.environ.get("RANK", "0") == "0"


def say(line: object, *, err: bool = False) -> None:
    """One line on standard output or, for errors, on standard error; text of others in it does nothing."""
    typer.echo(shown(line), err=err)


def main() -> None:
    """Entry point: one line and an exit code for what the user can mend, a traceback with --debug or for our bugs."""
    debug = "--debug" in sys.argv or bool(os.environ.get("WHITEBOX_DEBUG"))
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal of another encoding lacks letters
    try:
        _require_working_folder()
        with opencv_explained():
            for argument in sys.argv[1:]:
                require_text(argument, "The argument")
            app()
    except WhiteboxError as error:
        if debug:
            traceback.print_exc()
        elif os.environ.get("LOCAL_RANK", "0") == "0":  # one line a machine: what is missing may be missing on one
            say(f"error: {error}", err=True)
        code = error.exit_code
    else:
        return
    sys.exit(code)  # not above: the error would keep its frames, and so a data loader, whose end Python would wait for


def _require_working_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise OutputError("The folder this command was started in was deleted: change to another one.") from None
