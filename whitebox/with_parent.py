"""``python -m whitebox.with_parent COMMAND ...``: whitebox, told to stop where the process that started it is killed.

Else a training would go on, and keep its run, after its task was killed. Linux alone does this; elsewhere the run's
lock keeps a second training away until the first has ended.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PARENT_DIES = 1  # PR_SET_PDEATHSIG of prctl(2)


def follow(parent: int) -> None:
    """Be sent SIGTERM, on which a training saves its state, once the parent is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DIES, signal.SIGTERM)
        if os.getppid() != parent:  # it went before it was asked for
            os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    from whitebox_seg import main

    follow(int(sys.argv.pop(1)))
    main()
