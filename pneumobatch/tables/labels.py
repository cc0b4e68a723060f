"""Label tables as people write them."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pneumobatch.tables.columns import KEYED

_KEY_COLUMNS = ("uri", "image_id", "path", "file", "filename", "image", "name")


def label_columns(names: Sequence[str], key: str | None, label: str, where: str) -> tuple[str, str]:
    """Returns the columns of a label table that hold the image's name (or accession, study, instance) and its class.

    Raises:
        ValueError: One is not there; the message begins with `where` and names the key to set.
    """
    candidates = (*_KEY_COLUMNS, *KEYED)
    found = key or next((name for name in candidates if name in names), None)
    for option, column in (("key_column", found), ("label_column", label)):
        if column not in names:
            missing = f"no column {column}" if column else f"none of the columns {', '.join(candidates)}"
            raise ValueError(f"{where}: {missing}; set archive.{option} to one of {', '.join(names)}")
    assert found is not None
    return found, label


_CLASSES = {"pneumonia": 1, "1": 1, "true": 1, "normal": 0, "0": 0, "false": 0}

_UNKNOWN = {"", "pending", "unknown", "null", "nan"}


def _parse_labels(cells: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """Reads classes as people write them, int8: 1 (pneumonia), 0 (normal), NULL (empty, pending, unknown).

    Raises:
        ValueError: A value is none of these. The message begins with `where` and names the row, not the value: a wrong
            column may hold a name.
    """
    spelled = cells.combine_chunks().dictionary_encode()
    texts = [text.strip().lower().removesuffix(".0") for text in spelled.dictionary.to_pylist()]
    wrong = [place for place, text in enumerate(texts) if text not in _CLASSES and text not in _UNKNOWN]
    if wrong:
        row = pc.index(pc.is_in(spelled.indices, pa.array(wrong, spelled.indices.type)), True).as_py() + 1
        raise ValueError(
            f"{where}: row {row}: the label is none of 1, 0, PNEUMONIA, NORMAL, true, false, pending or empty"
        )
    classes = pa.array([_CLASSES.get(text) for text in texts], pa.int8())
    return pa.chunked_array([classes.take(spelled.indices)])


def findings_first(table: pa.Table, column: str, where: str) -> tuple[pa.Table, pa.ChunkedArray]:
    """Returns a label table's rows and their classes, findings before what is not known.

    A finding is appended to a table that had said `pending`, and lookups find the first row of an image.

    Args:
        table: The table, every column as text.
        column: Its column of classes.
        where: What an error begins with.

    Returns:
        The rows, and int8: 1 (pneumonia), 0 (normal), NULL (empty, pending, unknown).

    Raises:
        ValueError: A value is no class; the message names the row, not the value.
    """
    labels = _parse_labels(table[column], where)
    order = pc.array_sort_indices(pc.cast(labels.is_null(), pa.uint8()).combine_chunks())
    return table.take(order), labels.take(order)


def stated(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    """Cells as they are, NULL where they are blank."""
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(cells), ""), None, cells)


def require_one_finding(keys: pa.ChunkedArray, labels: pa.ChunkedArray, where: str) -> None:
    """A key may stand twice, as an accession does in a table of images, but not with two known labels.

    Raises:
        ValueError: One does; the message begins with `where` and does not tell the key, which may be a name.
    """
    pairs = pa.table({"key": keys, "label": labels}).filter(pc.field("key").is_valid())
    distinct = pairs.group_by("key").aggregate([("label", "count_distinct", pc.CountOptions(mode="only_valid"))])
    if (pc.max(distinct["label_count_distinct"]).as_py() or 1) > 1:
        raise ValueError(f"{where} names an image twice, with two labels; keep the row that holds")


def plain_keys(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    """What cells name: file:///data/a.png, Spark's file:/data/a.png, is /data/a.png; ./a.png of `find` is a.png."""
    return pc.replace_substring_regex(cells, r"^(?:\./|file:(?://)?(/))", r"\1")


def one_spelling(texts: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Names in the one way of writing them: systems compose ü or not, and exports pad cells."""
    return pc.utf8_normalize(pc.utf8_trim_whitespace(texts), form="NFC")


def unless_named(rows: pa.ChunkedArray, named: pa.ChunkedArray) -> pa.ChunkedArray:
    """Rows of a label table for images that none names better; NULL for others.

    A row that names an image in full names no other that is spelled alike, or is called so in another folder.

    Args:
        rows: Row that each image is found by, or NULL.
        named: Row that names each image better, or NULL.
    """
    return pc.if_else(pc.or_(pc.is_valid(named), pc.is_in(rows, pc.unique(named.drop_null()))), None, rows)


def rows_by_name(exact: pa.ChunkedArray, paths: pa.ChunkedArray, keys: pa.Array, where: str) -> pa.ChunkedArray:
    """Finds the rows of a label table that name images by their paths in another spelling, or by their file names,
    with or without ending.

    Args:
        exact: Row of each image that a row names in full; NULL where none does.
        paths: Path or URI of each image.
        keys: What the table's rows name.
        where: What an error begins with.

    Returns:
        Row of each image that has none in `exact`, else NULL.

    Raises:
        ValueError: A row fits several images.
    """
    paths, keys = one_spelling(paths), one_spelling(keys)
    names = pc.replace_substring_regex(paths, r"(?s)^.*/", "")
    stems = pc.replace_substring_regex(names, r"(?s)\.[^.]*$", "")
    whole, *parts = (pc.index_in(texts, keys, skip_nulls=True) for texts in (paths, names, stems))
    whole = unless_named(whole, exact)
    exact = pc.coalesce(exact, whole)
    found = pc.coalesce(whole, *(unless_named(rows, exact) for rows in parts))
    if len(pc.unique(found.drop_null())) < len(found) - found.null_count:
        raise ValueError(f"{where}: a file name fits several images; name them by their path below the archive")
    return found
