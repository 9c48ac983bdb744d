"""Gaussian noise on parameters and on images: how much, on what, and which random numbers.

Parameters: theta + sigma * n, always from the saved float32 theta; n is standard normal, element by element, and a
function of (seed, draw, parameter's name) alone, so all sigma of a draw share it (common random numbers): curves are
smooth in sigma, and differences between two sigma are not hidden by the draw. Source of the experiment: noise figures
in the repository of DEPICT (arXiv 2411.03033), which do not say what is perturbed; their axis is the absolute sigma.

Images: the same with a function of (seed, draw, dataset, image's name), in units of [0, 1], on the decoded photo.

Shapes: H W pixels of a photo.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from analysis.maths.levels import TARGETS
from whitebox.data import Sample
from whitebox.engine.evaluate import LabelledImage, LabelledImages
from whitebox.errors import ConfigError
from whitebox.models.attention import is_subspace_layer
from whitebox.models.taps import Tap

_PROJECTIONS = {"basis", "output", "attn", "self_attention", "q", "k", "v", "proj"}
# What decoders call what comes after their layers, and what is in it.
_HEAD = {"norm", "class_norm", "mask_norm", "proj_patch", "proj_class", "head", "heads", "class_head", "scale", "bias"}
_LAYERS = {"layers", "cross_layers"}
_STEPS = {"step_size", "representative_step"}


def target_parameters(model: nn.Module, target: str) -> dict[str, nn.Parameter]:
    """The parameters of ``model`` that a target of ``TARGETS`` names, by name; empty where the model has none.

    ``attention``: in layers with subspaces or attention weights, the matrices (no biases, norms, steps, MLPs).
    ``norms``: of whatever kind, with the norm of the masks. ``matrices``: in the layers, what has several rows and
    columns. ``step-sizes``: also those of CBSA's representatives. ``head``: norms, projections and classifiers after
    the last layer.

    Raises:
        ConfigError: an unknown target, or ``input``, which is no parameter.
    """
    named = dict(model.named_parameters())
    if target == "all":
        return named
    if target in ("decoder", "encoder"):
        return {name: value for name, value in named.items() if name.startswith(f"{target}.")}
    if target == "queries":
        return {name: value for name, value in named.items() if name == "decoder.class_embeddings"}
    if target == "attention":
        layers = [
            f"{name}."
            for name, module in model.named_modules()
            if name.startswith("decoder.")
            and (is_subspace_layer(module) or isinstance(getattr(module, "attention", None), Tap))
        ]
        return {
            name: value
            for name, value in named.items()
            for layer in layers
            if name.startswith(layer) and value.dim() == 2 and name[len(layer) :].split(".")[0] in _PROJECTIONS
        }
    own = {name.removeprefix("decoder."): name for name in named if name.startswith("decoder.")}
    chosen: Callable[[str], bool] | None = {
        "norms": lambda name: "Norm" in type(model.get_submodule(own[name].rpartition(".")[0])).__name__,
        "matrices": lambda name: (
            name.split(".")[0] in _LAYERS and sum(size > 1 for size in named[own[name]].shape) >= 2
        ),
        "step-sizes": lambda name: name.rpartition(".")[2] in _STEPS,
        "head": lambda name: name.split(".")[0] in _HEAD,
    }.get(target)
    if chosen is not None:
        return {full: named[full] for name, full in own.items() if chosen(name)}
    known = ", ".join(name for name in TARGETS if name != "input")
    raise ConfigError(f"There are no parameters called {target!r}: choose from {known}.")


def random_state(*key: object) -> np.random.Generator:
    """A generator that is a function of ``key`` alone, of its text."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def standard_normal(shape: tuple[int, ...], *key: object) -> NDArray[np.float32]:
    """Standard normal numbers of this shape, float32, a function of shape and ``key`` alone."""
    return random_state(*key).standard_normal(shape, dtype=np.float32)


@contextmanager
def perturbed(
    parameters: Mapping[str, nn.Parameter],
    sigma: float,
    *,
    seed: int,
    draw: int,
    sign: int = 1,
    relative: bool = False,
) -> Iterator[None]:
    """Inside the block the parameters are theta + sign * sigma * n; after it theta again, bit for bit.

    Args:
        parameters: by name, see `target_parameters`.
        sigma: standard deviation; with ``relative`` in units of each tensor's root mean square.
        seed, draw: with the name, the key of n.
        sign: 1, or -1 for the antithetic twin of a draw.
    """
    saved = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        with torch.no_grad():
            for name, parameter in parameters.items():
                theta = saved[name].cpu()  # there, so that all devices add the same
                n = torch.from_numpy(standard_normal(tuple(theta.shape), seed, draw, name))
                scale = sigma * float(theta.double().square().mean().sqrt()) if relative else sigma
                parameter.copy_(theta + (sign * scale) * n)
        yield
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(saved[name])


Change = Callable[[NDArray[np.uint8], str], NDArray[np.uint8]]  # RGB (H, W, 3), and the image's name


class ChangedImages:
    """A dataset whose photos are changed as they are read, in the loading processes; labels stay."""

    def __init__(self, dataset: LabelledImages, change: Change) -> None:
        self.dataset, self.change = dataset, change
        self.classes, self.ignore_index = dataset.classes, dataset.ignore_index

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> LabelledImage:
        sample = self.dataset[index]
        changed_HW3 = self.change(sample.image.permute(1, 2, 0).numpy(), sample.name)
        image_3HW: Tensor = torch.from_numpy(np.ascontiguousarray(changed_HW3.transpose(2, 0, 1)))
        return Sample(image_3HW, sample.label, sample.name)


@dataclass(frozen=True)
class PixelNoise:
    """Noise on a photo: x + sign * sigma * n in [0, 1], clipped there, and rounded to the 8 bits photos are read in."""

    sigma: float
    dataset: str
    seed: int
    draw: int
    sign: int = 1

    def __call__(self, image_HW3: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
        n_HW3 = standard_normal(image_HW3.shape, self.seed, self.draw, self.dataset, name)
        noisy_HW3 = np.clip(image_HW3 / np.float32(255) + np.float32(self.sign * self.sigma) * n_HW3, 0, 1)
        return np.asarray(np.rint(255 * noisy_HW3), np.uint8)
