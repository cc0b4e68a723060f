"""What is known about images besides their pixels: class, patient and subgroups, from a table or from their paths.

All by columns: `label` (int8), `patient` (a grouping key that stays inside the process) and subgroups (text). NULL is
unknown.
"""

import pyarrow as pa
import pyarrow.compute as pc

from pneumobatch import storage, tables
from pneumobatch.config import Archive

_CLASS = r"(?is)^(?:.*/)?(?P<folder>normal|pneumonia)/"
_KERMANY_SICK = r"(?s)(?:^|/)(?P<patient>person[0-9]+_(?P<cause>bacteria|virus))_[^/]*$"
_KERMANY_NORMAL = r"(?s)(?:^|/)(?P<patient>(?:NORMAL[0-9]*-)?IM-[0-9]+)-[^/]*$"


def from_paths(paths: pa.ChunkedArray, patients: str) -> dict[str, pa.ChunkedArray]:
    """Reads class folders and, where file names follow Kermany's pattern, patient and etiology (reading 6).

    Args:
        paths: Paths below the archive.
        patients: archive.patients; `auto` reads normal films only below NORMAL/, as exports of viewers are called
            `IM-0001-0001` as well, whoever the patient is.

    Returns:
        `label`, `patient`, and `etiology` where any is known.
    """
    folder = pc.utf8_lower(_group(paths, _CLASS, "folder"))
    known = {"label": pc.cast(pc.equal(folder, "pneumonia"), pa.int8())}
    if patients == "none":
        return known | {"patient": pa.chunked_array([pa.nulls(len(paths), pa.string())])}
    # The bare number is reused across etiologies, so both make the key.
    sick, well = _group(paths, _KERMANY_SICK, "patient"), _group(paths, _KERMANY_NORMAL, "patient")
    if patients == "auto":
        well = pc.if_else(pc.equal(folder, "normal"), well, None)
    patient = pc.coalesce(sick, well)
    known["patient"] = pc.binary_join_element_wise("kermany:", patient, "")
    cause = _group(paths, _KERMANY_SICK, "cause")
    if cause.null_count < len(cause):
        known["etiology"] = pc.if_else(
            pc.equal(cause, "bacteria"), "bacterial", pc.if_else(pc.is_valid(cause), "viral", None)
        )
    return known


def _group(texts: pa.ChunkedArray, pattern: str, name: str) -> pa.ChunkedArray:
    """What a pattern's group takes of each text; NULL where the pattern does not fit."""
    return pc.struct_field(pc.extract_regex(texts, pattern), name)


class LabelTable:
    """Labels of a CSV or Parquet, by path below the archive, image_id, URI or file name (with or without ending).

    Raises:
        ValueError: It is missing, has not the columns that the job names, holds a value that is no class, or names an
            image twice with two classes.
    """

    def __init__(self, config: Archive) -> None:
        assert config.labels is not None
        self.uri = config.labels
        table = storage.read_cells(config.labels)
        self.key, label_column = tables.label_columns(
            table.column_names, config.key_column, config.label_column, self.uri
        )
        table, labels = tables.findings_first(table, label_column, f"archive.labels: {self.uri}")
        keys = tables.plain_keys(tables.stated(table[self.key]))
        tables.require_one_finding(keys, labels, f"archive.labels: {self.uri}, column {self.key}")
        self.names_studies = self.key in tables.KEYED or (
            config.key_column is None and not tables.KEYED.keys().isdisjoint(table.column_names) and keys.null_count > 0
        )
        """Some rows name accessions, studies or instances, which only an evaluation can join."""
        self._keys = keys.combine_chunks()
        columns = {"label": labels}
        if config.patient_column in table.column_names:
            # Hashed, it is what a DICOM file's PatientID becomes.
            patient = tables.stated(pc.utf8_trim_whitespace(table[config.patient_column]))
            columns["patient"] = pc.binary_join_element_wise("patient:", patient, "")
        else:
            columns["patient"] = pa.nulls(len(table), pa.string())
        columns |= {name: table[name] for name in config.subgroups if name in table.column_names}
        self._columns = pa.table(columns)

    def find(
        self, paths: pa.ChunkedArray, ids: pa.ChunkedArray, uris: pa.ChunkedArray
    ) -> tuple[pa.ChunkedArray, dict[str, pa.ChunkedArray]]:
        """Returns whether each image is in the table, and what the table knows of it."""
        rows = pc.index_in(paths, self._keys, skip_nulls=True)
        if rows.null_count:
            rows = pc.coalesce(rows, *(pc.index_in(names, self._keys, skip_nulls=True) for names in (ids, uris)))
            where = f"archive.labels: {self.uri}, column {self.key}"
            rows = pc.coalesce(rows, tables.rows_by_name(rows, paths, self._keys, where))
        known = self._columns.take(rows)
        return pc.is_valid(rows), {column: known[column] for column in known.column_names}
