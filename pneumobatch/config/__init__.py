"""One pydantic model per job section; the whole configuration of a job in one place, without torch or ray.

Defaults < preset < job file < flags. Every section is frozen and forbids unknown keys, every range stands in its
`Field`, and the docstring under a key is its help text.
"""

from pneumobatch.config.credentials import NOT_REPEATED
from pneumobatch.config.films import Archive, Gate
from pneumobatch.config.job import Bench, Cluster, Demo, Job, Output, read_job
from pneumobatch.config.learning import PAPER, Augmentation, Experiment, Level, Loss, Network, Training
from pneumobatch.config.screening import Evaluation, Screening
from pneumobatch.config.section import Section, plain

__all__ = [
    "NOT_REPEATED", "PAPER", "Archive", "Augmentation", "Bench", "Cluster", "Demo", "Evaluation", "Experiment", "Gate",
    "Job", "Level", "Loss", "Network", "Output", "Screening", "Section", "Training", "plain", "read_job",
]  # fmt: skip
