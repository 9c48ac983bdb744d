"""YAML that somebody else may have written, read as plain data within bounds; as ``whitebox.foreign`` reads JSON.

A few bytes can stand for very much (nests, aliases), so what is read is bounded in size, depth and number of values
before anything is done with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from whitebox.foreign import DEEPEST, require_size

MOST = 100_000  # values of a file, each alias counted as what it stands for


class _PlainLoader(yaml.SafeLoader):
    """YAML with python tuples, and nothing else that is not plain data. Dates stay text, and nothing is merged in."""

    yaml_implicit_resolvers = {  # noqa: RUF012 as yaml has it
        start: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in ("timestamp", "merge")]
        for start, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _python_tuple(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node))


_PlainLoader.add_constructor("tag:yaml.org,2002:python/tuple", _python_tuple)


def read_yaml(path: Path, largest: int = 2**20) -> Any:
    """The value of a YAML file.

    Raises:
        OSError: it cannot be read. ValueError: it is no plain YAML, or beyond the bounds; the reason, for a message.
    """
    require_size(path, largest)
    loader = None
    try:
        loader = _PlainLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is None:
            return None
        _require_small(node)
        return loader.construct_document(node)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels") from error
    except yaml.YAMLError as error:
        raise ValueError(getattr(error, "problem", None) or str(error).splitlines()[0]) from error
    except (TypeError, KeyError, OverflowError) as error:  # a mapping as a key, a number without digits
        raise ValueError(f"a value cannot be read ({error})") from error
    finally:
        if loader is not None:
            loader.dispose()


def _require_small(node: yaml.Node) -> None:
    """Count the values as if every alias were written out."""
    level, seen = [node], 0
    for _ in range(DEEPEST):
        inside: list[yaml.Node] = []
        for each in level:
            if isinstance(each, yaml.SequenceNode):
                inside += each.value
            elif isinstance(each, yaml.MappingNode):
                inside += [part for pair in each.value for part in pair]
            seen += 1
            if seen + len(inside) > MOST:
                raise ValueError(f"it stands for more than {MOST} values")
        if not inside:
            return
        level = inside
    raise ValueError(f"it is nested deeper than {DEEPEST} levels")
