"""Scores of what is foreign to a model, patch by patch and photo by photo; see `ood`.

Shapes: N labelled patches, D width, K classes, C those that were taught, G groups of units, E bins, S scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.consumed import Images
from analysis.maths.coding_rate import principal_directions, second_moment
from analysis.maths.conventions import Convention
from analysis.maths.corruptions import Corruption
from analysis.maths.detection import counted, detection, edges_of, edges_of_shares, roc
from analysis.maths.intervals import ranged
from analysis.maths.perturbation import ChangedImages
from analysis.maths.resampling import jackknifed
from analysis.measurement import Progress
from analysis.measures.layer_probes import Looked, Seen, groups_of
from analysis.measures.samples import samples
from whitebox.errors import ConfigError, DataError
from whitebox.runs import Run

if TYPE_CHECKING:
    from analysis.measures.ood import OOD

Float = NDArray[np.float64]

SCORES = ("max logit", "entropy", "energy", "distance")
NUMBERS = ("auroc", "ap", "fpr95")


def detected(asked: OOD, run: Run, images: Images, advance: Progress) -> dict[str, Any]:
    """``measured`` of the record.

    Raises:
        ConfigError: more directions than tokens have dimensions.
        DataError: an image cannot be read; no patch has a label.
        ModelError: tokens that are NaN or infinite.
    """
    names = asked.foreign(run)
    foreign_F = np.array([run.classes.index(name) for name in names], dtype=np.int64)
    taught_C = torch.tensor([index for index, name in enumerate(run.classes) if name not in names])
    looked = Looked(run, Convention(), False, [])
    looked.keep_last()
    width = run.model.decoder.width
    directions = asked.directions or min(len(taught_C), width - 1)
    if not 1 <= directions < width:
        raise ConfigError(
            f"--directions {directions} is impossible: tokens of {width} dimensions leave 1 to {width - 1}."
        )
    training = asked.fitted(run)
    indices = range(0, len(training), -(-len(training) // asked.train_images))
    total, done = len(indices) + len(images) * (1 + len(asked.changes)), 0

    moment_DD, patches = torch.zeros(()), 0
    usual: list[Float] = []
    for sample in samples(run, training.dataset, indices):
        seen = looked.at(sample)
        taught_N = torch.from_numpy(~np.isin(seen.label_N, foreign_F))
        moment_DD = moment_DD + second_moment(looked.last(seen)[taught_N])
        patches += int(taught_N.sum())
        usual.append(_of_logits(seen.logits_NK[:, taught_C]))
        advance(done := done + 1, total)
    if not patches:
        raise DataError(f"No patch of {training.config.name} {training.split} has a label, so there is no subspace.")
    basis_DP = principal_directions(moment_DD, directions)
    edges = _edges(np.concatenate(usual, axis=1))

    group_N = groups_of(images.units.of_N)
    counts_GSE2 = np.zeros((group_N.max() + 1, len(SCORES), len(edges[0]) + 1, 2))
    clean_NS = np.full((len(images), len(SCORES)), np.nan)
    for index, sample in enumerate(images.each(run)):
        seen = looked.at(sample)
        score_SN, is_foreign_N = (
            scores_of(seen, looked.last(seen), taught_C, basis_DP),
            np.isin(seen.label_N, foreign_F),
        )
        clean_NS[index] = score_SN.mean(1) if score_SN.size else np.nan
        for score, (score_N, own) in enumerate(zip(score_SN, edges, strict=True)):
            counts_GSE2[group_N[index], score] += counted(score_N, is_foreign_N, own)
        advance(done := done + 1, total)
    known, foreign = (int(count) for count in counts_GSE2[:, 0].sum((0, 1)))
    if not known + foreign:
        raise DataError(f"No patch of these images of {images.config.name} {images.split} has a label.")
    notes = []
    rows = []
    if names and foreign:
        rows = _rows(counts_GSE2)
    elif names:
        notes.append(f"no patch of {', '.join(names)} is labelled in these images: there is nothing foreign to find.")
    if names and not set(names) <= set(run.saved.get("data", {}).get("held_out") or ()):
        notes.append(f"{', '.join(names)}: not held out of the training (data.held_out), so the model was taught them.")
    corruptions = []
    for kind, severity in asked.changes:
        changed = ChangedImages(images.dataset, Corruption(kind, severity, images.config.name, asked.seed))
        changed_NS = np.full_like(clean_NS, np.nan)
        for index, sample in enumerate(samples(run, changed, range(len(images)))):
            seen = looked.at(sample)
            score_SN = scores_of(seen, looked.last(seen), taught_C, basis_DP)
            changed_NS[index] = score_SN.mean(1) if score_SN.size else np.nan
            advance(done := done + 1, total)
        corruptions.append({"kind": kind, "severity": severity, "scores": _of_photos(clean_NS, changed_NS, group_N)})
    return {
        "held_out": list(names),
        "known": known,
        "foreign": foreign,
        "stage": looked.stages[0].name,
        "directions": directions,
        "fitted": {"images": len(indices), "split": training.split},
        "scores": rows,
        "corruptions": corruptions,
        "notes": notes,
    }


def scores_of(seen: Seen, z_ND: Tensor, taught_C: Tensor, basis_DP: Tensor) -> Float:
    """All scores of the patches of an image, (S, N), see `ood`."""
    outside_N = (z_ND - (z_ND @ basis_DP) @ basis_DP.mT).norm(dim=-1) / z_ND.norm(dim=-1).clamp_min(1e-30)
    return np.concatenate([_of_logits(seen.logits_NK[:, taught_C]), outside_N[None].numpy()])


def _of_logits(logits_NC: Tensor) -> Float:
    """The first three, (3, N)."""
    logits_NC = logits_NC.double()
    logs_NC = logits_NC.log_softmax(-1)
    found = (-logits_NC.amax(-1), -(logs_NC.exp() * logs_NC).sum(-1), -logits_NC.logsumexp(-1))
    return np.asarray(torch.stack(found).numpy())


def _edges(usual_SN: Float) -> list[Float]:
    """Of the bins of each score, equally many: by what training images show; a distance is a share."""
    found = [*map(edges_of, usual_SN), edges_of_shares()]
    most = max(map(len, found))
    return [np.concatenate([each, np.full(most - len(each), np.inf)]) for each in found]


def _rows(counts_GSE2: Float) -> list[dict[str, Any]]:
    """Numbers of each score, with the jackknife over groups; only those with known and foreign ones tell of both."""
    whole_SE2 = counts_GSE2.sum(0)
    both = int((counts_GSE2[:, 0].sum(1) > 0).all(-1).sum())
    found = jackknifed(
        detection(whole_SE2).ravel(),
        detection(whole_SE2 - counts_GSE2).reshape(len(counts_GSE2), -1),
        within=(0, 1),
        most=both,
    )
    cells = [ranged(*each) for each in zip(found.value_M, zip(found.low_M, found.high_M, strict=True), strict=True)]
    return [
        {
            "name": name,
            **dict(zip(NUMBERS, cells[len(NUMBERS) * index :], strict=False)),
            "roc": roc(whole_SE2[index]).round(5).tolist(),
        }
        for index, name in enumerate(SCORES)
    ]


def _of_photos(clean_NS: Float, changed_NS: Float, group_N: NDArray[np.int64]) -> list[dict[str, Any]]:
    """As `_rows`, of the mean score of photos; a bin a value."""
    fine_N = ~(np.isnan(clean_NS).any(1) | np.isnan(changed_NS).any(1))
    both_2NS = np.stack([clean_NS[fine_N], changed_NS[fine_N]])
    groups, most = np.unique(group_N[fine_N]), 2 * int(fine_N.sum()) + 1  # bins, at most
    counts_GSE2 = []
    for group in groups:
        own_2NS = both_2NS[:, group_N[fine_N] == group]
        per_score = []
        for score in range(len(SCORES)):
            edges = np.unique(both_2NS[..., score])
            values = own_2NS[..., score]
            per = counted(values.ravel(), np.repeat([False, True], values.shape[1]), edges)
            per_score.append(np.pad(per, ((0, most - len(per)), (0, 0))))
        counts_GSE2.append(np.stack(per_score))
    rows = _rows(np.stack(counts_GSE2))
    return [{key: value for key, value in row.items() if key != "roc"} for row in rows]
