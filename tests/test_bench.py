"""What `bench` measures: estimators on made-up arrivals, its processes and memory, and one whole run, small."""

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE, Popen

import pytest
from rich.console import Console

from pneumobatch.archive import phantoms
from pneumobatch.bench import bench, report
from pneumobatch.bench.loops import steady
from pneumobatch.bench.processes import Request, measure, watch
from pneumobatch.config import Job

SETUP = {
    "gpus": 0, "uris": ["a"], "formats": {"jpeg": 1}, "left_out": {}, "listed": 1, "model_id": "net-0",
    "precision": "bf16", "hardware_precision": "bf16", "compile": True, "compiled_already": True,
}  # fmt: skip


def arrivals(workers: int, turns: int, skew: float, start: float = 0) -> list[tuple[float, int]]:
    """Blocks of 10 images from workers that take 2 s each, and begin `skew` s after one another."""
    return sorted((start + turn * 2 + worker * skew, 10) for turn in range(1, turns + 1) for worker in range(workers))


@pytest.mark.parametrize("workers", [1, 2, 4, 16])
@pytest.mark.parametrize("step", [0.0, 0.5, 1.0])
def test_steady_state_is_the_workers_rate_whether_they_keep_step_or_not(workers: int, step: float) -> None:
    rate = steady(arrivals(workers, 8, step * 2 / workers, start=30), workers)
    assert rate == pytest.approx(workers * 5, rel=0.11)  # the clock may start and stop within one turn of five


def test_a_slow_first_block_and_a_last_straggler_do_not_count() -> None:
    late = [(at if at > 3 else at - 20, images) for at, images in arrivals(2, 8, 1)]
    late[-1] = (late[-1][0] + 50, 10)
    assert steady(late, 2) == pytest.approx(10)


def test_a_short_series_has_no_steady_state() -> None:
    assert steady(arrivals(2, 2, 0), 2) is None
    assert steady([(1.0, 10)], 1) is None
    assert steady([(1.0, 10)] * 9, 1) is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [("fp32", False), ("bf16", False), ("bf16", True)]),
        ({"compile": False}, [("fp32", False), ("bf16", False)]),
        ({"precision": "fp32"}, [("fp32", False), ("bf16", False), ("fp32", True)]),
        ({"precision": "fp32", "hardware_precision": "fp32", "compile": False}, [("fp32", False)]),
    ],
)
def test_the_network_is_measured_at_each_precision_and_last_as_the_pipeline_runs_it(
    changes: dict[str, object], expected: list[tuple[str, bool]]
) -> None:
    assert report.Setup(cpus=2, **{**SETUP, **changes}).variants() == expected


def test_memory_counts_a_process_its_children_and_what_they_share() -> None:
    code = (
        "import subprocess, sys; from multiprocessing.shared_memory import SharedMemory as S; s = S(create=True, size=64 << 20);"
        "s.buf[:] = bytes(64 << 20); b = bytearray(32 << 20);"
        "c = subprocess.Popen([sys.executable, '-c', 'b = bytearray(96 << 20); print(1, flush=True); input()'], stdin=subprocess.PIPE);"
        "input(); c.communicate(b'x'); s.close(); s.unlink()"
    )
    with Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with watch([child.pid]) as memory:
            while memory().total == 0:
                time.sleep(0.05)
        child.communicate(b"\n")
    peak = memory()
    assert [round(value / 2**20, -1) for value in (peak.driver, peak.workers, peak.store)] == pytest.approx(
        [40, 100, 60], abs=20
    )
    assert peak.engine == 0
    assert peak.total >= 190 * 2**20


def test_what_the_user_did_is_a_value_error_in_the_parent_too(tmp_path: Path) -> None:
    job = Job.model_validate({"archive": {"uri": str(tmp_path)}, "screening": {"bundle": str(tmp_path)}})
    with pytest.raises(ValueError, match=r"screening\.bundle: .* holds no bundle\.json"):
        measure(Request(job=job, measurement="prepare", images=1))


def test_a_process_that_dies_leaves_its_last_words() -> None:
    with pytest.raises(RuntimeError, match="exit code 1: (?s:.*)KeyError: 'nonsense'"):
        measure(Request(job=Job(), measurement="nonsense", images=1), copies=2)


def printed(job: Job) -> str:
    console = Console(width=100, highlight=False)
    with console.capture() as capture:
        for line in bench(job):
            console.print(line, soft_wrap=isinstance(line, str))
    return capture.get()


@pytest.mark.engine
def test_one_run_names_every_measurement_and_its_numbers_agree(
    tmp_path: Path, bundle_uri: str, make_bundle: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    phantoms.write_archive(tmp_path / "films", 12, seed=5)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    text = printed(
        Job.model_validate(
            {
                "archive": {"uri": str(tmp_path / "films")},
                "screening": {"bundle": bundle_uri, "batch_size": 2, "block_images": 2, "compile": "off"},
                "bench": {"images": 12, "image_counts": [3]},
                "cluster": {"num_cpus": 1, "object_store_gb": 0.2},
            }
        )
    )
    rows = {
        match[1].strip(): [float(value.replace(",", "")) for value in match[2].split()]
        for match in re.finditer(r"^ *(\S.*?\S)((?: +[\d.,]+(?:e\+\d+)?){4}) *$", text, re.MULTILINE)
    }
    names = [report.DECODE, "fp32 eager, one core", "plain DataLoader", "hand-tuned", "this pipeline", report.NULL]
    assert all(any(row.startswith(name) for row in rows) for name in names), text
    plain = rows[report.PLAIN][0]
    for row, (rate, per_core, ratio, memory) in rows.items():
        assert rate == per_core > 0, row
        assert ratio == pytest.approx(rate / plain, abs=0.006, rel=0.02), row
        assert memory > 50, row
    limit = re.search(r"limit +([\d.,]+) images/s \(([\d.]+) ms to decode \+ ([\d.]+) ms in the network", text)
    assert limit, text
    assert float(limit[1]) == pytest.approx(1000 / (float(limit[2]) + float(limit[3])), rel=0.02)
    for line in (
        "ratios",
        "bound by",
        "engine",
        "first result",
        "whole run",
        "memory",
        "accelerator",
        "cost against size",
    ):
        assert re.search(rf"^ *{line} ?", text, re.MULTILINE), line
    assert "left out" in text  # the planted defects
    assert not (tmp_path / "outputs").exists()
