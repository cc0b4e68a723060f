import hashlib
import hmac

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pneumobatch import config, storage, tables
from pneumobatch.archive import catalog, left_out
from pneumobatch.evaluation.labels import join_labels, label_version, require_joinable, with_known_labels
from pneumobatch.identity import SITE_KEY, key_check, keyed_hash

EXAMPLES = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SPELLINGS = {1: ["1", "PNEUMONIA", "true"], 0: ["0", "normal", "False"], None: ["pending", "", "unknown", "Pending "]}


def put(table, name, values):
    index = table.column_names.index(name)
    return table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv(SITE_KEY, "a secret of the site")


@pytest.fixture(autouse=True)
def _no_key(monkeypatch, request):
    if "key" not in request.fixturenames:
        monkeypatch.delenv(SITE_KEY, raising=False)


@pytest.fixture
def dicom(key, without_paths):
    """Films whose paths stay behind: two of each accession, two accessions of each study."""
    films = without_paths
    films = put(films, "image_id", [keyed_hash(f"ward/Doe_{i}.dcm") for i in range(len(films))])
    films = put(films, "instance", [keyed_hash(f"instance:1.2.{i}") for i in range(len(films))])
    films = put(films, "accession", [keyed_hash(f"accession:A{i // 2:03}") for i in range(len(films))])
    return put(films, "study", [keyed_hash(f"study:9.{i // 4}") for i in range(len(films))])


def write(folder, text):
    path = folder / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("key", ["image_id", "uri", "name", "stem"])
def test_late_labels_join_by_id_path_or_file_name(tmp_path, predictions, key, monkeypatch):
    monkeypatch.delenv(SITE_KEY, raising=False)
    head = predictions.slice(0, 6)
    keys = head["image_id" if key == "image_id" else "uri"].to_pylist()
    keys = [k.rsplit("/", 1)[-1] for k in keys] if key in {"name", "stem"} else keys
    keys = [k.removesuffix(".dcm") for k in keys] if key == "stem" else keys
    values = ["PNEUMONIA", "normal", "1", "0", "pending", ""]
    text = "uri,label\n" + "".join(f"{k},{v}\n" for k, v in zip(keys, values, strict=True))
    joined = join_labels(predictions, write(tmp_path, text), config.Archive())
    assert joined["label"].to_pylist() == [1, 0, 1, 0, *[None] * (len(predictions) - 4)]
    assert joined.schema.field("label").type == pa.int8()


def test_late_labels_join_by_the_hashed_path_where_no_path_is_kept(tmp_path, dicom):
    joined = join_labels(dicom, write(tmp_path, "path,label\nward/Doe_3.dcm,1\nward/Doe_5.dcm,0\n"), config.Archive())
    assert {i: v for i, v in enumerate(joined["label"].to_pylist()) if v is not None} == {3: 1, 5: 0}


@pytest.mark.parametrize("film", ["M\u00fcller/1.png", "Mu\u0308ller/1.png"])
@pytest.mark.parametrize("row", ["./M\u00fcller/1.png", "Mu\u0308ller/1.png", " M\u00fcller/1.png "])
def test_late_labels_join_by_a_path_however_it_is_spelled(tmp_path, without_paths, key, film, row):
    films = put(without_paths, "image_id", [keyed_hash(film), *without_paths["image_id"].to_pylist()[1:]])
    labels = write(tmp_path, f"path,label\n{row},1\n")
    assert join_labels(films, labels, config.Archive())["label"].to_pylist()[:2] == [1, None]
    (tmp_path / "in" / film).parent.mkdir(parents=True)
    (tmp_path / "in" / film).with_suffix(".dcm").write_bytes(b"")
    write(tmp_path, f"path,label\n{row.replace('png', 'dcm')},1\n")
    job = config.Job(archive={"uri": str(tmp_path / "in"), "labels": labels})
    listed = catalog.build(job.archive)
    assert listed["label"].to_pylist() == [1]
    require_joinable(listed, job, beside_dicom=True)


