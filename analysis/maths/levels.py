"""Levels and targets of noise, as a user writes them."""

from __future__ import annotations

import math

import numpy as np

from whitebox.errors import ConfigError

MAX_LEVELS = 200


LARGEST = 1e4  # sigma; far below what makes float32 overflow


DEFAULT_STEP = 0.1


TARGETS = {
    "decoder": "all parameters of the decoder",
    "attention": "the projection matrices of the decoder's attention layers",
    "queries": "the decoder's class embeddings",
    "norms": "gains and biases of the decoder's norms",
    "matrices": "the matrices of the decoder's layers",
    "step-sizes": "the step sizes of the decoder's layers",
    "head": "what turns the tokens of the decoder's last layer into masks",
    "encoder": "all parameters of the encoder",
    "all": "all parameters",
    "input": "the pixels of the photos",
}
# What attention layers call the matrices they project with (whitebox/models/attention.py and decoders/).


def parse_levels(text: str) -> tuple[float, ...]:
    """Noise levels from ``START:STOP``, ``START:STOP:STEP``, ``START:STOP:logN`` or a comma list, ascending.

    Without a step it is 0.1. STOP is among them where the step meets it. 0 is left out: the clean model is always
    measured.

    Raises:
        ConfigError: not numbers, negative, NaN, infinite, reversed, empty, or more than ``MAX_LEVELS``.
    """
    example = "give 0.1:0.5, 0.02:0.1:0.02, 0.001:1:log13 or 0.1,0.2"
    parts = text.split(":")
    if len(parts) == 1:
        values = [_number(part, text, example) for part in text.split(",")]
    elif len(parts) > 3:
        raise ConfigError(f"--noise {text!r} has too many colons: {example}.")
    else:
        start, stop = (_number(part, text, example) for part in parts[:2])
        if stop < start:
            raise ConfigError(f"--noise {text!r} is reversed: START comes first, {example}.")
        step = parts[2] if len(parts) == 3 else None
        if step is not None and step.startswith("log"):
            values = _logarithmic(start, stop, step[3:], text, example)
        else:
            values = _linear(start, stop, step, text, example)
    levels = sorted({float(f"{value:.10g}") for value in values if value > 0})
    if not levels:
        raise ConfigError(f"--noise {text!r} holds no noise above 0: {example}.")
    if len(levels) > MAX_LEVELS:
        raise ConfigError(_too_many(text, len(levels)))
    return tuple(levels)


def _number(part: str, text: str, example: str) -> float:
    try:
        value = float(part)
    except ValueError:
        raise ConfigError(f"--noise {text!r}: {part!r} is not a number; {example}.") from None
    if not 0 <= value <= LARGEST:
        raise ConfigError(
            f"--noise {text!r}: {part!r} is impossible, a standard deviation lies between 0 and {LARGEST:g}; {example}."
        )
    return value


def _logarithmic(start: float, stop: float, count: str, text: str, example: str) -> list[float]:
    if not (count.isascii() and count.isdigit()):
        raise ConfigError(f"--noise {text!r}: {'log' + count!r} needs a number of levels, log13; {example}.")
    if not (start > 0 and stop > start and int(count) >= 2):
        raise ConfigError(f"--noise {text!r}: a logarithmic grid needs 0 < START < STOP and two levels; {example}.")
    if int(count) > MAX_LEVELS:
        raise ConfigError(_too_many(text, int(count)))
    return [float(value) for value in np.geomspace(start, stop, int(count))]


def _linear(start: float, stop: float, given: str | None, text: str, example: str) -> list[float]:
    step = DEFAULT_STEP if given is None else _number(given, text, example)
    if step == 0:
        raise ConfigError(f"--noise {text!r}: a step of 0 never arrives; {example}.")
    if given is None and start < stop < start + step * (1 - 1e-9):
        raise ConfigError(
            f"--noise {text!r} is narrower than the step that is taken where none is given, {DEFAULT_STEP}; {example}."
        )
    steps = (stop - start) / step
    if steps > MAX_LEVELS:
        raise ConfigError(_too_many(text, steps))
    return [start + index * step for index in range(math.floor(steps * (1 + 1e-9)) + 1)]


def _too_many(text: str, count: float) -> str:
    return f"--noise {text!r} asks for {count:.0f} levels, at most {MAX_LEVELS} are measured: choose a larger step."
