"""What a training says on the terminal."""

from __future__ import annotations

import pytest
from child_runs import tiny

from whitebox.cli.progress import TrainingProgress
from whitebox.engine.log import StepTimes


def test_who_waits_for_whom(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingProgress() as progress:
        progress.timed(StepTimes(workers=4, steps=20, model=1.9, loader=0.41, waited=0.001))
        progress.timed(StepTimes(workers=1, steps=20, model=1, loader=2, waited=1))
    assert capsys.readouterr().out.splitlines() == [
        "A step takes 1.9 s: model 1.9 s, loader 0.41 s a batch with train.workers=4; the loader waits for the model.",
        "A step takes 2 s: model 1 s, loader 2 s a batch with train.workers=1; the model waits 1 s a step "
        "for the loader: more train.workers may help.",
    ]


def test_nothing_is_shown_where_nothing_began(capsys: pytest.CaptureFixture[str]) -> None:
    """As in the processes beside the main one."""
    with TrainingProgress():
        pass
    assert capsys.readouterr().out == ""
    with TrainingProgress() as progress:
        progress.started(tiny(), steps=6, first_step=4, train_images=12, val_images=3)
    assert "12 images, 2 epochs of 3 steps, batch 4, 3 validation images, resumed at step 4" in capsys.readouterr().out
