"""The Typer app, its entry point, and what its commands share."""

from __future__ import annotations

import functools
import inspect
import io
import logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, get_type_hints

import typer

from whitebox.errors import ConfigError, OutputError, WhiteboxError, short
from whitebox.extras import opencv_explained
from whitebox.memory import fewer_collections, is_lack_of_memory, keep_freed
from whitebox.terminal import speaking
from whitebox.text import require_text, shown

PANEL = "Options of all commands"
SPEECH: dict[str, Any] = {
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="Errors alone.", rich_help_panel=PANEL)],
    "verbose": Annotated[
        bool, typer.Option("--verbose", "-v", help="All rows of all tables, and what is read.", rich_help_panel=PANEL)
    ],
    "as_json": Annotated[
        bool, typer.Option("--json", help="Records as JSON in place of tables.", rich_help_panel=PANEL)
    ],
}


log = logging.getLogger("whitebox")


class App(typer.Typer):
    """A Typer app whose commands share options, and what comes before their work.

    In paths ``~`` is the home directory, which a shell does not make of ``-o=~/x``; and results must be writable.
    """

    def command(self, *names: Any, tables: bool = True, **settings: Any) -> Callable[[Any], Any]:
        """As Typer's; ``tables``: whether it prints such, and so takes ``--json``."""
        register = super().command(*names, **settings)

        def decorate(function: Any) -> Any:
            @functools.wraps(function)
            def expanded(**given: Any) -> None:
                manner = [given.pop(name, False) for name in SPEECH]
                given = {key: _expanded(value) for key, value in given.items()}
                _look_before_work(given)
                keep_freed()
                stopped: typer.Exit | None = None
                with speaking(*manner), fewer_collections():
                    try:
                        function(**given)
                    except typer.Exit as end:  # what was found is told all the same
                        stopped = end
                if stopped is not None:
                    raise stopped

            _add_options(expanded, function, {key: SPEECH[key] for key in SPEECH if tables or key != "as_json"})
            register(expanded)
            return function

        return decorate


def _add_options(expanded: Any, function: Any, more: Mapping[str, Any]) -> None:
    """Give the command of a function further options, all of them off."""
    own = inspect.signature(function)
    # not of the function itself: of a default None, Python 3.10 makes Optional[Annotated[...]], which hides the option
    written: Any = SimpleNamespace(__annotations__=function.__annotations__)
    hints = {**get_type_hints(written, function.__globals__, include_extras=True), **more}
    parameters = [
        *(each.replace(annotation=hints[name]) for name, each in own.parameters.items()),
        *(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=hints[name])
            for name in more
        ),
    ]
    expanded.__signature__ = inspect.Signature(parameters)
    expanded.__annotations__ = hints


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
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    """``--version``: of ourselves, and of what results stand on."""
    if not asked:
        return
    import torch

    from whitebox.versions import versions

    found = versions()
    cuda = f", CUDA {torch.version.cuda}" if torch.version.cuda else ", without CUDA"
    devices = f" ({torch.cuda.device_count()} devices)" if torch.cuda.is_available() else ""
    commit = f" ({str(found['git_commit'])[:12]})" if found["git_commit"] else ""
    typer.echo(f"whitebox {found['whitebox']}{commit}, Python {found['python']}")
    typer.echo(f"torch {found['torch']}{cuda}{devices}, timm {found['timm']}, NumPy {found['numpy']}")
    raise typer.Exit


