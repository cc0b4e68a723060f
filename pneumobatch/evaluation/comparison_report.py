"""The results of an experiment → one self-contained HTML page, and a table for a terminal of 80 columns."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa
from rich import box
from rich.table import Table
from rich.text import Text

from pneumobatch import config, metrics
from pneumobatch.evaluation.figures import three
from pneumobatch.evaluation.page import span, template

ORDER = {"mean": 0, "done": 1, "stopped": 2, "failed": 3, "not_run": 4}
"""A row's lines: the mean of its seeds first."""

LEVEL = 0.05
"""Chance of calling any difference in a protocol when there is none; shared among its comparisons (Bonferroni)."""


def render(job: config.Job, results: pa.Table, baseline: str, told: Mapping[str, str]) -> str:
    """Returns the page.

    Args:
        job: The experiment's job.
        results: `tables.result_schema`.
        baseline: The row that the others were tested against.
        told: How each protocol that ran divided the films, in words.
    """
    rows = results.to_pylist()
    filters: dict[str, Callable[..., Any]] = {"chance": _chance, "quantity": _quantity, "differs": _differs}
    trials = [row for row in rows if row["status"] != "mean"]
    return template("experiment.html.j2", filters).render(
        job=job,
        baseline=baseline,
        protocols=[_protocol(name, list(group), told.get(name, "")) for name, group in _protocols(rows)],
        trials=trials,
        done=[row for row in trials if row["status"] == "done"],
        sizes=_all(trials, "image_size"),
        epochs=_all(trials, "epochs"),
        targets=_all(trials, "target"),
        hardware=_all(trials, "hardware"),
        versions=len({row["code"] for row in trials if row["status"] == "done"}),  # older trials do not tell theirs
        level=LEVEL,
        fewest=metrics.FEWEST_UNITS,
        undefined=metrics.UNDEFINED,
    )


def _protocols(rows: Sequence[dict[str, Any]]) -> "groupby[str, dict[str, Any]]":
    order = list(dict.fromkeys(row["protocol"] for row in rows))
    return groupby(sorted(rows, key=lambda row: order.index(row["protocol"])), key=lambda row: str(row["protocol"]))


def _all(rows: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    return sorted({row[name] for row in rows if row[name] is not None})


def _protocol(name: str, rows: list[dict[str, Any]], told: str) -> dict[str, Any]:
    """A protocol's lines, each row's mean above its seeds, of how many that were wanted; and where its axes begin."""
    names = list(dict.fromkeys(row["row"] for row in sorted(rows, key=lambda row: not row["baseline"])))
    lines = sorted(rows, key=lambda row: (names.index(row["row"]), ORDER[row["status"]], row["seed"] or 0))
    tests = sum(row[p] is not None for row in rows for p in ("mcnemar_p", "delong_p"))
    lows = [
        row[f"{rate}_low"]
        for row in rows
        for rate in ("accuracy", "sensitivity", "specificity", "auroc")
        if row[f"{rate}_low"] is not None
    ]
    return {
        "name": name,
        "told": told,
        "rows": lines,
        "wanted": Counter(row["row"] for row in rows if row["status"] != "mean"),
        "floor": int(10 * min(lows, default=0.0)) / 10,
        "tests": tests,
        "bound": LEVEL / max(tests, 1),
    }


def _differs(row: Mapping[str, Any], name: str, p: float | None, bound: float) -> bool:
    """Whether a difference to the baseline counts as found: by a test that takes films as independent, and by the
    interval over patients, whose films are not."""
    low, high = row[f"{name}_difference_low"], row[f"{name}_difference_high"]
    return p is not None and p < bound and low is not None and (low > 0 or high < 0)


def _chance(value: float | None) -> str:
    return "–" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def _quantity(value: float | None) -> str:
    """Such as 23.5 M."""
    if value is None:
        return "–"
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def console_table(results: pa.Table, baseline: str) -> Table:
    """Returns accuracy, AUROC and the tests against the baseline, one line a row and protocol (80 columns)."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, title=f"against {baseline}")
    table.caption = "95 % intervals below. Research use only; not a medical device."
    table.add_column("", overflow="fold")
    for name in ("accuracy", "sens.", "spec.", "AUROC", "McNemar p", "DeLong p"):
        table.add_column(name, justify="right", no_wrap=True)
    for protocol, group in _protocols(results.to_pylist()):
        table.add_section()
        table.add_row(Text(protocol, style="bold"))
        shown = _protocol(protocol, list(group), "")
        for row in shown["rows"]:
            seed = "" if row["seed"] is None else f", seed {row['seed']}"
            if row["status"] == "mean":
                seed = f", {row['seeds']} of {shown['wanted'][row['row']]} seeds (mean)"
            line = Text(f" {row['row']}{seed}")
            if row["accuracy"] is None:
                table.add_row(line, Text(row["status"].replace("_", " "), style="dim"))
                continue
            cells = [_cell(row, rate) for rate in ("accuracy", "sensitivity", "specificity", "auroc")]
            table.add_row(line, *cells, _chance(row["mcnemar_p"]), _chance(row["delong_p"]))
    return table


def _cell(row: Mapping[str, Any], name: str) -> str:
    interval = span(row, name).replace("0.", ".")
    return three(row[name]) + (f"\n{interval}" if interval else "")
