"""What is known about an image besides its pixels: class, patient and subgroups, from a table or from its path."""

import hmac
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv

from pneumobatch import storage
from pneumobatch.config import Archive

_CLASSES = {"normal": 0, "pneumonia": 1, "0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
_UNKNOWN = {"", "pending", "unknown", "none", "null", "nan", "na"}
_KERMANY_SICK = re.compile(r"(person\d+)_(bacteria|virus)_")
_KERMANY_NORMAL = re.compile(r"((?:NORMAL\d*-)?IM-\d+)-")
_ETIOLOGY = {"bacteria": "bacterial", "virus": "viral"}

SITE_KEY = "PNEUMOBATCH_SITE_KEY"
"""Environment variable with the site's secret for keyed hashes."""


class Known(NamedTuple):
    """What is known of one image; None is unknown. `patient` is a grouping key and stays inside the process."""

    label: int | None = None
    patient: str | None = None
    subgroups: Mapping[str, str | None] = {}


def keyed_hash(value: str) -> str:
    """HMAC-SHA-256 of a value under the site's key (an empty one where none is set), 128 bits as 32 hex digits."""
    return hmac.new(os.environ.get(SITE_KEY, "").encode(), value.encode(), "sha256").hexdigest()[:32]


def parse_label(value: Any, where: str) -> int | None:
    """Returns 1 (pneumonia), 0 (normal) or None (empty, pending, unknown).

    Raises:
        ValueError: The value is none of these; `where` names the file and the key for the message.
    """
    text = "" if value is None else str(value).strip().lower()
    if text in _UNKNOWN:
        return None
    if text not in _CLASSES:
        raise ValueError(f"{where}: {text[:20]!r} is no class; use PNEUMONIA/NORMAL, 1/0, true/false, or pending")
    return _CLASSES[text]


def from_path(path: str, patients: str) -> Known:
    """Reads class folders and, where file names follow Kermany's pattern, patient and etiology (reading 6)."""
    *folders, name = path.split("/")
    classes = (_CLASSES[folder.lower()] for folder in reversed(folders) if folder.lower() in {"normal", "pneumonia"})
    label = next(classes, None)
    if patients == "none":
        return Known(label)
    if match := _KERMANY_SICK.match(name):
        # The bare number is reused across etiologies, so both make the key.
        return Known(label, f"kermany:{match[1]}_{match[2]}", {"etiology": _ETIOLOGY[match[2]]})
    if match := _KERMANY_NORMAL.match(name):
        return Known(label, f"kermany:{match[1]}")
    return Known(label)


class LabelTable:
    """A CSV or Parquet of labels, looked up by path below the archive, image_id, file name, or name without ending.

    Raises:
        ValueError: It is missing, has not the columns that the job names, or holds a value that is no class.
    """

    def __init__(self, config: Archive) -> None:
        assert config.labels is not None
        self.uri = config.labels
        table = _read(config.labels)
        for key, column in (("key_column", config.key_column), ("label_column", config.label_column)):
            if column not in table.column_names:
                names = ", ".join(table.column_names)
                raise ValueError(f"archive.{key}: {config.labels} has no column {column!r}; it has {names}")
        self.subgroups = [name for name in config.subgroups if name in table.column_names]
        keys = [str(key) for key in table[config.key_column].to_pylist()]
        where = f"archive.labels: {config.labels}, column {config.label_column}"
        labels = [parse_label(value, where) for value in table[config.label_column].to_pylist()]
        blank = [None] * len(keys)
        patients = table[config.patient_column].to_pylist() if config.patient_column in table.column_names else blank
        columns = [table[name].to_pylist() for name in self.subgroups]
        self._rows = {
            key: Known(
                label,
                None if patient is None else f"label:{patient}",
                {
                    name: None if value is None else str(value)
                    for name, value in zip(self.subgroups, values, strict=True)
                },
            )
            for key, label, patient, *values in zip(keys, labels, patients, *columns, strict=True)
        }

    def find(self, path: str, image_id: str) -> Known | None:
        """Returns what the table knows of an image, or None when it is not in it."""
        name = path.rsplit("/", 1)[-1]
        keys = (path, image_id, name, name.rsplit(".", 1)[0])
        return next((self._rows[key] for key in keys if key in self._rows), None)


def _read(uri: str) -> pa.Table:
    try:
        if uri.endswith(".parquet"):
            return storage.read_table(uri)
        # As text: a type inferred from the first rows would reject a later `pending`.
        names = pa.csv.read_csv(pa.BufferReader(storage.read_bytes(uri))).column_names
        options = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True)
        return pa.csv.read_csv(pa.BufferReader(storage.read_bytes(uri)), convert_options=options)
    except FileNotFoundError:
        raise ValueError(f"archive.labels: {uri} does not exist") from None
    except pa.ArrowInvalid as error:
        raise ValueError(f"archive.labels: {uri} cannot be read as a table: {error}") from None
