"""Many runs on many machines: sweep."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from whitebox.cli.app import app, params_of, say
from whitebox.errors import ConfigError, require

if TYPE_CHECKING:
    from whitebox.config import RunConfig
    from whitebox.sweep import Found, Plan

ON = ("local", "slurm", "debug")
_LOOK = 0.5  # s between looks at local tasks
_SHOWN = 20  # rows of a table of tasks
_NOTHING = "Nothing is left to begin."


@app.command(name="sweep")
def sweep_command(
    plan: Annotated[Path, typer.Argument(help="A YAML file, see docs/cluster.md.")],
    on: Annotated[str, typer.Option(help="local, slurm, or debug: one after another, here.")] = "local",
    at_once: Annotated[int, typer.Option(min=1, help="Tasks at a time.")] = 2,
    status: Annotated[bool, typer.Option("--status", help="Say what has become of each task, and begin none.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is missing and what it would cost.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Begin failed tasks again, too.")] = False,
) -> None:
    """Carry out a plan of trainings and measurements, here or on a cluster; the same line again does what is missing.

    \b
    whitebox sweep plan.yaml --dry-run
    whitebox sweep plan.yaml --on local --at-once 2
    whitebox sweep plan.yaml --on slurm --at-once 16
    whitebox sweep plan.yaml --status
    """
    from whitebox.sweep import DONE, FAILED, LOST, WAITING, found_states, read_plan

    require(on in ON, "--on", on, f"choose {', '.join(ON)}")
    read = read_plan(plan, None if status else config_of_task)
    for name, *words in read.tasks[0].commands[1:] if not status else ():  # before hours of training
        params_of(name, words)
    if dry_run:
        _dry_run(read, found_states(read))
        return
    if not status:
        begin = {WAITING, LOST} | ({FAILED} if retry else set())
        if on == "slurm":
            _submit(read, begin, at_once)
        else:
            _here(read, begin, on, at_once)
    states = found_states(read)
    _show(read, states)
    if not status and on != "slurm" and any(found.state != DONE for found in states.values()):
        raise typer.Exit(1)


def _submit(plan: Plan, begin: Collection[str], at_once: int) -> None:
    """All at once as arrays: first those that others wait for."""
    from whitebox.sweep import SUBMITTED, Work, executor_for, found_states

    states = found_states(plan)
    tasks = [task for task in plan.tasks if states[task.name].state in begin]
    if not tasks:
        say(_NOTHING)
        return
    executor = executor_for(plan, "slurm", at_once)
    awaited = {task.first for task in tasks} & {task.name for task in tasks}
    jobs: list[Any] = []
    for level in (
        [task for task in tasks if task.name in awaited],
        [task for task in tasks if task.name not in awaited],
    ):
        if not level:
            continue
        if jobs:
            after = ":".join(job.job_id for job in jobs)
            options = {**plan.job.options, "dependency": f"afterany:{after}"}
            executor.update_parameters(slurm_additional_parameters=options)
        works = [Work(plan.place, task, "slurm") for task in level]
        try:
            with executor.batch():
                jobs = [executor.submit(work) for work in works]
        except (OSError, RuntimeError) as error:
            raise ConfigError(f"sbatch refused the tasks: {' '.join(str(error).split())[-400:]}") from None
        for work, job in zip(works, jobs, strict=True):
            work.note(state=SUBMITTED, job=job.job_id, submitted=time.time())
    say(f"{len(tasks)} tasks submitted. Next: whitebox sweep PLAN --status")


def _here(plan: Plan, begin: Collection[str], on: str, at_once: int) -> None:
    """Some at a time, as processes of their own; those that a killed sweep has left running count, too."""
    from whitebox.sweep import DONE, FAILED, LOST, RUNNING, SUBMITTED, Work, executor_for, found_states

    executor = executor_for(plan, on, at_once)
    begun, shown = set[str](), dict[str, str]()
    try:
        while True:
            states = found_states(plan)
            for name, found in states.items():
                if found.state in (RUNNING, DONE, FAILED, LOST) and shown.get(name) not in (None, found.state):
                    say(f"{name}: {found.state}{f', {found.last}' if found.last else ''}")
                shown[name] = found.state
            left = [task for task in plan.tasks if states[task.name].state in begin and task.name not in begun]
            busy = sum(found.state in (RUNNING, SUBMITTED) for found in states.values())
            if not left and not busy:
                if not begun:
                    say(_NOTHING)
                return
            pending = {task.name for task in left} | {
                name for name, found in states.items() if found.state in (RUNNING, SUBMITTED)
            }
            ready = [task for task in left if task.first not in pending]  # of one that failed nobody is the worse
            for task in ready[: 1 if on == "debug" else max(0, at_once - busy)]:
                begun.add(task.name)
                work = Work(plan.place, task, on)
                work.note(state=SUBMITTED, job=None, submitted=time.time())
                job = executor.submit(work)
                if on == "debug":
                    job.result()
            time.sleep(0 if on == "debug" else _LOOK)
    except KeyboardInterrupt:
        say("Stopped: tasks that run go on; the same line takes them up again.", err=True)
        raise typer.Exit(130) from None


def config_of_task(command: Sequence[str]) -> RunConfig:
    """What the first command of a task trains.

    Raises:
        ConfigError: it cannot be.
    """
    from whitebox.cli.reproduce import study_config_of
    from whitebox.cli.training import config_of

    name, *words = command
    return config_of(words) if name == "train" else study_config_of(words)


def _dry_run(plan: Plan, states: Mapping[str, Found]) -> None:
    """A row a task that is not done: hours on this machine of its training, and of a GPU where tasks have one."""
    from analysis.show.tables import Column, Table
    from experiments.reproduce import TrainingCost, training_cost
    from whitebox.sweep import DONE

    rows: list[tuple[Any, ...]] = []
    known: dict[str, TrainingCost] = {}
    for task in plan.tasks:
        if states[task.name].state == DONE:
            continue
        config, stored = plan.trained[task.name], task.first is not None
        key = repr((replace(config, train=replace(config.train, seed=0)), stored))
        if key not in known:
            known[key] = training_cost(config, stored=stored)
        cost = known[key]
        most = float(plan.job.hours * plan.job.gpus) if plan.job.gpus else None
        rows.append((task.name, task.first or "", cost.petaflops, cost.hours, cost.disk or None, most))
    columns = (
        Column("Task"),
        Column("After"),
        Column("PFLOP", 3),
        Column("Hours here", 1),
        Column("Disk (GB)", 2),
        Column("GPU hours, at most", 1),
    )
    done, hours = len(plan.tasks) - len(rows), sum(row[3] for row in rows)
    caption = (
        f"{done} of {len(plan.tasks)} tasks are done; the trainings of the others take {hours:.1f} hours on this "
        "machine, guessed from one timed forward pass, without what is measured of them. Tokens of a frozen encoder "
        "are stored by the first task that takes them (Disk). GPU hours: what each task may take."
    )
    Table(columns, tuple(rows), caption).show()


def _show(plan: Plan, states: Mapping[str, Found]) -> None:
    """How many are in each state, then those that need somebody, then the rest as far as it fits."""
    from collections import Counter

    from analysis.show.tables import Column, Table
    from whitebox import terminal
    from whitebox.sweep import DONE, FAILED, LOST, RUNNING

    order = {FAILED: 0, LOST: 1, RUNNING: 2}
    listed = sorted(states.items(), key=lambda each: order.get(each[1].state, 4 if each[1].state == DONE else 3))
    most = len(listed) if terminal.manner.json or terminal.manner.verbose else _SHOWN
    rows = [(name, found.state, found.job or "", found.seconds / 60, found.last[:80]) for name, found in listed[:most]]
    hours = sum(found.seconds for found in states.values()) / 3600
    counts = ", ".join(f"{count} {state}" for state, count in Counter(found.state for found in states.values()).items())
    more = f" {len(listed) - most} more are not shown." if len(listed) > most else ""
    cost = f"{hours:.2f} hours" + (f", {hours * plan.job.gpus:.2f} of a GPU" if plan.job.gpus else "")
    caption = f"{counts}; {cost} so far.{more} What each has printed: {plan.place}/TASK.log"
    columns = (Column("Task"), Column("State"), Column("Job"), Column("Minutes", 1), Column("Last line"))
    Table(columns, tuple(rows), caption).show()
