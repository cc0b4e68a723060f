"""The archive's entries, a batch at a time: a folder or prefix, Parquet with images or with paths, an S3 Inventory."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fnmatch import translate

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from pneumobatch import storage
from pneumobatch.archive import fetch, inventory, roots
from pneumobatch.archive.left_out import DICOM
from pneumobatch.config import Archive

SCHEMA = pa.schema({"path": pa.string(), "uri": pa.string(), "size": pa.int64(), "version": pa.string()})
"""An entry: path below the archive; where `fetch` finds it; bytes; what changes with the content (NULL: not known)."""

Aside = Callable[[pa.Array, pa.Array], pa.Array]
"""(paths below the archive, URIs) → bool: what is no entry."""

_ROW = re.compile(r"(?i)(?<=\.parquet)#\d{9,}$")
_ROWS = 1 << 16
"""Rows of a Parquet file that are read at a time."""


def entries(config: Archive, left_out: Counter[str]) -> Iterator[pa.RecordBatch]:
    """Lists the entries that archive.include and archive.exclude leave; the label table is none.

    Args:
        config: The archive.
        left_out: Counts what is there and is no entry: `hidden` (files, and folders of a local archive as one each,
            whose names begin with . or _; a manifest may name them) and `excluded`; of all these, `left_out.DICOM`.

    Raises:
        ValueError: The archive is not named, does not exist, or a manifest of it is refused.
    """
    if config.uri is None:
        raise ValueError("archive.uri is missing: give the folder, prefix or Parquet file of the images")
    included, excluded = _any(config.include), _any(config.exclude)
    labels = roots.place(config.labels) if config.labels else ""

    def aside(paths: pa.Array, uris: pa.Array) -> pa.Array:
        """Whether it is the label table, or excluded."""
        is_labels = roots.lead_to(uris, labels)
        if not config.exclude:
            return is_labels
        return pc.or_(is_labels, pa.array([bool(excluded.match(path)) for path in paths.to_pylist()], pa.bool_()))

    for batch in _all(config, config.uri, aside, left_out):
        keep = pc.invert(aside(batch["path"], batch["uri"]))
        if config.include != ("*",):
            paths = batch["path"].to_pylist()  # a row of a Parquet file is taken by the file's name as well
            chosen = [bool(included.match(path) or included.match(_ROW.sub("", path))) for path in paths]
            keep = pc.and_(keep, pa.array(chosen, pa.bool_()))
        yield _kept(batch, keep, left_out, "excluded")


def _kept(batch: pa.RecordBatch, keep: pa.Array, left_out: Counter[str], why: str) -> pa.RecordBatch:
    kept = batch.filter(keep)
    if without := len(batch) - len(kept):
        names = batch["path"].filter(pc.invert(keep))
        left_out[why] += without
        left_out[DICOM] += pc.sum(pc.match_substring_regex(names, r"(?i)\.(dcm|dicom)$"), min_count=0).as_py()
    return kept


def _seen(batch: pa.RecordBatch, left_out: Counter[str]) -> pa.RecordBatch:
    return _kept(batch, pc.invert(storage.hidden(batch["path"])), left_out, "hidden")


def versioned(sizes: pa.Array, versions: pa.Array) -> pa.Array:
    """Size and the store's version as one text; NULL without a version: a size may stay when the object changes.

    A store's answers, and so manifests that were written of them, have entity tags in quotes; a listing has none.
    """
    versions = pc.utf8_trim(versions, '"')
    both = pc.binary_join_element_wise(pc.cast(sizes, pa.string()), versions, ":", null_handling="replace")
    return pc.if_else(pc.not_equal(versions, ""), both, None)


def _any(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(translate(pattern) for pattern in patterns) or "(?!)")


def _all(config: Archive, uri: str, aside: Aside, left_out: Counter[str]) -> Iterator[pa.RecordBatch]:
    if uri.endswith(f"/*/{inventory.NAME}") or (uri.endswith(f"/{inventory.NAME}") and storage.is_file(uri)):
        for listed in inventory.read(inventory.latest(uri), config.roots):
            found = _seen(listed, left_out)
            versions = versioned(found["size"], found["version"])
            yield pa.record_batch([found["path"], found["uri"], found["size"], versions], schema=SCHEMA)
    elif storage.is_file(uri):
        folder = uri.rpartition("/")[0] or "/"
        if uri.lower().endswith(".parquet"):
            yield from _parquet(config, folder, storage.stat(uri))
        elif uri.lower().endswith(".csv"):
            yield from _manifest(config, folder, uri, _csv(config, uri))
        else:
            raise ValueError(
                f"archive.uri: {uri} is a file; give a folder or prefix of images, a Parquet file, a manifest (Parquet "
                f"or CSV), or the {inventory.NAME} of an S3 Inventory"
            )
    elif re.match("(zip|tar|libarchive)://", uri):  # a member's path belongs before the ::, not behind it
        raise ValueError(f"archive.uri: {uri} is a packed archive; unpack it, and give the folder")
    elif storage.is_folder(uri):
        yield from _folder(config, uri, aside, left_out)
    else:
        raise ValueError(f"archive.uri: {uri} does not exist")


def _folder(config: Archive, uri: str, aside: Aside, left_out: Counter[str]) -> Iterator[pa.RecordBatch]:
    """A folder of images, or of Parquet files alone, not counting what is set aside.

    Raises:
        ValueError: It holds both.
    """
    base = roots.place(uri)
    tables: list[pa.RecordBatch] = []
    images = False
    for listed in storage.scan(uri):
        batch = _seen(listed, left_out)
        uris = pc.binary_join_element_wise(base, batch["path"], "/")
        keep = pc.invert(aside(batch["path"], uris))
        found, uris = _kept(batch, keep, left_out, "excluded"), uris.filter(keep)
        tabular = pc.ends_with(found["path"], ".parquet", ignore_case=True)
        images = images or not pc.all(tabular, min_count=0).as_py()
        if images and (tables or pc.any(tabular, min_count=0).as_py()):
            raise ValueError(
                f"archive.uri: {uri} holds Parquet files beside other files, and a Parquet archive is read in another "
                "way than images: give a folder of one kind, or leave the others out by archive.exclude"
            )
        if images:
            yield pa.record_batch(
                [found["path"], uris, found["size"], versioned(found["size"], found["version"])], schema=SCHEMA
            )
        elif len(found):
            tables.append(found)
    for batch in tables:
        for file in map(storage.File, *(column.to_pylist() for column in batch.columns)):
            yield from _parquet(config, uri, file)


def _parquet(config: Archive, folder: str, file: storage.File) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file with images, or the entries of a manifest."""
    uri = storage.join(folder, file.path)
    try:
        with storage.open_file(uri) as source, pq.ParquetFile(source) as table:
            names, count = table.schema_arrow.names, table.metadata.num_rows
            column = next((name for name in (config.bytes_column, config.uri_column) if name in names), None)
            kind = None if column is None else table.schema_arrow.field(column).type
            stated = [
                name
                for name, fits in (("size", pa.types.is_integer), ("etag", _is_text))
                if name in names and fits(table.schema_arrow.field(name).type)
            ]
    except _TELLING:
        raise
    except _DAMAGE:
        raise _damaged(uri) from None
    if column is None:
        raise _no_column(config, uri, names)
    if column == config.bytes_column:
        if not fetch.holds_bytes(kind):
            raise ValueError(f"archive.uri: {uri}: column {column!r} (archive.bytes_column) holds {kind}, not bytes")
        if not 0 <= count <= file.size:  # of no byte at all is no image
            raise ValueError(f"archive.uri: {uri} is damaged: it claims {count} images, and is not as many bytes long")
        yield from _rows(count, uri, column, file)
    elif _is_text(kind):
        yield from _manifest(config, folder, uri, _parquet_batches(uri, [column, *stated]))
    else:
        raise ValueError(f"archive.uri: {uri}: column {column!r} (archive.uri_column) holds what is no path")


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind  # categories of pandas and polars
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


