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


_FOUND: dict[str, list[str]] = {}  # by what keys print


def unused_parameters(module: nn.Module, call: Callable[[], Iterable[Tensor]], key: object = None) -> list[str]:
    """Names of the parameters that no output of ``call()`` depends on, so that they get no gradient.

    Buffers and the state of random numbers stay as they are.

    Args:
        module: the parameters' owner.
        call: a small pass through it; its outputs.
        key: all that the module is built from and the pass depends on, so that it is made once a process for modules of
            the same make; None: they may be anything.
    """
    said = None if key is None else repr(key)
    if said in _FOUND:
        return [*_FOUND[said]]
    parameters = {name: parameter.detach().requires_grad_() for name, parameter in module.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    given = {f"module.{name}": tensor for name, tensor in {**parameters, **buffers}.items()}
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        outputs = functional_call(_Call(module, call), given, ())
    reached = _leaves(outputs)
    found = [name for name, parameter in parameters.items() if id(parameter) not in reached]
    if said is not None:
        _FOUND[said] = [*found]
    return found


def freeze_unused(module: nn.Module, call: Callable[[], Iterable[Tensor]], key: object = None) -> None:
    """Train only what gets a gradient: several processes wait for the gradient of every parameter that is trained.

    Args:
        key: see ``unused_parameters``.
    """
    for name in unused_parameters(module, call, key):
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
