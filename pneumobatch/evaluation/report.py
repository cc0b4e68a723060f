"""Summary and predictions → one self-contained HTML page without scripts, network or identity."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from pneumobatch import config, metrics, storage, tables
from pneumobatch.evaluation import drift, figures
from pneumobatch.evaluation.explained import Explained, embedded
from pneumobatch.evaluation.page import template
from pneumobatch.evaluation.summary import Scored, scored, statuses

LINEAGE = (
    "verb", "bundle", "weights_sha256", "configuration", "catalog", "hashes", "versions", "code", "hardware", "plan",
    "seed", "seconds", "seconds_to_first_prediction",
)  # fmt: skip
"""Entries of a run record that the page shows, besides ids, dates and configuration: an allow-list."""

READ = ("archive", "screening", "evaluation", "output", "cluster")
"""Sections of a configuration that screening and evaluation read: a job file may hold a whole study."""

HIDDEN = {"uri", "labels", "include", "exclude", "roots", "bundle", "address", "shared_paths"}
"""Keys of a configuration that may hold a path or address; the run record keeps them, the page does not."""

PREVALENCES = (0.01, 0.05, 0.1, 0.2, 0.5)
"""Prevalences of pneumonia at which predictive values are tabulated."""

OWN = {"ppv": "precision", "npv": "npv"}
"""Predictive values as the summary names them."""

VALUES_SHOWN = 24
"""Values of one subgroup that the page tabulates, the largest; the summary holds all."""

SUPPRESSED_SHOWN = 6
"""Suppressed values of one subgroup that are named; more are only counted."""


class Findings(NamedTuple):
    """What an evaluation found, as the page shows it."""

    predictions: pa.Table
    """One row an image of the scope (`tables.prediction_schema`), with what labels are known."""
    summary: pa.Table
    """`tables.summary_schema` of them."""
    runs: int
    """Published runs that they come from."""
    scores: pa.ChunkedArray
    """Probabilities of the run's own films; NULL where one was not scored."""
    reference: drift.Reference
    """The films that the run is compared with."""
    drift: pa.Table | None
    """`tables.drift_schema` of the run; None without a reference."""
    review: pa.Table
    """`tables.review_schema` of the run."""
    discrepancies: pa.Table
    """`tables.discrepancy_schema` of the scope."""
    history: pa.Table | None = None
    """The bundle's training history, one row an epoch."""
    band: Sequence[float] | None = None
    """Lowest and highest probability of the bundle's uncertain band; None: it has none, or is not at hand."""
    explained: Explained = Explained()
    """Heat maps and the check of the borders, as far as they were asked for."""


def write_report(uri: str, record: Mapping[str, Any], findings: Findings, options: config.Evaluation) -> str:
    """Writes `reports/<run_id>/index.html` below an output URI and returns its URI.

    Args:
        uri: Output folder or URI of the job.
        record: The run record; only run_id and model_id are required.
        findings: What was found.
        options: How the summary was made.
    """
    target = storage.join(uri, "reports", str(record["run_id"]), "index.html")
    storage.write_bytes(target, render(record, findings, options).encode())
    return target


