"""Imported by the server of child processes: what each of them would read of the catalog once more."""

from whitebox.config import resolve

resolve("depict-sa-tiny", "shapes")
