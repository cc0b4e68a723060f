"""Summary and predictions → one self-contained HTML page without scripts, network or identity."""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from pneumobatch import config, metrics, storage, tables
from pneumobatch.evaluation import figures
from pneumobatch.evaluation.summary import scored, statuses

LINEAGE = (
    "verb", "bundle", "weights_sha256", "configuration", "catalog", "hashes", "versions", "code", "hardware", "plan",
    "seed", "seconds", "seconds_to_first_prediction",
)  # fmt: skip
"""Entries of a run record that the page shows, besides ids, dates and configuration: an allow-list."""

HIDDEN = {"uri", "labels", "include", "exclude", "roots", "bundle", "address", "weights"}
"""Keys of a configuration that may hold a path or address; the run record keeps them, the page does not."""

PREVALENCES = (0.01, 0.05, 0.1, 0.2, 0.5)
"""Prevalences of pneumonia at which predictive values are tabulated."""

SUPPRESSED_SHOWN = 6
"""Suppressed values of one subgroup that are named; more are only counted."""


def write_report(
    uri: str,
    record: Mapping[str, Any],
    predictions: pa.Table,
    summary: pa.Table,
    options: config.Evaluation,
    history: pa.Table | None = None,
) -> str:
    """Writes `reports/<run_id>/index.html` below an output URI and returns its URI.

    Args:
        uri: Output folder or URI of the job.
        record: The run record; only run_id and model_id are required.
        predictions: One row a catalogued image (`tables.prediction_schema`).
        summary: `tables.summary_schema` of the same run.
        options: How the summary was made.
        history: The bundle's training history, one row an epoch.
    """
    target = storage.join(uri, "reports", str(record["run_id"]), "index.html")
    storage.write_bytes(target, render(record, predictions, summary, options, history).encode())
    return target


def render(
    record: Mapping[str, Any],
    predictions: pa.Table,
    summary: pa.Table,
    options: config.Evaluation,
    history: pa.Table | None = None,
) -> str:
    """Returns the page; arguments as in `write_report`."""
    rows = summary.to_pylist()
    overall = rows[0]
    grid = [row for row in rows if row["subgroup"] == "all" and row["threshold_kind"] == "grid"]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pneumobatch", "evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"rate": figures.three, "span": _span, "number": _number, "moment": _moment}
    return environment.get_template("report.html.j2").render(
        record=record,
        overall=overall,
        options=options,
        labelled=overall["labelled"],
        reconciled=_reconcile(record, predictions),
        figures=_figures(predictions, overall, grid, options),
        training=Markup(figures.training_curves(history) or "") if history is not None else "",  # noqa: S704
        subgroups=_subgroups(rows),
        thresholds=_table_of_thresholds(overall, grid),
        predictive=_predictive_values(overall, options.prevalence),
        lineage=_flat({key: record[key] for key in LINEAGE if key in record}),
        configuration=json.dumps(_without_paths(record.get("config", {})), indent=2, ensure_ascii=False),
        patients_known=predictions["patient"].null_count < len(predictions),
    )


