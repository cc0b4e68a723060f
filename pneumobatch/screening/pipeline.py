"""Archive + bundle → predictions: the whole chain on one screen."""

import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy
from ray.util.metrics import Counter

from pneumobatch import __version__, cluster, lease, storage
from pneumobatch.archive import catalog, left_out
from pneumobatch.archive.films import FilmDecoder
from pneumobatch.config import Job, Screening
from pneumobatch.identity import SITE_KEY, key_check
from pneumobatch.models import bundle as bundles
from pneumobatch.models import hardware
from pneumobatch.progress import say, track
from pneumobatch.screening import ledger
from pneumobatch.screening.runs import Run
from pneumobatch.screening.scorer import Plan, Scorer

COMPILE_PAYS_IMAGES = 3000
"""From about so many images a compilation is paid back by one run on CPUs; later runs find it in the cache."""

BATCHES = 4
"""Batches that a scorer on an accelerator takes at once: it computes one while the next is copied to it."""

TAGS = ("status", "reason")
"""What the metric of films is divided by; none names a film."""

BLOCKS = 4096
"""Blocks that an archive is divided into at most, until they hold as many images as a block should."""


WRONG_KEY = (
    f"{SITE_KEY} of the cluster's workers is another than here, or not set in one place: hashes of paths and of what "
    "films say of themselves would not fit; set it to the site's secret in both"
)


def screen(job: Job) -> dict[str, Any]:
    """Scores an archive to the end, from where an earlier start stopped; a finished run does nothing.

    Returns:
        The run's record, as in runs/<run_id>.json.

    Raises:
        ValueError: Archive, bundle or run id do not fit.
        RuntimeError: Too many images failed, or another start holds the run.
    """
    uri = bundles.locate(job.screening.bundle)
    run = Run(job, bundles.load(uri))
    if run.record:
        return already(run)
    with lease.hold(job.output.uri, run.run_id) as held:
        run.refresh()  # another start may have published it while this one waited
        if run.record:
            return already(run)
        ledger.require_site_key(ledger.published(job.output.uri))
        return finish(run, uri, ledger.marked(run, catalog.build(job.archive)), held)


def already(run: Run) -> dict[str, Any]:
    """Says that a run is published and removes what staging it still has."""
    assert run.record is not None
    say(f"run {run.run_id}: already published, nothing to do")
    run.clean()
    return run.record


def finish(run: Run, uri: str, films: pa.Table, held: lease.Lease) -> dict[str, Any]:
    """Takes a run from wherever it stands to its publication.

    Args:
        run: The run.
        uri: Where its bundle lies.
        films: The archive, or what of it the run is to take (`catalog.build`).
        held: The lease under which it works.
    """
    started = time.monotonic()
    run.check = held.check
    todo = run.begin(films)
    say(f"run {run.run_id}: {len(run.catalogue)} images, {len(todo)} to do, {run.bundle.model_id}")
    without = left_out.counted(films)
    if text := left_out.told(without):
        say(text)
    facts: dict[str, Any] = {"bundle": uri, "images_this_start": len(todo), "left_out": without}
    if len(todo):
        with cluster.engine(run.job.cluster) as resources:
            facts |= _scored(run, uri, todo, resources, started)
    found = run.reconcile()
    facts["failed_again"] = run.failed_again(found)
    held.check()
    seconds = round(time.monotonic() - started, 2)
    return run.publish(found, {**_lineage(run.job), **facts, "seconds": seconds})