def test_a_row_labels_no_other_film_that_is_spelled_alike(tmp_path, without_paths, key):
    twins = [keyed_hash(name) for name in ("M\u00fcller/1.png", "Mu\u0308ller/1.png")]
    films = put(without_paths, "image_id", [*twins, *without_paths["image_id"].to_pylist()[2:]])
    for row, labels in (("M\u00fcller/1.png", [1, None]), ("Mu\u0308ller/1.png", [None, 1])):
        found = join_labels(films, write(tmp_path, f"path,label\n{row},1\n"), config.Archive())["label"]
        assert found.to_pylist()[:2] == labels


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("instance,label\n 1.2.7 ,1\n", {7: 1}),
        ("accession,label\nA001,1\nA003,0\nA004,pending\n", {2: 1, 3: 1, 6: 0, 7: 0}),
        ("study,label\n9.1,1\n", {4: 1, 5: 1, 6: 1, 7: 1}),
        # The finest name of a row counts: a label of one film says nothing of the others of its study.
        ("study,accession,instance,label\n9.0,A000,1.2.1,1\n9.0,A000,1.2.0,0\n,A002,,0\n", {0: 0, 1: 1, 4: 0, 5: 0}),
        ("file,accession,label\n,A002,1\nward/Doe_0.dcm,,0\n", {0: 0, 4: 1, 5: 1}),
        ("accession,report,label\nA001,x,1\nA001,y,1\n", {2: 1, 3: 1}),
        # What was pending when it was first appended, and a report of two lines.
        ('accession,report,label\nA001,x,pending\nA001,"y\nz",1\nA001,,pending\n', {2: 1, 3: 1}),
        # A column that names no film at all names something else, such as patients.
        ("name,accession,label\nDOE^JANE,A001,1\nROE^RICHARD,A002,0\n", {2: 1, 3: 1, 4: 0, 5: 0}),
    ],
)
def test_late_labels_join_by_keyed_identifiers(tmp_path, dicom, text, labels):
    joined = join_labels(dicom, write(tmp_path, text), config.Archive())
    assert {i: v for i, v in enumerate(joined["label"].to_pylist()) if v is not None} == labels


def test_a_stray_file_without_a_path_does_not_stop_joins_by_path(tmp_path, predictions):
    stray = put(predictions, "uri", [None, *predictions["uri"].to_pylist()[1:]])
    stray = put(stray, "status", ["failed", *stray["status"].to_pylist()[1:]])
    second = predictions["uri"][1].as_py()
    joined = join_labels(stray, write(tmp_path, f"path,label\n{second},1\n"), config.Archive())
    assert joined["label"].to_pylist()[:3] == [None, 1, None]


@pytest.mark.parametrize("column", ["path", "file", "accession", "study", "instance"])
def test_joins_by_identifiers_are_refused_without_the_key(tmp_path, without_paths, column):
    with pytest.raises(ValueError, match=f"column {column} by keyed hashes only, and {SITE_KEY} is not set"):
        join_labels(without_paths, write(tmp_path, f"{column},label\nDoe,1\n"), config.Archive())


@pytest.mark.parametrize(
    ("exclude", "keep", "refused"),
    [((), None, True), (("*.dcm",), None, True), ((), False, True), ((), True, False), (("*.dcm",), True, False)],
)
def test_names_that_results_do_not_keep_are_refused_before_films_are_screened(tmp_path, key, exclude, keep, refused):
    for name in ("a.png", "b.png", "c.dcm"):
        (tmp_path / "in" / "ward").mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / "ward" / name).write_bytes(b"")

    def ask(row):
        archive = {"uri": str(tmp_path / "in"), "exclude": exclude, "labels": write(tmp_path, f"path,label\n{row},1\n")}
        job = config.Job.model_validate({"archive": archive, "output": {"keep_source_uri": keep}})
        films = catalog.build(job.archive)
        assert films["label"].to_pylist().count(1) == 1
        require_joinable(films, job, beside_dicom=left_out.is_beside_dicom(films))

    ask("ward/a.png")
    for name in ("a.png", f"{tmp_path}/in/ward/a.png"):
        if refused:
            with pytest.raises(ValueError, match="path names films by file name or URI, which results do not keep"):
                ask(name)
        else:
            ask(name)


