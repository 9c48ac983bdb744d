"""`whitebox sweep`: plans and their refusals, tasks here and through stand-ins for SLURM's commands, and kills."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from child_runs import TINY

from whitebox.cli.sweep import config_of_task
from whitebox.cli.training import config_of
from whitebox.config import to_yaml
from whitebox.errors import ConfigError
from whitebox.sweep import (
    DONE,
    FAILED,
    LOST,
    RUNNING,
    SUBMITTED,
    WAITING,
    Job,
    Plan,
    Task,
    Work,
    found_states,
    read_plan,
)

Call = Callable[..., tuple[int, str, str]]
OVERRIDES = [f"{key}={value}" for key, value in TINY.items()]
needs_submitit = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("submitit") is None, reason="needs the extra cluster"
)


def written(path: Path, **values: Any) -> Path:
    path.write_text(json.dumps(values))  # YAML reads JSON
    return path


def plan_of(folder: Path, *tasks: Task) -> Plan:
    return Plan(folder, tasks, Job())


QUICK = Task("quick", (("datasets",),))
WRONG = Task("wrong", (("datasets", "--no-such-option"), ("datasets",)))


@pytest.mark.parametrize(
    "switches",
    [
        [],
        ["--frozen"],
        ["--frozen", "--random-encoder", "--compile"],
        ["--frozen", "--whole", "encoder.pretrained=false", "--recipe", "frozen"],
    ],
)
def test_a_planned_training_is_configured_as_train_does_it(call: Call, switches: list[str]) -> None:
    words = ["depict-sa-small", "--encoder", "dinov2-small", "--dataset", "camvid", *switches]
    code, out, err = call("train", *words, "--print-config")
    assert code == 0, err
    planned = to_yaml(config_of(words))
    assert out == planned
    assert ("pretrained: true" in planned) == (switches == ["--frozen"])


class TestPlan:
    def test_every_combination_is_a_task(self, tmp_path: Path) -> None:
        plan = read_plan(
            written(
                tmp_path / "plan.yaml",
                folder=str(tmp_path / "runs"),
                train={
                    "models": ["depict-sa-tiny", "cbsa-tiny"],
                    "seeds": "0:2",
                    "overrides": ["train.epochs=1"],
                    "variants": {"deep": ["decoder.layers=3"], "": []},
                },
                then=["eval --split test"],
                job={"hours": 2, "gpus": 1},
            ),
            config_of_task,
        )
        assert [task.name for task in plan.tasks][:4] == [
            "depict-sa-tiny-shapes-deep-0",
            "depict-sa-tiny-shapes-deep-1",
            "depict-sa-tiny-shapes-0",
            "depict-sa-tiny-shapes-1",
        ]
        training, evaluation = plan.tasks[0].commands
        assert training[:2] == ("train", "depict-sa-tiny") and "--resume" in training and "train.seed=0" in training
        assert "decoder.layers=3" in training and "train.epochs=1" in training
        assert evaluation == ("eval", str(tmp_path / "runs" / "depict-sa-tiny-shapes-deep-0"), "--split", "test")
        assert len(plan.tasks) == 8 and plan.job == Job(hours=2, gpus=1)
        assert {task.first for task in plan.tasks} == {None}
        assert [plan.trained[task.name].train.seed for task in plan.tasks[:4]] == [0, 1, 0, 1]

    def test_without_checks_it_has_the_same_tasks(self, tmp_path: Path) -> None:
        """As `--status` reads it: who waits for whom is not known, and what cannot be is not refused."""
        train = {
            "models": ["depict-sa-tiny", "cbsa-tiny"],
            "seeds": "0:2",
            "overrides": ["data.views=2"],
            "frozen": True,
        }
        path = written(tmp_path / "p.yaml", train=train, then=["eval"])
        whole, light = read_plan(path, config_of_task), read_plan(path)
        assert [(task.name, task.commands) for task in light.tasks] == [
            (task.name, task.commands) for task in whole.tasks
        ]
        assert {task.first for task in light.tasks} == {None} != {task.first for task in whole.tasks}
        assert found_states(light) == found_states(whole)

    def test_who_shares_an_encoders_tokens_waits_for_the_first(self, tmp_path: Path) -> None:
        models = ["depict-sa-tiny", "cbsa-tiny", "segvit-tiny"]
        train = {"models": models, "seeds": "0:2", "frozen": True}
        for views, expected in (
            (
                ["data.views=2", "data.view_seed=0"],
                [None, "depict-sa-0", "depict-sa-0", "depict-sa-0", None, "segvit-0"],
            ),
            (["data.views=2"], [None, None, "depict-sa-0", "depict-sa-1", None, None]),  # of another seed, other views
            ([], [None] * 6),  # nothing is stored
        ):
            plan = read_plan(written(tmp_path / "p.yaml", train={**train, "overrides": views}), config_of_task)
            assert [task.first and task.first.replace("-tiny-shapes", "") for task in plan.tasks] == expected

    def test_a_study_has_a_task_a_decoder_and_seed(self, tmp_path: Path) -> None:
        asked = "foundation --dataset camvid --seeds=0:2"
        plan = read_plan(written(tmp_path / "p.yaml", reproduce=asked, data_root="d"), config_of_task)
        first = {task.name: task.first for task in plan.tasks}
        assert len(plan.tasks) == 18 and plan.tasks[0].first is None
        assert first["cbsa-0"] == first["cbsa-1"] == plan.tasks[0].name
        assert (first["segvit-0"], first["segvit-1"]) == (None, "segvit-0")  # it takes other layers
        (command,) = plan.tasks[-1].commands
        assert command[:2] == ("reproduce", "foundation") and command[-4:] == (
            "--decoder",
            "segmenter-mask",
            "--seeds",
            "1:2",
        )
        assert command[4:6] == ("--data-root", "d")
        assert plan.trained["segvit-1"].model == "segvit-small" and plan.trained["segvit-1"].encoder.frozen

    def test_some_decoders_of_a_study(self, tmp_path: Path) -> None:
        asked = "foundation --decoder tost --dataset camvid --decoder=segvit --seeds 3:4"
        plan = read_plan(written(tmp_path / "p.yaml", reproduce=asked), config_of_task)
        assert [(task.name, task.first) for task in plan.tasks] == [("tost-3", None), ("segvit-3", None)]
        assert plan.tasks[0].commands[0].count("--decoder") == 1
        path = written(tmp_path / "p.yaml", reproduce="foundation --dataset camvid --decoder tots")
        with pytest.raises(ConfigError, match="--decoder='tots' is impossible"):
            read_plan(path, config_of_task)

    @pytest.mark.parametrize(
        ("plan", "message"),
        [
            ({"trian": {}}, "unknown key 'trian'; did you mean 'train'?"),
            ({"train": {"models": ["a"], "seed": 1}}, "unknown key 'seed' in `train`; did you mean 'seeds'?"),
            ({"train": {"models": []}}, "train.models names no model"),
            ({"train": {"models": ["depict-sa-tny"]}}, "depict-sa-tny"),
            ({"train": {"models": ["depict-sa-tiny"], "overrides": ["optim.lrr=1"]}}, "optim.lrr"),
            ({"train": {"models": ["depict-sa-tiny"], "overrides": {"a": 1}}}, "takes a list"),
            ({"train": {"models": ["depict-sa-tiny", "depict-sa-tiny"]}}, "asks for depict-sa-tiny-shapes-0 twice"),
            ({"train": {"models": ["depict-sa-tiny"]}, "job": {"hours": -1}}, "job.hours=-1 is impossible"),
            ({"train": {"models": ["depict-sa-tiny"]}, "job": {"gpu": 1}}, "unknown key 'gpu' in `job`"),
            ({"train": {"models": ["depict-sa-tiny"], "datasets": {"shapes": 1}}}, "train.datasets takes a list"),
            ({"train": {"models": ["depict-sa-tiny"], "encoders": "dinov2-smal"}}, "dinov2-smal"),
            ({"train": {"models": ["depict-sa-tiny"], "recipe": ["frozen"]}}, "train.recipe takes a name"),
            ({"train": {"models": ["depict-sa-tiny"], "frozen": "no"}}, "train.frozen takes true or false"),
            ({"train": {"models": ["x"]}, "reproduce": "foundation"}, "one of the two"),
            ({"reproduce": "depict"}, "'depict' has no tasks of its own"),
            ({"reproduce": "foundation", "then": ["eval"]}, "leave `then` out"),
            ([1], "a plan has keys and values"),
        ],
    )
    def test_what_it_refuses(self, tmp_path: Path, plan: Any, message: str) -> None:
        path = tmp_path / "plan.yaml"
        path.write_text(json.dumps(plan))
        with pytest.raises(ConfigError) as refused:
            read_plan(path, config_of_task)
        assert message in str(refused.value) and "\n" not in str(refused.value)

    def test_no_plan_and_no_yaml(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="Cannot read the plan"):
            read_plan(tmp_path / "none.yaml")
        (tmp_path / "bad.yaml").write_text("a: [")
        with pytest.raises(ConfigError, match=r"bad\.yaml is no YAML"):
            read_plan(tmp_path / "bad.yaml")


class TestTask:
    def test_what_becomes_of_it_is_in_its_file(self, tmp_path: Path) -> None:
        plan = plan_of(tmp_path, QUICK, WRONG)
        assert [found.state for found in found_states(plan).values()] == [WAITING, WAITING]
        assert Work(plan.place, QUICK, "local")() == 0 and Work(plan.place, WRONG, "local")() == 2
        found = found_states(plan)
        assert found["quick"].state == DONE and found["quick"].seconds > 0
        assert found["wrong"].state == FAILED and "no-such-option" in found["wrong"].last
        assert (plan.place / "wrong.log").read_text().count("$ whitebox") == 1  # the second command was not begun

    def test_other_commands_under_a_name_have_not_begun(self, tmp_path: Path) -> None:
        Work(tmp_path / "sweep", QUICK, "local").note(state=DONE)
        assert found_states(plan_of(tmp_path, QUICK))["quick"].state == DONE
        assert found_states(plan_of(tmp_path, Task("quick", (("models",),))))["quick"].state == WAITING

    def test_one_that_nobody_is_at_is_lost(self, tmp_path: Path) -> None:
        Work(tmp_path / "sweep", QUICK, "local").note(state=RUNNING)
        assert found_states(plan_of(tmp_path, QUICK))["quick"].state == LOST
        Work(tmp_path / "sweep", QUICK, "local").note(state=SUBMITTED, submitted=time.time())
        assert found_states(plan_of(tmp_path, QUICK))["quick"].state == SUBMITTED
        Work(tmp_path / "sweep", QUICK, "local").note(submitted=time.time() - 1000)
        assert found_states(plan_of(tmp_path, QUICK))["quick"].state == LOST

    def test_a_task_that_runs_is_not_begun_twice(self, tmp_path: Path) -> None:
        from whitebox.sweep import task_lock

        work = Work(tmp_path / "sweep", QUICK, "local")
        work.note(state=RUNNING)
        with task_lock(work.place, "quick"):
            assert found_states(plan_of(tmp_path, QUICK))["quick"].state == RUNNING
            assert work() == 0 and not (work.place / "quick.log").exists()

    def test_a_broken_file_is_as_none(self, tmp_path: Path) -> None:
        (tmp_path / "sweep").mkdir()
        (tmp_path / "sweep" / "quick.json").write_text("{")
        assert found_states(plan_of(tmp_path, QUICK))["quick"].state == WAITING


def command(*words: str, **settings: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "whitebox", *words], **settings)


def until(condition: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@needs_submitit
def test_two_at_a_time_through_kills_of_the_sweep_and_of_a_task(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    models = ["cbsa-tiny", "depict-sa-tiny"]
    train = {"models": models, "overrides": [*OVERRIDES, "train.epochs=10"]}
    path = written(tmp_path / "plan.yaml", folder="runs", train=train, then=["data no-such"])
    plan = read_plan(path)
    first = command("sweep", "plan.yaml", cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True)
    until(lambda: all(found.state == RUNNING for found in found_states(plan).values()))
    first.kill()  # the tasks go on
    first.wait()
    task = json.loads((plan.place / f"{plan.tasks[0].name}.json").read_text())
    os.kill(task["process"], signal.SIGKILL)
    until(lambda: found_states(plan)[plan.tasks[0].name].state == LOST)
    path = written(tmp_path / "plan.yaml", folder="runs", train=train)  # without what fails
    code, out, _ = call("sweep", "plan.yaml")
    assert code == 0, out
    assert {found.state for found in found_states(read_plan(path)).values()} == {DONE}
    for each in plan.tasks:
        logged = [json.loads(line) for line in (Path("runs") / each.name / "metrics.jsonl").read_text().splitlines()]
        assert max(line.get("epoch", 0) for line in logged) == 10
    code, out, _ = call("sweep", "plan.yaml")
    assert code == 0 and "Nothing is left to begin" in out


SBATCH = """#!{python}
import os, re, subprocess, sys
script = sys.argv[-1]
text = open(script).read()
home = os.path.dirname(os.path.abspath(__file__))
open(home + "/asked", "a").write(text + "\\n=====\\n")
if "refuse" in text:
    sys.exit("sbatch: error: invalid partition specified: refuse")
