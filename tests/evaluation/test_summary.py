import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pneumobatch import config, metrics, tables
from pneumobatch.evaluation.summary import scored, statuses, summarise
from tests.metrics.drawn import bayes

RECORD = {"run_id": "2026-10-01-night", "model_id": "attention_resnet50-3f9c2a77"}
OPTIONS = config.Evaluation(bootstrap=40, thresholds=11)


def pick(summary, subgroup="all", value=None, kind="bundle"):
    rows = [
        r for r in summary.to_pylist() if (r["subgroup"], r["value"], r["threshold_kind"]) == (subgroup, value, kind)
    ]
    return rows[0] if kind == "bundle" else rows


def put(table, name, values):
    index = table.column_names.index(name)
    return table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))


@pytest.fixture(scope="module")
def summary(predictions):
    return summarise(predictions, OPTIONS, RECORD)


def test_only_scored_films_with_a_label_count(predictions, summary):
    rows = [r for r in predictions.to_pylist() if r["status"] == "scored" and r["label"] is not None]
    truth, calls = [r["label"] for r in rows], [r["predicted_label"] for r in rows]
    row = pick(summary)
    assert metrics.Counts(row["tp"], row["fp"], row["tn"], row["fn"]) == metrics.count(truth, calls)
    assert row["images"] == len(predictions) > row["labelled"] == len(rows)
    assert row["prevalence"] == pytest.approx(np.mean(truth))
    assert summary.schema.equals(tables.summary_schema(), check_metadata=True)


def test_statuses_add_up_to_the_catalogue(predictions):
    counts = statuses(predictions)
    assert sum(counts.values()) == len(predictions)
    assert next(iter(counts)) == ("scored", None)


def test_subgroups_partition_the_whole(predictions, summary):
    whole = pick(summary)
    for subgroup in ("sex", "view", "age_band", "etiology"):
        rows = [r for r in summary.to_pylist() if r["subgroup"] == subgroup and r["threshold_kind"] == "bundle"]
        assert sum(r["images"] for r in rows) == whole["images"]
        if not any(r["suppressed"] for r in rows):
            assert sum(r["tp"] for r in rows) == whole["tp"]
    assert {r["value"] for r in summary.to_pylist() if r["subgroup"] == "age_band"} == {"under 1", "1–5", "6–17"}
    assert pick(summary, "etiology", "unknown")["positives"] == 0


def test_small_cells_are_suppressed(summary):
    row = pick(summary, "manufacturer", "Gamma")
    assert row["suppressed"] and row["images"] > 0
    assert all(row[name] is None for name in ("labelled", "tp", "positives", "sensitivity", "auroc", "prevalence"))
    assert not pick(summary, "manufacturer", "Gamma", "grid")
    assert not pick(summary)["suppressed"]


def test_grid_rows_hold_counts_but_nothing_free_of_thresholds(summary):
    rows = pick(summary, kind="grid")
    assert [r["threshold"] for r in rows] == pytest.approx(np.linspace(0, 1, 11))
    assert rows[0]["sensitivity"] == 1.0 and rows[0]["specificity"] == 0.0
    assert all(r["auroc"] is None and r["ece_low"] is None for r in rows)
    assert pick(summary)["auroc_low"] < pick(summary)["auroc"] < pick(summary)["auroc_high"]


def test_summaries_of_shuffled_predictions_are_the_same(predictions, summary):
    order = np.random.default_rng(0).permutation(len(predictions))
    again = summarise(predictions.take(order), OPTIONS, RECORD)
    assert again.drop_columns("evaluated_at").equals(summary.drop_columns("evaluated_at"))


def test_without_bootstrap_delong_remains(predictions):
    row = pick(summarise(predictions, config.Evaluation(bootstrap=0), RECORD))
    assert row["auroc_low"] is None and row["brier_low"] is None
    assert row["auroc_delong_low"] < row["auroc"] < row["auroc_delong_high"]


def test_certain_rows_count_the_films_outside_the_band(predictions, summary):
    rows = [r for r in predictions.to_pylist() if r["status"] == "scored"]
    whole = pick(summary)
    assert (whole["scored"], whole["uncertain"]) == (len(rows), sum(r["uncertain"] for r in rows))
    sure = [r for r in rows if r["label"] is not None and not r["uncertain"]]
    (row,) = [r for r in summary.to_pylist() if r["threshold_kind"] == "certain" and r["subgroup"] == "all"]
    counts = metrics.count([r["label"] for r in sure], [r["predicted_label"] for r in sure])
    assert metrics.Counts(row["tp"], row["fp"], row["tn"], row["fn"]) == counts
    assert (row["sensitivity_low"], row["sensitivity_high"]) == counts.interval("sensitivity")
    assert row["threshold"] == whole["threshold"] and row["auroc"] is None and 0 < row["labelled"] < whole["labelled"]
    parts = [pick(summary, "sex", value) for value in ("F", "M")]
    assert sum(part["uncertain"] for part in parts) == whole["uncertain"]


def test_a_model_without_a_band_has_no_certain_rows(predictions):
    summary = summarise(put(predictions, "uncertain", [None] * len(predictions)), OPTIONS, RECORD)
    assert pick(summary)["uncertain"] is None and "certain" not in summary["threshold_kind"].to_pylist()


