"""The verb `bench`: decoding, network, plain loops and this pipeline, measured side by side on the same films.

    processes.py      one measurement in a fresh process, and the memory of all its processes meanwhile
    basics.py         what measurements share, without torch
    measurements.py   what can be measured alone: files, compiling, decoding, network
    loops.py          whole loops from files to probabilities without this pipeline: plain, hand-tuned
    pipeline.py       this pipeline
    training.py       training: plain, by one worker, by one a CPU
    sizes.py          what a night costs besides its films
    report.py         numbers → table and sentences

Every measurement has a process of its own, so that threads, allocators and caches do not disturb one another, and
rounds go through all of them in turn, so that a drift of the machine meets them all.
"""

from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pneumobatch import cluster
from pneumobatch.bench import report
from pneumobatch.bench.processes import Measured, Request, measure
from pneumobatch.bench.report import Case, Size
from pneumobatch.config import Job, Output
from pneumobatch.progress import say

if TYPE_CHECKING:
    from rich.console import RenderableType

NIGHT = ("catalogue", "publish", "anti_join", "summary")
"""Measurements of `sizes` in their order: what one writes the next one reads."""


def bench(job: Job) -> list["RenderableType"]:
    """Measures everything and returns the table and the sentences below it.

    Raises:
        ValueError: Archive or bundle do not fit, no film of the archive can be read, or a cluster is named.
        RuntimeError: A measurement failed.
    """
    if address := cluster.address_of(job.cluster):
        raise ValueError(
            f"cluster.address: bench compares loops on one machine, not the cluster at {address} with a machine; leave "
            "the key out and RAY_ADDRESS unset"
        )
    with TemporaryDirectory() as folder:
        return _bench(job.model_copy(update={"output": Output(uri=folder)}))


def _bench(job: Job) -> list["RenderableType"]:
    say("bench: reading the films once")
    request = Request(job=job, measurement="prepare", images=job.bench.images)
    found = measure(request)[0].facts
    setup = report.Setup(cpus=job.cluster.num_cpus or cluster.machine_cpus(), **found)
    # From here on nothing is left to chance: the pipeline compiles when the other measurements do.
    screening = job.screening.model_copy(
        update={"compile": "on" if setup.compile else "off", "precision": setup.precision, "batch_size": setup.batch}
    )
    request = request.model_copy(
        update={
            "job": job.model_copy(update={"screening": screening}),
            "uris": tuple(setup.uris),
            "precision": setup.precision,
            "compiled": setup.compile,
        }
    )
    compiling = None
    if setup.compile and not setup.compiled_already:
        say("bench: compiling the network, once for this machine")
        compiling = float(measure(request.model_copy(update={"measurement": "compiling"}))[0].facts["seconds"])

    packed = measure(request.model_copy(update={"measurement": "packing"}))[0].facts["uris"]
    cases = _cases(request, setup, packed)
    rounds: dict[Case, list[list[Measured]]] = {case: [] for case in cases}
    for number in range(job.bench.repeats):
        for case in cases:
            say(f"bench: round {number + 1} of {job.bench.repeats}: {case.name}")
            rounds[case].append(measure(case.request, case.copies))
    sizes = []
    for count in job.bench.image_counts:
        say(f"bench: pipeline over {count} images")
        exact = request.model_copy(update={"measurement": "pipeline", "images": count, "exact": True})
        sizes.append(Size(count, measure(exact)[0]))
    lines = report.report(job, setup, {case: _median(runs) for case, runs in rounds.items()}, sizes, compiling)
    nights = {rows: night(request, rows) for rows in job.bench.catalog_sizes}
    return [*lines, report.night_table(nights)] if nights else lines


def night(request: Request, rows: int) -> dict[str, Measured]:
    """Measures what a night over `rows` films costs besides the films."""
    measured = {}
    with TemporaryDirectory() as folder:
        job = request.job.model_copy(update={"output": Output(uri=folder)})
        for step in NIGHT:
            say(f"bench: {step.replace('_', '-')} of {rows:,} rows")
            measured[step] = measure(request.model_copy(update={"measurement": step, "images": rows, "job": job}))[0]
    return measured


def _cases(request: Request, setup: report.Setup, packed: list[str]) -> list[Case]:
    """Every measurement of a round; cases of one title are ways to the same end, of which the best counts.

    Args:
        request: What they have in common.
        setup: What is measured.
        packed: The same films as rows of a Parquet archive.
    """
    cpus, several = setup.cpus, setup.cpus > 1
    cases: list[Case] = []

    def add(title: str, how: str = "", copies: int = 1, *, cores: int = 1, **options: Any) -> None:
        cases.append(Case(title, how, request.model_copy(update=options), copies, cores))

    add(report.DECODE, measurement="decode")
    if several:
        add(report.DECODE_ALL, copies=cpus, cores=cpus, measurement="decode")
    if setup.gpus and setup.formats.get("jpeg"):
        add(report.DECODE_ACCELERATOR, measurement="decode_accelerator")
    add(report.PACKED, measurement="decode", uris=tuple(packed))
    for precision, compiled in setup.variants():
        title = f"{precision} {'compiled' if compiled else 'eager'}"
        options: dict[str, Any] = {"measurement": "network", "precision": precision, "compiled": compiled}
        add(f"{title}, {setup.unit}", **options)
        if several and not setup.gpus:
            add(f"{title}, all cores", "threads", cores=cpus, threads=cpus, **options)
            add(f"{title}, all cores", "processes", cpus, cores=cpus, **options)
    if setup.attention:
        own: dict[str, Any] = {"measurement": "network", "precision": setup.precision, "compiled": setup.compile}
        add(report.BACKBONE, backbone=True, **own)
    add(report.PLAIN, cores=cpus, threads=cpus, measurement="plain")
    add(report.TUNED, "one scores", cores=cpus, threads=cpus, measurement="tuned")
    if several and not setup.gpus and not setup.compile:  # a compiled network holds the interpreter's lock
        add(report.TUNED, "all score", cores=cpus, threads=cpus, measurement="tuned", alike=True)
    add(report.PIPELINE, cores=cpus, measurement="pipeline")
    add(report.NULL, cores=cpus, measurement="pipeline", null_network=True)
    if request.job.bench.training_epochs:
        add(report.TRAINING_PLAIN, cores=cpus, threads=cpus, measurement="training_plain")
        add(report.TRAINING, cores=cpus, measurement="training")
        if several and not setup.gpus:
            add(report.TRAINING_ALL, cores=cpus, measurement="training", workers=cpus)
    return cases


def _median(runs: list[list[Measured]]) -> Measured:
    """One measurement from several rounds: the median of its facts, each summed over the copies, the peak of memory."""
    names = [name for name, value in runs[0][0].facts.items() if isinstance(value, float)]
    facts = {name: median(sum(copy.facts[name] for copy in copies) for copies in runs) for name in names}
    return Measured(facts, max((copies[0].memory for copies in runs), key=lambda memory: memory.total))
