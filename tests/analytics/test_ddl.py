"""The tables of Athena and Trino have the columns and types of the files; test_query reads by them."""

import logging
import re
import subprocess
import sys

import pyarrow as pa
import pytest
import sqlglot
from sqlglot import exp

from pneumobatch import ddl, tables

URI = "s3://research/screening"
ARROW = {
    "TEXT": pa.string(), "VARCHAR": pa.string(), "BOOLEAN": pa.bool_(), "TINYINT": pa.int8(), "SMALLINT": pa.int16(),
    "INT": pa.int32(), "BIGINT": pa.int64(), "FLOAT": pa.float32(), "DOUBLE": pa.float64(), "DATE": pa.date32(),
    "TIMESTAMP": pa.timestamp("us", tz="UTC"),
}  # fmt: skip


def declared(columns: list[exp.ColumnDef]) -> dict[str, pa.DataType]:
    assert len({column.name for column in columns}) == len(columns)
    return {column.name: ARROW[column.kind.this.name] for column in columns}


@pytest.mark.parametrize("dialect", ["athena", "trino"])
@pytest.mark.parametrize("table", list(ddl.schemas()))
def test_columns_and_types_are_those_of_the_schema(
    dialect: ddl.Dialect, table: str, caplog: pytest.LogCaptureFixture
) -> None:
    schema = ddl.schemas(("etiology",))[table]
    statement, *refresh = ddl.create(dialect, table, schema, URI).split(";\n")
    with caplog.at_level(logging.WARNING, "sqlglot"):
        (create,) = sqlglot.parse(statement, dialect=dialect)
    assert not caplog.records, "sqlglot did not understand the statement"
    assert isinstance(create, exp.Create)
    columns = declared([column for column in create.this.expressions if isinstance(column, exp.ColumnDef)])
    keys = {"model_id": pa.string()} | ({"run_date": pa.date32()} if table in {"predictions", "review"} else {})
    partitioned = create.find(exp.PartitionedByProperty)
    assert partitioned
    if dialect == "athena":
        inside = {name: kind for name, kind in columns.items() if name not in keys}
        assert inside == columns
        assert declared(partitioned.this.expressions) == keys
        assert create.find(exp.LocationProperty).this.this == f"{URI}/{table}/"
    else:
        assert list(columns)[len(columns) - len(keys) :] == list(keys)  # Trino wants them last
        assert [name.name for name in partitioned.this.expressions] == list(keys)
        assert f"external_location = '{URI}/{table}/'" in statement
    expected = {field.name: field.type for field in schema} | keys
    assert columns | keys == expected
    assert refresh[0].startswith("-- after each night")


def test_every_folder_of_tables_is_declared() -> None:
    assert {field.type for schema in ddl.schemas().values() for field in schema} <= set(ARROW.values())
    assert ddl.schemas()["predictions"].names == tables.prediction_schema(ddl.SUBGROUPS).names


@pytest.mark.parametrize("arguments", [["hive", URI], ["athena"], [], ["trino", "s3://a'b"]])
def test_wrong_usage_says_what_is_right(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "pneumobatch.ddl", *arguments], check=False, capture_output=True)
    assert done.returncode == 1
    assert "usage: python -m pneumobatch.ddl athena|trino OUTPUT_URI" in done.stderr.decode()


def test_the_command_prints_every_statement() -> None:
    done = subprocess.run([sys.executable, "-m", "pneumobatch.ddl", "trino", URI], check=False, capture_output=True)
    assert done.returncode == 0
    assert re.findall(r'TABLE IF NOT EXISTS "pneumobatch"."(\w+)"', done.stdout.decode()) == list(ddl.schemas())
