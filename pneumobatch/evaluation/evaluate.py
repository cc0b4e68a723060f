"""The verb `evaluate` on one screen: published run → labels → summary → report."""

import json
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from rich import box
from rich.table import Table
from rich.text import Text

from pneumobatch import storage, tables
from pneumobatch.config import Archive, Job
from pneumobatch.evaluation.figures import three
from pneumobatch.evaluation.report import write_report
from pneumobatch.evaluation.summary import statuses, summarise


class Run(NamedTuple):
    """A published screening run."""

    record: dict[str, Any]
    """Its run record, `runs/<run_id>.json`."""
    predictions: pa.Table
    """One row a catalogued image (`tables.prediction_schema`)."""


class Result(NamedTuple):
    """What an evaluation found and wrote."""

    run_id: str
    summary: pa.Table
    """`tables.summary_schema`."""
    statuses: dict[tuple[str, str | None], int]
    """Images by (status, reason)."""
    summary_uri: str
    report_uri: str


def evaluate(job: Job) -> Result:
    """Summarises a published run, writes `summaries/model_id=…/<run_id>.parquet` and `reports/<run_id>/index.html`.

    Raises:
        ValueError: There is no such run, or labels and predictions do not fit together.
    """
    record, predictions = load(job)
    if job.evaluation.labels:
        predictions = join_labels(predictions, job.evaluation.labels, job.archive)
    summary = summarise(predictions, job.evaluation)
    run_id, model_id = record["run_id"], record["model_id"]
    summary_uri = storage.join(job.output.uri, "summaries", f"model_id={model_id}", f"{run_id}.parquet")
    storage.write_table(summary_uri, summary)
    history = _history(record)
    report_uri = write_report(job.output.uri, record, predictions, summary, job.evaluation, history)
    return Result(run_id, summary, statuses(predictions), summary_uri, report_uri)


def load(job: Job) -> Run:
    """Reads the run named by evaluation.run_id, or the latest published screening run under output.uri.

    Raises:
        ValueError: There is none, its record is no JSON object, or it lists no predictions.
    """
    runs, wanted = storage.join(job.output.uri, "runs"), job.evaluation.run_id
    names = [f"{wanted}.json"] if wanted else [f.path for f in storage.list_files(runs) if f.path.endswith(".json")]
    records = []
    for name in names:
        uri = storage.join(runs, name)
        try:
            record = json.loads(storage.read_bytes(uri))
        except FileNotFoundError:
            raise ValueError(f"{uri}: no such run; leave out evaluation.run_id to evaluate the latest") from None
        except ValueError:
            raise ValueError(f"{uri}: not a run record (JSON); give evaluation.run_id of another run") from None
        if wanted or (isinstance(record, dict) and record.get("verb") == "screen"):
            records.append((uri, record))
    if not records:
        raise ValueError(f"{runs}: no published screening run; run `pneumobatch screen` with this output.uri first")
    uri, record = max(records, key=lambda item: str(item[1].get("finished_at")))
    if missing := [key for key in ("run_id", "model_id", "predictions") if not record.get(key)]:
        raise ValueError(f"{uri}: lacks {', '.join(missing)}; give evaluation.run_id of a published screening run")
    parts = [storage.read_table(storage.join(job.output.uri, path)) for path in record["predictions"]]
    return Run(record, pa.concat_tables(parts, promote_options="default"))


