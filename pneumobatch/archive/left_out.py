"""What a catalogue's rows do not tell of its archive: counted in its metadata, not passed over in silence."""

import json
from collections.abc import Mapping

import pyarrow as pa

TEXTS = {
    "hidden": "with hidden names (beginning with . or _)",
    "excluded": "by archive.include and archive.exclude, or as the table of labels",
}
"""What is left out, and what people call it."""


DICOM = "dicom"
"""Counts the files without a row whose names are those of DICOM files."""


def marked(catalog: pa.Table, counts: Mapping[str, int]) -> pa.Table:
    """Writes into a catalogue how many files were left out, by reason (a key of `TEXTS`)."""
    note = json.dumps({why: counts[why] for why in TEXTS if counts.get(why)})
    catalog = catalog.replace_schema_metadata((catalog.schema.metadata or {}) | {"left_out": note})
    return beside_dicom(catalog) if counts.get(DICOM) or "dicom" in catalog["format"].unique().to_pylist() else catalog


def beside_dicom(films: pa.Table) -> pa.Table:
    """Marks that DICOM files lie beside these films, or may: their folders name patients too."""
    return films.replace_schema_metadata((films.schema.metadata or {}) | {DICOM: "beside"})


def is_beside_dicom(films: pa.Table) -> bool:
    """Whether `beside_dicom` has marked the films, or those of which they were chosen."""
    return DICOM.encode() in (films.schema.metadata or {})


def counted(catalog: pa.Table) -> dict[str, int]:
    """Reads what `marked` has written; of tables without the mark nothing is known."""
    counts: dict[str, int] = json.loads((catalog.schema.metadata or {}).get(b"left_out", "{}"))
    return counts


def told(counts: Mapping[str, int]) -> str:
    """Says it for people; empty where nothing was left out."""
    texts = ", ".join(f"{counts[why]:,} {text}" for why, text in TEXTS.items() if counts.get(why))
    return f"left out: {texts}" if texts else ""