_TELLING = (PermissionError, FileNotFoundError)
_DAMAGE = (OSError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError, pa.ArrowException)


def _damaged(uri: str) -> ValueError:
    return ValueError(f"archive.uri: {uri} is no readable Parquet file: it is damaged, or of another kind")


def _no_column(config: Archive, uri: str, names: Sequence[str]) -> ValueError:
    return ValueError(
        f"archive.uri: {uri} has neither a column {config.bytes_column!r} (archive.bytes_column) nor "
        f"{config.uri_column!r} (archive.uri_column); it has {', '.join(names)}"
    )


_STATED = {"size": pa.int64(), "etag": pa.string()}
"""Columns of a manifest besides its paths: what a listing would say of the object. One of that name and of another
kind (1024x768, a list) is about something else, and not taken."""


def _parquet_batches(uri: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    try:
        with storage.open_file(uri) as source, pq.ParquetFile(source) as table:
            yield from table.iter_batches(_ROWS, columns=columns)
    except _TELLING:
        raise
    except _DAMAGE:
        raise _damaged(uri) from None


def _csv(config: Archive, uri: str) -> Iterator[pa.RecordBatch]:
    try:
        with storage.open_file(uri) as source, csv.open_csv(source, parse_options=storage.LINES) as reader:
            names = reader.schema.names
        if config.uri_column not in names:
            raise _no_column(config, uri, names)
        kinds = {name: kind for name, kind in {config.uri_column: pa.string(), **_STATED}.items() if name in names}
        try:
            table = _cells(uri, kinds)
        except pa.ArrowInvalid:
            if kinds.pop("size", None) is None:
                raise
            table = _cells(uri, kinds)  # it is no size
    except pa.ArrowException:
        raise ValueError(
            f"archive.uri: {uri} is no readable CSV table; save it as UTF-8, each row with as many cells as the first"
        ) from None
    yield from table.to_batches(_ROWS)


def _cells(uri: str, kinds: dict[str, pa.DataType]) -> pa.Table:
    """Columns of a CSV table, of these types."""
    options = csv.ConvertOptions(include_columns=list(kinds), column_types=kinds)
    with storage.open_file(uri) as source:
        return csv.read_csv(source, parse_options=storage.LINES, convert_options=options)


def _manifest(config: Archive, folder: str, uri: str, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Entries that lie below the archive's roots; sizes and versions as far as the manifest or the disk tells them."""
    allowed = roots.Roots(config.roots or (folder,), uri)
    for batch in batches:
        uris = roots.absolute(batch[config.uri_column].cast(pa.string()), folder)
        paths = allowed.required(uris)
        facts = [_local(where) for where in uris.to_pylist()]
        stated = {
            name: batch[name].cast(kind, safe=False) if name in batch.schema.names else pa.nulls(len(batch), kind)
            for name, kind in _STATED.items()
        }
        sizes = pc.coalesce(pa.array([file and file.size for file in facts], pa.int64()), stated["size"])
        versions = pc.coalesce(pa.array([file and file.version for file in facts], pa.string()), stated["etag"])
        yield pa.record_batch([paths, uris, sizes, versioned(sizes, versions)], schema=SCHEMA)


def _local(uri: str) -> storage.File | None:
    """What a listing says of a local file; asking an object store for each of a million would take an hour."""
    if "://" in uri:
        return None
    try:
        return storage.stat(uri)
    except OSError:
        return None  # decoding will name it


def _rows(count: int, uri: str, column: str, file: storage.File) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file with images; nothing but the file's version tells that one has changed."""
    version = f"{file.size}:{file.version}"
    for start in range(0, count, _ROWS):
        numbers = range(start, min(start + _ROWS, count))
        yield pa.record_batch(
            [
                pa.array((f"{file.path}#{row:09d}" for row in numbers), pa.string()),
                pa.array((f"{uri}#{column}#{row}" for row in numbers), pa.string()),
                pa.nulls(len(numbers), pa.int64()),
                pa.repeat(pa.scalar(version), len(numbers)),
            ],
            schema=SCHEMA,
        )
