"""Files of an older schema version still read: by the package itself and beside newer ones."""

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pneumobatch import cli, storage, tables

from .conftest import VERSION_1, Tree, version_1

SINCE_2 = {"version", *tables.KEYED}
SINCE_3 = {"uncertain"}


@pytest.fixture
def older(tmp_path: Path) -> str:
    """A file of version 1 with two rows."""
    known = {"status": "scored", "probability": 0.25, "age_years": 4, "label": 0, "etiology": "viral"}
    known["scored_at"] = datetime(2025, 1, 2, tzinfo=UTC)
    rows = [dict.fromkeys(VERSION_1) | known | {"image_id": name} for name in ("a", "b")]
    pq.write_table(pa.Table.from_pylist(rows, schema=version_1()), tmp_path / "older.parquet", compression="zstd")
    return str(tmp_path / "older.parquet")


def test_an_older_file_gets_todays_columns(older: str) -> None:
    written = storage.read_table(older)
    assert written.schema.metadata == {b"pneumobatch.schema": b"1"}
    schema = tables.prediction_schema([])
    table = tables.upgraded(written, schema)
    assert table.schema.names == [*schema.names, "etiology"]
    assert table.schema.metadata == schema.metadata
    for name in schema.names:
        assert table.schema.field(name).type == schema.field(name).type
        if name in SINCE_2 | SINCE_3:
            assert table[name].null_count == 2
        else:
            assert table[name].equals(written[name])
    assert table["etiology"].to_pylist() == ["viral", "viral"]


def test_no_published_column_was_renamed_or_retyped() -> None:
    today = tables.prediction_schema(["etiology"])
    assert {name: today.field(name).type for name in VERSION_1} == VERSION_1
    assert set(today.names) - set(VERSION_1) == SINCE_2 | SINCE_3


def test_a_file_of_version_2_lacks_what_came_with_3_alone(tmp_path: Path) -> None:
    today = tables.prediction_schema(["etiology"])
    fields = [field for field in today if field.name not in SINCE_3]
    schema = pa.schema(fields, metadata={"pneumobatch.schema": "2"})
    row = dict.fromkeys(schema.names) | {"image_id": "a", "version": "v", "probability": 0.25, "etiology": "viral"}
    pq.write_table(pa.Table.from_pylist([row], schema=schema), tmp_path / "file.parquet")
    table = tables.upgraded(storage.read_table(str(tmp_path / "file.parquet")), tables.prediction_schema([]))
    assert table.to_pylist() == [dict.fromkeys(today.names) | row]


def test_a_file_of_a_newer_version_is_refused(older: str) -> None:
    newer = storage.read_table(older).replace_schema_metadata({"pneumobatch.schema": str(tables.SCHEMA_VERSION + 1)})
    with pytest.raises(ValueError, match=f"version {tables.SCHEMA_VERSION + 1} is newer .* update pneumobatch"):
        tables.upgraded(newer, tables.prediction_schema([]))


@pytest.mark.engine
def test_a_run_of_an_older_version_is_still_evaluated(tree: Tree) -> None:
    assert cli.run(["evaluate", "--output.uri", str(tree.root), "--evaluation.run_id", "first"]) == 0
