"""Memory of a process, as Linux says it and where nobody does."""

import ctypes
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from whitebox import memory

CHILD = """
from whitebox import memory
before = memory.held_gb()
block = bytearray(240_000_000)
during, peak = memory.held_gb(), memory.peak_gb()
del block
print(before, during, peak, memory.held_gb(), memory.peak_gb())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_what_is_held_goes_and_the_peak_stays():
    """In a process of its own: one that ran a training keeps what it freed, for the next."""
    held = torch.zeros(60_000_000)  # 0.24 GB, of the parent alone
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    before, during, peak, after, peak_after = map(float, done.stdout.split())
    assert held.nbytes / 1e9 > before > 0.001
    assert 0.2 < during - before < 0.3
    assert after < during - 0.2
    assert peak >= during - 0.01
    assert peak_after >= peak - 0.01  # the kernel counts roughly


def test_without_linux_the_peak_is_known_and_the_rest_is_not(monkeypatch, tmp_path):
    for path in (Path("nowhere"), tmp_path / "status"):
        (tmp_path / "status").write_text("Name: python\n")
        monkeypatch.setattr(memory, "_STATUS", str(path))
        with pytest.raises(RuntimeError, match="does not say it here"):
            memory.held_gb()
        assert 0.05 < memory.peak_gb() < 200  # torch is imported


KEEPING = """
import resource
import sys
import torch
from whitebox.memory import keep_freed

if sys.argv[1] == "kept":
    keep_freed()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(3):
    before = faults()
    for _ in range(20):
        [torch.ones(5_000_000) for _ in range(3)]
    found = faults() - before
print(found)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_what_is_freed_is_kept_for_what_comes_next():
    """Pages that the system gives, and clears, of tensors of 20 MB that were there before."""
    found = {}
    for way in ("kept", "returned"):
        command = [sys.executable, "-c", KEEPING, way]
        found[way] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found["kept"] < found["returned"] / 4 and found["returned"] > 100


def test_without_glibc_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", None)
    memory.keep_freed()