@app.callback()
def _whitebox(
    version: Annotated[
        bool, typer.Option("--version", help="Show versions and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def _completed(names_of: str) -> Callable[[str], list[str]]:
    """What a shell offers for an argument that takes a name of the catalog; without waiting for PyTorch."""

    def names(incomplete: str) -> list[str]:
        from whitebox import catalog

        known: list[str] = getattr(catalog, names_of)()
        return [name for name in known if name.startswith(incomplete)]

    return names


def completed_runs(incomplete: str) -> list[str]:
    """The runs below results/ that begin so."""
    from whitebox.engine.header import RUNS, WEIGHTS

    found = sorted(str(weights.parent) for weights in RUNS.glob(f"**/{WEIGHTS}"))
    return [run for run in found if run.startswith(incomplete)]


complete_models, complete_datasets = _completed("described_models"), _completed("dataset_names")
complete_encoders, complete_recipes = _completed("encoder_names"), _completed("recipe_names")

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, e.g. optim.lr=0.01 train.epochs=20.")
]
DataRoot = Annotated[
    Path | None, typer.Option(help="Folder of the datasets. Default: $WHITEBOX_DATA, else ./data.", show_default=False)
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps. Default: the best there is.")]
Encoder = Annotated[
    str | None,
    typer.Option(
        help="A name of `whitebox encoders`. Default: the ViT of the model's size.", autocompletion=complete_encoders
    ),
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
_UsageError: Any = typer.BadParameter.__base__  # of click, or of typer's own copy of it
RunsAndOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RUN]... [KEY=VALUE]...",
        help="Run folders, model.safetensors files, official checkpoints, hf-hub:ORG/NAME (default: all below "
        "results/); overrides.",
        autocompletion=completed_runs,
    ),
]
RunPath = Annotated[
    Path,
    typer.Argument(
        help="A run folder, a model.safetensors, an official checkpoint.pth, or hf-hub:ORG/NAME.",
        autocompletion=completed_runs,
    ),
]


def runs_and_overrides(items: list[str] | None) -> tuple[list[Path], list[str]]:
    """Runs are what has no ``=`` (or is there as a file); without any, all finished runs below results/.

    A folder that holds a family stands for its trainings.
    """
    from whitebox.runs import expanded, finished_runs

    overrides = [item for item in items or () if "=" in item and not os.path.exists(item)]
    runs = [Path(item).expanduser() for item in items or () if item not in overrides]
    return expanded(runs) or finished_runs(), overrides


def params_of(name: str, words: Sequence[str]) -> dict[str, Any]:
    """What ``whitebox NAME WORDS`` is asked for, by the parameters of the command, which is not carried out.

    Raises:
        ConfigError: there is no such command, or it takes no such words.
    """
    from whitebox.catalog import nearest

    line = shown(shlex.join(["whitebox", name, *words]))
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    if name not in commands:
        raise ConfigError(f"`{line}` is impossible: there is no such command{nearest(name, list(commands))}")
    try:
        return dict(commands[name].make_context(name, list(words)).params)
    except _UsageError as error:
        raise ConfigError(f"`{line}` is impossible: {' '.join(error.format_message().split())}") from None


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
    from whitebox import terminal

    if err or not terminal.manner.quiet:
        typer.echo(shown(line), err=err or terminal.manner.json)


# Options that had the name of another command's, and meant something else: until 0.2 they work, with a warning.
RENAMED = {
    "attention": {"--encoder": "--encoder-layers", "--decoder": "--decoder-layers"},
    "power": {"--seeds": "--trainings"},
    "probe": {"--encoder": "--encoder-layers"},
    "profile": {"--classes": "--num-classes"},
    "rank-analysis": {"--encoder": "--encoder-layers", "--heads": "--over-heads"},
    "reproduce": {"--size": "--model-size"},
    "similarity": {"--encoder": "--encoder-layers"},
}


def _renamed(arguments: list[str]) -> list[str]:
    """A command line with the options that its command has now."""
    known = RENAMED.get(next((each for each in arguments if not each.startswith("-")), ""), {})
    found = []
    for each in arguments:
        option, equals, value = each.partition("=")
        if option in known:
            log.warning("%s is called %s now, and will not be understood from whitebox 0.2 on.", option, known[option])
        found.append(f"{known.get(option, option)}{equals}{value}")
    return found


def main() -> None:
    """Entry point: one line and an exit code for what the user can mend, a traceback with --debug or for our bugs."""
    debug = "--debug" in sys.argv or bool(os.environ.get("WHITEBOX_DEBUG"))
    sys.argv = [sys.argv[0], *_renamed([argument for argument in sys.argv[1:] if argument != "--debug"])]
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
    except (RuntimeError, MemoryError) as error:
        if debug or not is_lack_of_memory(error):
            raise
        cure = "take fewer windows at once (inference.batch=1), fewer images (--limit), or another --device"
        say(f"error: Memory ran out ({short(str(error) or 'MemoryError').rstrip('.')}): {cure}.", err=True)
        code = 1
    else:
        return
    sys.exit(code)  # not above: the error would keep its frames, and so a data loader, whose end Python would wait for


def _require_working_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise OutputError("The folder this command was started in was deleted: change to another one.") from None
