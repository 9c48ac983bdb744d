"""Memory of a process, as Linux says it and where nobody does."""

import ctypes
import gc
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep memory as they like")
@pytest.mark.parametrize("kept", [True, False])
def test_what_is_freed_is_kept_for_what_comes_next(kept):
    """In processes of their own, as a process cannot go back; ten images of 4 MB have 10,000 pages."""
    code = f"""
import resource
import numpy as np
from whitebox.memory import keep_freed
if {kept}:
    keep_freed()
faults = []
for _ in range(11):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pair = [np.ones(2**22, np.uint8), np.ones(2**22, np.uint8)]  # glibc learns from one, and gives back the other
    del pair
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sum(faults[1:]))
"""
    found = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert found < 2000 if kept else found > 4000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep memory as they like")
@pytest.mark.parametrize("any_size", [True, False])
def test_large_blocks_are_kept_where_that_is_asked(any_size):
    """In processes of their own; the first block of 80 MB gets its pages, the second has them."""
    code = f"""
import resource
import numpy as np
from whitebox.memory import keep_freed
keep_freed(any_size={any_size})
np.ones(10**7)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(10**7)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    found = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert found < 20 if any_size else found > 30


def test_without_glibc_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    memory.keep_freed()
    assert memory.free_bytes() > 0


IMPORTS = """
import gc
from whitebox import memory
usual, frozen = gc.get_threshold(), gc.get_freeze_count()
with memory.fewer_collections():
    assert gc.get_threshold()[0] > usual[0] and gc.get_freeze_count() == frozen
    import whitebox.models
    assert gc.get_threshold() == usual and gc.get_freeze_count() > frozen + 100_000
with memory.fewer_collections():  # nothing is left to import
    assert gc.get_threshold() == usual
assert gc.isenabled()
"""


def test_a_command_does_not_look_for_garbage_in_what_it_imports():
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_elsewhere_the_collector_is_left_alone():
    before = gc.get_freeze_count(), gc.get_threshold()
    memory.keep_imported()
    assert (gc.get_freeze_count(), gc.get_threshold()) == before


@pytest.mark.parametrize(
    ("error", "lack"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("could not create a primitive"), True),
        (
            RuntimeError("could not create a primitive descriptor for a convolution forward propagation primitive"),
            False,
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_which_errors_are_a_lack_of_memory(error, lack):
    assert memory.is_lack_of_memory(error) is lack