def _scored(run: Run, uri: str, todo: pa.Table, resources: cluster.Resources, started: float) -> dict[str, Any]:
    """Scores and stages what is to do; returns facts for the run's record.

    Raises:
        cluster.NoWorkerError: The engine lacks what the run needs.
    """
    earlier = run.planned()
    wanted_gpu = run.job.screening.use_gpu
    gpu = earlier["device"] == "cuda" if earlier else resources.gpus > 0 if wanted_gpu is None else wanted_gpu
    if gpu and not resources.gpus and resources.local:
        if not earlier:
            raise ValueError("screening.use_gpu: this machine has no GPU; leave the key out")
        raise cluster.NoWorkerError(
            f"run {run.run_id} was started on GPUs and this machine has none; a GPU's and a CPU's probabilities differ "
            f"in the last digits, so start it where there are GPUs, or delete {run.staging} to take its films anew"
        )
    if earlier and resources.local and (lacking := _lacking(earlier, run.bundle)):
        raise cluster.NoWorkerError(
            f"run {run.run_id} was started {lacking}; probabilities differ elsewhere in the last digits, so start it "
            f"where there is, or delete {run.staging} to take its films anew"
        )
    wanted = decided(run.job, uri, run.bundle, resources, run.films, gpu=gpu)
    # What is fixed is the model, not where its bundle lies.
    plan = Plan(**run.plan(asdict(wanted)) | {"bundle": uri, "model_id": run.bundle.model_id})
    resources = cluster.offered(local=resources.local)  # a cluster may have begun with no worker at all
    films = Counter("pneumobatch_films", "Films by status, and by the reason of those without a score.", TAGS)
    first, head, done = 0.0, 0, 0
    waiting = cluster.awaited(
        "scored images", resources, run.job.cluster, lambda found: (found.gpus if gpu else found.cpus) > 0
    )
    with track("screen", len(todo), "images") as advance, waiting as came:
        for rows in score(run.job, run.bundle, plan, todo, resources):
            came()
            run.stage(rows)
            for found in rows.group_by(list(TAGS)).aggregate([([], "count_all")]).to_pylist():
                films.inc(found["count_all"], {tag: found[tag] or "" for tag in TAGS})
            now = time.monotonic() - started
            done += len(rows)
            if not first:
                first, head = now, done
            advance(done, f"{(done - head) / (now - first):.0f} images/s" if now - first > 5 else "")
    return {
        "hardware": {"cpus": resources.cpus, "gpus": resources.gpus, "nodes": len(resources.nodes)},
        "seconds_to_first_prediction": round(first, 2),
    }


def _lacking(plan: dict[str, Any], bundle: bundles.Bundle) -> str | None:
    """What this machine lacks to score as an earlier start has fixed it, in words; None: nothing."""
    if plan["precision"] == "int8" and not hardware.computes_int8():
        return "in int8, and this machine has neither VNNI nor AMX"
    if plan["compile"] and not hardware.compiler():
        how = (plan["precision"], plan["batch_size"], plan["device"], plan["threads"])
        if not hardware.compiled_path(bundle, *how).exists():
            return "with a compiled network, and this machine has no C++ compiler"
    return None


def score(
    job: Job,
    bundle: bundles.Bundle,
    plan: Plan,
    films: pa.Table,
    resources: cluster.Resources,
    scorer: type[Scorer] = Scorer,
) -> Iterator[pa.Table]:
    """Streams scored rows of catalogue rows, in no order: catalogue → fetch and decode → score.

    Without accelerators both stages ask for the same resources, so that Ray fuses them into one actor a CPU: films are
    decoded and scored where they are fetched, nothing is copied, and no stage can starve another on any number of
    CPUs. With accelerators decoding runs in CPU tasks of its own and only uint8 pictures travel.
    """
    archive, gpu = job.archive, plan.device == "cuda"
    decoder = FilmDecoder(
        bundle.preprocessing.image_size, archive.max_pixels, job.screening.gate, bundle.validated_age_years,
        archive.max_bytes,
    )  # fmt: skip
    rows = films.select(["image_id", "uri", "version"]).combine_chunks()
    block = block_images(job.screening, len(rows), gpu)
    # The first blocks are one batch each: what comes first is seen, and safe, some seconds sooner.
    ahead = (
        min(scorers(job.screening, resources, gpu=gpu) * plan.batch_size, len(rows)) if plan.batch_size < block else 0
    )
    edges = [*range(0, ahead, plan.batch_size), *range(ahead, len(rows), block), len(rows)]
    chunks = [rows.slice(start, end - start) for start, end in pairwise(edges)]
    per_scorer: dict[str, Any] = {"num_gpus": 1, "num_cpus": 0} if gpu else {"num_cpus": 1}

    key = None if resources.local else key_check()

    def decode(chunk: pa.Table) -> pa.Table:
        if key and key != key_check():  # on a worker that came later than the one that was asked at the start
            raise ValueError(WRONG_KEY)
        return decoder(chunk).append_column("version", chunk["version"])

    # `from_arrow` would ask a worker what each chunk holds, and wait for its answers, before the first is decoded.
    scored = (
        ray.data.from_blocks(chunks)
        .map_batches(decode, batch_format="pyarrow", batch_size=None, num_cpus=1)
        .map_batches(
            scorer, fn_constructor_args=(plan,), batch_format="pyarrow",
            batch_size=BATCHES * plan.batch_size if gpu else None,
            compute=pool(job.screening, resources, len(chunks), gpu=gpu), **per_scorer,
        )
    )  # fmt: skip
    yield from scored.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def scorers(config: Screening, resources: cluster.Resources, *, gpu: bool) -> int:
    """Scorers that the engine has room for at its start."""
    return config.scorers or int(resources.gpus if gpu else resources.cpus) or 1


