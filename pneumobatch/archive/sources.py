"""Where the images of an archive are listed: a folder or prefix, Parquet, a manifest, or an S3 inventory.

Every source is a stream of batches of `SCHEMA`, so that a million images are never a million objects of the
interpreter's.
"""

from collections.abc import Iterator, Sequence
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from pneumobatch import storage
from pneumobatch.archive import inventory
from pneumobatch.archive.roots import Roots
from pneumobatch.config import Archive

SCHEMA = pa.schema({"path": pa.string(), "uri": pa.string(), "size": pa.int64(), "version": pa.string()})
"""`path` below the archive, `uri` where `fetch` finds the image, `size` in bytes and the store's `version`; the last
two are NULL where they are not known."""

ROWS = 1 << 16
"""Rows in a batch."""

_MANIFESTS = (".parquet", ".csv")


def entries(config: Archive, uri: str) -> Iterator[pa.RecordBatch]:
    """Lists the images of an archive, in no order.

    Raises:
        ValueError: The archive does not exist, is of no known kind, or names what lies outside its roots.
    """
    if uri.endswith("/manifest.json"):
        yield from inventory.entries(config, uri)
    elif storage.is_file(uri):
        if not uri.endswith(_MANIFESTS):
            raise ValueError(
                f"archive.uri: {uri} is a file; give a folder or prefix of images, a Parquet file, a manifest (Parquet "
                "or CSV), or the manifest.json of an S3 inventory"
            )
        folder, _, name = uri.rpartition("/")
        yield from _table(config, folder or "/", name, storage.stat(uri))
    elif storage.is_folder(uri):
        yield from _folder(config, uri)
    else:
        raise ValueError(f"archive.uri: {uri} does not exist")


def _folder(config: Archive, uri: str) -> Iterator[pa.RecordBatch]:
    """Lists a folder of images; one of Parquet files alone is a Parquet archive."""
    batches = storage.scan(uri)
    tables: list[pa.RecordBatch] = []
    for batch in batches:
        tables.append(batch)
        if not pc.all(pc.ends_with(batch["path"], ".parquet")).as_py():
            break
    else:
        for batch in tables:
            for path, size, version in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield from _table(config, uri, path, storage.File(path, size, version))
        return
    head = storage.join(uri, "")
    for batch in chain(tables, batches):
        uris = pc.binary_join_element_wise(head, batch["path"], "")
        images = pa.record_batch([batch["path"], uris, batch["size"], batch["version"]], schema=SCHEMA)
        yield images if config.labels is None else images.filter(pc.not_equal(uris, config.labels))


def _table(config: Archive, folder: str, path: str, file: storage.File) -> Iterator[pa.RecordBatch]:
    """Lists the rows of a Parquet file with images in it, or the entries of a manifest."""
    uri = storage.join(folder, path)
    if path.endswith(".csv"):
        yield from _manifest(config, folder, uri, _csv(config, uri))
        return
    try:
        with storage.open_file(uri) as source, pq.ParquetFile(source) as table:
            names, rows = table.schema_arrow.names, table.metadata.num_rows
            column = next((name for name in (config.bytes_column, config.uri_column) if name in names), None)
            kind = None if column is None else table.schema_arrow.field(column).type
    except _DAMAGED:
        raise _damaged(uri) from None
    if column is None:
        raise _no_column(config, uri, names)
    # A row of no byte at all is no image; the number may be damaged like everything else.
    if not 0 <= rows <= file.size:
        raise ValueError(f"archive.uri: {uri} is damaged: it claims {rows} rows, and is not as many bytes long")
    if column == config.uri_column and column != config.bytes_column:
        yield from _manifest(config, folder, uri, _parquet(config, uri, names))
        return
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)):
        raise ValueError(f"archive.uri: {uri}: column {column!r} (archive.bytes_column) holds {kind}, not bytes")
    for start in range(0, rows, ROWS):
        number = pa.array(range(start, min(start + ROWS, rows))).cast(pa.string())
        yield pa.record_batch(
            [
                pc.binary_join_element_wise(path, pc.utf8_lpad(number, 9, "0"), "#"),
                pc.binary_join_element_wise(uri, column, number, "#"),
                pa.nulls(len(number), pa.int64()),
                pa.repeat(file.version, len(number)),
            ],
            schema=SCHEMA,
        )


_DAMAGED = (ValueError, TypeError, LookupError, ArithmeticError, MemoryError, pa.ArrowException)


def _damaged(uri: str) -> ValueError:
    return ValueError(f"archive.uri: {uri} is no readable Parquet file: it is damaged, or of another kind")


def _parquet(config: Archive, uri: str, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Reads a manifest's columns: the entry, and size and entity tag where it states them."""
    columns = [name for name in (config.uri_column, "size", "etag") if name in names]
    with storage.open_file(uri) as source, pq.ParquetFile(source) as table:
        batches = table.iter_batches(ROWS, columns=columns)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except _DAMAGED:
                raise _damaged(uri) from None
            yield batch


def _csv(config: Archive, uri: str) -> Iterator[pa.RecordBatch]:
    try:
        with storage.open_file(uri) as source:
            names = csv.open_csv(source).schema.names
        if config.uri_column not in names:
            raise _no_column(config, uri, names)
        kinds = {name: kind for name, kind in {config.uri_column: pa.string(), **_STATED}.items() if name in names}
        options = csv.ConvertOptions(include_columns=list(kinds), column_types=kinds)
        with storage.open_file(uri) as source:
            yield from csv.open_csv(source, convert_options=options)
    except pa.ArrowException:
        raise ValueError(f"archive.uri: {uri} is not a readable CSV table") from None


def _no_column(config: Archive, uri: str, names: Sequence[str]) -> ValueError:
    return ValueError(
        f"archive.uri: {uri} has neither a column {config.bytes_column!r} (archive.bytes_column) nor "
        f"{config.uri_column!r} (archive.uri_column); it has {', '.join(names)}"
    )


_STATED = {"size": pa.int64(), "etag": pa.string()}


def _manifest(config: Archive, folder: str, uri: str, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Turns a manifest's entries into places below the archive's roots."""
    roots = Roots(config.roots, folder, uri)
    for batch in batches:
        values = batch[config.uri_column].to_pylist()
        if not all(isinstance(value, str) for value in values):
            raise ValueError(
                f"archive.uri: {uri}: column {config.uri_column!r} (archive.uri_column) holds what is no path"
            )
        places = [roots.locate(value) for value in values]
        facts = [_known(place.uri) for place in places]
        rows = [(*place, *known) for place, known in zip(places, facts, strict=True)]
        found = pa.RecordBatch.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], SCHEMA)
        for name, stated in (("size", "size"), ("version", "etag")):
            if stated in batch.schema.names:
                filled = pc.coalesce(found[name], batch[stated].cast(_STATED[stated], safe=False))
                found = found.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), filled)
        yield found


def _known(uri: str) -> tuple[int | None, str | None]:
    """Size and version of a local file; asking an object store for each entry would take hours."""
    if "://" in uri:
        return None, None
    try:
        found = storage.stat(uri)
    except OSError:
        return None, None  # decoding will name it
    return found.size, found.version
