"""The command line: one thin function a command. Heavy imports stay inside the functions, so that --help is quick."""

from whitebox.cli import analysis, comparison, data, reproduce, robustness, training  # noqa: F401 they register themselves
from whitebox.cli.app import app, main

__all__ = ["app", "main"]
