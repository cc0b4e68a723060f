"""A small training, which tests run and refuse."""

from pathlib import Path
from typing import Any

from pneumobatch.config import Job

PLAN = {
    "network.name": "attention_resnet18",
    "network.image_size": 32,
    "training.run_id": "run",
    "training.epochs": 4,
    "training.batch_size": 8,
    "training.validation_fraction": 0.3,
    "training.precision": "fp32",
    "training.failure_budget": 0.15,  # the archive's planted defects
    "cluster.num_cpus": 2,
}


def job(films: Path, output: Path, **changes: Any) -> Job:
    data: dict[str, Any] = {"archive": {"uri": str(films)}, "output": {"uri": str(output)}}
    for key, value in {**PLAN, **changes}.items():
        section, name = key.split(".")
        data.setdefault(section, {})[name] = value
    return Job.model_validate(data)
