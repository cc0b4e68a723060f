"""Numbers → the table and the sentences that `bench` prints."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from pneumobatch.bench.processes import Measured, Memory, Request
from pneumobatch.config import Job
from pneumobatch.models.hardware import Precision

if TYPE_CHECKING:
    from rich.console import RenderableType

DECODE, DECODE_ALL, PACKED = "decode, one core", "decode, all cores", "decode from Parquet, one core"
DECODE_ACCELERATOR = "decode JPEG, one accelerator"
BACKBONE = "the network without attention"
TRAINING_PLAIN, TRAINING = "training, plain loop", "training, one worker"
TRAINING_ALL = "training, a worker a CPU"
PLAIN, TUNED = "plain DataLoader loop, fp32 eager", "hand-tuned process"
PIPELINE, NULL = "this pipeline", "this pipeline, null network"


@dataclass(frozen=True)
class Setup:
    """What is measured, on what."""

    cpus: int
    gpus: int
    uris: list[str]
    formats: dict[str, int]
    left_out: dict[str, int]
    listed: int
    model_id: str
    attention: bool
    precision: Precision
    hardware_precision: Precision
    batch: int
    compile: bool
    compiled_already: bool

    def variants(self) -> list[tuple[Precision, bool]]:
        """Precisions at which the network is measured, with whether it is compiled; the last is the pipeline's own."""
        measured = dict.fromkeys([("fp32", False), (self.hardware_precision, False), (self.precision, False)])
        if self.precision == "int8":  # whose rival is what the pipeline would run at otherwise
            measured |= {(self.hardware_precision, self.compile): None}
        own = (self.precision, self.compile)
        return [variant for variant in measured if variant != own] + [own]

    @property
    def unit(self) -> str:
        """What the network is measured on."""
        return "one accelerator" if self.gpus else "one core"

    @property
    def network(self) -> str:
        """Title of the network's own measurement at the pipeline's precision."""
        return f"{self.precision} {'compiled' if self.compile else 'eager'}, {self.unit}"


@dataclass(frozen=True)
class Case:
    """One measurement of every round."""

    title: str
    how: str
    request: Request
    copies: int
    cores: int

    @property
    def name(self) -> str:
        """Title, and the way to it where there are several."""
        return f"{self.title} ({self.how})" if self.how else self.title

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True)
class Size:
    """The pipeline over an archive of so many images."""

    images: int
    measured: Measured


Results = dict[Case, Measured]


def report(
    job: Job, setup: Setup, results: Results, sizes: list[Size], compiling: float | None
) -> list["RenderableType"]:
    """Returns everything that is printed, in order."""
    best = _best(results)
    lines: list[RenderableType] = [_subject(job, setup), _table(best), *_sentences(setup, best, compiling)]
    return [*lines, _size_table(sizes)] if sizes else lines


def _best(results: Results) -> dict[str, tuple[Case, Measured]]:
    """Of several ways to the same end the quickest."""
    best: dict[str, tuple[Case, Measured]] = {}
    for case, measured in results.items():
        if case.title not in best or measured.facts["rate"] > best[case.title][1].facts["rate"]:
            best[case.title] = case, measured
    return best


def _subject(job: Job, setup: Setup) -> str:
    formats = ", ".join(f"{count} {name}" for name, count in setup.formats.items())
    reasons = ", ".join(f"{count} {name}" for name, count in setup.left_out.items())
    return (
        f"{setup.model_id}, {setup.precision}, batches of {setup.batch}; "
        f"CPUs: {setup.cpus}, GPUs: {setup.gpus}; "
        f"{len(setup.uris)} films ({formats}) of {setup.listed} in {job.archive.uri}"
        + (f"; left out: {reasons}" if reasons else "")
    )


