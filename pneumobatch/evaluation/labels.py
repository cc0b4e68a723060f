"""Labels that arrive late: a table of them joined with predictions, and the version of what is known.

What is not known (no row, an empty cell, `pending`) is neither pneumonia nor normal. Identifiers join as keyed hashes
alone, and nothing of a label table but classes, hashed patients and the job's subgroups goes further.
"""

import hashlib
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pneumobatch import storage, tables
from pneumobatch.config import Archive, Job
from pneumobatch.identity import SITE_KEY, has_key, key_check, keyed_hashes

IMAGE_ID = r"^[0-9a-f]{32}$"

WIDEST_LAST = ("instance", "study", "accession")
"""Identifiers of a label table's further columns: of one image, of a study, of an order of several."""


def with_known_labels(predictions: pa.Table, job: Job, screened_under: str | None = None) -> pa.Table:
    """Gives films the labels of evaluation.labels, else of archive.labels, else those they were screened with.

    Args:
        predictions: As `join_labels`.
        job: Names the tables.
        screened_under: As `join_labels`.

    Raises:
        ValueError: As `join_labels`; evaluation.labels fits no film at all. A table of archive.labels, or of
            a nightly job, may: it grows.
    """
    if job.evaluation.labels:
        uri, growing = job.evaluation.labels, job.screening.nightly
    elif job.archive.labels:
        uri, growing = job.archive.labels, True
    else:
        return predictions
    return join_labels(predictions, uri, job.archive, growing=growing, screened_under=screened_under)


def require_joinable(films: pa.Table, job: Job, *, beside_dicom: bool) -> None:
    """Refuses, before films are screened, a job whose labels no evaluation could join with them afterwards.

    Where results hold no path of a film, labels join by identifiers and paths as keyed hashes, or by image_id.

    Args:
        films: The archive as it is listed (`catalog.build`).
        job: With the table of labels of evaluation.labels, else of archive.labels.
        beside_dicom: DICOM files are among the films, or left out beside them.

    Raises:
        ValueError: The table names films by a file name or URI that is not kept; or the join takes the site's key and
            the environment has none; a column is missing.
    """
    uri, kept = job.evaluation.labels or job.archive.labels, job.output.keep_source_uri
    if kept is None:
        kept = not beside_dicom and pc.any(tables.known_pictures(films["format"])).as_py()
    if not uri or kept:
        return
    table = storage.read_cells(uri)
    kinds = _columns(table, job.archive, uri)[0]
    _check_key(table, kinds, uri, named=not len(films))
    if uri != job.archive.labels or kinds[0] in tables.KEYED:
        return
    known = films.filter(films["label"].is_valid())["image_id"]
    if _rows_by_id(known, tables.plain_keys(table[kinds[0]]).combine_chunks()).null_count:
        raise ValueError(
            f"{uri}: column {kinds[0]} names films by file name or URI, which results do not keep beside DICOM "
            "films or with output.keep_source_uri = false, so they cannot be joined after screening; name them by path "
            "below the archive, image_id, accession, study or instance"
        )


def label_version(predictions: pa.Table) -> str:
    """Returns 12 hex digits of the SHA-256 of the known labels used: those of scored films, by image.

    The same labels of the same films have the same version, whatever file, order or spelling they came in.
    """
    known = predictions.filter(_counted())
    pairs = pc.binary_join_element_wise(known["image_id"], pc.if_else(pc.equal(known["label"], 1), "1\n", "0\n"), "=")
    digest = hashlib.sha256()
    for chunk in pairs.take(pc.sort_indices(pairs)).chunks:
        start, end = (chunk.offset, chunk.offset + len(chunk))
        offsets = memoryview(chunk.buffers()[1]).cast("i")
        if len(chunk):
            digest.update(memoryview(chunk.buffers()[2])[offsets[start] : offsets[end]])
    return digest.hexdigest()[:12]


def _counted() -> pc.Expression:
    return (pc.field("status") == tables.Status.SCORED) & pc.field("label").is_valid()


