"""What is known about an image besides its pixels: class, patient and subgroups, from a table or from its path.

Column by column, so that a million images cost seconds. A known patient is a text that says where it is known from:
`kermany:person7_bacteria`, or `patient:…` of a label table, which stays inside the process.
"""

import pyarrow as pa
import pyarrow.compute as pc

from pneumobatch import storage, tables
from pneumobatch.config import Archive

_CLASS = r"(?is)^(?:.*/)?(?P<found>normal|pneumonia)/"  # greedy: the innermost folder that names a class
_SICK = r"(?s)^(?:.*/)?(?P<patient>person\d+)_(?P<kind>bacteria|virus)_[^/]*$"
_NORMAL = r"(?s)^(?:.*/)?(?P<patient>(?:NORMAL\d*-)?IM-\d+)-[^/]*$"
_NAME = r"(?s)^(?:.*/)?(?P<found>[^/]*)$"
_STEM = r"(?s)^(?P<found>.*)\.[^.]*$"


def _found(texts: pa.ChunkedArray, pattern: str, group: str = "found") -> pa.ChunkedArray:
    return pc.struct_field(pc.extract_regex(texts, pattern), group)


def from_paths(paths: pa.ChunkedArray, patients: str) -> dict[str, pa.ChunkedArray]:
    """Reads class folders and, where file names follow Kermany's pattern, patient and etiology (reading 6).

    Args:
        paths: Paths below the archive.
        patients: archive.patients.

    Returns:
        Columns `label` (int8), `patient` and, where any is known, `etiology`; NULL is unknown.
    """
    label = pc.if_else(pc.equal(pc.utf8_lower(_found(paths, _CLASS)), "pneumonia"), 1, 0).cast(pa.int8())
    if patients == "none":
        return {"label": label, "patient": pa.chunked_array([pa.nulls(len(paths), pa.string())])}
    sick, kind = (_found(paths, _SICK, group) for group in ("patient", "kind"))
    # The bare number is reused across etiologies, so both make the key.
    patient = pc.coalesce(
        pc.binary_join_element_wise("kermany:", sick, "_", kind, ""),
        pc.binary_join_element_wise("kermany:", _found(paths, _NORMAL, "patient"), ""),
    )
    known = {"label": label, "patient": patient}
    if kind.null_count < len(kind):
        known["etiology"] = pc.if_else(pc.equal(kind, "bacteria"), "bacterial", "viral")
    return known


class LabelTable:
    """A CSV or Parquet of labels, looked up by path below the archive, image_id, file name, or name without ending.

    Of rows with the same key the last counts.

    Raises:
        ValueError: It is missing, has not the columns that the job names, or holds a value that is no class.
    """

    def __init__(self, config: Archive) -> None:
        assert config.labels is not None
        self.config, self.uri = config, config.labels
        table = storage.read_cells(config.labels)
        names = table.column_names
        self.key, label = tables.label_columns(names, config.key_column, config.label_column, self.uri)
        self.subgroups = [name for name in config.subgroups if name in names]
        blank = pa.nulls(len(table), pa.string())
        patient = pc.utf8_trim_whitespace(table[config.patient_column] if config.patient_column in names else blank)
        rows = pa.table(
            {
                "key": table[self.key],
                "label": _classes(table[label], f"archive.labels: {self.uri}"),
                "patient": pc.binary_join_element_wise(
                    "patient:", pc.if_else(pc.equal(patient, ""), None, patient), ""
                ),
                **{f"subgroup {name}": table[name] for name in self.subgroups},
            }
        ).filter(pc.is_valid(table[self.key]))
        # Looking up finds the first of equal keys.
        self._rows = rows.take(pa.array(range(len(rows) - 1, -1, -1))).combine_chunks()

    def known(self, paths: pa.ChunkedArray, image_ids: pa.ChunkedArray) -> dict[str, pa.ChunkedArray]:
        """Joins the table with what the paths say.

        The table decides on the label; a patient known only by the file name is still that patient.

        Returns:
            Columns as of `from_paths`, with the table's subgroups.

        Raises:
            ValueError: No image is in the table.
        """
        known = from_paths(paths, self.config.patients)
        row = self._lookup(paths, image_ids)
        listed = pc.is_valid(row)
        if row.null_count == len(row):
            raise ValueError(
                f"archive.labels: {self.uri}, column {self.key}: no row fits an image of {self.config.uri}; it must "
                "hold the path below the archive, the file name, or the image_id"
            )
        rows = self._rows.take(row)
        known["label"] = rows["label"]
        if self.config.patients != "kermany":
            known["patient"] = pc.coalesce(rows["patient"], known["patient"])
        for name in self.subgroups:
            column = rows[f"subgroup {name}"]
            known[name] = pc.if_else(listed, column, known[name]) if name in known else column
        return known

    def _lookup(self, paths: pa.ChunkedArray, image_ids: pa.ChunkedArray) -> pa.ChunkedArray:
        """Number of each image's row; NULL where it has none."""
        keys = self._rows["key"].combine_chunks()
        row = pc.index_in(paths, keys)
        if row.null_count:
            names = _found(paths, _NAME)
            for candidates in (image_ids, names, _found(names, _STEM)):
                row = pc.coalesce(row, pc.index_in(candidates, keys))
        return row


def _classes(column: pa.ChunkedArray, where: str) -> pa.Array:
    """Reads the classes of a column, of which there are few different texts."""
    different = pc.unique(column)
    try:
        classes = tables.parse_labels(different.to_pylist(), where)
    except ValueError:
        classes = []
        tables.parse_labels(column.to_pylist(), where)  # which names the row
    return pa.array(classes, pa.int8()).take(pc.index_in(column, different).combine_chunks())