def _table(best: dict[str, tuple[Case, Measured]]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("measurement", no_wrap=True)
    for name in ("images/s", "per core", "× plain", "MiB"):
        table.add_column(name, justify="right")
    plain = best[PLAIN][1].facts["rate"]
    for case, measured in best.values():
        rate = measured.facts["rate"]
        per_core = "" if case.title.endswith("accelerator") else _number(rate / case.cores)
        table.add_row(case.name, _number(rate), per_core, f"{rate / plain:.2f}", _mib(measured.memory.total))
    return table


def _sentences(setup: Setup, best: dict[str, tuple[Case, Measured]], compiling: float | None) -> Iterator[str]:
    """The findings. The machine's limit is worked out from decoding and network, each measured alone on one core."""
    rate = {title: float(measured.facts["rate"]) for title, (_, measured) in best.items()}
    run = best[PIPELINE][1]
    decode = rate[DECODE]
    network = rate[setup.network]
    if setup.gpus:
        fed, scored = decode * setup.cpus, network * setup.gpus
        limit, bound = min(fed, scored), "decoding" if fed < scored else "the network"
        parts = f"{setup.cpus} CPUs decode {_number(fed)}, {setup.gpus} GPU score {_number(scored)}"
        reason = f"the CPUs decode {_number(fed)} images/s, the accelerators score {_number(scored)}"
    else:
        each = 1 / decode + 1 / network
        limit, share = setup.cpus / each, 1 / decode / each
        bound = "decoding" if share > 0.5 else "the network"
        parts = f"{1e3 / decode:.2f} ms to decode + {1e3 / network:.2f} ms in the network, an image on a core"
        reason = f"of the CPU time of an image alone, decoding takes {share:.0%} and the network {1 - share:.0%}"
    if left_out := best[PLAIN][1].facts.get("left_out"):
        yield f"plain loop    without {left_out:.0f} of the films, which PIL does not open (DICOM)"
    yield f"limit         {_number(limit)} images/s ({parts}); this pipeline reaches {rate[PIPELINE] / limit:.0%}"
    yield (
        f"ratios        {rate[PIPELINE] / rate[PLAIN]:.2f} × the plain loop, "
        f"{rate[PIPELINE] / rate[TUNED]:.2f} × the hand-tuned process"
    )
    yield f"bound by      {bound}: {reason}"
    alone = rate.get(DECODE_ALL, decode)
    yield (
        f"engine        with a null network {_number(rate[NULL])} images/s, {rate[NULL] / alone:.0%} of decoding alone "
        f"on the same cores"
    )
    yield f"Parquet       decodes {rate[PACKED] / decode:.2f} × as fast as files"
    if BACKBONE in rate:
        yield f"attention     the network takes {rate[BACKBONE] / network:.2f} × the time of its plain backbone"
    if TRAINING in rate:
        several = f", {rate[TRAINING_ALL] / rate[TRAINING]:.2f} × by a worker a CPU" if TRAINING_ALL in rate else ""
        yield (
            f"training      {rate[TRAINING] / rate[TRAINING_PLAIN]:.2f} × the plain loop by one worker on all cores"
            f"{several}; {best[TRAINING][1].facts['seconds']:.0f} s from start to bundle"
        )
    facts = run.facts
    rest = facts["first"] - facts["imports"] - facts["engine"]
    yield (
        f"first result  {facts['first']:.1f} s after the process starts: {facts['imports']:.1f} s imports, "
        f"{facts['engine']:.1f} s engine, {rest:.1f} s network and first block"
        + ("" if compiling is None else f"; compiling took {compiling:.0f} s before, once for this machine")
    )
    yield (
        f"whole run     {facts['images']:.0f} images in {facts['seconds']:.1f} s, start and publishing included: "
        f"{_number(facts['whole_rate'])} images/s"
    )
    yield f"memory        {_memory(run.memory)}"
    if setup.gpus:
        nvjpeg = rate.get(DECODE_ACCELERATOR)
        yield f"accelerator   one needs {network / decode:.1f} CPUs to be fed" + (
            f"; nvJPEG on it decodes as fast as {nvjpeg / decode:.1f} CPUs" if nvjpeg else ""
        )
    else:
        yield f"accelerator   none here; one that scores 1,000 images/s would need {1000 / decode:.1f} CPUs to be fed"


def _size_table(sizes: list[Size]) -> Table:
    """Cost against size: what grows with the archive, and what does not."""
    table = Table(box=SIMPLE_HEAD, title="cost against size; peak memory in MiB", title_justify="left")
    for name in ("images", "images/s", "steady", "first s", "driver", "workers", "Ray", "store"):
        table.add_column(name, justify="right")
    for size in sizes:
        facts, memory = size.measured.facts, size.measured.memory
        steady = _number(facts["steady"]) if "steady" in facts else "–"
        peaks = map(_mib, (memory.driver, memory.workers, memory.engine, memory.store))
        table.add_row(f"{size.images:,}", _number(facts["whole_rate"]), steady, f"{facts['first']:.1f}", *peaks)
    return table


def night_table(nights: dict[int, dict[str, Measured]]) -> Table:
    """What a night costs besides its films, by the number of rows: seconds, and the peak of the driver's memory."""
    table = Table(
        box=SIMPLE_HEAD, title="a night besides its films: seconds / peak memory in MiB", title_justify="left"
    )
    table.add_column("rows", justify="right")
    for step in next(iter(nights.values())):
        table.add_column(step.replace("_", "-"), justify="right")
    for rows, steps in nights.items():
        cells = (f"{step.facts['seconds']:.1f} / {_mib(step.memory.total)}" for step in steps.values())
        table.add_row(f"{rows:,}", *cells)
    return table


def _memory(memory: Memory) -> str:
    return (
        f"{_mib(memory.total)} MiB at the peak: driver {_mib(memory.driver)}, workers {_mib(memory.workers)}, "
        f"Ray {_mib(memory.engine)}, object store {_mib(memory.store)}"
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value < 100 else f"{value:.1f}"


def _mib(value: int) -> str:
    return f"{value / 2**20:,.0f}"
