"""What earlier starts left behind: who is finished, and what early stopping knows of it. No engine."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from ray.tune.schedulers import ASHAScheduler

from pneumobatch import storage
from pneumobatch.config import Job
from pneumobatch.training import grid, tune
from pneumobatch.training.grid import Trial
from pneumobatch.training.protocols import Split


def trials(folder: Path, *, early_stopping: bool) -> list[Trial]:
    """Rows of 9 and 3 epochs; rungs lie at 2 and 6."""
    job = Job.model_validate(
        {
            "factors": {"n": [{"name": "long"}, {"name": "short", "training": {"epochs": 3}}]},
            "training": {"epochs": 9},
            "experiment": {"early_stopping": early_stopping},
            "output": {"uri": str(folder)},
        }
    )
    films = pa.table({"image_id": ["0", "1"], "label": pa.array([0, 1], pa.int8()), "bytes": [9000, 9000]})
    return grid.trials(job, {"official": Split(films, films, films, "")})


def history(*aurocs: float) -> list[dict[str, float]]:
    return [{"epoch": float(epoch), "auroc": auroc} for epoch, auroc in enumerate(aurocs, 1)]


def told(scheduler: ASHAScheduler, key: str, rows: list[dict[str, float]]) -> list[str]:
    """What the scheduler says to a new trial, epoch by epoch."""
    new: Any = SimpleNamespace(trial_id=key, config={"key": key})
    scheduler.on_trial_add(None, new)
    return [scheduler.on_trial_result(None, new, row) for row in rows]


def test_a_new_start_stops_what_earlier_trials_surpassed(tmp_path: Path) -> None:
    grown = trials(tmp_path, early_stopping=True)
    earlier = {
        "done": {"history": history(0.6, 0.9, 0.9, 0.9, 0.9, 0.95, 0.9, 0.9, 0.9)},
        "stopped": {"stopped": "stopped: after epoch 2 of 9", "history": history(0.5, 0.7)},
        "older": {"stopped": "stopped: after epoch 2 of 9"},
    }
    poor, fair = history(0.9, 0.6), history(0.5, 0.91, 0.9, 0.9, 0.9, 0.94)
    assert told(tune.asha(grown, {}), "new", poor) == ["CONTINUE", "CONTINUE"]
    assert told(tune.asha(grown, earlier), "new", poor) == ["CONTINUE", "STOP"]
    assert told(tune.asha(grown, earlier), "new", fair) == [*["CONTINUE"] * 5, "STOP"]


def test_the_baseline_is_never_stopped_but_others_are_measured_by_it(tmp_path: Path) -> None:
    long, short = trials(tmp_path, early_stopping=True)
    assert long.baseline and not short.baseline
    scheduler = tune.asha([long, short], {"done": {"history": history(0.6, 0.9, 0.9)}})
    assert told(scheduler, long.key, history(0.5, 0.6, *[0.6] * 7)) == ["CONTINUE"] * 9
    assert told(scheduler, short.key, history(0.5, 0.55)) == ["CONTINUE", "STOP"]


@pytest.mark.parametrize("early_stopping", [True, False])
def test_a_stopped_trial_is_finished_only_for_those_who_stop_early(tmp_path: Path, early_stopping: bool) -> None:
    long, short = trials(tmp_path, early_stopping=early_stopping)
    stopped = {"stopped": "stopped: after epoch 2 of 9", "history": []}
    other = short._replace(key="other")
    contents = {long.key: stopped, other.key: stopped, short.key: {"row": "short"}}
    assert tune.kept(long) is None
    for key, content in contents.items():
        storage.write_bytes(tune.result_uri(long.job, key), json.dumps(content).encode())
    assert tune.kept(other) == (stopped if early_stopping else None)
    assert tune.kept(long) is None  # the baseline, which an older version may have stopped, is to be run
    assert tune.kept(short) == contents[short.key]