def join_labels(predictions: pa.Table, uri: str, archive: Archive) -> pa.Table:
    """Replaces the predictions' labels by those of a CSV or Parquet table that arrived later.

    The key is an image_id, a uri or, where it is unique, a file name. An image without a row, or whose label is empty
    or `pending`, becomes unknown. Patients and subgroups are taken along where the predictions have none.

    Raises:
        ValueError: A column is missing, a label is unreadable, a key is double or ambiguous, or no key fits.
    """
    table = storage.read_cells(uri)
    key, label = tables.label_columns(table.column_names, archive.key_column, archive.label_column, uri)
    table = table.filter(pc.field(key).is_valid())
    keys = table[key].combine_chunks()
    if len(keys.unique()) != len(keys):
        raise ValueError(f"{uri}: column {key} names an image twice; keep one row an image")
    index = _match(predictions, keys, uri)
    labels = pa.array(tables.parse_labels(table[label].to_pylist(), uri), pa.int8())
    table = table.set_column(table.column_names.index(label), label, labels)
    wanted = {"label": label, "patient": archive.patient_column} | {n: n for n in archive.subgroups}
    for name, column in wanted.items():
        known = name in predictions.column_names and predictions[name].null_count < len(predictions)
        if column not in table.column_names or (known and name != "label"):
            continue
        values = table[column].take(index)
        if name in predictions.column_names:
            predictions = predictions.set_column(predictions.column_names.index(name), name, values)
        else:
            predictions = predictions.append_column(name, values)
    return predictions


def _match(predictions: pa.Table, keys: pa.Array, uri: str) -> pa.Array:
    """Returns each prediction's row in the label table, or NULL."""
    names = pc.replace_substring_regex(predictions["uri"], r"^.*/", "")
    exact = pc.coalesce(*(pc.index_in(predictions[c], keys, skip_nulls=True) for c in ("image_id", "uri")))
    by_name = pc.if_else(pc.is_null(exact), pc.index_in(names, keys, skip_nulls=True), None)
    found = pc.drop_null(by_name)
    if len(found.unique()) != len(found):
        raise ValueError(f"{uri}: a file name fits several images; name them by their path below the archive")
    index = pc.coalesce(exact, by_name)
    if index.null_count == len(index):
        raise ValueError(f"{uri}: none of its {len(keys)} keys fits an image of the run; check archive.key_column")
    return index.combine_chunks()


def _history(record: dict[str, Any]) -> pa.Table | None:
    """Reads the training history of the run's bundle, where the bundle still lies where the run found it."""
    bundle = record.get("bundle") or record.get("config", {}).get("screening", {}).get("bundle")
    uri = storage.join(bundle, "history.parquet") if isinstance(bundle, str) else None
    return storage.read_table(uri) if uri and storage.is_file(uri) else None


def console_table(result: Result) -> Table:
    """Returns counts and rates at the operating point, with 95 % intervals, overall and by subgroup (80 columns)."""
    rows = [row for row in result.summary.to_pylist() if row["threshold_kind"] == "bundle"]
    threshold = rows[0]["threshold"]
    point = "nothing was scored" if threshold is None else f"pneumonia is called at probability ≥ {threshold:.4f}"
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, title=f"{result.run_id}: {point}")
    table.caption = "95 % intervals in parentheses. Research use only; not a medical device."
    table.add_column("", overflow="ellipsis", no_wrap=True)
    for name in ("TP", "FP", "TN", "FN", "sensitivity", "specificity", "accuracy", "AUROC"):
        table.add_column(name, justify="right")
    subgroup = "all"
    for row in rows:
        if row["subgroup"] != subgroup:
            subgroup = row["subgroup"]
            table.add_section()
            table.add_row(Text(subgroup.replace("_", " "), style="bold"))
        label = Text("all" if subgroup == "all" else f" {row['value']}")  # Text: a value is no markup
        counts = ["–" if row[key] is None else f"{row[key]:,}" for key in ("tp", "fp", "tn", "fn")]
        rates = [_rate(row, key) for key in ("sensitivity", "specificity", "accuracy", "auroc")]
        if row["suppressed"]:
            rates = ["suppressed", "", "", ""]
        table.add_row(label, *counts, *rates, style="dim" if row["suppressed"] else None)
    return table


def _rate(row: dict[str, Any], name: str) -> str:
    if row[name] is None:
        return "–"
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return three(row[name]) + (f" ({low:.3f}–{high:.3f})".replace("0.", ".") if low is not None else "")
