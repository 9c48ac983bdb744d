"""Imported by the server of child processes: what each of them would read of the catalog once more."""

import gc

from whitebox.config import resolve

resolve("depict-sa-tiny", "shapes")
gc.freeze()  # else each child looks for garbage in all that the server has imported
