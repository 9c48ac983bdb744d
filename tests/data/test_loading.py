"""Data loading processes: a process ends although an error kept its loader, and signals are left to the main one."""

import os
import signal
import subprocess
import sys
import time

from torch.utils.data import DataLoader, Dataset

from whitebox.data.loading import ignore_signals

ABANDONED = """
from torch.utils.data import DataLoader
from whitebox.data.loading import ignore_signals

batches = iter(DataLoader(list(range(100)), num_workers=2, worker_init_fn=ignore_signals))
print(next(batches))
raise RuntimeError("a bug")
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
    batches = iter(DataLoader(Pids(), num_workers=1, worker_init_fn=ignore_signals, prefetch_factor=1))
    worker = int(next(batches))
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(worker, number)
    time.sleep(0.2)
    assert {int(pid) for pid in batches} == {worker}
