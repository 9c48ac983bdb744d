"""Memory of a process, as Linux says it and where nobody does."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from whitebox import memory

CHILD = "from whitebox.memory import peak_gb; print(peak_gb())"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_what_is_held_goes_and_the_peak_stays():
    before = memory.held_gb()
    block = torch.zeros(60_000_000)  # 0.24 GB
    during, peak = memory.held_gb(), memory.peak_gb()
    del block
    assert 0.2 < during - before < 0.3
    assert memory.held_gb() < during - 0.2
    assert peak >= during - 0.01
    assert memory.peak_gb() >= peak - 0.01  # the kernel counts roughly
    # a process of its own, not what its parent had
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    assert 0.001 < float(done.stdout) < 0.15


def test_without_linux_the_peak_is_known_and_the_rest_is_not(monkeypatch, tmp_path):
    for path in (Path("nowhere"), tmp_path / "status"):
        (tmp_path / "status").write_text("Name: python\n")
        monkeypatch.setattr(memory, "_STATUS", str(path))
        with pytest.raises(RuntimeError, match="does not say it here"):
            memory.held_gb()
        assert 0.05 < memory.peak_gb() < 200  # torch is imported
