"""The command line: one thin function a command. Heavy imports stay inside the functions, so that --help is quick."""

from whitebox.cli import analysis, data, training  # noqa: F401 the commands register themselves
from whitebox.cli.app import app, main

__all__ = ["app", "main"]
