"""The demo's archives and runs; the whole of it: `make demo`."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from pneumobatch import demo as module
from pneumobatch.config import Job
from pneumobatch.demo import demo


def test_a_demo_of_another_size_or_seed_has_its_own_films_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Job] = []

    def trained(job: Job) -> SimpleNamespace:
        jobs.append(job)
        return SimpleNamespace(uri=str(tmp_path / "bundle"))

    def screened(job: Job) -> dict[str, object]:
        jobs.append(job)
        return {"run_id": job.screening.run_id, "counts": {}, "predictions": []}

    monkeypatch.setattr(module, "train", trained)
    monkeypatch.setattr(module, "screen", screened)
    monkeypatch.setattr(module, "evaluate", lambda job: SimpleNamespace(summary_uri="", report_uri=""))
    monkeypatch.setattr(module, "console_table", lambda result: "")
    for images, seed in ((50, 7), (40, 7), (40, 8), (50, 7)):
        demo(Job.model_validate({"demo": {"images": images, "seed": seed}, "output": {"uri": str(tmp_path)}}))
        training, screening = jobs[-2:]
        for job, films in ((training, images), (screening, images // 2)):
            assert sum(path.is_file() for path in Path(str(job.archive.uri)).rglob("*")) == films + 10  # planted ones
        assert training.training.run_id == screening.screening.run_id
    assert len({job.training.run_id for job in jobs[::2]}) == len({job.archive.uri for job in jobs[::2]}) == 3
    assert jobs[0] == jobs[6]