def join_labels(
    predictions: pa.Table, uri: str, archive: Archive, *, growing: bool = False, screened_under: str | None = None
) -> pa.Table:
    """Replaces the predictions' labels by those of a CSV or Parquet table.

    The key column names images by image_id, uri, path below the archive, or file name (with or without ending). Rows
    in which it is empty, or a table without one, name them by `instance` (SOPInstanceUID), `study` (StudyInstanceUID)
    or `accession` (AccessionNumber): the finest that the row has, and a label of a study or an accession is that of
    all its images. Patients, as keyed hashes, and subgroups are taken along where a prediction has none.

    Args:
        predictions: `tables.prediction_schema`, or those of its columns that an evaluation reads.
        uri: The table of labels.
        archive: Names of its columns.
        growing: A table that fits no image yet is no error.
        screened_under: `identity.key_check` of the site's key that the films' hashes were made with; None: unknown.

    Raises:
        ValueError: A column is missing, a label is unreadable, a key has two labels or fits several images, no key
            fits, or the join needs the site's key and the environment has none, or another than the run had.
    """
    table = storage.read_cells(uri)
    kinds, label = _columns(table, archive, uri)
    table, labels = tables.findings_first(table, label, uri)
    scored = predictions["uri"].filter(pc.equal(predictions["status"], tables.Status.SCORED.value))
    _check_key(table, kinds, uri, named=scored.null_count == 0, screened_under=screened_under)
    index = pa.chunked_array([pa.nulls(len(predictions), pa.int32())])
    named = pa.chunked_array([pa.repeat(False, len(table))])
    for kind in kinds:
        cells = pc.if_else(named, None, tables.stated(table[kind]))
        if kind not in tables.KEYED or has_key():
            fitting = pc.coalesce(*_rows(predictions, cells, kind, labels, uri))
            index = pc.coalesce(index, fitting)
            # A row of one image must not label the others of its study; a column that names none names something else.
            if fitting.null_count < len(fitting):
                named = pc.or_(named, cells.is_valid())
    if index.null_count == len(index) and len(table) and not growing:
        raise ValueError(
            f"{uri}: none of its {len(table)} keys ({', '.join(kinds)}) fits an image of the run; check "
            "archive.key_column"
        )
    found = {"label": labels, **_further(table, archive)}
    for name, values in found.items():
        column = values.take(index)
        if name not in predictions.column_names:
            predictions = predictions.append_column(name, column)
            continue
        at = predictions.column_names.index(name)
        if name != "label":
            column = pc.coalesce(predictions[name].cast(pa.string()), column)
        predictions = predictions.set_column(at, name, column)
    return predictions


def _columns(table: pa.Table, archive: Archive, uri: str) -> tuple[list[str], str]:
    """The columns that name images, the finest first, and the one with the labels."""
    key, label = tables.label_columns(table.column_names, archive.key_column, archive.label_column, uri)
    if archive.key_column is not None:
        return [key], label
    return [key] * (key not in tables.KEYED) + [name for name in WIDEST_LAST if name in table.column_names], label


def _check_key(table: pa.Table, kinds: list[str], uri: str, *, named: bool, screened_under: str | None = None) -> None:
    """Refuses a join that could only be made on identifiers when there is no secret to hash them with, or another.

    Args:
        table: The labels.
        kinds: Its columns that name films.
        uri: Where it lies.
        named: Whether the path of every film is known.
        screened_under: As in `join_labels`: under another key no label would fit, as if none were known yet.
    """
    if not len(table) or (has_key() and screened_under in {None, key_check()}):
        return
    named_by_id = kinds[0] not in tables.KEYED and pc.all(pc.match_substring_regex(table[kinds[0]], IMAGE_ID)).as_py()
    if kinds[0] in tables.KEYED or not (named or named_by_id):
        raise ValueError(
            f"{uri}: the run's films can be joined with column {', '.join(kinds)} by keyed hashes only, and {SITE_KEY} "
            f"is {'another than at screening' if has_key() else 'not set'}; set it to the secret that the archive was "
            "screened with, name the images by image_id, or leave the label table out to use the labels known at "
            "screening"
        )


def _rows(
    predictions: pa.Table, cells: pa.ChunkedArray, kind: str, labels: pa.ChunkedArray, uri: str
) -> Iterator[pa.ChunkedArray]:
    """Yields each prediction's row in the label table, or NULL, by one way of naming it after the other."""
    keyed = kind in tables.KEYED
    keys = keyed_hashes(cells, kind) if keyed else tables.plain_keys(cells)
    tables.require_one_finding(keys, labels, f"{uri}: column {kind}")
    keys = keys.combine_chunks()
    if keyed:
        yield pc.index_in(predictions[kind], keys, skip_nulls=True)
        return
    exact = pc.coalesce(
        _rows_by_id(predictions["image_id"], keys), pc.index_in(predictions["uri"], keys, skip_nulls=True)
    )
    yield exact
    yield tables.rows_by_name(exact, predictions["uri"], keys, uri)


def _rows_by_id(ids: pa.ChunkedArray, keys: pa.Array) -> pa.ChunkedArray:
    """Each film's row by its image_id, or by its path, of which that is the hash: as written, or spelled otherwise."""
    composed = tables.one_spelling(keys)
    others = (composed, pc.utf8_normalize(composed, form="NFD"))
    rows = pc.index_in(ids, keys, skip_nulls=True)
    for form in (keys, *(pc.if_else(pc.equal(other, keys), None, other) for other in others)):
        hashes = keyed_hashes(pa.chunked_array([form])).combine_chunks()
        rows = pc.coalesce(rows, tables.unless_named(pc.index_in(ids, hashes, skip_nulls=True), rows))
    return rows


def _further(table: pa.Table, archive: Archive) -> dict[str, pa.ChunkedArray]:
    """Patients, hashed or left out, and subgroups."""
    columns = {name: table[name] for name in tables.wanted_subgroups(archive.subgroups) if name in table.column_names}
    if archive.patient_column in table.column_names and has_key():
        columns["patient"] = keyed_hashes(table[archive.patient_column], "patient")
    return columns
