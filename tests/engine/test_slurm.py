"""docs/slurm.sh, with stand-ins for SLURM's programs: each notes how it was called."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "slurm.sh"

STAND_INS = {
    # two nodes of two tasks each; a task's process id lies in a file, as SLURM would know it
    "srun": """
[ "$1" = --kill-on-bad-exit=1 ] && shift
for task in 0 1 2 3; do
    SLURM_PROCID=$task SLURM_LOCALID=$((task % 2)) SLURM_NTASKS=4 SLURM_NTASKS_PER_NODE=2 "$@" &
done
code=0
for job in $(jobs -p); do wait "$job" || code=$?; done
exit $code
""",
    "whitebox": """
echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT $OMP_NUM_THREADS $*" > task-$RANK.txt
[ -n "${SECONDS_TO_RUN:-}" ] || exit "${CODE:-0}"
trap 'exit ${CODE:-0}' TERM
echo $$ > new-$RANK && mv new-$RANK pid-$RANK
for _ in $(seq "$SECONDS_TO_RUN"); do sleep 0.1; done
exit 9
""",
    "scontrol": '[ "$1" = show ] && printf "node1\\nnode2\\n" || echo "$*" >> scontrol.txt',
    "scancel": 'echo "$*" >> scancel.txt; kill -TERM $(cat pid-*)',
}


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of a job."""
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "4321", "SLURM_JOB_NODELIST": "node[1-2]", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    return {**job, "HOME": str(tmp_path)}


pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs a bash")


@pytest.mark.parametrize("code", [0, 3])
def test_every_task_knows_its_place(code: int, cluster: dict[str, str], tmp_path: Path) -> None:
    arguments = ["depict-ca-tiny", "--dataset", "camvid", "--name", "my run"]
    environment = {**cluster, "CODE": str(code)}
    done = subprocess.run([SCRIPT, *arguments], cwd=tmp_path, env=environment, timeout=60, check=False)
    assert done.returncode == code
    for task in range(4):
        assert (tmp_path / f"task-{task}.txt").read_text() == (
            f"{task} {task % 2} 4 2 node1 24321 1 train depict-ca-tiny --dataset camvid --name my run --resume\n"
        )
    assert not (tmp_path / "scontrol.txt").exists()


@pytest.mark.parametrize(("code", "requeued"), [(0, True), (1, False)])
def test_time_is_up(code: int, requeued: bool, cluster: dict[str, str], tmp_path: Path) -> None:
    """The tasks are told; where they could save, the job is queued again."""
    environment = {**cluster, "SECONDS_TO_RUN": "300", "CODE": str(code)}
    job = subprocess.Popen([SCRIPT, "depict-ca-tiny"], cwd=tmp_path, env=environment)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("pid-*"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == code
    assert (tmp_path / "scancel.txt").read_text() == "--signal=TERM 4321\n"
    assert (tmp_path / "scontrol.txt").exists() == requeued
    if requeued:
        assert (tmp_path / "scontrol.txt").read_text() == "requeue 4321\n"
