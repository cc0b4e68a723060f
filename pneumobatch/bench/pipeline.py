"""This package's own pipeline, measured from its start as a process to its published predictions."""

import tempfile
import time
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pneumobatch import cluster, tables
from pneumobatch.bench.basics import STEADY_BLOCKS, Facts, Ready, model, rates, repeated
from pneumobatch.bench.processes import Request
from pneumobatch.config import Output
from pneumobatch.screening import pipeline as screening
from pneumobatch.screening.runs import Run
from pneumobatch.screening.scorer import Scorer

if TYPE_CHECKING:
    from pneumobatch.models.scoring import Logits


class NullScorer(Scorer):
    """A scorer whose network costs nothing."""

    def network(self) -> "Logits":
        """No class is likelier for any film."""
        return lambda films_BSS: films_BSS[:, 0, :2] * 0.0


def pipeline(request: Request, _: Ready) -> Facts:
    """This package, from the start of the process to published predictions in a temporary folder.

    `rate` is that of the steady state, `whole_rate` that of the run from the engine's start to its end; `first` are the
    seconds from the start of the process to the first prediction, `imports` and `engine` their parts.
    """
    imported = time.monotonic()
    uri, bundle = model(request)
    scorer = NullScorer if request.null_network else Scorer
    arrivals: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        config = request.job.screening.model_copy(update={"run_id": "bench"})
        job = request.job.model_copy(update={"screening": config, "output": Output(uri=folder)})
        started = time.monotonic()
        with cluster.engine(job.cluster) as resources:
            running = time.monotonic()
            in_flight = int(max(resources.cpus, config.scorers, 1))
            gpu = resources.gpus > 0 and config.use_gpu is not False
            block = screening.block_images(config, request.images, gpu)
            # On accelerators some blocks arrive together, and enough must come that what was decoded ahead is used up.
            together = screening.BATCHES * config.batch_size if gpu else block
            least = 1 if request.exact else STEADY_BLOCKS * in_flight * together
            films = _catalogue(repeated(request, max(request.images, least)))
            plan = screening.decided(job, uri, bundle, resources, films, gpu=gpu)
            run = Run(job, bundle)
            for rows in screening.score(job, bundle, plan, run.begin(films), resources, scorer):
                run.stage(rows)
                arrivals.append((time.monotonic(), len(rows)))
            run.publish(run.reconcile(), {})
            ended = time.monotonic()
    return {
        **rates(started, arrivals, in_flight),
        "whole_rate": len(films) / (ended - started),
        "seconds": ended - started,
        "images": float(len(films)),
        "cpus": float(resources.cpus),
        "imports": imported - request.spawned,
        "engine": running - started,
        "first": arrivals[0][0] - request.spawned,
    }


def _catalogue(rows: pa.Table) -> pa.Table:
    """Gives rows the catalogue's other columns, empty."""
    schema = tables.catalog_schema([])
    known: dict[str, Any] = {name: rows[name] for name in rows.column_names}
    return pa.table(
        [known.get(name, pa.nulls(len(rows), schema.field(name).type)) for name in schema.names], schema=schema
    )
