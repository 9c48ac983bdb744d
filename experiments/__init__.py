"""One module a paper or study: which runs, which measurement, which figure or table, and what a paper reports."""

from experiments import camvid, cbsa, depict, segmenter, segvit
from experiments.experiment import Experiment
from experiments.study import Study

PAPERS: dict[str, tuple[Experiment, ...]] = {
    "depict": depict.EXPERIMENTS,
    "segmenter": segmenter.EXPERIMENTS,
    "cbsa": cbsa.EXPERIMENTS,
    "segvit": segvit.EXPERIMENTS,
}
EXPERIMENTS = {experiment.name: experiment for experiments in PAPERS.values() for experiment in experiments}
STUDIES: dict[str, Study] = {"camvid": camvid.STUDY}
