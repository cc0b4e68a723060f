"""What `bench` measures: estimators on made-up arrivals, its processes and memory, and one whole run, small."""

import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from subprocess import PIPE, Popen

import pytest
from rich.console import Console, RenderableType

from pneumobatch.archive import phantoms
from pneumobatch.bench import _cases, bench, report
from pneumobatch.bench.basics import steady
from pneumobatch.bench.processes import Measured, Memory, Request, measure, watch
from pneumobatch.config import Job

SETUP = {
    "gpus": 0, "uris": ["a"], "formats": {"jpeg": 1}, "left_out": {}, "listed": 1, "model_id": "net-0",
    "attention": True, "precision": "bf16", "hardware_precision": "bf16", "batch": 8, "compile": True,
    "compiled_already": True,
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
        (
            {"precision": "int8"},
            [("fp32", False), ("bf16", False), ("int8", False), ("bf16", True), ("int8", True)],
        ),
        ({"precision": "int8", "compile": False}, [("fp32", False), ("bf16", False), ("int8", False)]),
        ({"precision": "fp32"}, [("fp32", False), ("bf16", False), ("fp32", True)]),
        ({"precision": "fp32", "hardware_precision": "fp32", "compile": False}, [("fp32", False)]),
    ],
)
def test_the_network_is_measured_at_each_precision_and_last_as_the_pipeline_runs_it(
    changes: dict[str, object], expected: list[tuple[str, bool]]
) -> None:
    assert report.Setup(cpus=2, **{**SETUP, **changes}).variants() == expected


def test_memory_counts_a_process_its_children_and_what_they_share() -> None:
    code = """if True:
        import subprocess, sys
        from multiprocessing.shared_memory import SharedMemory
        shared, own = SharedMemory(create=True, size=64 << 20), bytearray(32 << 20)
        shared.buf[:] = bytes(64 << 20)
        child = "b = bytearray(96 << 20); print(1, flush=True); input()"
        child = subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE)
        input()
        child.communicate(b"x")
        shared.close()
        shared.unlink()
    """
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
    with pytest.raises(RuntimeError, match=r"exit code 1: (?s:.*)StopIteration"):
        measure(Request(job=Job(), measurement="nonsense", images=1), copies=2)


