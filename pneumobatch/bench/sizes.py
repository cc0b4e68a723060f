"""What a night costs besides its films: catalogue, anti-join, publishing and summary of so many rows, no film read.

The archive is an S3 inventory written for the purpose; the scored rows are drawn. The measurements follow one another
on one output folder, each in a process of its own, whose peak memory counts.
"""

import gzip
import hashlib
import json
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from pneumobatch.archive import catalog
from pneumobatch.archive.films import schema as film_schema
from pneumobatch.bench.basics import Facts, Ready, model
from pneumobatch.bench.processes import Request
from pneumobatch.config import Archive, Evaluation, Job
from pneumobatch.evaluation.evaluate import evaluate
from pneumobatch.screening import ledger
from pneumobatch.screening.runs import Run
from pneumobatch.tables import Status

ROOT = "s3://archive/films"
BLOCK = 50_000
"""Rows that are drawn at a time."""


def job(request: Request) -> Job:
    """The request's job over an inventory of `request.images` films, written on first use."""
    folder = Path(request.job.output.uri)
    manifest = folder / "inventory" / "manifest.json"
    if not manifest.exists():
        manifest.parent.mkdir(parents=True)
        folders = ("NORMAL", "PNEUMONIA", "PNEUMONIA", "PNEUMONIA")
        lines = (
            f'"archive","films/{folders[n % 4]}/{n % 100:02d}/{n:09d}.jpeg","{100_000 + n}","{n:032x}"'
            for n in range(request.images)
        )
        data = gzip.compress("\n".join(lines).encode(), 1)
        (manifest.parent / "part.csv.gz").write_bytes(data)
        files = [{"key": "part.csv.gz", "size": len(data), "MD5checksum": hashlib.md5(data).hexdigest()}]  # noqa: S324
        content = {
            "sourceBucket": "archive",
            "fileFormat": "CSV",
            "fileSchema": "Bucket, Key, Size, ETag",
            "files": files,
        }
        manifest.write_text(json.dumps(content))
    archive = Archive(uri=str(manifest), roots=(ROOT,))
    screening = request.job.screening.model_copy(update={"run_id": "sizes", "nightly": False})
    evaluation = Evaluation(scope="model", run_id="sizes")
    return request.job.model_copy(update={"archive": archive, "screening": screening, "evaluation": evaluation})


def catalogue(request: Request, _: Ready) -> Facts:
    """Reads the inventory into the catalogue."""
    config = job(request).archive
    started = time.perf_counter()
    films = catalog.build(config)
    return {"seconds": time.perf_counter() - started, "rows": float(len(films))}


def publish(request: Request, _: Ready) -> Facts:
    """Reconciles and publishes a run whose films are all scored."""
    config = job(request)
    run = Run(config, model(request)[1])
    todo = run.begin(catalog.build(config.archive))
    for start in range(0, len(todo), BLOCK):
        run.stage(_scored(todo.slice(start, BLOCK)))
    run.flush()
    started = time.perf_counter()
    record = run.publish(run.reconcile(), {})
    return {"seconds": time.perf_counter() - started, "rows": float(record["counts"]["catalogued"])}


def anti_join(request: Request, _: Ready) -> Facts:
    """Finds what is new in an archive of which every film has been scored."""
    config = job(request)
    films = catalog.build(config.archive)
    started = time.perf_counter()
    fresh = ledger.new(config.output.uri, model(request)[1].model_id, films, [])
    if len(fresh):
        raise RuntimeError(f"{len(fresh)} films of an archive that is wholly scored count as new")
    return {"seconds": time.perf_counter() - started, "rows": float(len(films))}


def summary(request: Request, _: Ready) -> Facts:
    """Evaluates all rows, every one of known label, with figures, lists and report."""
    started = time.perf_counter()
    result = evaluate(job(request))
    return {"seconds": time.perf_counter() - started, "rows": float(result.summary["images"][0].as_py())}


def _scored(films: pa.Table) -> pa.Table:
    """Draws what the scorer would have staged for catalogue rows."""
    dice, n = np.random.default_rng(len(films)), len(films)
    schema = film_schema(1)
    drawn = {
        "image_id": films["image_id"],
        "status": pa.repeat(pa.scalar(str(Status.SCORED)), n),
        "sha256": films["image_id"],
        "format": pa.repeat(pa.scalar("jpeg"), n),
        "width": pa.array(dice.integers(900, 1500, n)),
        "height": pa.array(dice.integers(700, 1300, n)),
        **{name: pa.array(dice.random(n)) for name in ("mean_intensity", "contrast", "sharpness", "noise")},
    }
    columns = {
        field.name: drawn[field.name].cast(field.type) if field.name in drawn else pa.nulls(n, field.type)
        for field in schema
        if field.name != "pixels"
    }
    now = pa.scalar(datetime.now(UTC), pa.timestamp("us", tz="UTC"))
    sick = films["label"].fill_null(0).to_numpy()
    probability = 1 / (1 + np.exp(-dice.normal(3.0 * sick - 1.5, 1.5)))
    return pa.table(
        {**columns, "version": films["version"], "probability": pa.array(probability), "scored_at": pa.repeat(now, n)}
    )