def _span(row: Mapping[str, Any], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "" if low is None else f"{low:.3f}–{high:.3f}"


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _moment(value: Any) -> str:
    try:
        return datetime.fromisoformat(str(value)).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return "–"


def _reconcile(record: Mapping[str, Any], predictions: pa.Table) -> dict[str, Any]:
    reasons = statuses(predictions)
    counts = {str(s): sum(n for (status, _), n in reasons.items() if status == s) for s in tables.Status}
    catalogued = (record.get("counts") or {}).get("catalogued", len(predictions))
    return {
        "catalogued": catalogued,
        "counts": counts,
        "whole": sum(counts.values()) == catalogued == len(predictions),
        "reasons": [(s, reason, n) for (s, reason), n in reasons.items() if s in {"failed", "rejected"}],
        "pending": counts["scored"] - scored(predictions).labels.size,
    }


def _figures(
    predictions: pa.Table, overall: Mapping[str, Any], grid: list[dict[str, Any]], options: config.Evaluation
) -> dict[str, Markup]:
    films, threshold = scored(predictions), overall["threshold"]
    unknown = predictions.filter((pc.field("status") == tables.Status.SCORED) & pc.field("label").is_null())
    groups = [
        ("pneumonia", figures.PNEUMONIA, films.probabilities[films.labels == 1]),
        ("normal", figures.NORMAL, films.probabilities[films.labels == 0]),
        ("label unknown", figures.MUTED, unknown["probability"].to_numpy()),
    ]
    drawn: dict[str, str] = {}
    if threshold is not None:
        drawn["scores"] = figures.scores(groups, threshold)
    if films.labels.size:
        counts, (labels, probabilities, _) = _counts(overall), films
        drawn["confusion"] = figures.confusion_matrix(counts)
        drawn["reliability"] = figures.reliability(labels, probabilities, options.bins)
        if counts.positives and counts.negatives:
            area = (overall["auroc_low"], overall["auroc_high"])
            interval = None if None in area else area
            drawn["roc"] = figures.roc(labels, probabilities, counts, interval, threshold)
            drawn["precision_recall"] = figures.precision_recall(labels, probabilities, counts, threshold)
            points = [row["threshold"] for row in grid]
            drawn["trade_off"] = figures.trade_off(points, [_counts(row) for row in grid], threshold)
    return {name: Markup(svg) for name, svg in drawn.items()}  # noqa: S704 (our own drawing, no foreign text in it)


def _counts(row: Mapping[str, Any]) -> metrics.Counts:
    return metrics.Counts(**{name: row[name] for name in ("tp", "fp", "tn", "fn")})


def _subgroups(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the bundle rows of every subgroup, with its suppressed values folded together where they are many."""
    groups: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["threshold_kind"] == "bundle" and row["subgroup"] != "all":
            group = groups.setdefault(row["subgroup"], {"rows": [], "suppressed": []})
            group["suppressed" if row["suppressed"] else "rows"].append(row)
    for group in groups.values():
        hidden = group["suppressed"]
        if len(hidden) > SUPPRESSED_SHOWN:
            images = sum(row["images"] for row in hidden)
            group["suppressed"] = [hidden[0] | {"value": f"{len(hidden)} further values", "images": images}]
    return [{"name": name.replace("_", " "), **group} for name, group in groups.items()]


def _table_of_thresholds(overall: dict[str, Any], grid: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not grid:
        return []
    points = np.array([row["threshold"] for row in grid])
    nearest = sorted({int(np.abs(points - wanted).argmin()) for wanted in np.linspace(0.1, 0.9, 9)})
    return sorted([overall, *(grid[i] for i in nearest)], key=lambda row: row["threshold"])


def _predictive_values(overall: Mapping[str, Any], local: float | None) -> list[dict[str, Any]]:
    sensitivity, specificity = overall["sensitivity"], overall["specificity"]
    if sensitivity is None or specificity is None:
        return []
    named = [("these films", overall["prevalence"])] + ([("local", local)] if local is not None else [])
    rows = []
    for name, prevalence in sorted([*named, *(("", p) for p in PREVALENCES)], key=lambda pair: pair[1]):
        ppv, npv = metrics.ppv_npv(sensitivity, specificity, prevalence)
        called = sensitivity * prevalence + (1 - specificity) * (1 - prevalence)
        rows.append({"name": name, "prevalence": prevalence, "ppv": ppv, "npv": npv, "called": 1000 * called})
    return rows


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            text = str(value)
            rows.append((prefix + str(key), text.rstrip("/").rsplit("/", 1)[-1] if key in HIDDEN else text))
    return rows


def _without_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: "(in the run record)" if k in HIDDEN and v else _without_paths(v) for k, v in value.items()}
    return value
