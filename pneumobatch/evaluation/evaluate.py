"""The verb `evaluate` on one screen: published runs → labels → summary, drift, work lists → report."""

from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pneumobatch import storage
from pneumobatch.config import Job
from pneumobatch.evaluation import drift, worklists
from pneumobatch.evaluation.explained import Explain, Explained
from pneumobatch.evaluation.labels import with_known_labels
from pneumobatch.evaluation.published import Bundle, Record, find_bundle, holds_dicom, keep, load, own_films
from pneumobatch.evaluation.report import Findings, write_report
from pneumobatch.evaluation.summary import statuses, summarise


class Result(NamedTuple):
    """What an evaluation found and wrote."""

    run_id: str
    scope: str
    """Whether `summary` is of that run's images, or of those of its model's runs up to it."""
    runs: int
    """Published runs in the scope."""
    label_version: str
    """Hash of the known labels used; see `labels.label_version`."""
    new: bool
    """Whether these labels (or options) were not evaluated before; an older summary is never overwritten."""
    summary: pa.Table
    """`tables.summary_schema`."""
    statuses: dict[tuple[str, str | None], int]
    """Images of the scope by (status, reason)."""
    drift: pa.Table | None
    """`tables.drift_schema`, of the run's own images; None without a reference."""
    drift_missing: str | None
    """Why there is none."""
    to_review: int
    """Scored images of the run without a known label."""
    disagreeing: int
    """Scored images of the scope whose label is not the model's call."""
    explained: Explained
    """Heat maps and the check of the borders, as far as they were asked for."""
    summary_uri: str
    report_uri: str
    drift_uri: str | None
    review_uri: str
    discrepancies_uri: str
    masking_uri: str | None


def evaluate(job: Job, explain: Explain | None = None) -> Result:
    """Evaluates a published run against the labels that are known now, and writes below output.uri:

    summaries/model_id=…/<run_id>-<scope>-<label_version>.parquet       of the scope; never overwritten
    discrepancies/model_id=…/<run_id>-<scope>-<label_version>.parquet   of the scope; never overwritten
    drift/model_id=…/<run_id>.parquet                                   of the run; never overwritten
    review/model_id=…/run_date=…/<run_id>.parquet                       of the run; what is still to label
    masking/model_id=…/<run_id>-<scope>-<label_version>.parquet         of a sample; never overwritten
    reports/<run_id>/index.html                                         the latest view

    Args:
        job: The job.
        explain: Makes heat maps and the check of the borders; called where evaluation.heat_maps or masked_films ask
            for them, as it needs torch.

    Raises:
        ValueError: There is no such run, or labels and predictions do not fit together.
    """
    record, predictions, runs = load(job)
    predictions = _publishable(with_known_labels(predictions, job, record.get("site_key")), record, job)
    bundle = find_bundle(record)
    summary = summarise(predictions, job.evaluation, record, bundle.prevalence)
    own = predictions.filter(pc.equal(predictions["run_id"], record["run_id"]))
    reference = drift.read_reference(bundle)
    rows = own_films(job, record, drift.COLUMNS)
    measured = None if reference.films is None else drift.measure(reference.films, rows, job.evaluation, record)
    review, disagreeing = worklists.review(own), worklists.discrepancies(predictions)

    options, explained = job.evaluation, Explained()
    if options.heat_maps or options.masked_films:
        assert explain is not None, "who evaluates with heat maps brings what makes them"
        explained = explain(job, record, bundle, predictions)

    version = summary["label_version"][0].as_py()
    model = f"model_id={record['model_id']}"
    evaluated = f"{record['run_id']}-{job.evaluation.scope}-{version}.parquet"
    summary_uri, new = keep(storage.join(job.output.uri, "summaries", model, evaluated), summary, "evaluated_at")
    summary = storage.read_table(summary_uri)
    discrepancies_uri, _ = keep(storage.join(job.output.uri, "discrepancies", model, evaluated), disagreeing)
    drift_uri = None
    if measured is not None:
        place = storage.join(job.output.uri, "drift", model, f"{record['run_id']}.parquet")
        drift_uri, _ = keep(place, measured, "measured_at")
    masking_uri = None
    if explained.masking is not None:
        place = storage.join(job.output.uri, "masking", model, evaluated)
        masking_uri, _ = keep(place, explained.masking, "measured_at")
    findings = Findings(
        predictions, summary, runs, rows["probability"], reference, measured, review, disagreeing, _history(bundle),
        bundle.content.get("uncertain"), explained,
    )  # fmt: skip
    report_uri = write_report(job.output.uri, record, findings, job.evaluation)
    # Last: by it a later night knows that this one was evaluated to its end (`ledger.not_evaluated`).
    review_uri = storage.join(job.output.uri, "review", model, _date(record), f"{record['run_id']}.parquet")
    storage.write_table(review_uri, review)
    return Result(
        record["run_id"], job.evaluation.scope, runs, version, new, summary, statuses(predictions), measured,
        reference.missing, len(review), len(disagreeing), explained, summary_uri, report_uri, drift_uri, review_uri,
        discrepancies_uri, masking_uri,
    )  # fmt: skip


def _publishable(predictions: pa.Table, record: Record, job: Job) -> pa.Table:
    """Takes the paths out of films of earlier runs that might still write theirs, where this run must not.

    They have joined labels by then; what looks into the network finds the films by a listing.
    """
    keep = job.output.keep_source_uri
    if keep is None:
        keep = record.get("config", {}).get("output", {}).get("keep_source_uri")
    if keep or (keep is None and not holds_dicom(record, predictions)):
        return predictions
    place = predictions.column_names.index("uri")
    return predictions.set_column(place, "uri", pa.nulls(len(predictions), pa.string()))


def _date(record: Record) -> str:
    """The partition that the run's predictions lie in."""
    paths = [part for path in record["predictions"] for part in path.split("/") if part.startswith("run_date=")]
    return paths[0] if paths else f"run_date={str(record.get('started_at'))[:10]}"


def _history(bundle: Bundle) -> pa.Table | None:
    """Reads how the run's model was trained."""
    uri = storage.join(bundle.uri, "history.parquet")
    return storage.read_table(uri) if not bundle.missing and storage.is_file(uri) else None
