"""The tokens of each layer with their labels, the readers that are fitted on them, and their numbers; see `probe`.

Shapes: B windows, N labelled patches, D width, K classes, H heads, G groups of units, S clusters, M scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.consumed import Images
from analysis.maths.agreement import adjusted_rand_index, normalised_mutual_information
from analysis.maths.coding_rate import coding_rate
from analysis.maths.collapse import collapse, collapse_without_each, rates
from analysis.maths.conventions import Convention
from analysis.maths.intervals import ranged
from analysis.maths.probes import Reader, class_means, clusters, linear_probe
from analysis.maths.resampling import Interval, estimated, jackknifed
from analysis.maths.tokens import Tokens
from analysis.measurement import Progress
from analysis.measures.finite import finite
from analysis.measures.samples import Sample, samples
from analysis.measures.stages import Stage, split, stages_of
from whitebox.data.images import IGNORE
from whitebox.engine.metrics import score_vectors
from whitebox.errors import DataError, ModelError
from whitebox.models.attention import SubspaceLayer, subspace_layers
from whitebox.models.decoders.base import class_scores
from whitebox.models.taps import record
from whitebox.runs import Run

if TYPE_CHECKING:
    from analysis.measures.probe import Probe

Float = NDArray[np.float64]
Int = NDArray[np.int64]

LEAST = 10  # labelled patches that a probe is fitted on
_GROUPS = 20  # of units that the jackknife leaves out, at most
_HELD = 0.2  # share of the units on which the strength of regularisation is chosen
_NAMED = 6  # missing classes in a note
_CHANCE = 2**20  # between the seeds of images that are fitted on and of those that are measured


@dataclass(frozen=True)
class Seen:
    """The labelled patches of one image.

    Attributes:
        label_N: their classes.
        logits_NK: what the decoder says; of one that gives scores, their logarithms.
        tokens: of each stage, (1, N, D).
    """

    label_N: Int
    logits_NK: Tensor
    tokens: dict[str, Tokens]

    @property
    def said_N(self) -> Int:
        """The class of each patch by the decoder."""
        return np.asarray(self.logits_NK.argmax(-1).numpy())


class Looked:
    """What images show at the stages of a run.

    Attributes:
        stages: those with one token a patch.
    """

    def __init__(self, run: Run, rule: Convention, encoder: bool, patterns: Sequence[str]) -> None:
        stages = [stage for stage in stages_of(run, encoder, patterns) if not stage.classes]
        self.run, self.rule, self.stages, self.dropped = run, rule, stages, list[str]()

    def keep_last(self) -> None:
        """Look at the last stage alone: what the masks are made of."""
        self.stages = self.stages[-1:]

    def last(self, seen: Seen) -> Tensor:
        """Tokens of the last stage, (N, D), float64, on the CPU.

        Raises:
            ModelError: they are not one a patch.
        """
        if not self.stages:
            raise ModelError(f"The last tokens of {self.run.name} are not one a patch, so they have no labels.")
        return seen.tokens[self.stages[-1].name].vectors_BND[0].cpu()

    @torch.inference_mode()
    def at(self, sample: Sample) -> Seen:
        """One image.

        Raises:
            ModelError: tokens that are NaN or infinite.
        """
        model, batch = self.run.model, self.run.config.inference.batch
        known_Bn = sample.labels_Bhw.flatten(1) != IGNORE
        parts: dict[str, list[Tensor]] = {stage.name: [] for stage in self.stages}
        said = []
        for pixels_B3HW, known in zip(sample.pixels_B3HW.split(batch), known_Bn.split(batch), strict=True):
            with record(model, *(stage.tap for stage in self.stages)) as activations:
                prediction = model.predict(pixels_B3HW)
            for stage in list(self.stages):
                z_BND = finite(activations[stage.tap], f"{stage.tap} (image {sample.name})", self.run)
                patches_BND, _ = split(model, z_BND, known.shape[1])
                if patches_BND.shape[1] != known.shape[1]:
                    self.stages.remove(stage)
                    self.dropped.append(f"{stage.name}: its tokens are not one a patch, so they have no labels.")
                    continue
                parts[stage.name].append(patches_BND.cpu()[known])
            scores_BnK = prediction.masks_BKhw.flatten(2).mT.float()
            if prediction.shares_BKK is not None:
                scores_BnK = class_scores(scores_BnK, prediction.shares_BKK).clamp_min(1e-30).log()
            said.append(scores_BnK.cpu()[known])
        tokens = {stage.name: Tokens(torch.cat(parts[stage.name])[None], self.rule) for stage in self.stages}
        return Seen(sample.labels_Bhw.flatten(1)[known_Bn].numpy(), torch.cat(said), tokens)


class Kept:
    """As many labelled patches of each image, in float32: the same ones at every stage."""

    def __init__(self, images: int, patches: int, seed: int) -> None:
        self.each, self.seed = -(-patches // images), seed
        self.label: list[Int] = []
        self.image: list[Int] = []
        self.tokens: dict[str, list[NDArray[np.float32]]] = {}

    def take(self, seen: Seen, image: int) -> None:
        """Some patches of an image, by chance."""
        N = len(seen.label_N)
        chosen_n = np.arange(N)
        if self.each < N:
            chosen_n = np.sort(np.random.default_rng([self.seed, image]).choice(N, self.each, replace=False))
        self.label.append(seen.label_N[chosen_n])
        self.image.append(np.full(len(chosen_n), image))
        for name, tokens in seen.tokens.items():
            self.tokens.setdefault(name, []).append(tokens.vectors_BND[0, chosen_n].cpu().float().numpy())

    def pop(self, name: str) -> Float:
        """The tokens of one stage, (N, D), which are then let go."""
        return np.concatenate(self.tokens.pop(name)).astype(np.float64)

    @property
    def label_N(self) -> Int:
        return np.concatenate(self.label)

    @property
    def image_N(self) -> Int:
        return np.concatenate(self.image)


@dataclass(frozen=True)
class Readers:
    """Those of one stage."""

    probe: Reader
    nearest: Reader
    clusters: Reader


def probed(asked: Probe, run: Run, images: Images, patterns: Sequence[str], advance: Progress) -> dict[str, Any]:
    """``measured`` of the record.

    Raises:
        DataError: too few labelled patches, or an image cannot be read.
        ConfigError: an unknown layer.
        ModelError: tokens that are NaN or infinite.
    """
    looked, K = Looked(run, asked.rule, asked.encoder, patterns), run.model.num_classes
    training = asked.fitted(run)
    indices = range(0, len(training), -(-len(training) // asked.train_images))
    total = len(indices) + len(images)

    kept = Kept(len(indices), asked.patches, asked.seed)
    for done, sample in enumerate(samples(run, training.dataset, indices)):
        seen = looked.at(sample)
        kept.take(seen, done)
        if done == 0:  # an eps that doubles cannot resolve is refused before anything is fitted
            for tokens in seen.tokens.values():
                coding_rate(tokens.vectors_BND[0], asked.eps)
        advance(done + 1, total)
    readers = _readers(looked, kept, [training.units.of_N[index] for index in indices], asked.seed, training)

    sampled = Kept(len(images), asked.patches, asked.seed + _CHANCE)
    unit_N = images.units.of_N
    group_N = groups_of(unit_N)
    counts: dict[tuple[str, str], list[Float]] = {}
    joint = {name: np.zeros((group_N.max() + 1, len(each.clusters.classes_C), K)) for name, each in readers.items()}
    energies = _Energies(run, looked.stages, K)
    for index, sample in enumerate(images.each(run)):
        seen = looked.at(sample)
        sampled.take(seen, index)
        energies.add(seen)
        counts.setdefault(("output", ""), []).append(_counts(seen.said_N, seen.label_N, K))
        for name, each in readers.items():
            z_ND = seen.tokens[name].vectors_BND[0].cpu().numpy()
            for what, reader in (("probe", each.probe), ("nearest", each.nearest)):
                counts.setdefault((name, what), []).append(_counts(reader.read(z_ND), seen.label_N, K))
            np.add.at(joint[name][group_N[index]], (each.clusters.read(z_ND), seen.label_N), 1)
        advance(len(indices) + index + 1, total)

    label_N, own_N = sampled.label_N, group_N[sampled.image_N]
    if not len(label_N):
        raise DataError(f"No patch of these images of {images.config.name} {images.split} has a label.")
    layers = []
    for stage in looked.stages:
        z_ND = sampled.pop(stage.name)
        nc = jackknifed(collapse(z_ND, label_N), collapse_without_each(z_ND, label_N, own_N), within=(0, math.inf))
        rate = jackknifed(*rates(z_ND, label_N, own_N, K, asked.eps), within=(0, math.inf))
        table = joint[stage.name]
        miou, iou = _scores(counts[stage.name, "probe"], run, unit_N, asked.seed)
        layers.append(
            {
                "name": stage.name,
                "position": stage.position,
                "width": z_ND.shape[1],
                "miou": miou,
                "iou": iou,
                "strength": readers[stage.name].probe.strength,
                "nearest": _scores(counts[stage.name, "nearest"], run, unit_N, asked.seed)[0],
                "nmi": _ranged(jackknifed(*_each(table, normalised_mutual_information), within=(0, 1)))[0],
                "ari": _ranged(jackknifed(*_each(table, adjusted_rand_index), within=(-1, 1)))[0],
                **dict(zip(("nc1", "lengths", "angles"), _ranged(nc), strict=True)),
                **dict(zip(("rate", "reduction"), _ranged(rate)[:2], strict=True)),
                "class_rates": _ranged(rate)[2:],
            }
        )
    miou, iou = _scores(counts["output", ""], run, unit_N, asked.seed)
    return {
        "classes": list(images.classes),
        "fitted": {"patches": len(kept.label_N), "images": len(indices)},
        "judged": {"patches": int(sum(each[2].sum() for each in counts["output", ""])), "sample": len(label_N)},
        "layers": layers,
        "output": {"miou": miou, "iou": iou},
        "energies": energies.found(unit_N, asked.seed),
        "notes": [*looked.dropped, *_notes(images, training, kept.label_N, label_N, bool(energies.layers))],
    }


def _readers(looked: Looked, kept: Kept, unit_N: Sequence[str], seed: int, training: Images) -> dict[str, Readers]:
    """What is fitted on the tokens of each stage."""
    label_N, K = kept.label_N, looked.run.model.num_classes
    if len(label_N) < LEAST or len(np.unique(label_N)) < 2:
        raise DataError(
            f"{len(unit_N)} images of {training.config.name} {training.split} have {len(label_N)} labelled patches of "
            f"{len(np.unique(label_N))} classes, and a probe is fitted on {LEAST} of two classes: give more images."
        )
    held_N = _held_out(unit_N, kept.image_N, seed)
    found = {}
    for stage in looked.stages:
        z_ND = kept.pop(stage.name)
        found[stage.name] = Readers(
            linear_probe(z_ND, label_N, held_N), class_means(z_ND, label_N), clusters(z_ND, K, seed)
        )
    return found


def _held_out(unit_N: Sequence[str], image_N: Int, seed: int) -> NDArray[np.bool_]:
    """Which tokens strengths are compared on: whole units where there are five or more, else whole images."""
    names = list(unit_N) if len(set(unit_N)) >= 1 / _HELD else [str(index) for index in range(len(unit_N))]
    known = list(dict.fromkeys(names))
    count = max(1, round(_HELD * len(known)))
    chosen = {known[index] for index in np.random.default_rng(seed).permutation(len(known))[:count]}
    of_image = np.array([name in chosen for name in names])
    held_N = np.asarray(of_image[image_N])
    if held_N.all() or not held_N.any():  # a single image, or labels in few
        held_N = np.arange(len(image_N)) % round(1 / _HELD) == 0
    return held_N


def groups_of(unit_N: Sequence[str]) -> Int:
    """Which group of units each image is of."""
    known = {name: index for index, name in enumerate(dict.fromkeys(unit_N))}
    count = min(_GROUPS, len(known))
    return np.array([known[name] * count // len(known) for name in unit_N])


def _counts(read_N: Int, label_N: Int, classes: int) -> Float:
    """Right, predicted and labelled patches of each class, (3, K)."""
    right_N = read_N[read_N == label_N]
    return np.stack([np.bincount(each, minlength=classes) for each in (right_N, read_N, label_N)]).astype(np.float64)


def _scores(counts: Sequence[Float], run: Run, unit_N: Sequence[str], seed: int) -> tuple[Any, list[Any]]:
    """MIoU and IoU of each class, with their intervals."""
    found = estimated(
        np.stack(counts).reshape(len(counts), -1),
        partial(score_vectors, mean_over=run.data.mean_over),
        unit_N,
        seed=seed,
        within=(0, 1),
    )
    every, K = _ranged(found), counts[0].shape[1]
    return every[0], every[3 : 3 + K]


def _ranged(found: Interval) -> list[Any]:
    return [ranged(*each) for each in zip(found.value_M, zip(found.low_M, found.high_M, strict=True), strict=True)]


def _each(joint_GSK: Float, number: Any) -> tuple[Float, Float]:
    """A number of all groups, (1,), and without each, (G, 1)."""
    whole_SK = joint_GSK.sum(0)
    return number(whole_SK)[None], number(whole_SK - joint_GSK)[:, None]


class _Energies:
    """Of each class in the subspaces of each decoder layer, of the tokens that enter it."""

    def __init__(self, run: Run, stages: Sequence[Stage], classes: int) -> None:
        place = {stage.position: stage.name for stage in stages if stage.position >= 0}
        found = subspace_layers(run.model)
        own = {name: layer for name, layer in found.items() if name.startswith("decoder.layers.")}
        positions = {name: 1 + int(name.split(".")[2]) for name in own}
        self.layers = {name: layer for name, layer in own.items() if positions[name] - 1 in place}
        self.positions, self.classes = positions, classes
        self.enters = {name: place[positions[name] - 1] for name in self.layers}
        self.spans = {name: _spans(layer) for name, layer in self.layers.items()}
        self.rows: dict[str, list[Float]] = {name: [] for name in self.layers}

    def add(self, seen: Seen) -> None:
        """One image."""
        label_N = torch.from_numpy(seen.label_N)
        for name, layer in self.layers.items():
            z_ND = seen.tokens[self.enters[name]].seen(layer)[0].cpu()
            energy_NX = torch.stack(
                [*((z_ND @ q_DP).square().sum(1) for q_DP in self.spans[name]), z_ND.square().sum(1)], 1
            )
            sums_KX = torch.zeros(self.classes, energy_NX.shape[1], dtype=torch.float64)
            self.rows[name].append(sums_KX.index_add_(0, label_N, energy_NX).numpy())

    def found(self, unit_N: Sequence[str], seed: int) -> list[dict[str, Any]]:
        """As the record has them."""
        every = []
        for name, spans in self.spans.items():
            rows_NKX = np.stack(self.rows[name])

            def shares(sums: Float, shape: tuple[int, ...] = rows_NKX.shape[1:]) -> Float:
                of_KX = sums.reshape(*sums.shape[:-1], *shape)
                of_K = np.where(of_KX[..., -1:] > 0, of_KX[..., -1:], np.nan)
                return np.asarray((of_KX[..., :-1] / of_K).reshape(*sums.shape[:-1], -1))

            found = estimated(rows_NKX.reshape(len(rows_NKX), -1), shares, unit_N, seed=seed, within=(0, 1))
            cells = _ranged(found)
            H = len(spans)
            every.append(
                {
                    "name": name,
                    "position": self.positions[name],
                    "random": [q_DP.shape[1] / q_DP.shape[0] for q_DP in spans],
                    "shares": [cells[start : start + H] for start in range(0, len(cells), H)],
                }
            )
        return every


def _spans(layer: SubspaceLayer) -> list[Tensor]:
    """An orthonormal basis of each head's subspace, (D, rank)."""
    found = []
    for u_PD in layer.bases.detach().cpu().double():
        _, length_P, v_PD = torch.linalg.svd(u_PD, full_matrices=False)
        found.append(v_PD[length_P > 1e-7 * length_P.max()].T)  # bases are float32
    return found


def _notes(images: Images, training: Images, fitted_N: Int, judged_N: Int, subspaces: bool) -> Iterator[str]:
    """What does not apply, and what would mislead."""
    for label_N, where, means in (
        (fitted_N, f"{training.split} patches that readers were fitted on", "no reader says them"),
        (
            judged_N,
            f"{images.split} patches whose geometry was measured",
            "they have no rate and no part in NC1 and NC2",
        ),
    ):
        missing = [name for c, name in enumerate(images.classes) if c not in label_N]
        if missing:
            more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            yield f"not among the {where}: {', '.join(missing[:_NAMED])}{more}; {means}."
    if images.split == training.split:
        yield "readers were fitted on images of the split that they read, and say less about new images."
    if not subspaces:
        yield "has no layer with subspaces whose tokens were measured: energies do not apply."