@pytest.mark.parametrize("named", ["section", "environment"])
def test_a_cluster_is_not_compared_with_a_machine(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if named == "environment":
        monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    section = {"cluster": {"address": "ray://head:10001"}} if named == "section" else {}
    with pytest.raises(ValueError, match=r"cluster\.address: (?s:.*)ray://head:10001(?s:.*)RAY_ADDRESS unset"):
        bench(Job.model_validate(section))


def printed(lines: Iterable[RenderableType]) -> str:
    console = Console(width=80, highlight=False)
    with console.capture() as capture:
        for line in lines:
            console.print(line, soft_wrap=isinstance(line, str))
    return capture.get()


def made_up(setup: report.Setup) -> dict[report.Case, Measured]:
    """Every measurement of a round, with a rate a case."""
    rates = {report.DECODE: 250.0, report.DECODE_ALL: 480.0, report.PLAIN: 10.0, report.TUNED: 90.0,
             report.PIPELINE: 120.0, report.NULL: 456.0, report.PACKED: 275.0, report.BACKBONE: 125.0,
             report.TRAINING_PLAIN: 20.0, report.TRAINING: 19.0, report.TRAINING_ALL: 38.0,
             setup.network: 1000.0 if setup.gpus else 100.0}  # fmt: skip
    run = {"first": 9.0, "imports": 3.0, "engine": 4.0, "images": 2048.0, "seconds": 20.0, "whole_rate": 102.4}
    memory = Memory(driver=600 << 20, workers=1500 << 20, engine=200 << 20, store=5 << 20, total=2300 << 20)
    job = Job.model_validate({"bench": {"training_epochs": 1}})
    cases = _cases(Request(job=job, measurement="", images=1), setup, [])
    return {case: Measured({"rate": rates.get(case.title, 50.0) - len(case.how), **run}, memory) for case in cases}


def test_the_sentences_follow_from_the_table() -> None:
    setup = report.Setup(cpus=2, **SETUP)
    job = Job.model_validate({"archive": {"uri": "/films"}})
    facts = {"first": 8.0, "whole_rate": 25.0, "rate": 25.0}
    sizes = [report.Size(200, Measured(facts)), report.Size(20_000, Measured({**facts, "steady": 110.0}))]
    text = printed(report.report(job, setup, made_up(setup), sizes, 41.0))
    # 1 / 250 + 1 / 100 s an image on a core, on two cores
    assert "limit         142.9 images/s (4.00 ms to decode + 10.00 ms in the network" in text
    assert "this pipeline reaches 84%" in text
    assert "ratios        12.00 × the plain loop, 1.50 × the hand-tuned process" in text
    assert "decoding takes 29% and the network 71%" in text
    assert "bound by      the network" in text
    assert "456.0 images/s, 95% of decoding alone" in text
    assert "first result  9.0 s after the process starts: 3.0 s imports, 4.0 s engine, 2.0 s network" in text
    assert "compiling took 41 s before" in text
    assert "Parquet       decodes 1.10 × as fast as files" in text
    assert "attention     the network takes 1.25 × the time of its plain backbone" in text
    assert "training      0.95 × the plain loop by one worker on all cores, 2.00 × by a worker a CPU; 20 s" in text
    assert "would need 4.0 CPUs" in text
    assert re.search(r"20,000 +25 +110.0 +8.0 ", text)
    assert "bf16 eager, all cores (threads)" in text  # of several ways the best
    assert "(processes)" not in text
    assert "which PIL does not open" not in text


def test_films_that_the_plain_loop_left_out_are_told() -> None:
    setup = report.Setup(cpus=2, **SETUP)
    results = made_up(setup)
    plain = next(case for case in results if case.title == report.PLAIN)
    results[plain].facts["left_out"] = 3.0
    assert "plain loop    without 3 of the films" in printed(report.report(Job(), setup, results, [], None))


def test_an_accelerator_is_bounded_by_its_cpus() -> None:
    setup = report.Setup(cpus=2, **{**SETUP, "gpus": 1})
    text = printed(report.report(Job(), setup, made_up(setup), [], None))
    assert "limit         500.0 images/s (2 CPUs decode 500.0, 1 GPU score 1,000)" in text
    assert "bound by      decoding" in text
    assert "accelerator   one needs 4.0 CPUs to be fed" in text


@pytest.mark.engine
def test_one_run_names_every_measurement_and_its_numbers_agree(
    tmp_path: Path, bundle_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    phantoms.write_archive(tmp_path / "films", 12, seed=5)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    text = printed(
        bench(
            Job.model_validate(
                {
                    "archive": {"uri": str(tmp_path / "films")},
                    "screening": {"bundle": bundle_uri, "batch_size": 2, "block_images": 2, "compile": "off"},
                    "bench": {"images": 12, "training_epochs": 1, "image_counts": [12], "catalog_sizes": [200]},
                    "training": {"batch_size": 4, "validation_fraction": 0.4, "failure_budget": 0.5},
                    "cluster": {"num_cpus": 1, "object_store_gb": 0.2},
                }
            )
        )
    )
    text, _, sizes = text.partition("cost against size")
    rows = {
        match[1].strip(): [float(value.replace(",", "")) for value in match[2].split()]
        for match in re.finditer(r"^ *(\S.*?\S)((?: +[\d.,]+(?:e\+\d+)?){4}) *$", text, re.MULTILINE)
    }
    names = [report.DECODE, "fp32 eager, one core", "plain DataLoader", "hand-tuned", "this pipeline", report.NULL]
    names += [report.PACKED, report.BACKBONE, report.TRAINING_PLAIN, report.TRAINING]
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
        "Parquet",
        "attention",
        "training",
        "bound by",
        "engine",
        "first result",
        "whole run",
        "memory",
        "accelerator",
    ):
        assert re.search(rf"^{line} ", text, re.MULTILINE), line
    assert "left out" in text  # the planted defects
    # Images, images/s, steady (of so few perhaps none), first s, and four peaks of memory.
    assert re.search(r"^ *12 +[\d.]+ +(?:–|[\d.]+) +[\d.]+(?: +[\d,]+){4} *$", sizes, re.MULTILINE), sizes
    assert re.search(r"rows +catalogue +publish +anti-join +summary", sizes), sizes
    night = re.search(r"^ *200((?: +[\d.]+ / [\d,]+){4}) *$", sizes, re.MULTILINE)
    assert night, sizes
    assert all(int(peak.replace(",", "")) > 30 for peak in re.findall(r"/ ([\d,]+)", night[1])), sizes
    assert not (tmp_path / "outputs").exists()
