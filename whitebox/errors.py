"""What can go wrong, in the words of the person who can mend it.

Every error a user can cause is a ``WhiteboxError`` whose message is one line: what is wrong, where, and what to do.
The command line prints that line and exits with ``exit_code``; tracebacks appear only with ``--debug``.
"""


class WhiteboxError(Exception):
    """Base of all errors raised on purpose by whitebox."""

    exit_code = 1


class ConfigError(WhiteboxError):
    """A configuration key, type or value that cannot be used, or an unknown model or dataset name."""

    exit_code = 2


def require(condition: bool, key: str, value: object, need: str) -> None:
    """Raise a ``ConfigError`` that ``key=value`` is impossible unless ``condition``; ``need`` says what it must be."""
    if not condition:
        raise ConfigError(f"{key}={short(repr(value))} is impossible: {need}.")


def short(text: str, longest: int = 200) -> str:
    """What a message may quote of a text that somebody else wrote: its first line, cut where it is long."""
    line = text.splitlines()[0] if text else ""
    return line if len(line) <= longest else f"{line[:longest]}..."


class DataError(WhiteboxError):
    """An image, a label, or a dataset folder that is missing, unreadable or inconsistent."""


class CheckpointError(WhiteboxError):
    """A weights file that is missing, cut short, unsafe, or made for another model."""


class ModelError(WhiteboxError):
    """A model that cannot be built, or an input or intervention it cannot take."""


class TrainingError(WhiteboxError):
    """A training run that cannot start, or cannot go on."""


class OutputError(WhiteboxError):
    """A result that cannot be written: no space, no permission."""


class InUseError(OutputError):
    """A folder that another process is writing."""


class StoreError(WhiteboxError):
    """A store of tokens that is of another version, or damaged."""
