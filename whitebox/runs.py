"""Runs on disk, opened for a command: the model on its device, its configuration, and where its results belong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from whitebox.api import load_run, weights_file
from whitebox.config import MULTISCALE, RunConfig, change, from_dict
from whitebox.engine.checkpoint import WEIGHTS, read_header
from whitebox.engine.distributed import join
from whitebox.errors import ConfigError
from whitebox.models import Segmentor


@dataclass(frozen=True)
class Run:
    """A trained model.

    Attributes:
        name: of its folder, as figures and tables show it.
        weights: file they were read from; its folder takes the run's records, tables and figures.
        config: of the training, changed as the user asked.
    """

    name: str
    weights: Path
    model: Segmentor
    config: RunConfig

    @property
    def folder(self) -> Path:
        return self.weights.parent


def open_run(
    path: Path,
    dataset: str | None = None,
    data_root: Path | None = None,
    overrides: Sequence[str] = (),
    device: str | None = None,
    multiscale: bool = False,
) -> Run:
    """Load a run folder, a ``.safetensors`` or an official checkpoint.

    Args:
        dataset, data_root, overrides: see `whitebox.config.change`.
        device: None: the best there is.
        multiscale: average the official six scales and flips at inference.

    Raises:
        CheckpointError: missing, cut short, unsafe, or made for another model.
        ConfigError: an unknown dataset, key or device.
    """
    weights = weights_file(path)
    model, config = load_run(weights)
    config = change(config, dataset, overrides, data_root)
    if multiscale:
        config.inference = replace(config.inference, scales=list(MULTISCALE), flip=True)
    return Run(weights.resolve().parent.name, weights, model.to(join(device).device), config)


def class_names(path: Path) -> tuple[str, ...]:
    """The classes of a run; where its weights have a header, that is all that is read.

    Raises:
        CheckpointError: see `open_run`.
    """
    weights = weights_file(path)
    return tuple(read_header(weights)["classes"]) if weights.suffix == ".safetensors" else load_run(weights)[0].classes


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
