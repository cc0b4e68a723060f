"""Folder, object prefix, Parquet or S3 Inventory → one row an image, with a stable id and what is known about it."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from pneumobatch import tables
from pneumobatch.archive import fetch, left_out, sources
from pneumobatch.archive.headers import EXTENSIONS
from pneumobatch.archive.labels import LabelTable, from_paths
from pneumobatch.config import Archive
from pneumobatch.identity import has_key, keyed_hashes

_VERSION_DIGITS = 16


def build(config: Archive, *, growing: bool = False) -> pa.Table:
    """Lists an archive: one row an image, by ascending path; see `tables.catalog_schema`.

    `image_id` depends on the path below the archive (or below the root that holds it) alone, so it stays when the
    archive moves, and whether a listing, a manifest or an S3 Inventory names the image. `version` changes when the
    object does; it is NULL for objects whose entity tag a manifest, an inventory or a store does not state. `uri` and
    `patient` are for use inside the process: `publishable` takes out of them what must not be written. How many files
    are there and have no row, because of their names or by archive.include and archive.exclude, `left_out` tells.

    Args:
        config: The archive.
        growing: A table of labels that fits no image yet is no error. One that names images by accession, study or
            instance never is: only an evaluation can join it, with what the files say of themselves.

    Raises:
        ValueError: The archive is not named, does not exist, holds no image, a manifest leads outside its roots, the
            labels cannot be read, or a subgroup has the name of another column.
    """
    wanted = {"label", "patient", *tables.wanted_subgroups(config.subgroups)}
    without: Counter[str] = Counter()
    entries = _sorted(pa.Table.from_batches(sources.entries(config, without), schema=sources.SCHEMA))
    if not len(entries):
        why = f" ({text})" if (text := left_out.told(without)) else ""
        raise ValueError(f"archive.uri: {config.uri} holds no file that archive.include and archive.exclude leave{why}")
    paths = entries["path"]
    # Columns are dropped as soon as they are used: at a million images each is some 100 MB.
    columns = {
        "image_id": keyed_hashes(paths),
        "uri": entries["uri"],
        "version": pc.utf8_slice_codeunits(keyed_hashes(entries["version"]), 0, _VERSION_DIGITS),
        "format": _format(paths),
        "bytes": entries["size"],
    }
    del entries
    known = _known(config, paths, columns, growing)
    known = {name: values for name, values in known.items() if name in wanted}
    del paths
    unknown = pa.nulls(len(columns["image_id"]), pa.string())
    columns |= {
        "sha256": unknown,
        "duplicate_of": unknown,
        "label": known.pop("label"),
        "patient": known.pop("patient"),
    }
    subgroups = sorted(known)
    columns |= {name: known[name] for name in subgroups}
    return left_out.marked(pa.table(columns, schema=tables.catalog_schema(subgroups)), without)


def _sorted(entries: pa.Table) -> pa.Table:
    """Sorts by path; an entry that is named twice is one.

    Raises:
        ValueError: Two roots hold the same path.
    """
    entries = entries.take(pc.sort_indices(entries["path"]))
    if len(entries) < 2:
        return entries

    def repeated(name: str) -> pa.ChunkedArray:
        return pc.equal(entries[name].slice(1), entries[name].slice(0, len(entries) - 1))

    twice = repeated("path")
    if not pc.any(twice).as_py():
        return entries
    if pc.any(pc.and_not(twice, repeated("uri"))).as_py():
        raise ValueError(
            "archive.roots: two of them hold the same path below, so their images cannot be told apart; give the "
            "folder above them instead"
        )
    return entries.filter(pa.chunked_array([pa.array([True]), *pc.invert(twice).chunks]))


def _format(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """What the extensions say: jpeg, png or dicom; NULL for any other."""
    extension = pc.utf8_lower(pc.struct_field(pc.extract_regex(paths, r"(?s)\.(?P<extension>[^./]*)$"), "extension"))
    known = pc.index_in(extension, pa.array(EXTENSIONS))
    return pa.chunked_array([pa.array(EXTENSIONS.values()).take(chunk) for chunk in known.chunks], pa.string())


def _known(
    config: Archive, paths: pa.ChunkedArray, columns: dict[str, pa.ChunkedArray], growing: bool
) -> dict[str, pa.ChunkedArray]:
    """Columns `label`, `patient` and those of which anything is known."""
    known = from_paths(paths, config.patients)
    if config.labels is not None:
        labels = LabelTable(config)
        found, table = labels.find(paths, columns["image_id"], columns["uri"])
        if not (growing or labels.names_studies or pc.any(found).as_py()):
            raise ValueError(
                f"archive.labels: {labels.uri}, column {labels.key}: no row fits an image of {config.uri}; it "
                "must hold the path below the archive, the URI, the file name, or the image_id"
            )
        # The table decides on the label; a patient known only by the file name is still that patient.
        known["label"], stated = table.pop("label"), table.pop("patient")
        if config.patients == "auto":
            known["patient"] = pc.coalesce(stated, known["patient"])
        for name, values in table.items():
            known[name] = pc.if_else(found, values, known[name]) if name in known else values
    return known


def publishable(catalog: pa.Table, *, keep_uri: bool | None = None) -> pa.Table:
    """Takes out of a catalogue what must not be written: DICOM paths and unhashed patients.

    Args:
        catalog: From `build`.
        keep_uri: Keep the source paths; None: where every file is JPEG or PNG by its extension, and none that was left
            out is DICOM. Any other name (a UID, no extension, a table of images) may be DICOM, and its folders name
            patients as well as it does.

    Returns:
        The same rows. A patient known from Kermany's public file names stays for JPEG and PNG, and is NULL for what may
        be DICOM, which states its own; one from a label table becomes a hash under the site's key, the one that a DICOM
        file's PatientID has, or NULL where the environment has no key (an unkeyed hash could be looked up).
    """
    pictures = tables.known_pictures(catalog["format"])
    if keep_uri is None:
        keep_uri = bool(pc.all(pictures).as_py()) and not left_out.is_beside_dicom(catalog)
    patient, missing = catalog["patient"], pa.nulls(len(catalog), pa.string())
    named = pc.fill_null(pc.starts_with(patient, "kermany:"), False)
    hidden = keyed_hashes(pc.if_else(named, None, patient)) if has_key() else missing
    catalog = _replaced(catalog, "patient", pc.if_else(pc.and_(pictures, named), patient, hidden))
    return catalog if keep_uri else _replaced(catalog, "uri", missing)


def _replaced(catalog: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    index = catalog.schema.get_field_index(name)
    return catalog.set_column(index, catalog.schema.field(index), values)


READ_AT_ONCE = 1_000
"""Files between two looks at what was read."""


def find_duplicates(catalog: pa.Table, limit: int = Archive.model_fields["max_bytes"].default) -> pa.Table:
    """Fills `sha256` and `duplicate_of` by reading those files whose size another file shares.

    Of byte-identical files the first by path is the original. Unreadable files, and those of more than `limit` bytes,
    are left for decoding to name.
    """
    sizes = catalog["bytes"]
    counts = pc.value_counts(sizes.drop_null())
    shared = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    suspect = pc.or_(pc.is_null(sizes), pc.and_(pc.is_in(sizes, shared), pc.greater(pc.fill_null(sizes, 0), 0)))
    rows = pc.indices_nonzero(suspect)
    digests = pa.chunked_array(_digests(catalog["uri"].take(rows), limit), pa.string())
    place = pc.index_in(pa.array(range(len(catalog)), pa.uint64()), rows)
    sha256 = digests.take(place)
    first = pc.index_in(sha256, pc.drop_null(digests))
    original = catalog["image_id"].filter(pc.is_valid(sha256)).take(first)
    duplicate_of = pc.if_else(pc.equal(original, catalog["image_id"]), None, original)
    return _replaced(_replaced(catalog, "sha256", sha256), "duplicate_of", duplicate_of)


def _digests(uris: pa.ChunkedArray, limit: int) -> Iterator[pa.Array]:
    """SHA-256 of files, hexadecimal; NULL for one that cannot be read."""
    with ThreadPoolExecutor(fetch.CONCURRENCY) as pool:
        for start in range(0, len(uris), READ_AT_ONCE):
            part = uris.slice(start, READ_AT_ONCE).to_pylist()
            read = map if fetch.in_table(part[0]) else pool.map
            yield pa.array(read(partial(_digest, limit), part), pa.string())


def _digest(limit: int, uri: str) -> str | None:
    data = fetch.fetch(uri, limit)
    return hashlib.sha256(data).hexdigest() if isinstance(data, bytes) else None