def pool(config: Screening, resources: cluster.Resources, blocks: int, *, gpu: bool) -> ActorPoolStrategy:
    """One scorer a GPU, or a CPU where there are none; on a cluster as many as come, up to a given number: a node that
    joins is used, and one that goes is not waited for."""
    there = min(scorers(config, resources, gpu=gpu), blocks)
    if resources.local:
        return ActorPoolStrategy(size=there)
    return ActorPoolStrategy(min_size=1, initial_size=there, max_size=there if config.scorers else blocks)


def block_images(config: Screening, images: int, gpu: bool) -> int:
    """Images a block: a block costs the engine 8 ms and the driver 50 KB whatever it holds, so that a long archive has
    larger ones. On accelerators pictures travel between stages, at 50 KB each."""
    return config.block_images or min(max(images // BLOCKS, 64), 256 if gpu else 4096)


def decided(
    job: Job, uri: str, bundle: bundles.Bundle, resources: cluster.Resources, films: pa.Table, *, gpu: bool
) -> Plan:
    """Decides how a run scores where it will score: a cluster's driver may sit on other hardware than its scorers.

    Raises:
        ValueError: The workers have another site key, another bundle or none at its place, or not the archive's folder.
        cluster.NoWorkerError: The cluster has no worker of that kind, and none came.
    """
    images = len(films)
    if resources.local:
        return decide(job.screening, uri, bundle, gpu, images)
    # A manifest may be here alone, where its films are on object storage.
    archive = str(job.archive.uri) if "://" not in films["uri"][0].as_py() else None

    def there() -> tuple[Plan, str]:
        if archive and not (storage.is_folder(archive) or storage.is_file(archive)):
            raise ValueError(
                f"archive.uri: a worker does not find {archive}; it must lie on object storage, or below a folder that "
                "all nodes mount"
            )
        try:
            found = bundles.load(uri).model_id
        except ValueError as error:
            found = str(error)
        if found != bundle.model_id:
            raise ValueError(
                f"screening.bundle: a worker finds another bundle than {bundle.model_id} at {uri} ({found}); it must "
                "lie on object storage, or below a folder that all nodes mount"
            )
        return decide(job.screening, uri, bundle, gpu, images), key_check()

    task = ray.remote(num_cpus=0 if gpu else 1, num_gpus=1 if gpu else 0)(there)
    plan, key = cluster.answer(task.remote(), resources, job.cluster, gpu=gpu)
    if key != key_check():
        raise ValueError(WRONG_KEY)
    return plan


def decide(config: Screening, uri: str, bundle: bundles.Bundle, gpu: bool, images: int) -> Plan:
    """Decides once how the run scores; a resumed run keeps to it."""
    device = "cuda" if gpu else "cpu"
    precision = hardware.scoring_precision(config.precision, device, bundle)
    batch = config.batch_size or hardware.BATCH[device]
    compiling = config.compile == "on"
    if config.compile == "auto":
        cached = hardware.compiled_path(bundle, precision, batch, device, hardware.THREADS).exists()
        compiling = cached or (images >= COMPILE_PAYS_IMAGES and hardware.compiler() is not None)
    if compiling and not hardware.compiler():
        raise ValueError("screening.compile: no C++ compiler is on the PATH; install g++ or set it to off")
    return Plan(uri, bundle.model_id, batch, precision, compiling, device, hardware.THREADS)


def _lineage(job: Job) -> dict[str, Any]:
    """What the run's record says of configuration and software."""
    return {
        "config": job.model_dump(mode="json", exclude={"cluster"}),
        "versions": {"pneumobatch": __version__, **{name: version(name) for name in ("ray", "torch", "pyarrow")}},
    }