job = str(100 + len(re.findall("=====", open(home + "/asked").read())))
array = re.search("--array=0-([0-9]+)", text)
indices = range(int(array[1]) + 1) if array else [None]
for index in indices:
    own = dict(os.environ, SLURM_JOB_ID=job, SLURM_JOB_NUM_NODES="1", SLURM_NTASKS="1", SLURM_NODEID="0",
               SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_JOB_NODELIST="here")
    if index is not None:
        own |= dict(SLURM_ARRAY_JOB_ID=job, SLURM_ARRAY_TASK_ID=str(index))
    subprocess.Popen(["bash", script], env=own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print("Submitted batch job " + job)
"""
SRUN = """#!/bin/bash
while [[ "$1" == -* ]]; do if [[ "$1" == --output || "$1" == --error ]]; then shift; fi; shift; done
exec "$@"
"""
SACCT = """#!/bin/bash
echo "JobID|State|NodeList"
cat "$(dirname "$0")/queue" 2> /dev/null
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH.replace("{python}", sys.executable)), ("srun", SRUN), ("sacct", SACCT)):
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return folder


@needs_submitit
class TestSlurm:
    def test_tasks_are_arrays_and_the_first_goes_before(self, slurm: Path, call: Call, tmp_path: Path) -> None:
        from whitebox.cli.sweep import _submit

        tasks = (QUICK, Task("second", (("models",),), "quick"), Task("third", (("datasets", "--wrong"),), "quick"))
        plan = Plan(tmp_path / "runs", tasks, Job(hours=2, gpus=1, partition="gpu", options={"account": "lab"}))
        _submit(plan, {WAITING}, at_once=1)
        (slurm / "queue").write_text("101|PENDING|\n102_0|PENDING|\n102_1|RUNNING|\n")
        until(lambda: {found.state for found in found_states(plan).values()} <= {DONE, FAILED})
        states = {name: found.state for name, found in found_states(plan).items()}
        assert states == {"quick": DONE, "second": DONE, "third": FAILED}
        first, second, *_ = (slurm / "asked").read_text().split("=====")
        assert "--partition=gpu" in first and "--gpus-per-node=1" in first and "--account=lab" in first
        assert "--time=120" in first and "dependency" not in first
        assert "--dependency=afterany:101" in second and "--array=0-1%1" in second

    def test_the_queue_knows_who_waits_and_who_was_lost(self, slurm: Path, tmp_path: Path) -> None:
        import submitit

        plan = plan_of(tmp_path, *(Task(f"t{index}", (("datasets",),)) for index in range(4)))
        for index, task in enumerate(plan.tasks):
            Work(plan.place, task, "slurm").note(state=SUBMITTED, job=f"200_{index}")
        lines = ("200_0|PENDING|", "200_1|RUNNING|here", "200_2|CANCELLED by 0|", "200_3|NODE_FAIL|here")
        (slurm / "queue").write_text("\n".join(lines) + "\n")
        submitit.SlurmJob.watcher.clear()
        assert [found.state for found in found_states(plan).values()] == [SUBMITTED, RUNNING, LOST, LOST]

    def test_a_partition_that_refuses(self, slurm: Path, tmp_path: Path) -> None:
        from whitebox.cli.sweep import _submit

        with pytest.raises(ConfigError, match=r"sbatch refused the tasks: .*invalid partition specified: refuse"):
            _submit(Plan(tmp_path / "runs", (QUICK,), Job(partition="refuse")), {WAITING}, 1)


