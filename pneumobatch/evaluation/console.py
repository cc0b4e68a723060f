"""An evaluation on a terminal of 80 columns: one table, and what else a night's reader should know, line by line."""

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc
from rich import box
from rich.table import Table
from rich.text import Text

from pneumobatch.evaluation.evaluate import Result
from pneumobatch.evaluation.figures import three

if TYPE_CHECKING:
    from rich.console import RenderableType

VALUES_SHOWN = 8
"""Values of one subgroup that are named, the largest; the summary holds all."""


def told(result: Result) -> list["RenderableType"]:
    """Returns what to print of an evaluation: the table of rates, then scope, labels, drift, work lists and places."""
    overall = _bundle_rows(result)[0]
    scored = sum(n for (status, _), n in result.statuses.items() if status == "scored")
    runs = "this run"
    if result.scope == "model":
        runs = f"the latest row of each in {result.runs:,} run{'s' * (result.runs != 1)} of this model"
    labels = f"{overall['labelled']:,} of {scored:,} scored films, version {result.label_version}"
    if not result.new:
        labels += " (evaluated before)"
    return [
        console_table(result),
        f"images         {overall['images']:,}: {runs}",
        f"labels         {labels}",
        f"drift          {_drift(result)}",
        f"to review      {result.to_review:,} scored films without a known label",
        f"discrepancies  {result.disagreeing:,} films whose label is not the model's call",
        *_trust(result),
        *(f"{name:<13}  {uri}" for name, uri in _places(result) if uri),
    ]


def _places(result: Result) -> list[tuple[str, str | None]]:
    return [
        ("summaries", result.summary_uri),
        ("drift", result.drift_uri),
        ("review", result.review_uri),
        ("discrepancies", result.discrepancies_uri),
        ("masking", result.masking_uri),
        ("report", result.report_uri),
    ]


def _trust(result: Result) -> Iterator[str]:
    """What is uncertain, what holds at the local prevalence, and what a look into the network found."""
    overall = _bundle_rows(result)[0]
    if overall["uncertain"] is not None and overall["scored"]:
        text = f"{overall['uncertain']:,} of {overall['scored']:,} scored films"
        certain = result.summary.filter(pc.equal(result.summary["threshold_kind"], "certain")).slice(0, 1).to_pylist()
        if certain and certain[0]["subgroup"] == "all":
            rates = (f"{name} {three(certain[0][name])}" for name in ("sensitivity", "specificity"))
            text += f"; {', '.join(rates)} of the others"
        yield f"uncertain      {text}"
    if overall["local_ppv"] is not None or overall["local_npv"] is not None:
        rates = (f"{name} {_inline(overall, f'local_{name.lower()}')}" for name in ("PPV", "NPV"))
        yield f"at {overall['local_prevalence']:<10.1%}  {', '.join(rates)}"
    found = result.explained
    if found.pictures or found.without_pictures:
        told = f"of {len(found.pictures)} films, in the report" if found.pictures else f"none: {found.without_pictures}"
        yield f"heat maps      {told}"
    if found.masking is not None:
        changes = {row["region"]: row["auroc_change"] for row in found.masking.to_pylist()}
        told = ", ".join(f"{c:+.3f} without the {name}" for name, c in changes.items() if c is not None)
        yield f"borders        AUROC {told}"
    elif found.without_masking:
        yield f"borders        not checked: {found.without_masking}"


def _inline(row: dict[str, Any], name: str) -> str:
    if row[name] is None:
        return "–"
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{three(row[name])} ({low:.3f}–{high:.3f})"


def _drift(result: Result) -> str:
    if result.drift is None:
        return f"not measured: {result.drift_missing}"
    rows = result.drift.to_pylist()
    judged = [row for row in rows if row["drifted"] is not None]
    if not judged:
        films = max((row["n"] for row in rows if row["column"] == "probability"), default=0)
        return f"not judged: {films:,} scored films are fewer than evaluation.drift_images"
    drifted = sorted((row for row in judged if row["drifted"]), key=lambda row: -abs(row["value"]) / row["bound"])
    named = ", ".join(_measure(row) for row in drifted[:3]) + (", …" if len(drifted) > 3 else "")
    few = any(row["drifted"] is None and row["measure"] != "ks" for row in rows)
    text = f"{len(drifted) or 'none'} of {len(judged)} measures" + (f" ({named})" if named else "")
    return text + ("; too few scored films for the others" if few else "")


def _measure(row: dict[str, Any]) -> str:
    """Such as `contrast PSI .41` or `positive rate .62 → .31`."""
    if row["measure"] == "psi":
        name = "score" if row["column"] == "probability" else row["column"].replace("_", " ")
        return f"{name} PSI {_short(row['value'])}"
    return f"{row['measure'].replace('_', ' ')} {_short(row['reference_value'])} → {_short(row['run_value'])}"


def _short(value: float) -> str:
    return f"{value:.2f}".removeprefix("0") if value < 1 else f"{value:.1f}"


def _bundle_rows(result: Result) -> list[dict[str, Any]]:
    """The rows at the operating point."""
    at_bundle = pc.equal(result.summary["threshold_kind"], "bundle")
    return list(result.summary.filter(at_bundle).to_pylist())


def console_table(result: Result) -> Table:
    """Returns counts and rates at the operating point, with 95 % intervals, overall and by subgroup (80 columns)."""
    rows = _bundle_rows(result)
    threshold = rows[0]["threshold"]
    point = "nothing was scored" if threshold is None else f"pneumonia is called at probability ≥ {threshold:.4f}"
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, title=f"{result.run_id}: {point}")
    table.caption = "95 % intervals below the rates. Research use only; not a medical device."
    table.add_column("", overflow="fold")
    for name in ("TP", "FP", "TN", "FN", "sens.", "spec.", "accuracy", "AUROC"):
        table.add_column(name, justify="right", no_wrap=True)
    for subgroup, group in groupby(rows, key=lambda row: str(row["subgroup"])):
        values = list(group)
        if subgroup != "all":
            table.add_section()
            table.add_row(Text(subgroup.replace("_", " "), style="bold"))
        largest = sorted(values, key=lambda row: -row["images"])[:VALUES_SHOWN]
        for row in values:
            if row in largest:
                _add(table, row)
        if len(values) > VALUES_SHOWN:
            table.add_row(Text(f" and {len(values) - VALUES_SHOWN:,} more", style="dim"))
    return table


def _add(table: Table, row: dict[str, Any]) -> None:
    label = Text("all" if row["subgroup"] == "all" else f" {row['value']}")  # Text: a value is no markup
    counts = [_count(row[key]) for key in ("tp", "fp", "tn", "fn")]
    rates = [_rate(row, key) for key in ("sensitivity", "specificity", "accuracy", "auroc")]
    if row["suppressed"]:
        rates = ["suppressed", "", "", ""]
    table.add_row(label, *counts, *rates, style="dim" if row["suppressed"] else None)


def _count(films: int | None) -> str:
    if films is None:
        return "–"
    return f"{films:,}" if films < 10_000 else f"{films / 1000:.3g}k" if films < 1_000_000 else f"{films / 1e6:.3g}M"


def _rate(row: dict[str, Any], name: str) -> str:
    if row[name] is None:
        return "–"
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return three(row[name]) + (f"\n{low:.3f}–{high:.3f}".replace("0.", ".") if low is not None else "")
