"""Many models' scores of the same test films → one table of rates, intervals and paired tests against a baseline."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pneumobatch import metrics, tables
from pneumobatch.config import Evaluation
from pneumobatch.metrics import Floats

MEASURED = (
    "chosen_epoch", "train_films", "parameters", "multiply_adds", "hardware", "arithmetic", "seconds",
)  # fmt: skip
"""What a finished trial says of itself, by the columns of `tables.result_schema`."""


class Entry(NamedTuple):
    """A trial, or a row that was not run."""

    facts: dict[str, Any]
    """Columns of `tables.result_schema` that are known before its test films are looked at; `threshold` among them."""
    test: pa.Table | None = None
    """Test films with `image_id`, `label`, `patient` (never written), `published_patient` and `probability`; None where
    there are no scores."""


class Scored(NamedTuple):
    """A finished trial's test films as arrays, in the order of their ids, and what resampled patients make of them."""

    facts: dict[str, Any]
    films: pa.Table
    labels: Floats
    probabilities: Floats
    calls: Floats
    draws: dict[str, Floats]


def compare(entries: Sequence[Entry], baseline: str, options: Evaluation) -> tuple[pa.Table, pa.Table]:
    """Returns `tables.result_schema` and `tables.trial_prediction_schema` of all entries.

    Args:
        entries: Trials and rows that were not run; those of one protocol have the same test films, as far as these
            could be read when each was trained.
        baseline: The row that the others are tested against.
        options: Resamples, seed and bins of the intervals.
    """
    scored = [_scored(entry, entry.test, options) for entry in entries if entry.test is not None]
    lacking = [entry.facts for entry in entries if entry.test is None and entry.facts["row"] == baseline]
    done = [
        _alone(one, options)
        | (_against(one, base) if (base := _partner(one, scored, baseline)) else _without(one, lacking))
        for one in scored
    ]
    numbers = iter(done)
    rows = [entry.facts if entry.test is None else next(numbers) for entry in entries]
    rows += _means(done, scored, baseline)
    for row in rows:
        row["baseline"] = row["row"] == baseline
    schema = tables.result_schema()
    results = pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema)
    return results, pa.concat_tables([tables.trial_prediction_schema().empty_table(), *map(_predictions, scored)])


def _scored(entry: Entry, test: pa.Table, options: Evaluation) -> Scored:
    films = test.sort_by("image_id")  # the order in which all of a protocol's trials are resampled alike
    labels, probabilities = (films[name].to_numpy().astype(np.float64) for name in ("label", "probability"))
    calls = (probabilities >= entry.facts["threshold"]).astype(np.float64)
    named = [patient or f"#{i}" for i, patient in enumerate(films["patient"].to_pylist())]
    patients = np.unique(named, return_inverse=True)[1]
    draws = metrics.bootstrap(labels, probabilities, patients, options.bootstrap, options.seed, options.bins)
    # The Brier score of calls, which are 0 or 1, is the error rate.
    errors = metrics.bootstrap(labels, calls, patients, options.bootstrap, options.seed)["brier"]
    return Scored(entry.facts, films, labels, probabilities, calls, draws | {"accuracy": 1 - errors})


def _alone(one: Scored, options: Evaluation) -> dict[str, Any]:
    counts = metrics.count(one.labels, one.calls)
    row = one.facts | {"tp": counts.tp, "fp": counts.fp, "tn": counts.tn, "fn": counts.fn, "test_films": counts.total}
    for rate in metrics.RATES:
        row |= {rate: counts.rate(rate)} | metrics.bounds(rate, counts.interval(rate))
    for name, value in metrics.over_thresholds(one.labels, one.probabilities, options.bins).items():
        about = value if name == "ece" else None
        row |= {name: value} | metrics.bounds(name, metrics.percentile(one.draws[name], about))
    row |= metrics.bounds("auroc_delong", metrics.delong_interval(one.labels, one.probabilities))
    return row | metrics.bounds("accuracy_patients", metrics.percentile(one.draws["accuracy"]))


def _partner(one: Scored, scored: Sequence[Scored], baseline: str) -> Scored | None:
    """The baseline's trial of the same protocol and seed."""
    wanted = (baseline, one.facts["protocol"], one.facts["seed"])
    found = (s for s in scored if (s.facts["row"], s.facts["protocol"], s.facts["seed"]) == wanted)
    return None if one.facts["row"] == baseline else next(found, None)


