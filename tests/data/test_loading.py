"""Data loading processes: a process ends although an error kept its loader, and signals are left to the main one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from whitebox.data.loading import each, serve
from whitebox.errors import DataError

ABANDONED = """
from torch.utils.data import DataLoader
from whitebox.data.loading import serve

batches = iter(DataLoader(list(range(100)), num_workers=2, worker_init_fn=serve))
print(next(batches))
raise RuntimeError("a bug")
"""


KILLED = """
import os, signal
from pathlib import Path
from torch.utils.data import DataLoader, Dataset
from whitebox.data.loading import serve

class Pids(Dataset):
    def __len__(self): return 40
    def __getitem__(self, index): return os.getpid()

if __name__ == "__main__":
    loader = DataLoader(Pids(), num_workers=1, worker_init_fn=serve, multiprocessing_context="{method}")
    Path("worker").write_text(str(int(next(iter(loader)))))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_ends_although_an_error_kept_its_loader() -> None:
    done = subprocess.run([sys.executable, "-c", ABANDONED], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (1, "tensor([0])\n")
    assert done.stderr.endswith("RuntimeError: a bug\n") and "killed by signal" not in done.stderr


class Pids(Dataset):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> int:
        return os.getpid()


def test_workers_leave_signals_to_the_main_process() -> None:
    batches = iter(DataLoader(Pids(), num_workers=1, worker_init_fn=serve, prefetch_factor=1))
    worker = int(next(batches))
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(worker, number)
    time.sleep(0.2)
    assert {int(pid) for pid in batches} == {worker}


def test_a_killed_worker_is_found_out_where_the_next_sample_is_due() -> None:
    """Not in the middle of what the main process does then, and in one line."""
    samples = each(DataLoader(Pids(), num_workers=2, worker_init_fn=serve, prefetch_factor=1))
    os.kill(int(next(samples)), signal.SIGKILL)
    for _ in range(20):
        time.sleep(0.01)  # here PyTorch would raise
    with pytest.raises(DataError, match=r"A data loading process was killed, .* \(train\.workers\)") as raised:
        list(samples)
    assert "\n" not in str(raised.value)


def test_other_errors_pass() -> None:
    class Broken(Pids):
        def __getitem__(self, index: int) -> int:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        list(each(DataLoader(Broken(), num_workers=0)))


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_end_with_a_main_process_that_was_killed(method: str, tmp_path: Path) -> None:
    """A forkserver and its children keep each other alive."""
    (tmp_path / "killed.py").write_text(KILLED.format(method=method))
    done = subprocess.run([sys.executable, "killed.py"], cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    worker = int((tmp_path / "worker").read_text())
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and Path(f"/proc/{worker}").exists():
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()