@pytest.mark.parametrize("text", ["path,label\nward/Doe_3.dcm,1\n", "accession,label\nA001,1\n"])
def test_labels_are_not_lost_under_another_key_than_at_screening(tmp_path, dicom, text, monkeypatch):
    """A table that grows may fit no film: under a key of its own none would, and the report would tell of no label."""
    job = config.Job(archive={"labels": write(tmp_path, text)})
    key_then = key_check()
    assert with_known_labels(dicom, job, key_then)["label"].null_count < len(dicom)
    monkeypatch.setenv(SITE_KEY, "mistyped")
    with pytest.raises(ValueError, match=f"{SITE_KEY} is another than at screening"):
        with_known_labels(dicom, job, key_then)
    by_id = config.Job(archive={"labels": write(tmp_path, f"image_id,label\n{dicom['image_id'][0]},1\n")})
    assert with_known_labels(dicom, by_id, key_then)["label"].null_count == len(dicom) - 1


@pytest.mark.parametrize("text", ["accession,label\n", "path,label\n", "image_id,label,patient\n"])
def test_a_table_without_rows_knows_no_label(tmp_path, without_paths, text):
    joined = join_labels(without_paths, write(tmp_path, text), config.Archive())
    assert joined["label"].null_count == len(joined)


def test_image_ids_join_without_the_key(tmp_path, without_paths):
    text = f"image_id,accession,label\n{1:032x},Doe,1\n"
    joined = join_labels(without_paths, write(tmp_path, text), config.Archive())
    assert joined["label"].to_pylist()[:3] == [None, 1, None]


def test_patients_are_hashed_or_left_out(tmp_path, predictions, monkeypatch):
    bare = put(predictions, "patient", [None] * len(predictions))
    ids = predictions["image_id"].to_pylist()[:2]
    path = write(tmp_path, f"id,label,patient,site,sex\n{ids[0]},1, p1,north,X\n{ids[1]},0,p2,south,X\n")
    joined = join_labels(bare, path, config.Archive(key_column="id"))
    assert joined["patient"].null_count == len(joined)
    assert joined["site"].to_pylist()[:3] == ["north", "south", None]
    assert joined["sex"].to_pylist() == predictions["sex"].to_pylist()
    monkeypatch.setenv(SITE_KEY, "k")
    joined = join_labels(bare, path, config.Archive(key_column="id"))
    assert joined["patient"].to_pylist()[:3] == [keyed_hash("patient:p1"), keyed_hash("patient:p2"), None]
    assert hmac.new(b"k", b"patient:p1", hashlib.sha256).hexdigest()[:32] == joined["patient"][0].as_py()
    known = join_labels(predictions, path, config.Archive(key_column="id"))
    assert known["patient"].to_pylist() == predictions["patient"].to_pylist()


def test_late_labels_from_parquet(tmp_path, predictions):
    table = pa.table({"uri": predictions["image_id"].slice(0, 2), "label": pa.array([True, None])})
    storage.write_table(str(tmp_path / "labels.parquet"), table)
    joined = join_labels(predictions, str(tmp_path / "labels.parquet"), config.Archive())
    assert joined["label"].to_pylist()[:2] == [1, None]


