"""Progress on the terminal: bars where somebody watches, one line an evaluation where output goes to a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import filesize
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TimeRemainingColumn,
)

from whitebox.config import RunConfig
from whitebox.terminal import Console, PlainColumn, print_line

if TYPE_CHECKING:
    from whitebox.engine.log import StepTimes


class TrainingProgress:
    """Shows a run: loss, mIoU, images a second, time left, memory (see ``whitebox.engine.train.Reporter``)."""

    def __init__(self) -> None:
        self.console = Console()
        self.bars = Progress(
            PlainColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            PlainColumn("{task.fields[numbers]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.towers: TaskID | None = None
        self.training: TaskID | None = None
        self.encoded: TaskID | None = None
        self.validation: TaskID | None = None
        self.numbers: dict[str, Any] = {}

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.training is not None or self.towers is not None:
            self.bars.stop()

    def started(self, config: RunConfig, steps: int, first_step: int, train_images: int, val_images: int) -> None:
        self.bars.start()  # not before: of several processes only the main one comes here
        resumed = f", resumed at step {first_step}" if first_step else ""
        epochs = config.train.epochs
        length = f"{epochs} epochs of {steps // epochs} steps" if config.train.steps is None else f"{steps} steps"
        print_line(
            self.console,
            f"Training {config.model} on {config.data.name}: {train_images} images, {length}, "
            f"batch {config.train.batch_size}, {val_images} validation images{resumed}",
        )
        from whitebox.data import GENERATED

        if config.data.kind not in GENERATED and not config.encoder.pretrained and config.encoder.weights is None:
            print_line(
                self.console,
                "The encoder starts from random weights; the papers' start from ImageNet: encoder.pretrained=true",
            )
        if config.train.compile:
            print_line(self.console, "The first step compiles the model, on a CPU for some minutes; no later one does.")
        self.training = self.bars.add_task("train", total=steps, completed=first_step, numbers="")

    def contrasting(self, done: int, total: int, kept: Path) -> None:
        """The contrastive stage of a tiny CLIP, before the first training with it."""
        if self.towers is None:
            if done == total:
                print_line(self.console, f"The tiny CLIP is there from an earlier run: {kept}")
                return
            further = f", of which an earlier run has made {done}" if done else ""
            print_line(
                self.console,
                f"First a tiny CLIP, by contrast on captioned shapes: {total} steps{further}. "
                f"It is kept for later runs: {kept}",
            )
            self.bars.start()
            self.towers = self.bars.add_task("contrast", total=total, numbers="")
        self.bars.update(self.towers, completed=done)
        if done == total:
            self.bars.remove_task(self.towers)
            self.bars.stop()
            self.towers = None

    def encoding(self, done: int, total: int, what: str) -> None:
        """Views behind a frozen encoder, or prompts, before the first step."""
        if self.encoded is None:
            print_line(self.console, f"Encoding {total} {what} once; later trainings read them.")
            self.encoded = self.bars.add_task("encode", total=total, numbers="")
        self.bars.update(self.encoded, completed=done)
        if done == total:
            self.bars.remove_task(self.encoded)
            self.encoded = None

    def logged(self, line: dict[str, Any]) -> None:
        self.numbers.update(line)

    def stepped(self, step: int) -> None:
        if self.training is not None:
            self.bars.update(self.training, completed=step, numbers=self._numbers())

    def evaluating(self, done: int, total: int) -> None:
        if self.validation is None:
            self.validation = self.bars.add_task("val", total=total, numbers="")
        self.bars.update(self.validation, completed=done)

    def evaluated(self, line: dict[str, Any]) -> None:
        if self.validation is not None:
            self.bars.remove_task(self.validation)
            self.validation = None
        self.numbers.update(line)
        loss = f"loss {self.numbers['loss']:.3f}  " if "loss" in self.numbers else ""
        print_line(
            self.console,
            f"epoch {line['epoch']:g}  step {line['step']}  {loss}"
            f"{line['split']} mIoU {100 * line['miou']:.2f}  mAcc {100 * line['macc']:.2f}  "
            f"aAcc {100 * line['aacc']:.2f}",
        )

    def timed(self, times: StepTimes) -> None:
        """Say once what a step takes and who waits for whom."""
        if times.waited > 0.1 * times.model:
            verdict = f"the model waits {times.waited:.3g} s a step for the loader: more train.workers may help"
        else:
            verdict = "the loader waits for the model"
        print_line(
            self.console,
            f"A step takes {times.model + times.waited:.3g} s: model {times.model:.3g} s, "
            f"loader {times.loader:.3g} s a batch with train.workers={times.workers}; {verdict}.",
        )

    def _numbers(self) -> str:
        parts = []
        if "loss" in self.numbers:
            parts.append(f"loss {self.numbers['loss']:.3f}")
        if "miou" in self.numbers:
            parts.append(f"mIoU {100 * self.numbers['miou']:.1f}")
        if "images_per_second" in self.numbers:
            parts.append(f"{self.numbers['images_per_second']:.1f} img/s")
            parts.append(f"{self.numbers['memory_gb']:.1f} GB")
        return "  ".join(parts)


_shown: list[Progress] = []  # the bars on the terminal, which bars within theirs join


@contextmanager
def image_progress(description: str, total: int | None) -> Iterator[Callable[[int, int], None]]:
    """A bar over images; yields the function that sets how many are done, and of how many.

    Within the block of another one it is a line below that, and goes at its end.
    """
    if _shown:
        within = _shown[-1].add_task(description, total=total)
        try:
            yield lambda done, of: _shown[-1].update(within, completed=done, total=of)
        finally:
            _shown[-1].remove_task(within)
        return
    console = Console(stderr=True)
    with Progress(
        SpinnerColumn(),
        PlainColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        _shown.append(progress)
        try:
            task = progress.add_task(description, total=total)
            yield lambda done, of: progress.update(task, completed=done, total=of)
        finally:
            _shown.pop()


class TransferProgress:
    """Shows downloads, unpacking and conversions (see ``whitebox.data.prepare.Reporter``), one bar at a time."""

    def __init__(self) -> None:
        self.console = Console()
        self.bars = Progress(
            SpinnerColumn(),
            PlainColumn("{task.description}"),
            BarColumn(),
            PlainColumn("{task.fields[amount]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task: TaskID | None = None
        self.name = ""

    def __enter__(self) -> TransferProgress:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def say(self, line: str) -> None:
        print_line(self.console, line)

    def advance(self, task: str, done: int, total: int | None, unit: str) -> None:
        if self.task is None or task != self.name:
            if self.task is not None:
                self.bars.remove_task(self.task)
            self.task, self.name = self.bars.add_task(task, total=total, amount=""), task
        words = [filesize.decimal(count) if unit == "B" else str(count) for count in (done, total) if count is not None]
        amount = " of ".join(words) + ("" if unit == "B" else f" {unit}")
        self.bars.update(self.task, completed=done, total=total, amount=amount)
