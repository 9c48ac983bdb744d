"""Reading tensors from files, finding a model among them, and loading it strictly.

Nothing beyond tensors and plain containers is unpickled.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import init
from torch.overrides import TorchFunctionMode

from whitebox.errors import CheckpointError


@dataclass(frozen=True)
class LoadReport:
    """What a strict load did: where the weights came from, in which format, how many tensors matched."""

    source: str
    format: str
    matched: int

    def __str__(self) -> str:
        return f"{self.source}: {self.format}; all {self.matched} tensors matched"


def read_pickle(path: Path) -> Any:
    """Contents of a ``torch.save`` file, tensors and plain containers only.

    Raises:
        CheckpointError: missing, cut short, not a torch file, or holding anything else than tensors and containers.
    """
    _require_file(path)
    with path.open("rb") as opened:
        start = opened.read(4)
    if not start.startswith((b"PK\x03\x04", b"\x80")):  # a zip archive, or a pickle of older versions
        raise CheckpointError(f"{path} is not a torch file (a web page or a pointer to one?); download it again.")
    _require_stored(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower() or "unsupported" in str(error).lower():
            raise CheckpointError(
                f"{path} holds more than tensors and is not opened, because unpickling could run code; "
                "ask its author for a safetensors file or a plain state dict."
            ) from error
        raise CheckpointError(f"{path} is not a readable torch file; download or copy it again.") from error
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, OSError, BadZipFile) as error:
        raise CheckpointError(f"{path} is cut short or not a torch file; download or copy it again.") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors`` file by name.

    Raises:
        CheckpointError: missing, or cut short.
    """
    _require_file(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is cut short or not a safetensors file; copy it again.") from error


def read_content(path: Path) -> Any:
    """What a ``.safetensors`` or torch file holds, see ``read_tensors`` and ``read_pickle``."""
    return read_tensors(path) if path.suffix == ".safetensors" else read_pickle(path)


@dataclass(frozen=True)
class StateDict:
    """Tensors of one model by their names in it.

    Attributes:
        place: where in a checkpoint they lay; empty: they are all of it.
        others: where others lay that would have fitted as well.
    """

    tensors: dict[str, Tensor]
    place: str
    others: tuple[str, ...] = ()


def unwrap(
    content: object,
    signs: Sequence[str],
    fit: Callable[[Mapping[str, Tensor]], int] = len,
    whole: bool = True,
) -> StateDict | None:
    """The state dict of a model somewhere in a checkpoint, without what other code has put around it.

    It may lie in nested dictionaries (``model``, ``state_dict``, ``teacher``, ...), its names may begin with those of
    modules around it (``module.``, ``model.``, ``backbone.``, ...), and what distributed training, compilation and
    averaging add to names inside is taken off. Of several the one that fits best is taken; of those that fit equally
    the averaged one (``ema``, ``teacher``), then the first.

    Args:
        content: of a file.
        signs: patterns of names, one of which the model has.
        fit: how well tensors fit, the more the better. Default: their number.
        whole: the model is all there is, so names outside of it are kept (and will be unexpected); False: a part.

    Returns:
        None where no name is one of the signs.

    Raises:
        CheckpointError: two tensors would get one name.
    """
    pattern = re.compile(rf"((?:.+?\.)??)(?:{'|'.join(signs)})")
    found: list[StateDict] = []
    for place, named in _nested(content):
        tensors = _bare(named, place)
        starts = {match[1]: None for name in tensors if (match := pattern.fullmatch(name))}
        for start in starts:
            inside = {
                name.removeprefix(start): tensor for name, tensor in tensors.items() if whole or name.startswith(start)
            }
            if len(inside) == len(tensors) or not whole:
                found.append(StateDict(inside, "/".join(filter(None, (place, start.removesuffix("."))))))
    if not found:
        return None
    fits = [fit(each.tensors) for each in found]
    best = [each for each, how_well in zip(found, fits, strict=True) if how_well == max(fits)]
    chosen = max(best, key=lambda each: _AVERAGED.search(each.place) is not None)
    return replace(chosen, others=tuple(each.place for each in best if each is not chosen))


_AVERAGED = re.compile(r"ema|teacher|averaged|swa", re.IGNORECASE)
_WRAPPERS = re.compile(  # what DDP, torch.compile, FSDP and checkpointing put in front of the names of what they wrap
    r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_DEEPEST = 4  # levels of dictionaries around a state dict


def _nested(content: object, place: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The dictionaries in ``content`` that hold tensors by name, and where they lie."""
    if not isinstance(content, Mapping) or depth > _DEEPEST:
        return
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if tensors:
        yield place, tensors
    for name, value in content.items():
        if isinstance(name, str):
            yield from _nested(value, f"{place}/{name}" if place else name, depth + 1)


def _bare(named: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    """Tensors by names without wrappers; without the counter of torch's ``AveragedModel``."""
    tensors = {_WRAPPERS.sub("", name): tensor for name, tensor in named.items() if name != "n_averaged"}
    if len(tensors) < len(named) - ("n_averaged" in named):
        names = [_WRAPPERS.sub("", name) for name in named]
        twice = next(name for name in names if names.count(name) > 1)
        raise CheckpointError(f"The checkpoint holds {twice} twice{f' in {place}' if place else ''}: keep one of them.")
    return tensors


def count_numbers(tensors: Mapping[str, Tensor]) -> int:
    """How many numbers tensors hold in all."""
    return sum(tensor.numel() for tensor in tensors.values())


def renamed(name: str, rules: Iterable[tuple[str, str]]) -> str:
    """A tensor's name after the first rule (pattern of a whole name, replacement) that fits; as it is if none does."""
    for pattern, ours in rules:
        found = re.fullmatch(pattern, name)
        if found:
            return found.expand(ours)
    return name


class Undrawn(TorchFunctionMode):
    """Inside, parameters begin as zeros, not as random numbers: for models that are built to be loaded.

    To draw them takes more than half of the time in which a large model is opened.
    """

    _DRAWING = frozenset(
        (Tensor.normal_, Tensor.uniform_, Tensor.erfinv_, init.normal_, init.uniform_, init.kaiming_uniform_)
    )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        filled = args[0] if args else given.get("tensor")
        # Nothing but parameters: what is drawn again until it lies within bounds would never end.
        if func in self._DRAWING and isinstance(filled, nn.Parameter):
            return filled.detach().zero_()
        return func(*args, **given)


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], source: str, format: str) -> LoadReport:
    """Load a complete state dict, described as ``format`` in the report.

    Raises:
        CheckpointError: a tensor is missing, unexpected, of another shape or type, or holds NaN or infinities; the
            message names the first of each.
    """
    own = module.state_dict()
    problems = []
    for what, names in (
        ("missing", [name for name in own if name not in tensors]),
        ("unexpected", [name for name in tensors if name not in own]),
    ):
        if names:
            problems.append(f"{len(names)} {what} (first: {names[0]})")
    resized = [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    if resized:
        name = resized[0]
        problems.append(
            f"{len(resized)} of another shape (first: {name} is {tuple(tensors[name].shape)}, "
            f"the model needs {tuple(own[name].shape)})"
        )
    if problems:
        raise CheckpointError(f"{source} does not fit this model: {'; '.join(problems)}.")
    for name, tensor in tensors.items():
        _require_numbers(name, tensor, own[name], source)
    module.load_state_dict(tensors, strict=True)
    return LoadReport(source, format, len(tensors))


def _require_stored(path: Path) -> None:
    """A torch file is not compressed; one that unpacks to far more than itself is made to fill the memory."""
    try:
        with ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except (OSError, ValueError, BadZipFile, NotImplementedError):
        return  # a pickle of older versions, or what torch will name
    if size > 2 * path.stat().st_size + 2**20:
        raise CheckpointError(f"{path} unpacks to {size / 1e9:.1f} GB, which no torch file does; do not use it.")


def _require_numbers(name: str, tensor: Tensor, own: Tensor, source: str) -> None:
    """Whether a tensor can stand where ``own`` does: numbers of the same kind, all finite."""
    if tensor.layout != torch.strided or tensor.is_meta:
        raise CheckpointError(f"{source}: {name} is stored sparse or without values; save it as an ordinary tensor.")
    if tensor.is_floating_point() != own.is_floating_point() or tensor.is_complex() != own.is_complex():
        raise CheckpointError(
            f"{source}: {name} holds {_kind(tensor)} where the model has {_kind(own)}; quantised weights have to be "
            "converted back by what made them."
        )
    if own.is_floating_point() and not tensor.to(own.dtype).isfinite().all():
        raise CheckpointError(
            f"{source}: {name} holds NaN or infinite values, so the model would predict nothing: take an earlier state "
            "of its training, or the file from its source."
        )


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes and float32 values, in order of the names: the same in whichever file they lie."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.")