ONE, TWO = f"{0:032x}", f"{1:032x}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,label\na,1\n", "none of the columns uri, image_id, .*; set archive.key_column to one of x, label"),
        ("uri,class\na,1\n", "no column label; set archive.label_column"),
        (f"uri,label\n{ONE},1\n{ONE},0\n", "names an image twice, with two labels"),
        (f"uri,label\n{ONE},1\n{ONE},pending\n{ONE},0\n", "names an image twice, with two labels"),
        (f"uri,site,site,label\n{ONE},a,b,1\n", "two columns are called site"),
        (f"uri,label\n{ONE},1\n{TWO},Doe Jane\n", "row 2: the label is none of"),
        ("uri,label\nelsewhere,1\n", r"none of its 1 keys \(uri\) fits"),
        ("uri,label\n1,2,3\n", "not a readable CSV"),
    ],
)
def test_unfit_labels_are_named_without_their_content(tmp_path, predictions, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        join_labels(predictions, write(tmp_path, text), config.Archive())
    assert "Doe" not in str(caught.value) and ONE not in str(caught.value)


def test_an_ambiguous_file_name_is_refused(tmp_path, predictions):
    twice = put(predictions, "uri", ["a/same.dcm", "b/same.dcm", *predictions["uri"].to_pylist()[2:]])
    for name in ("same.dcm", "same"):
        with pytest.raises(ValueError, match="fits several images"):
            join_labels(twice, write(tmp_path, f"uri,label\n{name},1\n"), config.Archive())


def test_a_path_labels_no_film_that_is_called_so_in_another_folder(tmp_path, predictions):
    films = put(predictions, "uri", ["x.dcm", "sub/x.dcm", "sub/y.dcm", *predictions["uri"].to_pylist()[3:]])
    labels = join_labels(films, write(tmp_path, "uri,label\nx.dcm,1\ny.dcm,0\n"), config.Archive())["label"]
    assert labels.to_pylist()[:3] == [1, None, 0]
    films = put(predictions, "uri", ["a/x", "b/x.dcm", *predictions["uri"].to_pylist()[2:]])
    with pytest.raises(ValueError, match="fits several images"):  # one by its name, one without its ending
        join_labels(films, write(tmp_path, "uri,label\nx,1\n"), config.Archive())


def test_evaluation_labels_come_before_those_of_the_archive_and_these_may_grow(tmp_path, predictions):
    (tmp_path / "late").mkdir()
    late = write(tmp_path / "late", f"image_id,label\n{ONE},1\n")
    growing = write(tmp_path, f"image_id,label\n{7000:032x},1\n")
    job = config.Job(archive={"labels": growing}, evaluation={"labels": late})
    assert with_known_labels(predictions, job)["label"].to_pylist()[:2] == [1, None]
    job = config.Job(archive={"labels": growing})
    assert with_known_labels(predictions, job)["label"].null_count == len(predictions)
    assert with_known_labels(predictions, config.Job()) is predictions
    with pytest.raises(ValueError, match="none of its 1 keys"):
        with_known_labels(predictions, config.Job(evaluation={"labels": growing}))


known = st.lists(st.sampled_from([1, 0, None]), min_size=1, max_size=30)


@EXAMPLES
@given(known, st.randoms(use_true_random=False))
def test_the_version_depends_on_known_labels_alone(tmp_path, predictions, labels, random):
    films = predictions.slice(0, len(labels) + 3)
    ids = films["image_id"].to_pylist()
    rows = [(ids[i], random.choice(SPELLINGS[label])) for i, label in enumerate(labels)]
    versions = set()
    for _ in range(2):
        random.shuffle(rows)
        text = "image_id,label\n" + "".join(f"{name},{label}\n" for name, label in rows)
        joined = join_labels(films, write(tmp_path, text), config.Archive(), growing=True)
        order = random.sample(range(len(films)), len(films))
        versions |= {label_version(joined), label_version(joined.take(order))}
        rows = [row for row in rows if row[1] not in SPELLINGS[None]]  # what is pending may as well be absent
    scored = set(films.filter(pa.compute.field("status") == "scored")["image_id"].to_pylist())
    pairs = sorted(f"{ids[i]}={v}\n" for i, v in enumerate(labels) if v is not None and ids[i] in scored)
    assert versions == {hashlib.sha256("".join(pairs).encode()).hexdigest()[:12]}


@EXAMPLES
@given(known, st.data())
def test_what_is_pending_never_counts(tmp_path, predictions, labels, data):
    films = predictions.slice(0, len(labels))
    spelled = [data.draw(st.sampled_from(SPELLINGS[label])) for label in labels]
    ids = films["image_id"].to_pylist()
    text = "image_id,label\n" + "".join(f"{name},{v}\n" for name, v in zip(ids, spelled, strict=True))
    joined = join_labels(films, write(tmp_path, text), config.Archive())
    assert joined["label"].to_pylist() == labels  # whatever was known at screening


def test_labels_of_a_sliced_table_have_the_version_of_its_rows(predictions):
    part = predictions.slice(17, 60)
    again = pa.Table.from_pylist(part.to_pylist(), schema=part.schema)
    assert label_version(part) == label_version(again) != label_version(predictions)


def test_a_hundred_thousand_labels_join_exactly(tmp_path, key):
    count = 100_000
    ids = [keyed_hash(f"{i}.png") for i in range(count)]
    films = tables.upgraded(pa.table({"image_id": ids}), tables.prediction_schema([]))
    paths, labels = [f"{i}.png" for i in range(0, count, 2)], np.arange(count // 2) % 2
    pq.write_table(pa.table({"path": paths, "label": labels}), tmp_path / "labels.parquet")
    joined = join_labels(films, str(tmp_path / "labels.parquet"), config.Archive())
    assert joined["label"].to_pylist()[:5] == [0, None, 1, None, 0] and joined["label"].null_count == count // 2