def _without(one: Scored, lacking: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Why a trial is compared with nothing: its baseline's trial has no numbers."""
    for facts in lacking:
        if (facts["protocol"], facts["seed"]) == (one.facts["protocol"], one.facts["seed"]):
            status = {"stopped": "was stopped early", "failed": "failed"}.get(facts["status"], "was not run")
            return {"reason": f"not compared with the baseline, which {status}: {facts['reason']}"}
    return {}


def _against(one: Scored, base: Scored) -> dict[str, Any]:
    if not _same_films(one, base):
        return {
            "reason": "not compared with the baseline, which was tested on other films: not the same could be read "
            "when each was trained; delete the experiment's trials/ folder, or give another experiment.name"
        }
    calls = metrics.mcnemar(one.labels, one.calls, base.calls)
    areas = metrics.delong_paired(one.labels, one.probabilities, base.probabilities)
    return {
        "only_row": calls.only_first,
        "only_baseline": calls.only_second,
        "mcnemar_p": calls.p_value,
        "delong_p": areas.p_value if areas else None,
        **_differences([(one, base)]),
    }


def _same_films(one: Scored, other: Scored) -> bool:
    return bool(one.films["image_id"].equals(other.films["image_id"]))


def _differences(pairs: Sequence[tuple[Scored, Scored]]) -> dict[str, Any]:
    """Mean differences over pairs, with intervals from the same resampled patients on both sides."""
    found: dict[str, Any] = {}
    for measure in tables.COMPARED:
        draws = np.mean([one.draws[measure] - base.draws[measure] for one, base in pairs], axis=0)
        values = [_value(one, measure) - _value(base, measure) for one, base in pairs]
        name = f"{measure}_difference"
        found |= {name: float(np.mean(values))} | metrics.bounds(name, metrics.difference(draws))
    return found


def _value(one: Scored, name: str) -> float:
    if name == "accuracy":
        return float((one.calls == one.labels).mean())
    return metrics.auroc(one.labels, one.probabilities) or 0.0


SAME = (
    "row", "protocol", "network", "weights", "image_size", "loss", "preset", "epochs", "batch_size", "learning_rate",
    "target",
)  # fmt: skip
"""What the seeds of a row have in common."""

MIXED = ("hardware", "arithmetic", "code")
"""What they mostly have in common: of a mean `mixed` where they do not."""


def _means(done: Sequence[Mapping[str, Any]], scored: Sequence[Scored], baseline: str) -> list[dict[str, Any]]:
    """One row for each row of a protocol that has several seeds done on the same films: means, and their intervals."""
    groups: dict[tuple[str, str], list[tuple[Scored, Mapping[str, Any]]]] = {}
    for one, row in zip(scored, done, strict=True):
        groups.setdefault((row["protocol"], row["row"]), []).append((one, row))
    means = []
    for seeds in groups.values():
        # Of equally many, those of the first seed.
        alike = max(([pair for pair in seeds if _same_films(pair[0], other)] for other, _ in seeds), key=len)
        if len(alike) < 2:
            continue
        group, own = [one for one, _ in alike], [row for _, row in alike]
        first = own[0]
        mean: dict[str, Any] = {name: first[name] for name in SAME} | {"status": "mean", "seeds": len(group)}
        for name in MIXED:
            values = {row[name] for row in own}
            mean[name] = values.pop() if len(values) == 1 else "mixed"
        for name in (*metrics.RATES, *metrics.STATISTICS, "seconds"):
            known = [row[name] for row in own if row[name] is not None]
            mean[name] = float(np.mean(known)) if known else None
        for name in metrics.STATISTICS:
            draws = np.mean([one.draws[name] for one in group], axis=0)
            mean |= metrics.bounds(name, metrics.percentile(draws, mean[name] if name == "ece" else None))
        accuracy = np.mean([one.draws["accuracy"] for one in group], axis=0)
        interval = metrics.percentile(accuracy)
        mean |= metrics.bounds("accuracy", interval) | metrics.bounds("accuracy_patients", interval)
        pairs = [(one, base) for one in group if (base := _partner(one, scored, baseline)) and _same_films(one, base)]
        if len(pairs) == len(group):
            mean |= _differences(pairs)
        elif first["row"] != baseline:
            mean["reason"] = "not compared with the baseline: not each of these seeds is done there on the same films"
        means.append(mean)
    return means


def _predictions(one: Scored) -> pa.Table:
    schema, films = tables.trial_prediction_schema(), one.films
    known = {name: films[name] for name in ("image_id", "label", "probability")}
    known["patient"] = films["published_patient"]
    known["predicted_label"] = pa.array(one.calls.astype(np.int8))
    for name in ("row", "protocol", "seed", "threshold"):
        known[name] = pa.array([one.facts[name]] * len(films), schema.field(name).type)
    return pa.table([known[name] for name in schema.names], names=schema.names).cast(schema)
