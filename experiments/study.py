"""A study of ours: runs by name, the recipe they are trained by, what is measured of them in which order, and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.ask import Bar
from analysis.record import RecordError, read_records
from analysis.show import summary
from analysis.show.render import groups, render, render_folders
from experiments.experiment import Measure, Setting
from whitebox.runs import SavedRun
from whitebox.terminal import print_line, table_console


@dataclass(frozen=True)
class Trained:
    """A run of a study: its model, and what it changes of the recipe."""

    model: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """One measurement.

    Attributes:
        title: what it is, and the name of its files where it is ``joint``.
        folder: below that of the study.
        runs: names, in the order they are measured and shown.
        measure: (runs, setting, folder of records and rows, progress bars, whether again) -> records.
        joint: records lie with their runs, and one table and figure show them together.
    """

    title: str
    folder: str
    runs: tuple[str, ...]
    measure: Measure
    joint: bool = False


@dataclass(frozen=True, kw_only=True)
class Study:
    """Runs and steps."""

    name: str
    title: str
    dataset: str
    recipe: tuple[str, ...]
    runs: Mapping[str, Trained]
    steps: tuple[Step, ...]

    def measure(
        self, runs: Mapping[str, SavedRun], setting: Setting, folder: Path, bar: Bar, *, again: bool = False
    ) -> None:
        """Measure what has not been measured, step by step, and show it.

        Raises:
            WhiteboxError: of the measurements, or the folder cannot be written.
        """
        console = table_console()
        for step in self.steps:
            print_line(console, f"{self.name}: {step.title}")
            place = folder / step.folder
            step.measure([runs[name] for name in step.runs], replace(setting, output=place), place, bar, again)
        self.show(folder)

    def show(self, folder: Path, output: Path | None = None, *, figures: bool = True) -> None:
        """Write all tables and figures of the records below ``folder``, to ``output`` (None: beside them).

        Raises:
            RecordError: a record cannot be read, or there is none.
            OutputError: they cannot be written.
        """
        output = output or folder
        for place in dict.fromkeys(step.folder for step in self.steps if not step.joint):
            if (folder / place / "records").is_dir():
                render_folders([folder / place], output / place, figures=figures)
        evaluations = [record for name in self.runs for record in read_records(folder / name / "records", "eval")]
        for group in groups(evaluations) if evaluations else []:
            render(group, output, f"accuracy-{group[0].data.split}", figures=figures)
        try:
            found = summary.summarise(summary.find_records([folder]), "val")
        except RecordError:
            return  # nothing was evaluated yet
        summary.table(found).write(output / "tables" / "summary")
        if figures:
            summary.figure(found, output / "figures" / "summary")
