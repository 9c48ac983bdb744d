"""What a pass through a model does not use, found by making one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call


class _Call(nn.Module):
    """A module whose forward pass is ``call``, of ``module`` or a part of it."""

    def __init__(self, module: nn.Module, call: Callable[[], Iterable[Tensor]]) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self) -> Iterable[Tensor]:
        return self.call()


def unused_parameters(module: nn.Module, call: Callable[[], Iterable[Tensor]]) -> list[str]:
    """Names of the parameters that no output of ``call()`` depends on, so that they get no gradient.

    Buffers and the state of random numbers stay as they are.

    Args:
        module: the parameters' owner.
        call: a small pass through it; its outputs.
    """
    parameters = {name: parameter.detach().requires_grad_() for name, parameter in module.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    given = {f"module.{name}": tensor for name, tensor in {**parameters, **buffers}.items()}
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        outputs = functional_call(_Call(module, call), given, ())
    reached = _leaves(outputs)
    return [name for name, parameter in parameters.items() if id(parameter) not in reached]


def remembered(key: object, find: Callable[[], list[str]]) -> list[str]:
    """What ``find`` gives, found once a process for all modules that are built from ``key``, by what it prints."""
    said = repr(key)
    if said not in _FOUND:
        _FOUND[said] = find()
    return _FOUND[said]


_FOUND: dict[str, list[str]] = {}


def freeze_unused(module: nn.Module, call: Callable[[], Iterable[Tensor]], key: object = None) -> None:
    """Train only what gets a gradient: several processes wait for the gradient of every parameter that is trained.

    Args:
        key: what the module is built from, if from nothing else, see ``remembered``; None: it is looked at.
    """

    def find() -> list[str]:
        return unused_parameters(module, call)

    for name in find() if key is None else remembered(key, find):
        module.get_parameter(name).requires_grad_(False)


def _leaves(outputs: Iterable[Tensor]) -> set[int]:
    """``id`` of the tensors at the ends of the outputs' graphs."""
    waiting, seen, leaves = [output.grad_fn for output in outputs], set(), set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        waiting.extend(earlier for earlier, _ in node.next_functions)
    return leaves
