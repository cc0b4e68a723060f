import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from rich.console import Console

from pneumobatch import config, metrics, storage, tables
from pneumobatch.evaluation.evaluate import console_table, evaluate, join_labels, load
from pneumobatch.evaluation.summary import scored, statuses, summarise

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
    return summarise(predictions, OPTIONS)


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
    again = summarise(predictions.take(order), OPTIONS)
    assert again.drop_columns("evaluated_at").equals(summary.drop_columns("evaluated_at"))


def test_without_bootstrap_delong_remains(predictions):
    row = pick(summarise(predictions, config.Evaluation(bootstrap=0)))
    assert row["auroc_low"] is None and row["brier_low"] is None
    assert row["auroc_delong_low"] < row["auroc"] < row["auroc_delong_high"]


def test_unknown_labels_are_never_negative(make_predictions):
    summary = summarise(make_predictions(labelled=0), OPTIONS)
    row = pick(summary)
    assert (row["labelled"], row["tn"], row["accuracy"]) == (0, 0, None)
    assert not pick(summary, kind="grid")


def test_a_run_in_which_nothing_was_scored_has_an_empty_headline(predictions):
    rows = predictions.filter(pc.field("status") == "failed")
    row = pick(summarise(rows, OPTIONS))
    assert (row["threshold"], row["labelled"], row["images"]) == (None, 0, len(rows))


@pytest.mark.parametrize("column", ["threshold", "model_id", "run_id"])
def test_mixed_runs_are_refused(predictions, column):
    mixed = put(predictions, column, [0.1 if column == "threshold" else "x", *predictions[column].to_pylist()[1:]])
    with pytest.raises(ValueError, match=f"column {column} is empty or mixed"):
        summarise(mixed, OPTIONS)


def test_calls_that_contradict_the_threshold_are_refused(predictions):
    flipped = [None if v is None else 1 - v for v in predictions["predicted_label"].to_pylist()]
    with pytest.raises(ValueError, match=r"not \(probability >= threshold\)"):
        summarise(put(predictions, "predicted_label", flipped), OPTIONS)


def test_films_of_unknown_patient_are_patients_of_their_own(predictions):
    partly = put(predictions, "patient", [None, *predictions["patient"].to_pylist()[1:]])
    assert None not in scored(partly).patients
    assert scored(put(predictions, "patient", [None] * len(predictions))).patients is None


def publish(folder, predictions, record):
    storage.write_table(storage.join(str(folder), record["predictions"][0]), predictions)
    storage.write_bytes(storage.join(str(folder), "runs", f"{record['run_id']}.json"), json.dumps(record).encode())
    return config.Job(output={"uri": str(folder)}, evaluation={"bootstrap": 20, "thresholds": 11})


def test_evaluate_writes_summary_and_report(tmp_path, predictions, record):
    result = evaluate(publish(tmp_path, predictions, record))
    stored = storage.read_table(result.summary_uri)
    assert stored.equals(result.summary)
    assert f"model_id={record['model_id']}/{record['run_id']}.parquet" in result.summary_uri
    assert storage.is_file(str(tmp_path / "reports" / record["run_id"] / "index.html"))
    assert sum(result.statuses.values()) == len(predictions)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(console_table(result))
    shown = console.export_text()
    row = pick(stored)
    assert f"{row['sensitivity']:.3f}" in shown and "suppressed" in shown
    assert "manufacturer" in shown and "…" not in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


@pytest.mark.parametrize("where", ["bundle", "config"])
def test_the_bundles_history_reaches_the_report(tmp_path, predictions, record, history, where):
    folder = str(tmp_path / "bundle")
    storage.write_table(storage.join(folder, "history.parquet"), history)
    record |= {"bundle": folder} if where == "bundle" else {"bundle": None, "config": {"screening": {"bundle": folder}}}
    result = evaluate(publish(tmp_path, predictions, record))
    page = storage.read_bytes(result.report_uri).decode()
    assert "How the model was trained" in page and str(tmp_path) not in page