@needs_submitit
def test_no_slurm_here(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "plan.yaml", folder="runs", train={"models": ["depict-sa-tiny"]})
    code, _, err = call("sweep", "plan.yaml", "--on", "slurm")
    assert code == 2 and err.count("\n") == 1 and "--on slurm is impossible here" in err
    code, _, err = call("sweep", "plan.yaml", "--on", "pbs")
    assert code == 2 and "choose local, slurm, debug" in err


def test_a_plan_is_priced_before_anything_is_done(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(
        tmp_path / "plan.yaml",
        folder="runs",
        train={"models": ["depict-sa-tiny"], "overrides": OVERRIDES, "seeds": "0:2"},
        job={"gpus": 2, "hours": 3},
    )
    code, out, err = call("sweep", "plan.yaml", "--dry-run")
    assert code == 0, err
    assert "0 of 2 tasks are done" in " ".join(out.split()) and "6.0" in out and not (tmp_path / "runs").exists()
    code, out, _ = call("sweep", "plan.yaml", "--status")
    assert code == 0 and "2 waiting" in out


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            {"reproduce": "foundation --dataset camvid --encodr dinov2-small"},
            "--encodr dinov2-small -o runs --decoder linear` is impossible: No such option: --encodr",
        ),
        (
            {"train": {"models": ["depict-sa-tiny"]}, "then": ["eval --splt test"]},
            "`whitebox eval runs/depict-sa-tiny-shapes-0 --splt test` is impossible: No such option: --splt",
        ),
        (
            {"train": {"models": ["depict-sa-tiny"]}, "then": ["robustnes"]},
            "there is no such command; did you mean 'robustness'?",
        ),
    ],
)
def test_a_command_that_cannot_be_is_refused_before_anything_is_trained(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch, plan: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "plan.yaml", folder="runs", **plan)
    for option in ("--dry-run", "--on=debug"):
        code, _, err = call("sweep", "plan.yaml", option)
        assert code == 2 and err.count("\n") == 1 and message in err, err
    assert not (tmp_path / "runs").exists()
