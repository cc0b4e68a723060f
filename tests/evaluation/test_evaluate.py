import hashlib
import io
import json

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pneumobatch import config, storage, tables
from pneumobatch.evaluation.console import console_table, told
from pneumobatch.evaluation.evaluate import evaluate

RUN = "2026-10-01-night"


@pytest.fixture
def site(tmp_path, without_paths, record, reference, publish):
    """One published night, and the bundle that it was made with."""
    bundle = tmp_path / "bundle"
    storage.write_table(str(bundle / "reference.parquet"), reference)
    content = {
        "model_id": record["model_id"],
        "reference_sha256": hashlib.sha256((bundle / "reference.parquet").read_bytes()).hexdigest(),
    }
    (bundle / "bundle.json").write_text(json.dumps(content))
    publish(tmp_path / "out", without_paths, record | {"bundle": str(bundle)}, RUN, "2026-10-01")
    return tmp_path


def run(folder, archive=None, **options):
    evaluation = {"bootstrap": 20, "thresholds": 11, **options}
    return evaluate(config.Job(output={"uri": str(folder / "out")}, evaluation=evaluation, archive=archive or {}))


def shown(*lines):
    console = Console(width=80, record=True, file=io.StringIO())
    for line in lines:
        console.print(line, soft_wrap=isinstance(line, str))
    return console.export_text()


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.parquet")}


def test_everything_is_written_where_it_belongs(site, without_paths):
    result = run(site)
    model, version = "model_id=attention_resnet50-3f9c2a77", result.label_version
    assert set(files(site / "out")) == {
        f"predictions/{model}/run_date=2026-10-01/{RUN}.parquet",
        f"summaries/{model}/{RUN}-run-{version}.parquet",
        f"discrepancies/{model}/{RUN}-run-{version}.parquet",
        f"drift/{model}/{RUN}.parquet",
        f"review/{model}/run_date=2026-10-01/{RUN}.parquet",
    }
    assert result.new and (site / "out" / "reports" / RUN / "index.html").is_file()
    for uri, schema in (
        (result.summary_uri, tables.summary_schema()),
        (result.drift_uri, tables.drift_schema()),
        (result.review_uri, tables.review_schema()),
        (result.discrepancies_uri, tables.discrepancy_schema()),
    ):
        assert pq.read_schema(uri).equals(schema, check_metadata=True)
    assert storage.read_table(result.summary_uri).equals(result.summary)
    assert sum(result.statuses.values()) == len(without_paths)


def test_late_labels_leave_every_older_evaluation_as_it_is(site, without_paths):
    rows = without_paths.filter(pc.field("status") == "scored").slice(0, 4)
    ids = rows["image_id"].to_pylist()
    before, versions, results = {}, [], []
    for values in ("1010", "101p", "1p1p", "1010"):
        labels = {"1": "1", "0": "0", "p": "pending"}
        text = "image_id,label\n" + "".join(f"{i},{labels[v]}\n" for i, v in zip(ids, values, strict=True))
        (site / "labels.csv").write_text(text)
        result = run(site, labels=str(site / "labels.csv"))
        now = files(site / "out")
        kept = {p: b for p, b in before.items() if not p.startswith("review/")}
        assert {p: now[p] for p in kept} == kept
        before = now
        versions.append(result.label_version)
        results.append(result)
        row = result.summary.to_pylist()[0]
        assert row["labelled"] == 4 - values.count("p")
        assert (row["positives"], row["negatives"]) == (values.count("1"), values.count("0"))
        assert row["label_version"] == result.label_version
    assert versions[0] == versions[3] and len(set(versions)) == 3
    assert [result.new for result in results] == [True, True, True, False]
    assert "(evaluated before)" in shown(*told(results[3]))
    assert results[3].summary["evaluated_at"].equals(results[0].summary["evaluated_at"])


def test_a_second_evaluation_of_the_same_labels_writes_no_summary(site):
    first = run(site)
    before = files(site / "out")
    second = run(site)
    assert files(site / "out") == before
    assert (first.new, second.new) == (True, False) and first.summary_uri == second.summary_uri


def test_other_options_stand_beside_the_older_summary(site):
    first = run(site)
    before = storage.read_bytes(first.summary_uri)
    other = run(site, min_cell=300)
    assert other.new and other.label_version == first.label_version and other.summary_uri != first.summary_uri
    assert storage.read_bytes(first.summary_uri) == before
    assert not run(site, min_cell=300).new and not run(site).new


def test_a_models_scope_counts_every_image_once(site, without_paths, record, make_predictions, publish):
    index = without_paths.column_names.index("run_id")
    second = make_predictions(100, seed=5).set_column(index, "run_id", pa.array(["second"] * 100))
    publish(site / "out", second, record | {"bundle": str(site / "bundle")}, "second", "2026-10-02")
    result = run(site, scope="model")
    row = result.summary.to_pylist()[0]
    assert (result.run_id, result.runs, row["scope"]) == ("second", 2, "model")
    assert row["images"] == len(without_paths) == sum(result.statuses.values())  # the second scored 100 of them again
    assert "-model-" in result.summary_uri and "-model-" in result.discrepancies_uri
    unlabelled = second.filter((pc.field("status") == "scored") & pc.field("label").is_null())
    assert set(result_ids(result.review_uri)) == set(unlabelled["image_id"].to_pylist())
    assert set(storage.read_table(result.review_uri)["run_id"].to_pylist()) <= {"second"}
    assert {row["n"] for row in result.drift.to_pylist() if row["column"] == "status"} <= set(range(90, 101))
    text = shown(*told(result))
    assert f"{len(without_paths)}: the latest row of each in 2 runs of this model" in text


def result_ids(uri):
    return storage.read_table(uri)["image_id"].to_pylist()


