"""An archive's list of images → one row an image, with a stable id and what is known about it."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import translate
from functools import partial, reduce

import pyarrow as pa
import pyarrow.compute as pc

from pneumobatch import tables
from pneumobatch.archive import fetch, sources
from pneumobatch.archive.labels import LabelTable, from_paths
from pneumobatch.config import Archive
from pneumobatch.identity import has_key, keyed_hashes

_FORMATS = {"jpeg": ("jpg", "jpeg"), "png": ("png",), "dicom": ("dcm", "dicom")}

VERSION_DIGITS = 16
"""Hexadecimal digits of `version`: it is compared with earlier ones of the same image alone."""


def build(config: Archive) -> pa.Table:
    """Lists an archive: one row an image, by ascending path; see `tables.catalog_schema`.

    `image_id` depends on the path below the archive alone, so it stays when the archive moves, or is listed in another
    way. `uri` and `patient` are for use inside the process: `publishable` takes out of them what must not be written.

    Raises:
        ValueError: The archive is not named, does not exist, holds no image, or its labels cannot be read.
    """
    if config.uri is None:
        raise ValueError("archive.uri is missing: give the folder, prefix, Parquet file or manifest of the images")
    wanted = _chooser(config)
    listed = pa.Table.from_batches(map(wanted, sources.entries(config, config.uri)), sources.SCHEMA)
    if not len(listed):
        raise ValueError(f"archive.uri: {config.uri} holds no file that archive.include and archive.exclude leave")
    listed = _one_row_each(listed, config)
    paths = listed["path"]
    ids = keyed_hashes(paths)
    known = from_paths(paths, config.patients) if config.labels is None else LabelTable(config).known(paths, ids)
    subgroups = sorted(name for name in known if name in config.subgroups)
    columns = {
        "image_id": ids,
        "uri": listed["uri"],
        "version": _versions(listed),
        "format": _formats(paths),
        "bytes": listed["size"],
        **{name: known[name] for name in ("label", "patient", *subgroups)},
    }
    schema = tables.catalog_schema(subgroups)
    return pa.table([columns.get(field.name, pa.nulls(len(ids), field.type)) for field in schema], schema=schema)


def _chooser(config: Archive) -> Callable[[pa.RecordBatch], pa.RecordBatch]:
    """Returns what leaves those entries that archive.include and archive.exclude let through."""
    include, exclude = ([_regex(pattern) for pattern in patterns] for patterns in (config.include, config.exclude))

    def fits(paths: pa.Array, patterns: Sequence[str]) -> pa.Array:
        matches = (pc.match_substring_regex(paths, pattern) for pattern in patterns)
        return reduce(pc.or_, matches, pa.repeat(False, len(paths)))

    def choose(batch: pa.RecordBatch) -> pa.RecordBatch:
        if "*" not in config.include:
            batch = batch.filter(fits(batch["path"], include))
        return batch.filter(pc.invert(fits(batch["path"], exclude))) if exclude else batch

    return choose


def _regex(pattern: str) -> str:
    """A glob as RE2 understands it: anchored, without Python's atomic groups and look-aheads."""
    text = translate(pattern).removeprefix("(?s:").removesuffix(r")\Z")
    text = text.replace("(?>", "(?:").replace("(?!)", r"[^\x00-\x{10FFFF}]")
    return rf"(?s)\A(?:{text})\z"


def _one_row_each(listed: pa.Table, config: Archive) -> pa.Table:
    """Sorts by path, and keeps one of the rows that name the same image.

    Raises:
        ValueError: Two different images have the same path, each below a root of its own.
    """
    listed = listed.sort_by([(name, "ascending") for name in ("path", "uri", "version", "size")]).combine_chunks()
    paths, uris = listed["path"], listed["uri"]
    again = pa.chunked_array([[False], *pc.equal(paths[1:], paths[:-1]).chunks], pa.bool_())
    if not pc.any(again).as_py():
        return listed
    elsewhere = pa.chunked_array([[False], *pc.not_equal(uris[1:], uris[:-1]).chunks], pa.bool_())
    if pc.any(pc.and_(again, elsewhere)).as_py():
        raise ValueError(
            f"archive.roots: {config.uri} names two images with the same path below two roots; name their common "
            "folder as the one root"
        )
    return listed.filter(pc.invert(again))


def _versions(listed: pa.Table) -> pa.ChunkedArray:
    """Keyed hashes: the store's own text can be an exact time, which belongs to an identity."""
    sizes = pc.coalesce(listed["size"].cast(pa.string()), "")
    hashes = keyed_hashes(pc.binary_join_element_wise(listed["version"], sizes, ":"))
    return pc.utf8_slice_codeunits(hashes, 0, VERSION_DIGITS)


def _formats(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """What the names' endings promise."""
    endings = [pc.match_substring_regex(paths, rf"(?i)\.({'|'.join(names)})$") for names in _FORMATS.values()]
    chosen = [pc.if_else(matches, kind, None) for matches, kind in zip(endings, _FORMATS, strict=True)]
    return pc.coalesce(*chosen)


def publishable(catalog: pa.Table, *, keep_uri: bool | None = None) -> pa.Table:
    """Takes out of a catalogue what must not be written: DICOM paths and unhashed patients.

    Args:
        catalog: From `build`.
        keep_uri: Keep the source paths; None: unless a file may be DICOM by its name (.dcm, .dicom, no extension).

    Returns:
        The same rows. A patient known from Kermany's public file names stays; one from a label table becomes a hash
        under the site's key (the one that a DICOM file's PatientID has), or NULL where the environment has no key, as
        an unkeyed hash could be looked up.
    """
    if keep_uri is None:
        named = pc.match_substring_regex(catalog["uri"], r"\.[^/]*$")
        dicom = pc.fill_null(pc.equal(catalog["format"], "dicom"), False)
        keep_uri = pc.all(pc.and_not(named, dicom)).as_py() is not False
    patients = catalog["patient"]
    public = pc.starts_with(patients, "kermany:")
    private = pc.if_else(public, None, patients)
    hashed = keyed_hashes(private) if has_key() else pa.nulls(len(catalog), pa.string())
    catalog = _with(catalog, "patient", pc.if_else(public, patients, hashed))
    return catalog if keep_uri else _with(catalog, "uri", pa.nulls(len(catalog), pa.string()))


def _with(catalog: pa.Table, name: str, values: pa.ChunkedArray) -> pa.Table:
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
    return _with(_with(catalog, "sha256", sha256), "duplicate_of", duplicate_of)


def _digests(uris: pa.ChunkedArray, limit: int) -> Iterator[pa.Array]:
    """SHA-256 of files, hexadecimal; NULL for one that cannot be read."""
    with ThreadPoolExecutor(fetch.CONCURRENCY) as pool:
        for start in range(0, len(uris), READ_AT_ONCE):
            part = uris.slice(start, READ_AT_ONCE).to_pylist()
            # Rows of a Parquet file are read in their order, as they share what is read.
            read = map if ".parquet#" in part[0] else pool.map
            yield pa.array(read(partial(_digest, limit), part), pa.string())


def _digest(limit: int, uri: str) -> str | None:
    data = fetch.fetch(uri, limit)
    return hashlib.sha256(data).hexdigest() if isinstance(data, bytes) else None