def render(record: Mapping[str, Any], findings: Findings, options: config.Evaluation) -> str:
    """Returns the page; arguments as in `write_report`."""
    predictions, summary, history = findings.predictions, findings.summary, findings.history
    whole = pc.and_(pc.equal(summary["subgroup"], "all"), pc.equal(summary["threshold_kind"], "grid"))
    grid = summary.filter(whole).to_pylist()
    rows = summary.filter(pc.equal(summary["threshold_kind"], "bundle")).to_pylist()  # a grid for each site is long
    overall = rows[0]
    certain = summary.filter(pc.equal(summary["threshold_kind"], "certain")).slice(0, 1).to_pylist()
    films = scored(predictions)
    filters: dict[str, Callable[..., Any]] = {"number": _number, "moment": _moment, "mean": _mean}
    return template("report.html.j2", filters).render(
        record=record,
        overall=overall,
        options=options,
        runs=findings.runs,
        labelled=overall["labelled"],
        reconciled=_reconcile(record, predictions, films, options.scope),
        drift=_drift(findings, options, overall["threshold"]),
        figures=_figures(findings, films, overall, grid, options),
        uncertain=_uncertain(findings, overall, certain[0] if certain and certain[0]["subgroup"] == "all" else None),
        pictures=embedded(findings.explained.pictures),
        masking=findings.explained.masking.to_pylist() if findings.explained.masking else [],
        explained=findings.explained,
        training=Markup(figures.training_curves(history) or "") if history is not None else "",  # noqa: S704
        subgroups=_subgroups(rows),
        thresholds=_table_of_thresholds(overall, grid),
        predictive=_predictive_values(overall, options.prevalence),
        lists=_lists(findings, options.review_images),
        resamples=metrics.enough_resamples(options.bootstrap, overall["labelled"]),
        lineage=_flat({key: record[key] for key in LINEAGE if key in record}),
        configuration=json.dumps(_without_paths(_read_sections(record)), indent=2, ensure_ascii=False),
        resampled=_resampled(predictions, films),
        fewest=metrics.FEWEST_UNITS,
        undefined=metrics.UNDEFINED,
    )


