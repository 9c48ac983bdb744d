"""One module a paper: which runs, which measurement, which figure or table, and what the paper reports."""

from experiments import cbsa, depict, segmenter, segvit
from experiments.experiment import Experiment

PAPERS: dict[str, tuple[Experiment, ...]] = {
    "depict": depict.EXPERIMENTS,
    "segmenter": segmenter.EXPERIMENTS,
    "cbsa": cbsa.EXPERIMENTS,
    "segvit": segvit.EXPERIMENTS,
}
EXPERIMENTS = {experiment.name: experiment for experiments in PAPERS.values() for experiment in experiments}