def test_a_run_without_images_evaluates(site, record, publish, make_predictions):
    publish(site / "out", make_predictions(0), record | {"bundle": str(site / "bundle")}, "empty", "2026-10-03")
    result = run(site)
    assert result.run_id == "empty" and result.statuses == {} and result.to_review == 0
    assert "nothing was scored" in shown(*told(result))


def test_the_console_fits_its_columns_and_says_what_drifted(site):
    result = run(site)
    text, row = shown(*told(result)), result.summary.to_pylist()[0]
    assert f"{row['sensitivity']:.3f}" in text and "suppressed" in text
    assert "manufacturer" in text and "…" not in text
    assert all(len(line) <= 80 for line in shown(console_table(result)).splitlines())
    assert "drift          none of 8 measures" in text
    drifted = result.drift.to_pylist()
    drifted[0] |= {"drifted": True, "reference_value": 0.62, "run_value": 0.31, "value": -0.31}  # the positive rate
    score = next(row for row in drifted if (row["measure"], row["column"]) == ("psi", "probability"))
    score |= {"drifted": True, "value": 1.25}
    worse = result._replace(drift=pa.Table.from_pylist(drifted, schema=result.drift.schema))
    assert "drift          2 of 8 measures (score PSI 1.2, positive rate .62 → .31)" in shown(*told(worse))
    unjudged = [row | {"drifted": None} for row in drifted]
    few = result._replace(drift=pa.Table.from_pylist(unjudged, schema=result.drift.schema))
    assert "not judged: 579 scored films are fewer than evaluation.drift_images" in shown(*told(few))


def test_large_counts_fit_80_columns(site):
    result = run(site)
    rows = [row | dict.fromkeys(("tp", "fp", "tn", "fn"), 123_456_789) for row in result.summary.to_pylist()]
    result = result._replace(summary=pa.Table.from_pylist(rows, schema=result.summary.schema))
    text = shown(console_table(result))
    assert "123M" in text and all(len(line) <= 80 for line in text.splitlines()) and "…" not in text
    assert "manufacturer" in text


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda folder: (folder / "bundle.json").unlink(), "no longer lies where the run found it"),
        (lambda folder: (folder / "reference.parquet").unlink(), "reference.parquet of the bundle is missing"),
        (lambda folder: (folder / "reference.parquet").write_bytes(b"x"), "not the file that bundle.json was written"),
        (lambda folder: (folder / "bundle.json").write_text('{"model_id": "other"}'), "another model's bundle lies"),
        (
            lambda folder: (folder / "bundle.json").write_text('{"model_id": "attention_resnet50-3f9c2a77"}'),
            "the bundle has no reference",
        ),
    ],
)
def test_without_its_reference_drift_is_not_measured_and_says_why(site, harm, reason):
    harm(site / "bundle")
    result = run(site)
    assert result.drift is None and result.drift_uri is None and reason in result.drift_missing
    assert f"drift          not measured: {result.drift_missing}" in shown(*told(result))
    assert not (site / "out" / "drift").exists()


@pytest.mark.parametrize("where", ["bundle", "config"])
def test_the_bundles_history_reaches_the_report(site, without_paths, record, history, publish, where):
    folder = str(site / "bundle")
    storage.write_table(storage.join(folder, "history.parquet"), history)
    record |= {"bundle": folder} if where == "bundle" else {"bundle": None, "config": {"screening": {"bundle": folder}}}
    publish(site / "out", without_paths, record, RUN, "2026-10-01")
    page = storage.read_bytes(run(site).report_uri).decode()
    assert "How the model was trained" in page and str(site) not in page


def test_no_raw_identifier_of_a_label_table_is_written(site, without_paths, monkeypatch):
    monkeypatch.setenv("PNEUMOBATCH_SITE_KEY", "k")
    ids = without_paths["image_id"].to_pylist()
    text = "image_id,label,patient,accession,name,site\n"
    text += "".join(f"{name},{i % 2},QUIRRELL-{i},ACC{i},Quirrell^{i},north\n" for i, name in enumerate(ids))
    (site / "labels.csv").write_text(text)
    run(site, labels=str(site / "labels.csv"))
    for path in (site / "out").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            if path.suffix == ".parquet":
                content += str(pq.read_table(path, partitioning=None).to_pydict()).encode()
            assert b"uirrell" not in content.lower() and b"ACC1" not in content, path


@pytest.mark.parametrize("later", [{"config": {"output": {"keep_source_uri": False}}}, {"beside_dicom": True}])
def test_paths_of_earlier_runs_stay_behind_where_the_run_must_not_write_them(
    tmp_path, predictions, record, publish, later
):
    pictures = predictions.set_column(
        predictions.column_names.index("format"), "format", pa.array(["png"] * len(predictions))
    ).cast(predictions.schema)
    publish(tmp_path / "out", pictures, record, "first", "2026-10-01")
    publish(tmp_path / "out", pictures.slice(0, 0), record | later, "second", "2026-10-02")
    result = run(tmp_path, scope="model")
    assert result.disagreeing and result.run_id == "second"
    for uri in (result.discrepancies_uri, result.review_uri):
        assert "Doe_Jane" not in str(storage.read_table(uri).to_pylist())
    assert b"Doe_Jane" not in (tmp_path / "out" / "reports" / "second" / "index.html").read_bytes()
    assert "Doe_Jane" in str(storage.read_table(run(tmp_path, run_id="first").discrepancies_uri).to_pylist())


def test_an_evaluation_that_is_killed_at_its_report_is_not_taken_for_a_whole_one(site, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pneumobatch.evaluation.evaluate.write_report", killed)
        run(site)
    assert not (site / "out" / "review").exists()  # by which `screening.ledger.not_evaluated` knows it
    assert run(site).review_uri
