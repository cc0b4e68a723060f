import json

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pneumobatch import config, storage, tables
from pneumobatch.evaluation.published import Bundle, find_bundle, keep, load, own_films


def job(folder, **options):
    return config.Job(output={"uri": str(folder)}, evaluation={"bootstrap": 20, "thresholds": 11, **options})


def rows(make_predictions, run_id, ids, **changes):
    """Films named by number, as one run saw them."""
    made = make_predictions(len(ids), seed=len(run_id), labelled=0.5).to_pydict()
    made |= {"image_id": [f"{i:032x}" for i in ids], "run_id": [run_id] * len(ids), **changes}
    return pa.table(made, schema=tables.prediction_schema(["etiology"]))


@pytest.fixture
def nights(tmp_path, record, make_predictions, publish):
    """Three nights of one model; films 3–5 changed in the second, film 0 in the third. Another model beside them."""
    for night, ids in enumerate([range(6), range(3, 10), [0, 20, 21]], 1):
        name = f"night-{night}"
        publish(tmp_path, rows(make_predictions, name, list(ids)), record, name, f"2026-10-0{night}")
    publish(tmp_path, rows(make_predictions, "other", [0, 1]), record | {"model_id": "m2"}, "other", "2026-10-02")
    training = record | {"verb": "train", "run_id": "t", "finished_at": "2027-01-01"}
    storage.write_bytes(str(tmp_path / "runs" / "t.json"), json.dumps(training).encode())
    return tmp_path


def test_the_latest_row_of_every_image_counts(nights):
    record, films, runs = load(job(nights, scope="model"))
    assert (record["run_id"], runs) == ("night-3", 3)
    seen = dict(zip(films["image_id"].to_pylist(), films["run_id"].to_pylist(), strict=True))
    assert len(seen) == len(films) == 12
    latest = {1: "night-1", 2: "night-1", 0: "night-3", 20: "night-3", 21: "night-3"} | dict.fromkeys(
        range(3, 10), "night-2"
    )
    assert seen == {f"{i:032x}": run for i, run in latest.items()}


def test_a_models_films_end_with_the_run_that_is_evaluated(nights):
    _, films, runs = load(job(nights, scope="model", run_id="night-2"))
    assert runs == 2 and set(films["run_id"].to_pylist()) == {"night-1", "night-2"}
    assert len(load(job(nights, scope="model", run_id="night-1")).predictions) == 6
    _, alone, _ = load(job(nights, run_id="night-2"))
    assert len(alone) == 7


def test_the_order_of_records_does_not_matter_but_their_end_does(nights):
    path = nights / "runs" / "night-1.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"finished_at": "2026-10-09"}))
    record, films, _ = load(job(nights, scope="model"))
    assert record["run_id"] == "night-1"
    assert films["run_id"].to_pylist().count("night-1") == 6


def test_an_older_schema_version_reads_and_a_newer_one_does_not(nights):
    (path,) = nights.glob("predictions/*/*/night-1.parquet")
    table = pq.read_table(path, partitioning=None)
    old = table.drop_columns(["version", *tables.KEYED]).replace_schema_metadata({"pneumobatch.schema": "1"})
    pq.write_table(old, path)
    films = load(job(nights, scope="model")).predictions
    assert len(films) == 12 and films["accession"].null_count == 12
    pq.write_table(table.replace_schema_metadata({"pneumobatch.schema": "99"}), path)
    with pytest.raises(ValueError, match=r"night-1\.parquet: a table of schema version 99 is newer"):
        load(job(nights, scope="model"))


def test_subgroups_of_one_run_are_null_in_another(nights):
    (path,) = nights.glob("predictions/*/*/night-1.parquet")
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["etiology"]), path)
    films = load(job(nights, scope="model")).predictions
    bare = films.filter(pc.equal(films["run_id"], "night-1"))
    assert bare["etiology"].null_count == len(bare) and films["etiology"].null_count < len(films)


def test_own_films_are_the_runs_alone(nights, make_predictions):
    record = load(job(nights)).record
    films = own_films(job(nights), record, ["status", "probability", "contrast"])
    assert films.column_names == ["status", "probability", "contrast"] and len(films) == 3
    assert len(own_films(job(nights), record | {"predictions": []}, ["status"])) == 0


def test_the_latest_screening_run_is_taken(nights):
    assert load(job(nights)).record["run_id"] == "night-3"
    assert load(job(nights, run_id="other")).record["model_id"] == "m2"


def test_missing_runs_are_named(tmp_path):
    with pytest.raises(ValueError, match="no published screening run"):
        load(job(tmp_path))
    with pytest.raises(ValueError, match=r"nope\.json: no such run"):
        load(job(tmp_path, run_id="nope"))
    storage.write_bytes(str(tmp_path / "runs" / "r.json"), json.dumps({"verb": "screen", "run_id": "r"}).encode())
    with pytest.raises(ValueError, match=r"r\.json: lacks model_id, predictions"):
        load(job(tmp_path))
    storage.write_bytes(str(tmp_path / "runs" / "r.json"), b"half a rec")
    with pytest.raises(ValueError, match="not a run record"):
        load(job(tmp_path))


@pytest.mark.parametrize("content", [b'{"model_id": "m', b"[]", b"\xff"])
def test_a_broken_bundle_is_a_missing_one(tmp_path, content):
    (tmp_path / "bundle.json").write_bytes(content)
    found = find_bundle({"bundle": str(tmp_path), "model_id": "m"})
    assert found.content == {} and found.missing


def test_a_bundle_without_an_offset_is_not_calibrated_at_its_prevalence():
    older = {"data": {"validation_sick": 30, "validation_well": 10}}
    assert Bundle("", older).prevalence is None
    assert Bundle("", older | {"offset": 0.0}).prevalence == 0.75
    assert Bundle("", {"offset": 0.0}).prevalence is None


def test_a_file_is_never_overwritten(tmp_path):
    table = pa.table({"rate": [0.5, None], "evaluated_at": [1, 1]})
    place, new = keep(str(tmp_path / "a.parquet"), table, "evaluated_at")
    written = (tmp_path / "a.parquet").read_bytes()
    assert new
    later = table.set_column(1, "evaluated_at", pa.array([2, 2]))
    assert keep(place, later, "evaluated_at") == (place, False)
    other = pa.table({"rate": [0.5, 0.25], "evaluated_at": [3, 3]})
    beside, new = keep(place, other, "evaluated_at")
    assert new and beside != place and beside.startswith(str(tmp_path / "a-"))
    assert keep(place, other, "evaluated_at") == (beside, False)
    assert (tmp_path / "a.parquet").read_bytes() == written and len(list(tmp_path.iterdir())) == 2


def test_hidden_cells_and_last_digits_make_no_new_content(tmp_path):
    hidden = pa.array([7.0, 9.0], mask=pa.array([False, True]).to_numpy(zero_copy_only=False))
    place, _ = keep(str(tmp_path / "a.parquet"), pa.table({"rate": hidden}))
    assert keep(place, pa.table({"rate": pa.array([7.0 + 1e-12, None])})) == (place, False)
