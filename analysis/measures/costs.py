"""What a model costs, counted and timed: parameters, multiply-accumulates, seconds, memory; by scope.

One multiply-accumulate (MAC) of a matrix product or convolution is two floating point operations: FLOPs = 2 x MACs.
The scopes:

    decoder blocks   the layers of the decoder (its ``layers`` and ``cross_layers``), nothing else. The scope of the
                     decoder GFLOPs that DEPICT (arXiv 2411.03033) and CBSA (arXiv 2509.16875) publish; their N is
                     patches + class tokens
    decoder          with projections, norms and the product of patches and class embeddings: tokens to masks
    encoder          with patch embedding: image to tokens
    model            image to class maps: encoder and decoder, and where the decoder says what each mask is (SegViT) the
                     product of masks and classes at every pixel, as SegViT's published numbers count it

Counted by ``torch.utils.flop_counter`` with attention written out, on tensors without content: a count is exact, costs
no arithmetic and does not depend on the machine. Not counted: what is no matrix product or convolution, such as
softmax, normalisation, pooling, upsampling, and token statistics taken element by element (ToST's second moments).
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from analysis.maths.conventions import SCOPES, Cost
from whitebox.config import InferenceConfig
from whitebox.engine.inference import device_of, predict_many
from whitebox.models import Decoder, OpenSegmentor, Segmentor

LAYER_LISTS = ("layers", "cross_layers")  # what decoders call their layers, see whitebox.models.taps
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SEED = 0  # of the images


def blocks(decoder: Decoder) -> dict[str, nn.Module]:
    """The layers of a decoder by name, ``layers.0``, ``cross_layers.2``; a linear decoder has none."""
    lists = {name: layers for name, layers in decoder.named_children() if name in LAYER_LISTS}
    return {f"{name}.{index}": block for name, layers in lists.items() for index, block in enumerate(layers.children())}


def count(model: Segmentor, size: int) -> dict[str, Cost]:
    """Parameters and MACs of each scope for one image of ``size`` x ``size`` px, padded to whole patches.

    Parameters include what is frozen or unused in segmentation (the encoder's ImageNet classifier), as published
    counts do.
    """
    if isinstance(model, OpenSegmentor) and getattr(model.decoder, "text_TPD", None) is None:
        draw_names(model)
    state = chain(model.named_parameters(), model.named_buffers())
    empty = {name: tensor.detach().to("meta") for name, tensor in state}
    images = torch.empty(1, 3, size, size, device="meta")
    flops = dict.fromkeys(SCOPES, 0)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():

        def before(scope: str) -> None:
            flops[scope] -= counter.get_total_flops()

        def after(scope: str) -> None:
            flops[scope] += counter.get_total_flops()

        with watched(model, before, after):
            torch.func.functional_call(model, empty, (images,))
    layers = blocks(model.decoder)
    of_modules = counter.get_flop_counts()
    for name in layers:
        flops["decoder blocks"] += sum(of_modules[f"{type(model).__name__}.decoder.{name}"].values())
    flops["model"] = counter.get_total_flops()
    modules: dict[str, list[nn.Module]] = {
        "decoder blocks": list(layers.values()),
        "decoder": [model.decoder],
        "encoder": [model.encoder],
        "model": [model],
    }
    return {scope: Cost(_parameters(modules[scope]), flops[scope] // 2) for scope in SCOPES}


def draw_names(model: OpenSegmentor) -> None:
    """Random embeddings of names, of a model that only costs are asked of: its text tower need not run."""
    shape = (model.num_classes, model.encoder.prompts, model.encoder.embed)
    features_TPD = torch.nn.functional.normalize(torch.randn(shape, device=model.mean.device), dim=-1)
    model.set_vocabulary(model.classes, model.palette, features_TPD)


def _parameters(modules: Sequence[nn.Module]) -> int:
    found = {id(parameter): parameter.numel() for module in modules for parameter in module.parameters()}
    return sum(found.values())


@contextmanager
def watched(model: Segmentor, before: Callable[[str], object], after: Callable[[str], object]) -> Iterator[None]:
    """Inside the block, ``before(scope)`` and ``after(scope)`` are called around encoder and decoder."""

    def around(scope: str, method: Callable[..., Any], *arguments: Any) -> Any:
        before(scope)
        result = method(*arguments)
        after(scope)
        return result

    places: dict[str, tuple[nn.Module, str]] = {"encoder": (model, "encode"), "decoder": (model.decoder, "predict")}
    for scope, (owner, name) in places.items():
        vars(owner)[name] = partial(around, scope, getattr(owner, name))  # found before the class's method
    try:
        yield
    finally:
        for owner, name in places.values():
            del vars(owner)[name]


class LiveMemory(TorchDispatchMode):
    """Inside the block: how many bytes the tensors made there take, and their peak; on any device.

    What a kernel takes for itself and gives back is not seen.

    Args:
        before: tensors that were there before (weights, inputs); they do not count.

    Attributes:
        alive, peak: bytes.
    """

    def __init__(self, before: Iterator[Tensor]) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in before)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:  # a view shares the storage of what it shows
            self._known.add(storage)
            self._change(storage.nbytes())
            weakref.finalize(storage, self._change, -storage.nbytes())

    def _change(self, size: int) -> None:
        self.alive += size
        self.peak = max(self.peak, self.alive)


class TimedModel:
    """A model and random photos, to be segmented as `whitebox predict` does: photos in memory to label maps."""

    def __init__(self, model: Segmentor, size: int, batch: int, precision: str) -> None:
        self.model, self.precision, self.device = model, precision, device_of(model)
        random = np.random.default_rng(SEED)
        self.photos = [random.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(batch)]
        self.inference = InferenceConfig(window=size, stride=size, batch=batch)

    def predict(self) -> None:
        """One forward pass of the whole batch, and the label maps from it."""
        dtype = PRECISIONS[self.precision]
        lower = nullcontext() if dtype == torch.float32 else torch.autocast(self.device.type, dtype)
        with lower:
            for _ in predict_many(self.model, self.photos, self.inference):
                pass
        self.synchronise()

    def synchronise(self) -> None:
        """Wait for what an accelerator still does."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def seconds(self) -> dict[str, float]:
        """Wall time of encoder, decoder and model (everything) in one pass."""
        times = dict.fromkeys(("encoder", "decoder", "model"), 0.0)

        def before(scope: str) -> None:
            times[scope] -= time.perf_counter()

        def after(scope: str) -> None:
            self.synchronise()
            times[scope] += time.perf_counter()

        with watched(self.model, before, after):
            before("model")
            self.predict()
            after("model")
        return times

    def peak_memory(self) -> dict[str, int]:
        """Most bytes of tensors alive at once, beside weights and photos: in encoder, decoder and model (all of it)."""
        peaks: dict[str, int] = {}
        with LiveMemory(chain(self.model.parameters(), self.model.buffers())) as memory:

            def before(scope: str) -> None:
                memory.peak = memory.alive

            def after(scope: str) -> None:
                peaks[scope] = memory.peak

            with watched(self.model, before, after):
                self.predict()
        return {**peaks, "model": max(memory.peak, *peaks.values())}
