"""What is known about an image besides its pixels: class, patient and subgroups, from a table or from its path."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from pneumobatch import storage, tables
from pneumobatch.config import Archive

_FOLDERS = {"normal": 0, "pneumonia": 1}
_KERMANY_SICK = re.compile(r"(person\d+)_(bacteria|virus)_")
_KERMANY_NORMAL = re.compile(r"((?:NORMAL\d*-)?IM-\d+)-")
_ETIOLOGY = {"bacteria": "bacterial", "virus": "viral"}


class Known(NamedTuple):
    """What is known of one image; None is unknown. `patient` is a grouping key and stays inside the process."""

    label: int | None = None
    patient: str | None = None
    subgroups: Mapping[str, str | None] = {}


def from_path(path: str, patients: str) -> Known:
    """Reads class folders and, where file names follow Kermany's pattern, patient and etiology (reading 6)."""
    *folders, name = path.split("/")
    label = next((_FOLDERS[folder.lower()] for folder in reversed(folders) if folder.lower() in _FOLDERS), None)
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
        table = storage.read_cells(config.labels)
        self.key, label_column = tables.label_columns(
            table.column_names, config.key_column, config.label_column, self.uri
        )
        self.subgroups = [name for name in config.subgroups if name in table.column_names]
        keys = table[self.key].to_pylist()
        labels = tables.parse_labels(table[label_column].to_pylist(), f"archive.labels: {config.labels}")
        blank = [None] * len(keys)
        patients = table[config.patient_column].to_pylist() if config.patient_column in table.column_names else blank
        columns = [table[name].to_pylist() for name in self.subgroups]
        self._rows = {
            key: Known(
                label,
                None if patient is None else f"label:{patient}",
                dict(zip(self.subgroups, values, strict=True)),
            )
            for key, label, patient, *values in zip(keys, labels, patients, *columns, strict=True)
        }

    def find(self, path: str, image_id: str) -> Known | None:
        """Returns what the table knows of an image, or None when it is not in it."""
        name = path.rsplit("/", 1)[-1]
        keys = (path, image_id, name, name.rsplit(".", 1)[0])
        return next((self._rows[key] for key in keys if key in self._rows), None)
