"""Accuracy against cost: mIoU of trained models beside the multiply-adds of their decoders.

Source of the figure: ``assets/performance.png`` of ``QishuaiWen/DEPICT``, mIoU against decoder GFLOPs.

Layout of ``measured``: ``miou`` as in an evaluation, ``scopes`` as in a profile (`analysis.measures.profile`).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from analysis.ask import ask
from analysis.measures.evaluation import Evaluated
from analysis.record import Answer, Question, Record
from whitebox.errors import ConfigError
from whitebox.runs import Run, SavedRun

KIND = "tradeoff"


def tradeoff(run: SavedRun | Run, evaluation: Evaluated, folder: Path, *, again: bool = False) -> Record:
    """The record of a run and its evaluation; costs are those of one window.

    Args:
        folder: the record is below it.
        again: whatever is stored.

    Raises:
        ConfigError: the run shows images whole (``inference.window=null``).
    """
    size, record = run.inference.window, evaluation.record
    if size is None:
        raise ConfigError(
            f"{run.name} shows images whole (inference.window=null), and its cost is that of one window: give "
            "inference.window and inference.stride."
        )
    question = Question(
        kind=KIND,
        model=run.name,
        data=record.data,
        weights=record.weights,
        variant=record.variant,
        seeds=record.seeds,
        settings={**record.settings, "size": size, "classes": len(run.classes)},
    )

    def answer() -> Answer:
        from analysis.measures.costs import count

        scopes = {scope: asdict(cost) for scope, cost in count(run.open().model, size).items()}
        return Answer(measured={"miou": record.measured["miou"], "scopes": scopes}, n=record.n)

    return ask(question, answer, folder / "records", again=again)