def test_the_local_prevalence_changes_values_and_calibration_and_nothing_else(predictions, summary):
    options = OPTIONS.model_copy(update={"prevalence": 0.08})
    local = summarise(predictions, options, RECORD, prior=0.62)
    row, own = pick(local), pick(summary)
    added = {name for name in row if name.startswith("local_") or name == "model_prevalence"}
    assert {k: v for k, v in row.items() if k not in added | {"evaluated_at"}} == {
        k: v for k, v in own.items() if k not in added | {"evaluated_at"}
    }
    assert all(own[name] is None for name in added)
    assert (row["model_prevalence"], row["local_prevalence"]) == (0.62, 0.08)
    wanted = bayes(row["sensitivity"], row["specificity"], 0.08)
    assert (row["local_ppv"], row["local_npv"]) == pytest.approx(wanted)
    films = scored(predictions)
    corrected = metrics.shift_prior(films.probabilities, 0.62, 0.08)
    weights = metrics.prevalence_weights(films.labels, 0.08)
    assert row["local_brier"] == pytest.approx(metrics.brier(films.labels, corrected, weights))
    assert row["local_ece"] == pytest.approx(metrics.ece(films.labels, corrected, weights))
    assert row["local_ece"] < metrics.ece(films.labels, films.probabilities, weights)
    for name in tables.LOCAL:
        assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
    assert all(r["local_ppv"] is not None for r in pick(local, kind="grid")[:-1])


def test_without_the_models_prevalence_nothing_is_corrected(predictions):
    row = pick(summarise(predictions, OPTIONS.model_copy(update={"prevalence": 0.08}), RECORD))
    assert row["local_brier"] is None and row["local_ppv"] is not None


def test_unknown_labels_are_never_negative(make_predictions):
    summary = summarise(make_predictions(labelled=0), OPTIONS, RECORD)
    row = pick(summary)
    assert (row["labelled"], row["tn"], row["accuracy"]) == (0, 0, None)
    assert not pick(summary, kind="grid")


def test_a_run_in_which_nothing_was_scored_has_an_empty_headline(predictions):
    rows = predictions.filter(pc.field("status") == "failed")
    row = pick(summarise(rows, OPTIONS, RECORD))
    assert (row["threshold"], row["labelled"], row["images"]) == (None, 0, len(rows))


@pytest.mark.parametrize("column", ["threshold", "model_id", "run_id"])
def test_mixed_runs_are_refused(predictions, column):
    mixed = put(predictions, column, [0.1 if column == "threshold" else "x", *predictions[column].to_pylist()[1:]])
    with pytest.raises(ValueError, match=f"column {column} is empty or mixed"):
        summarise(mixed, OPTIONS, RECORD)


def test_calls_that_contradict_the_threshold_are_refused(predictions):
    flipped = [None if v is None else 1 - v for v in predictions["predicted_label"].to_pylist()]
    with pytest.raises(ValueError, match=r"not \(probability >= threshold\)"):
        summarise(put(predictions, "predicted_label", flipped), OPTIONS, RECORD)


def test_films_of_unknown_patient_are_patients_of_their_own(predictions):
    partly = put(predictions, "patient", [None, *predictions["patient"].to_pylist()[1:]])
    assert len(set(scored(partly).patients.tolist())) == len(set(scored(predictions).patients.tolist())) + 1
    assert scored(put(predictions, "patient", [None] * len(predictions))).patients is None


def test_a_thousand_values_of_a_subgroup_keep_their_counts(make_predictions):
    films = make_predictions(6000, seed=2)
    sites = [f"site-{i * 7919 % 1000}" if i % 2 else "large" for i in range(len(films))]
    many = films.append_column("site", pa.array(sites))
    summary = summarise(many, OPTIONS.model_copy(update={"min_cell": 6}), RECORD)
    rows = [r for r in summary.to_pylist() if r["subgroup"] == "site" and r["threshold_kind"] == "bundle"]
    assert sum(r["images"] for r in rows) == len(films) and len(rows) == len(set(sites))
    counted = films.filter((pc.field("status") == "scored") & pc.field("label").is_valid())
    large = [r for r, site in zip(films.to_pylist(), sites, strict=True) if site == "large" and r["status"] == "scored"]
    large = [r for r in large if r["label"] is not None]
    counts = metrics.count([r["label"] for r in large], [r["predicted_label"] for r in large])
    row = pick(summary, "site", "large")
    assert metrics.Counts(row["tp"], row["fp"], row["tn"], row["fn"]) == counts
    assert row["sensitivity"] == counts.rate("sensitivity")
    assert (row["f1_low"], row["f1_high"]) == counts.interval("f1")
    assert row["auroc"] == pytest.approx(metrics.auroc([r["label"] for r in large], [r["probability"] for r in large]))
    assert sum(r["labelled"] or 0 for r in rows) <= len(counted)
    assert {r["suppressed"] for r in rows} == {True, False}


def test_dictionary_columns_summarise_as_text_does(predictions, summary):
    names = ["status", "reason", "run_id", "model_id", "sex", "view", "manufacturer", "etiology"]
    encoded = predictions
    for name in names:
        encoded = encoded.set_column(encoded.column_names.index(name), name, encoded[name].dictionary_encode())
    again = summarise(encoded, OPTIONS, RECORD)
    assert again.drop_columns("evaluated_at").equals(summary.drop_columns("evaluated_at"))


def test_films_of_several_runs_are_one_scope(predictions):
    runs = ["a" if i % 2 else "b" for i in range(len(predictions))]
    options = OPTIONS.model_copy(update={"scope": "model"})
    row = pick(summarise(put(predictions, "run_id", runs), options, RECORD))
    assert (row["scope"], row["run_id"], row["images"]) == ("model", RECORD["run_id"], len(predictions))
