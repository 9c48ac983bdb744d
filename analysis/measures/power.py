"""The smallest difference of mIoU that a study could show, from what a reference and a model have measured.

Layout of ``measured`` (percentage points; ``sd`` of the paired difference by its source)::

    {"sd": {"seed": 0.4, "unit": 2.0, "residual": 0.8}, "units": [10, 20, 40],
     "smallest": [{"seeds": 3, "differences": [2.9, 2.4, 2.1]}, ...]}

A study of which nothing has been measured yet, of standard deviations as given, has no record: there is no question in
it of weights or data, and the command is its whole source.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.ask import keep
from analysis.maths.variance import POWER, Sds, detectable, parts_of_difference
from analysis.measures.compare import paired_question
from analysis.measures.evaluation import sampled_scores
from analysis.measures.extras import SEED
from analysis.record import Answer, Record

if TYPE_CHECKING:
    from analysis.measures.evaluation import Evaluated

KIND = "power"


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is planned.

    Attributes:
        seeds, units: how many trainings of each model, and units, there may be.
        power: how often the difference is to be found.
        comparisons: that are corrected for.
    """

    seeds: tuple[int, ...]
    units: tuple[int, ...]
    power: float = POWER
    comparisons: int = 1

    def smallest(self, sds: Sds) -> list[dict[str, Any]]:
        """By number of seeds, the smallest differences that could be shown with each number of units.

        Raises:
            ConfigError: numbers that cannot be, see `detectable`.
        """
        return [
            {
                "seeds": seeds,
                "differences": [
                    detectable(sds, seeds, units, power=self.power, comparisons=self.comparisons)
                    for units in self.units
                ],
            }
            for seeds in self.seeds
        ]


def sds_of_difference(reference: Evaluated, model: Evaluated) -> Sds:
    """Of the paired difference of mIoU, in percentage points.

    Raises:
        RecordError: the counts cannot be read.
    """
    both = [
        sampled_scores(each.counts_SN3K, reference.unit_N, 1, SEED, each.evaluation.mean_over)
        for each in (model, reference)
    ]
    return parts_of_difference(both[0], both[1], model.seeds == reference.seeds).sds(0, 100)


def power_record(reference: Evaluated, model: Evaluated, sds: Sds, study: Study, folder: Path) -> Record:
    """What a study of ``model - reference`` could show, stored below ``folder``.

    Args:
        sds: `sds_of_difference`, or what the user says instead.

    Raises:
        ConfigError: see `Study.smallest`.
    """
    question = paired_question(
        KIND,
        reference,
        model,
        {},
        {
            **model.record.settings,
            "training_seeds": list(model.seeds),
            "reference_seeds": list(reference.seeds),
            **asdict(study),
            "sd": sds._asdict(),
        },
    )
    measured = {"sd": sds._asdict(), "units": list(study.units), "smallest": study.smallest(sds)}
    return keep(question, Answer(measured=measured, n=model.record.n), folder / "records")