def test_the_latest_screening_run_is_taken(tmp_path, predictions, record):
    old = record | {"run_id": "old", "finished_at": "2026-09-01T00:00:00+00:00"}
    training = record | {"run_id": "training", "verb": "train", "finished_at": "2027-01-01T00:00:00+00:00"}
    publish(tmp_path, predictions, old)
    publish(tmp_path, predictions, training)
    job = publish(tmp_path, predictions, record)
    assert load(job).record["run_id"] == record["run_id"]
    assert load(config.Job(output=job.output, evaluation={"run_id": "old"})).record["run_id"] == "old"


def test_missing_runs_are_named(tmp_path, record):
    job = config.Job(output={"uri": str(tmp_path)})
    with pytest.raises(ValueError, match="no published screening run"):
        load(job)
    with pytest.raises(ValueError, match=r"nope\.json: no such run"):
        load(config.Job(output=job.output, evaluation={"run_id": "nope"}))
    storage.write_bytes(str(tmp_path / "runs" / "r.json"), json.dumps({"verb": "screen", "run_id": "r"}).encode())
    with pytest.raises(ValueError, match=r"r\.json: lacks model_id, predictions"):
        load(job)
    storage.write_bytes(str(tmp_path / "runs" / "r.json"), b"half a rec")
    with pytest.raises(ValueError, match="not a run record"):
        load(job)


def labels_file(tmp_path, text):
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("key", ["image_id", "uri", "name"])
def test_late_labels_join_by_id_path_or_file_name(tmp_path, predictions, key):
    head = predictions.slice(0, 6)
    keys = head["image_id" if key == "image_id" else "uri"].to_pylist()
    keys = [k.rsplit("/", 1)[-1] for k in keys] if key == "name" else keys
    values = ["PNEUMONIA", "normal", "1", "0", "pending", ""]
    text = "uri,label\n" + "".join(f"{k},{v}\n" for k, v in zip(keys, values, strict=True))
    joined = join_labels(predictions, labels_file(tmp_path, text), config.Archive())
    assert joined["label"].to_pylist() == [1, 0, 1, 0, *[None] * (len(predictions) - 4)]
    assert joined.schema.field("label").type == pa.int8()


def test_late_labels_bring_patients_and_subgroups_where_there_are_none(tmp_path, predictions):
    bare = put(predictions, "patient", [None] * len(predictions))
    ids = predictions["image_id"].to_pylist()[:2]
    text = f"id,label,patient,site,sex\n{ids[0]},1,p1,north,X\n{ids[1]},0,p2,south,X\n"
    joined = join_labels(bare, labels_file(tmp_path, text), config.Archive(key_column="id"))
    assert joined["patient"].to_pylist()[:3] == ["p1", "p2", None]
    assert joined["site"].to_pylist()[:2] == ["north", "south"]
    assert joined["sex"].equals(predictions["sex"])


def test_late_labels_from_parquet(tmp_path, predictions):
    table = pa.table({"uri": predictions["image_id"].slice(0, 2), "label": pa.array([True, None])})
    storage.write_table(str(tmp_path / "labels.parquet"), table)
    joined = join_labels(predictions, str(tmp_path / "labels.parquet"), config.Archive())
    assert joined["label"].to_pylist()[:2] == [1, None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,label\na,1\n", "none of the columns uri, image_id, .*; set archive.key_column to one of x, label"),
        ("uri,class\na,1\n", "no column label; set archive.label_column"),
        ("uri,label\n00000000,1\n00000000,0\n", "names an image twice"),
        ("uri,label\n00000000,1\n00000001,Doe Jane\n", "row 2: the label is none of"),
        ("uri,label\nelsewhere,1\n", "none of its 1 keys fits"),
        ("uri,label\n1,2,3\n", "not a readable CSV"),
    ],
)
def test_unfit_labels_are_named_without_their_content(tmp_path, predictions, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        join_labels(predictions, labels_file(tmp_path, text), config.Archive())
    assert "Doe" not in str(caught.value)


def test_an_ambiguous_file_name_is_refused(tmp_path, predictions):
    twice = put(predictions, "uri", ["a/same.dcm", "b/same.dcm", *predictions["uri"].to_pylist()[2:]])
    with pytest.raises(ValueError, match="fits several images"):
        join_labels(twice, labels_file(tmp_path, "uri,label\nsame.dcm,1\n"), config.Archive())