def _resampled(predictions: pa.Table, films: Scored) -> str:
    """What the bootstrap draws again."""
    alone = predictions["patient"].take(pa.array(films.rows)).null_count
    if films.patients is None:
        return "films resampled one by one, as no patient is known"
    return "patients resampled whole" + (f", and {alone:,} films of unknown patients one by one" if alone else "")


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _mean(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"


def _moment(value: Any) -> str:
    try:
        return datetime.fromisoformat(str(value)).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return "–"


def _reconcile(record: Mapping[str, Any], predictions: pa.Table, films: Scored, scope: str) -> dict[str, Any]:
    """Counts by status; those of a run against its record, those of several runs against their distinct images."""
    reasons = statuses(predictions)
    counts = {str(s): sum(n for (status, _), n in reasons.items() if status == s) for s in tables.Status}
    images = pc.count_distinct(predictions["image_id"]).as_py()
    catalogued = images if scope == "model" else (record.get("counts") or {}).get("catalogued", images)
    return {
        "catalogued": catalogued,
        "counts": counts,
        "whole": sum(counts.values()) == catalogued == len(predictions) == images,
        "reasons": [(s, reason, n) for (s, reason), n in reasons.items() if s in {"failed", "rejected"}],
        "pending": counts["scored"] - films.labels.size,
        "paths": predictions["uri"].null_count < len(predictions),
    }


def _drift(findings: Findings, options: config.Evaluation, threshold: float | None) -> dict[str, Any]:
    """Shares as they are, and one line a column with its stability index and, for numbers, its KS distance."""
    if findings.drift is None or findings.reference.films is None:
        return {
            "missing": findings.reference.missing,
            "judged": 0,
            "drifted": 0,
            "rates": [],
            "columns": [],
            "figure": "",
        }
    rows = findings.drift.to_pylist()
    distances = {row["column"]: row for row in rows if row["measure"] == "ks"}
    judged = [row for row in rows if row["drifted"] is not None]
    known = pc.drop_null(findings.reference.films["probability"]).to_numpy()
    scores = pc.drop_null(findings.scores).to_numpy()
    figure = figures.score_shift(known, scores, threshold) if known.size and scores.size else ""
    return {
        "missing": None,
        "judged": len(judged),
        "drifted": sum(row["drifted"] for row in judged),
        "films": scores.size,
        "least": options.drift_images,
        "rates": [row for row in rows if row["measure"].endswith("_rate")],
        "columns": [row | {"ks": distances.get(row["column"])} for row in rows if row["measure"] == "psi"],
        "figure": Markup(figure),  # noqa: S704
    }


def _lists(findings: Findings, most: int) -> list[dict[str, Any]]:
    """The heads of both work lists; rows further down stay in their tables."""
    return [
        {
            "name": name,
            "films": len(table),
            "uncertain": pc.sum(table["uncertain"]).as_py() or 0,
            "rows": table.slice(0, most).to_pylist(),
        }
        for name, table in (("review", findings.review), ("discrepancies", findings.discrepancies))
    ]


def _figures(
    findings: Findings,
    films: Scored,
    overall: Mapping[str, Any],
    grid: list[dict[str, Any]],
    options: config.Evaluation,
) -> dict[str, Markup]:
    predictions, threshold = findings.predictions, overall["threshold"]
    unknown = pc.and_(pc.equal(predictions["status"], tables.Status.SCORED.value), predictions["label"].is_null())
    groups = [
        ("pneumonia", figures.PNEUMONIA, films.probabilities[films.labels == 1]),
        ("normal", figures.NORMAL, films.probabilities[films.labels == 0]),
        ("label unknown", figures.MUTED, predictions["probability"].filter(unknown).to_numpy()),
    ]
    drawn: dict[str, str] = {}
    if threshold is not None:
        drawn["scores"] = figures.scores(groups, threshold, findings.band)
    if films.labels.size:
        counts, labels, probabilities = _counts(overall), films.labels, films.probabilities
        drawn["confusion"] = figures.confusion_matrix(counts)
        drawn["reliability"] = figures.reliability(labels, probabilities, options.bins)
        if counts.positives and counts.negatives:
            area = (overall["auroc_low"], overall["auroc_high"])
            interval = None if None in area else area
            drawn["roc"] = figures.roc(labels, probabilities, counts, interval, threshold)
            drawn["precision_recall"] = figures.precision_recall(labels, probabilities, counts, threshold)
            points = [row["threshold"] for row in grid]
            if overall["local_brier"] is not None and options.prevalence is not None:
                there = metrics.shift_prior(probabilities, overall["model_prevalence"], options.prevalence)
                drawn["reliability_local"] = figures.reliability(labels, there, options.bins, options.prevalence)
            drawn["trade_off"] = figures.trade_off(points, [_counts(row) for row in grid], threshold)
    return {name: Markup(svg) for name, svg in drawn.items()}  # noqa: S704 (our own drawing, no foreign text in it)


def _counts(row: Mapping[str, Any]) -> metrics.Counts:
    return metrics.Counts(**{name: row[name] for name in ("tp", "fp", "tn", "fn")})


def _uncertain(findings: Findings, overall: Mapping[str, Any], certain: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the model's uncertain band holds, and the rates of the films outside; None where it has no band."""
    marked = overall["uncertain"]
    if marked is None or not overall["scored"]:
        return None
    low, high = metrics.wilson(marked, overall["scored"]) or (None, None)
    return {
        "films": marked,
        "share": marked / overall["scored"],
        "share_low": low,
        "share_high": high,
        "band": findings.band,
        "rows": [("all films", overall), ("certain films", certain)] if certain else [],
    }


def _subgroups(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the bundle rows of every subgroup, largest values only and suppressed ones folded where they are many."""
    groups: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["subgroup"] != "all":
            group = groups.setdefault(row["subgroup"], {"rows": [], "suppressed": []})
            group["suppressed" if row["suppressed"] else "rows"].append(row)
    for group in groups.values():
        largest = sorted(group["rows"], key=lambda row: -row["images"])[:VALUES_SHOWN]
        group["further"] = len(group["rows"]) - len(largest)
        group["rows"] = [row for row in group["rows"] if row in largest]
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
    counts = np.array([[overall[name] for name in ("tp", "fp", "tn", "fn")]])
    rows = []
    for name, prevalence in sorted([*named, *(("", p) for p in PREVALENCES)], key=lambda pair: pair[1]):
        values = {
            key: None if np.isnan(v[0]) else v[0] for key, v in metrics.predictive_values(counts, prevalence).items()
        }
        if name == "these films":  # their own prevalence is counted, not supposed
            values = {f"{key}{b}": overall[f"{own}{b}"] for key, own in OWN.items() for b in ("", "_low", "_high")}
        called = sensitivity * prevalence + (1 - specificity) * (1 - prevalence)
        rows.append({"name": name, "prevalence": prevalence, **values, "called": 1000 * called})
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


def _read_sections(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values for name, values in record.get("config", {}).items() if name in READ}


def _without_paths(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_without_paths(item) for item in value]
    if isinstance(value, Mapping):
        return {k: "(in the run record)" if k in HIDDEN and v else _without_paths(v) for k, v in value.items()}
    return value
