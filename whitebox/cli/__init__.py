"""The command line: one thin function a command. Heavy imports stay inside the functions, so that --help is quick."""

from importlib import import_module

from whitebox.cli.app import app, main

# in the order of --help
SUBJECTS = (
    "training",
    "export",
    "hub",
    "data",
    "cache",
    "analysis",
    "explore",
    "robustness",
    "comparison",
    "reproduce",
    "sweep",
)
for subject in SUBJECTS:
    import_module(f"whitebox.cli.{subject}")  # its commands register themselves

__all__ = ["app", "main"]
