"""What a measurement gives where nothing was learned, or less: every number of a run beside the same of a baseline.

    untrained           the same architecture, drawn anew; behind a frozen encoder the decoder alone
    random-subspaces    the trained model with random bases of the same lengths in every white-box layer
                        (`analysis.measures.variants.fitted`); it runs with them
    train               the trained model on training images
    epochs              the weights that a training kept on its way (``train.keep_every``)

Of the first two there are ``draws``: their mean, with the spread between draws in its interval where there are three or
more. Each draw and epoch is a record of its own, so what was interrupted goes on.

``minus`` is trained minus baseline. Its interval squares and adds the distances to the ends of both (Zou and Donner,
Statistics in Medicine 27, 2008), as if they were independent; of the same images (all but ``train``) they are not, and
it is wide rather than narrow. Where the interval of either is unknown, that of the difference is.

Layout of ``measured``, ESTIMATE as in `analysis.maths.intervals.estimates`::

    {"of": "rank-analysis", "baselines": ["untrained"], "epochs": [5.0, 10.0],
     "quantities": [{"name": "R(Z) (nats)", "factor": 1, "place": "decoder.layers.0", "position": 1,
                     "trained": ESTIMATE, "against": {"untrained": ESTIMATE}, "minus": {"untrained": ESTIMATE},
                     "epochs": [ESTIMATE or null, ...]}, ...],
     "notes": [...]}
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.ask import Bar, ask
from analysis.consumed import Chosen, Consumed, Images, WeightsAlone
from analysis.maths.intervals import half_width
from analysis.measurement import Measurement, Quantity
from analysis.measures.families import joined
from analysis.record import Answer, Question, Record, describe_weights
from whitebox.engine.header import EPOCHS
from whitebox.errors import ConfigError, require

if TYPE_CHECKING:
    from whitebox.runs import Run, SavedRun

KIND = "against"
DRAWN = ("untrained", "random-subspaces")  # at random
NAMES = (*DRAWN, "train")
_LEAST = 3  # draws that say something about their spread
Key = tuple[str, str]  # name of a quantity, and place


@dataclass(frozen=True)
class Wanted:
    """What a run is held against.

    Attributes:
        names: of `NAMES`.
        draws: of each that is random.
        epochs: whether also against the weights that its training kept.

    Raises:
        ConfigError: an unknown name, or no draws.
    """

    names: tuple[str, ...] = ()
    draws: int = 3
    epochs: bool = False

    @staticmethod
    def of(against: Sequence[str], draws: int, checkpoints: str | None) -> Wanted:
        """From the options of a command; names may be joined by commas."""
        names = tuple(dict.fromkeys(word.strip() for each in against for word in each.split(",") if word.strip()))
        for name in names:
            require(name in NAMES, "--against", name, f"choose {', '.join(NAMES)}")
        require(draws >= 1, "--initialisations", draws, "it must be at least 1")
        require(checkpoints in (None, "all"), "--checkpoints", checkpoints, "choose all")
        return Wanted(names, draws, checkpoints == "all")

    def __bool__(self) -> bool:
        return bool(self.names) or self.epochs


def kept_weights(folder: Path) -> dict[float, Path]:
    """The weights that a training kept, by epoch.

    Raises:
        ConfigError: there are none.
    """
    found = {}
    for path in folder.glob(f"{EPOCHS}/epoch-*.safetensors"):
        if match := re.fullmatch(r"epoch-(\d+)", path.stem):
            found[float(match[1])] = path
    if not found:
        raise ConfigError(
            f"{folder} keeps no weights of epochs, which --checkpoints all needs: train with train.keep_every=K."
        )
    return dict(sorted(found.items()))


def question_of(
    measurement: Measurement, own: Question, names: Sequence[str], draws: int, epochs: Sequence[float]
) -> Question:
    """How the answer to a question stands beside baselines; the weights of a run fix those of its epochs."""
    return Question(
        kind=KIND,
        model=own.model,
        data=own.data,
        weights=own.weights,
        variant="-".join(word for word in (measurement.kind, own.variant) if word),
        seeds=own.seeds,
        settings={**own.settings, "against": list(names), "draws": draws, "epochs": list(epochs)},
    )


def against(
    measurement: Measurement,
    run: SavedRun | Run,
    chosen: Chosen,
    wanted: Wanted,
    own: Record,
    bar: Bar,
    folder: Path,
    *,
    again: bool = False,
) -> Record:
    """The numbers of a run beside those of baselines.

    Args:
        own: what the measurement gave of the run itself.
        folder: that of the records is below it.

    Raises:
        ConfigError: no weights of epochs were kept.
        WhiteboxError: of the measurement.
    """
    epochs = kept_weights(run.folder) if wanted.epochs else {}
    consumed = measurement.consumes(run, chosen)
    names = [name for name in wanted.names if name != "train" or _has_other_images(consumed, run)]
    question = question_of(measurement, own, names, wanted.draws, list(epochs))

    def asked(what: str, change: Callable[[Run], Run], given: Chosen = chosen, sha256: str = "") -> list[Quantity]:
        """The quantities of a changed run, from its own record."""
        consumed = measurement.consumes(run, given)
        plain = measurement.question(run, consumed)
        baseline = {"baseline": what} | ({"baseline_sha256": sha256} if sha256 else {})
        changed = replace(
            plain,
            variant="-".join(word for word in (plain.variant, re.sub(r"\W+", "_", what)) if word),
            settings={**plain.settings, **baseline},
        )

        def answer() -> Answer:
            with bar(f"{measurement.kind}: {run.name}, {what}") as advance:
                return measurement.measure(change(run.open()), consumed, advance)

        return measurement.quantities(ask(changed, answer, folder / "records", again=again).measured)

    def measured() -> Answer:
        from whitebox.models.attention import white_box_layers

        notes, beside = [], dict[str, dict[Key, Any]]()
        exact = isinstance(consumed, WeightsAlone)
        for name in wanted.names:
            if name not in names:
                notes.append(f"has no training images beside those that are measured: --against {name} does not apply.")
            elif name == "train":
                beside[name] = _by_key([asked(name, lambda run: run, replace(chosen, split=run.data.train_split))])
            elif name == "random-subspaces" and not white_box_layers(run.open().model):
                notes.append("has no subspaces of white-box layers: --against random-subspaces does not apply.")
            else:
                change = untrained if name == "untrained" else with_random_subspaces
                draws = range(wanted.draws)
                beside[name] = _by_key([asked(f"{name} {draw}", partial(change, seed=draw)) for draw in draws])
        along = [
            _by_key([asked(f"epoch {epoch:g}", partial(at_weights, path=path), sha256=describe_weights(path).sha256)])
            for epoch, path in epochs.items()
        ]
        rows = []
        for each in measurement.quantities(own.measured):
            key = (each.name, each.place)
            here = {name: known[key] for name, known in beside.items() if key in known}
            rows.append(
                {
                    "name": each.name,
                    "factor": each.factor,
                    "place": each.place,
                    "position": each.position,
                    "trained": each.stored,
                    "against": here,
                    "minus": {name: minus(each.stored, stored, exact) for name, stored in here.items()},
                    "epochs": [known.get(key) for known in along],
                }
            )
        if not rows:
            notes.append("has nothing to hold against baselines.")
        found = {"of": measurement.kind, "baselines": list(beside), "epochs": list(epochs), "quantities": rows}
        return Answer(measured={**found, "notes": notes}, n=own.n)

    return ask(question, measured, folder / "records", again=again)


def _has_other_images(consumed: Consumed, run: SavedRun | Run) -> bool:
    """Whether a run has a training split, and is measured on another one."""
    return isinstance(consumed, Images) and run.data.train_split not in ("", consumed.split)


def untrained(run: Run, seed: int) -> Run:
    """A run whose model was drawn anew; a frozen encoder stays."""
    import torch

    from whitebox.engine.inference import device_of
    from whitebox.models import DECODERS, Segmentor, build

    model, config = run.model, run.config
    torch.manual_seed(seed)
    if model.encoder.fixed or getattr(config.encoder, "frozen", False):
        decoder = DECODERS[config.decoder.name].beside(model.encoder, config.decoder, model.num_classes)
        made = type(model)(model.encoder, decoder, model.classes, model.palette)
    else:
        made = build(without_weights(config.encoder), config.decoder, model.num_classes, model.classes, model.palette)
    assert isinstance(made, Segmentor)
    return replace(run, model=made.to(device_of(model)).eval())


def without_weights(encoder: Any) -> Any:
    """The configuration of an encoder, drawn at random whatever it took its weights from."""
    plain = {"pretrained": False, "weights": None}
    return replace(encoder, **{key: plain[key] for key in plain if hasattr(encoder, key)})


def with_random_subspaces(run: Run, seed: int) -> Run:
    """A run whose subspaces point anywhere."""
    import copy

    import torch

    from analysis.maths.coding_rate import float64
    from analysis.measures.variants import fitted
    from whitebox.models.attention import white_box_layers

    run = replace(run, model=copy.deepcopy(run.model))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in white_box_layers(run.model).values():
            random_HPD = float64(torch.randn(layer.bases.shape, generator=generator))
            layer.basis.copy_(fitted(random_HPD, float64(layer.bases.detach()).cpu()).flatten(0, 1))
    return run


def at_weights(run: Run, path: Path) -> Run:
    """A run as its training had it when it kept these weights."""
    from whitebox.engine.checkpoint import load_weights
    from whitebox.engine.inference import device_of

    model, _ = load_weights(path)
    return replace(run, model=model.to(device_of(run.model)))


def _by_key(draws: Sequence[Sequence[Quantity]]) -> dict[Key, Any]:
    """The mean over draws of what all of them have."""
    each = [{(one.name, one.place): one.stored for one in quantities} for quantities in draws]
    return {key: over_draws([stored[key] for stored in each]) for key in each[0] if all(key in other for other in each)}


def over_draws(stored: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Their mean; the spread between three or more is in the interval, beside that over units where there is one."""
    if len(stored) == 1:
        return dict(stored[0])
    found = joined(stored)
    if found["value"] is None or found.get("sd") is None or found["low"] is not None or len(stored) < _LEAST:
        return found
    half = half_width(found["sd"], len(stored))
    return {**found, "low": found["value"] - half, "high": found["value"] + half}


def minus(trained: Mapping[str, Any], baseline: Mapping[str, Any], exact: bool = False) -> dict[str, Any]:
    """Their difference; without an interval where that of either is unknown.

    Args:
        exact: a number without an interval has no uncertainty, since it is of weights alone.
    """
    if trained["value"] is None or baseline["value"] is None:
        return {"value": None, "low": None, "high": None}
    value = trained["value"] - baseline["value"]
    if not exact and (trained.get("low") is None or baseline.get("low") is None):
        return {"value": value, "low": None, "high": None}
    ends = [
        tuple(each["value"] if each.get(end) is None else each[end] for end in ("low", "high"))
        for each in (trained, baseline)
    ]
    if all(low == high for low, high in ends):
        return {"value": value, "low": None, "high": None}
    (low, high), (other_low, other_high) = ends
    below = math.hypot(trained["value"] - low, other_high - baseline["value"])
    above = math.hypot(high - trained["value"], baseline["value"] - other_low)
    return {"value": value, "low": value - below, "high": value + above}
