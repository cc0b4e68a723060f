"""What a scheduler starts every night: what is new → run → evaluation, drift, lists and report.

A night that was missed or killed is caught up: a run that was left unfinished is finished first, and what no published
run of the model has taken is new, whenever it came. A second start in the same night finds the night's run published.
"""

from typing import Any, NamedTuple

from pneumobatch import lease
from pneumobatch.archive import catalog, left_out
from pneumobatch.cluster import NoWorkerError
from pneumobatch.config import Job
from pneumobatch.evaluation.evaluate import Result, evaluate
from pneumobatch.evaluation.labels import require_joinable
from pneumobatch.models import bundle as bundles
from pneumobatch.progress import say
from pneumobatch.screening import gauges, ledger, runs
from pneumobatch.screening.budget import OverBudgetError
from pneumobatch.screening.explain import explain
from pneumobatch.screening.pipeline import already, finish
from pneumobatch.screening.runs import Run, fingerprint, series


class Night(NamedTuple):
    """What a night left behind."""

    records: list[dict[str, Any]]
    """Records of the runs that were published, tonight's last."""
    result: Result | None
    """Evaluation of everything the model has scored so far; None where nothing of it is published."""
    unpublished: list[str]
    """What is wrong with the runs that were not published: too many of their films failed, or no worker came."""


def night(job: Job) -> Night:
    """Finishes what was left, takes what is new, and evaluates the model with the labels that are known by now.

    Raises:
        ValueError: Archive, bundle or labels do not fit.
        RuntimeError: Another start is at work on this archive with this model.
    """
    uri = bundles.locate(job.screening.bundle)
    bundle = bundles.load(uri)
    # Of the model alone: a night that spells the archive in another way takes the same films.
    with lease.hold(job.output.uri, f"nightly-{bundle.model_id}") as held:
        published = ledger.published(job.output.uri)
        ledger.require_site_key(published)
        films = catalog.build(job.archive, growing=True)
        require_joinable(films, job, beside_dicom=left_out.is_beside_dicom(films))
        tonight = _tonight(job, bundle)
        left = [run for run in _left(job, bundle) if run.run_id != tonight.run_id]
        records, unpublished = [], []
        for run in [*left, tonight]:
            try:
                records.append(_finished(run, tonight, uri, films, held, left))
            except (OverBudgetError, NoWorkerError) as error:  # it must not stop the nights after it
                say(f"not published: {error}")
                unpublished.append(str(error))
        nights = ledger.nights(published, series(job, bundle))
        # Where nothing came tonight, the labels that did are of the last night's films.
        result = _evaluated(job, [*ledger.not_evaluated(job.output.uri, nights), *records] or nights[-1:])
    if result and result.drift is not None:
        try:
            gauges.drift(job.cluster, result.drift)
        except NoWorkerError as error:  # the results are written, and the table of drift among them
            say(f"drift was not told to the cluster's metrics: {error}")
    return Night(records, result, unpublished)


def _tonight(job: Job, bundle: bundles.Bundle) -> Run:
    """Tonight's run; where one of this date was started under another configuration, one beside it."""
    run_id = runs.default_id(job, bundle)
    _, pin = runs.started(job.output.uri, run_id)
    if pin and not _same(pin, job):
        run_id = f"{run_id[:10]}-{fingerprint(job)[:6]}-{series(job, bundle)}"
    return Run(job, bundle, run_id)


def _finished(run: Run, tonight: Run, uri: str, films: Any, held: lease.Lease, left: list[Run]) -> dict[str, Any]:
    if run.record:
        return already(run)
    if run is tonight and not run.pin:
        pinned = [other.run_id for other in left if not other.record]  # by now: those that failed again
        films = ledger.new(run.job.output.uri, run.bundle.model_id, films, pinned)
    else:
        films = ledger.marked(run, films)
    run.accepted = lambda: ledger.failing(run.job.output.uri, run.bundle.model_id)
    return finish(run, uri, films, held)


def _left(job: Job, bundle: bundles.Bundle) -> list[Run]:
    """Runs of this series that were started and not published, oldest first."""
    left = []
    for pin in ledger.unfinished(job.output.uri):
        if not pin["run_id"].endswith(series(job, bundle)):
            continue
        if _same(pin, job):
            left.append(Run(job, bundle, pin["run_id"]))
        else:
            say(f"run {pin['run_id']} was left unfinished under another configuration; its films are taken anew")
    return left


def _same(pin: dict[str, Any], job: Job) -> bool:
    """Whether a run was started as this job would, by a version whose staging this one reads."""
    return bool(pin["configuration"] == fingerprint(job) and runs.continues(pin))


def _evaluated(job: Job, records: list[dict[str, Any]]) -> Result | None:
    """Every night that no evaluation has seen leaves its lists, drift and report; the last has seen all films.

    That is mostly tonight's, but not where an older run was mended after tonight's was published.
    """
    result, records = None, sorted(records, key=lambda record: str(record["finished_at"]))
    for run_id in dict.fromkeys(record["run_id"] for record in records):
        options = job.evaluation.model_copy(update={"run_id": run_id, "scope": "model"})
        result = evaluate(job.model_copy(update={"evaluation": options}), explain)
    return result
