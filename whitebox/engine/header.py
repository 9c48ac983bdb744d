"""The header of a ``model.safetensors``, read without torch.

It holds a JSON text under ``whitebox``: config, classes, palette, versions and git commit, so the file alone is enough
to rebuild the model.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from whitebox.errors import CheckpointError
from whitebox.foreign import parse_json

WEIGHTS = "model.safetensors"
EPOCHS = "epochs"  # folder of a run: the weights that its training kept on its way
HEADER = "whitebox"
RUNS = Path("results")  # where trainings and conversions put runs, unless they are told otherwise
RELEASED = dict.fromkeys(("sed-base", "sed-large"), "the README of github.com/xb534/SED")  # weights of these models
_SECTIONS = ("data", "encoder", "decoder", "inference")


def read_header(path: Path) -> dict[str, Any]:
    """The header of a ``model.safetensors``.

    Raises:
        CheckpointError: the file is missing, cut short, or was not written by whitebox.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="numpy") as opened:
            text = (opened.metadata() or {})[HEADER]
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is cut short or not a safetensors file; copy it again.") from error
    except KeyError as error:
        raise CheckpointError(
            f"{path} has no whitebox header, so its model is unknown; load it as encoder.weights=FILE."
        ) from error
    try:
        header = parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"The header of {path} cannot be read: {error}.") from error
    if not isinstance(header, dict) or not {"config", "classes", "palette"} <= header.keys():
        raise CheckpointError(f"The header of {path} is incomplete; it was not written by whitebox.")
    config = header["config"]
    if not isinstance(config, dict) or not all(isinstance(config.get(key, {}), dict) for key in _SECTIONS):
        raise CheckpointError(f"The configuration in the header of {path} is none; it is damaged.")
    classes, palette = header["classes"], header["palette"]
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    coloured = isinstance(palette, list) and all(_is_colour(colour) for colour in palette)
    if not (named and coloured and len(classes) == len(palette)):
        raise CheckpointError(f"The header of {path} does not name and colour its classes; it is damaged.")
    return header


def _is_colour(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(part in range(256) for part in value)


def _why(folder: Path) -> str:
    """Why the folder of a run has no weights, as far as it shows."""
    if not (folder / "config.yaml").is_file():
        return ""
    if (folder / "records").is_dir() and not (folder / "checkpoints").is_dir():
        return (
            ": it has what a run has measured, without its weights (this repository publishes none); train it, for "
            "example with `whitebox reproduce PAPER --train`, or take other weights"
        )
    return " (its training has saved none yet)"


def _how(name: str) -> str:
    """How the weights of a model that is named in place of a run are had; empty: it is no name of a model."""
    from whitebox.catalog import model_names

    if name not in model_names():
        return ""
    kept = f"results/{name}"
    if name in RELEASED:
        return (
            f": {name} is a model, whose weights its authors give away; fetch them as {RELEASED[name]} says, then "
            f"`whitebox convert model_final.pth -o {kept}`, and name {kept}"
        )
    return f": {name} is a model without weights; train it, `whitebox train {name}`, and name the run it saves"


def _near(path: Path) -> str:
    """Runs that are there and called nearly so, else the first that are there; empty: there are none."""
    runs = sorted(weights.parent for weights in RUNS.glob(f"**/{WEIGHTS}"))
    close = difflib.get_close_matches(path.name, [run.name for run in runs], n=3, cutoff=0.5)
    near = [str(run) for name in dict.fromkeys(close) for run in runs if run.name == name]
    if near:
        return f"; did you mean {' or '.join(near[:3])}?"
    return f"; there are {', '.join(map(str, runs[:3]))}{', ...' if len(runs) > 3 else ''}." if runs else "."


def weights_file(path: Path) -> Path:
    """The file that holds the weights: ``path`` itself, or the one in the folder ``path``.

    A name that is no path may be that of a run in ``results/``.

    Raises:
        CheckpointError: there is none.
    """
    if not path.exists() and (RUNS / path / WEIGHTS).is_file():
        path = RUNS / path
    if path.is_dir():
        for name in (WEIGHTS, "checkpoint.pth"):
            if (path / name).is_file():
                return path / name
        raise CheckpointError(f"{path} holds neither {WEIGHTS} nor an official checkpoint.pth{_why(path)}.")
    if not path.exists():
        how = _how(path.name)
        raise CheckpointError(f"There is no file or folder {path}{f'{how}.' if how else _near(path)}")
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise CheckpointError(f"{path} is no weights file: give a run folder, a .safetensors, or an official .pth.")
    return path
