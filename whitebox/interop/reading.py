"""What the readers of other projects' checkpoints share: configs as plain data, pixel statistics, counted tensors."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from whitebox.config import InferenceConfig
from whitebox.errors import require
from whitebox.models.encoder import STATISTICS

TOLERANCE = 0.01  # of pixel statistics, 0..255: the official code rounds them to two digits, mmsegmentation does not


class _DictCalls(ast.NodeTransformer):
    """``dict(a=1)`` as ``{"a": 1}``, which ``ast.literal_eval`` reads."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        named = all(keyword.arg is not None for keyword in node.keywords)
        if isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args and named:
            keys: list[ast.expr | None] = [ast.Constant(keyword.arg) for keyword in node.keywords]
            return ast.Dict(keys, [keyword.value for keyword in node.keywords])
        return node


def assignments(text: str, names: Collection[str]) -> dict[str, Any]:
    """The top-level assignments of a Python config to some names, as far as there are any; nothing is run.

    Raises:
        SyntaxError, ValueError, TypeError: the text is no Python, or a value is not plain data: literals, their
            containers and ``dict(key=...)``.
    """
    try:
        return {
            name: ast.literal_eval(_DictCalls().visit(statement.value))
            for statement in ast.parse(text).body
            if isinstance(statement, ast.Assign) and (name := ast.unparse(statement.targets[0])) in names
        }
    except (RecursionError, MemoryError) as error:
        raise ValueError("it is nested too deeply") from error


def same_statistics(known: Iterable[float], stated: object) -> bool:
    """Whether what a config states are three numbers, and these, on the scale 0..255."""
    return (
        isinstance(stated, list | tuple)
        and len(stated) == 3
        and all(isinstance(each, int | float) for each in stated)
        and all(own - TOLERANCE < each < own + TOLERANCE for own, each in zip(known, stated, strict=True))
    )


def normalization(mean: object) -> str | None:
    """Our name of the pixel statistics that have this mean, on the scale 0..255; None: they have none."""
    for name, (known, _) in STATISTICS.items():
        if same_statistics([255 * each for each in known], mean):
            return name
    return None


def inference(test: Mapping[str, Any]) -> InferenceConfig:
    """Windows of ``test_cfg``; without a ``mode`` mmsegmentation shows images whole."""
    mode = test.get("mode", "whole")
    require(mode in ("whole", "slide"), "test_cfg.mode", mode, "mmsegmentation knows whole and slide")
    if mode == "whole":
        return InferenceConfig(window=None)
    return InferenceConfig(window=_square(test, "crop_size"), stride=_square(test, "stride"))


def _square(test: Mapping[str, Any], key: str) -> int:
    height, width = test[key]
    need = "windows of whitebox and their strides are square, so give a config with a square one, or with mode='whole'"
    require(height == width, f"test_cfg.{key}", test[key], need)
    return int(height)


def count(tensors: Iterable[str], pattern: str) -> int:
    """How many different numbers follow ``pattern`` at the start of the tensors' names."""
    return len({match[1] for name in tensors if (match := re.match(rf"{pattern}(\d+)", name))})
