"""CREATE TABLE statements over what a job writes, for Athena and Trino: `python -m pneumobatch.ddl athena s3://…`.

The tables are external and found by column name: files of an older schema version read with NULL in what they lack.
"""

import sys
from typing import Literal, get_args

import pyarrow as pa

from pneumobatch import storage, tables
from pneumobatch.config import Archive

Dialect = Literal["athena", "trino"]

DATABASE = "pneumobatch"
"""Athena's database, Trino's schema."""

SUBGROUPS = Archive().subgroups
"""Columns that label tables bring by default; a site with others names them."""

_PARTITIONS: dict[str, tuple[tuple[str, pa.DataType], ...]] = {
    "predictions": (("model_id", pa.string()), ("run_date", pa.date32())),
    "summaries": (("model_id", pa.string()),),
    "drift": (("model_id", pa.string()),),
    "review": (("model_id", pa.string()), ("run_date", pa.date32())),
    "discrepancies": (("model_id", pa.string()),),
    "masking": (("model_id", pa.string()),),
}
"""Each table's folder under the output, and the keys in the names of its folders."""

_TYPES: dict[pa.DataType, tuple[str, str]] = {
    pa.string(): ("string", "varchar"),
    pa.bool_(): ("boolean", "boolean"),
    pa.int8(): ("tinyint", "tinyint"),
    pa.int16(): ("smallint", "smallint"),
    pa.int32(): ("int", "integer"),
    pa.int64(): ("bigint", "bigint"),
    pa.float32(): ("float", "real"),
    pa.float64(): ("double", "double"),
    pa.date32(): ("date", "date"),
    pa.timestamp("us", tz="UTC"): ("timestamp", "timestamp"),
}
"""Arrow type: Athena's (Hive's) name, Trino's name."""


def schemas(subgroups: tuple[str, ...] = SUBGROUPS) -> dict[str, pa.Schema]:
    """Returns the Arrow schema of every table, by its folder's name."""
    return {
        "predictions": tables.prediction_schema(subgroups),
        "summaries": tables.summary_schema(),
        "drift": tables.drift_schema(),
        "review": tables.review_schema(),
        "discrepancies": tables.discrepancy_schema(),
        "masking": tables.masking_schema(),
    }


def columns(table: str, schema: pa.Schema) -> tuple[dict[str, pa.DataType], dict[str, pa.DataType]]:
    """Returns the columns that are read from a table's files, and those that its folders' names give.

    A column that is also a folder's key (model_id) is declared as the latter alone: engines refuse it twice.
    """
    keys = dict(_PARTITIONS[table])
    return {field.name: field.type for field in schema if field.name not in keys}, keys


def create(dialect: Dialect, table: str, schema: pa.Schema, uri: str) -> str:
    """Returns the statements that declare one table and find its folders.

    Args:
        dialect: `athena` (Hive's DDL; Spark and Hive take it as well) or `trino` (Hive connector).
        table: A name of `schemas`: the folder under `uri`, and the table's name.
        schema: Its Arrow schema.
        uri: The job's output.uri, such as s3://bucket/prefix.
    """
    inside, keys = columns(table, schema)
    place = storage.join(uri, table) + "/"
    if dialect == "athena":
        statement = (
            f"CREATE EXTERNAL TABLE IF NOT EXISTS `{DATABASE}`.`{table}` (\n{_listed(dialect, inside)}\n)\n"
            f"PARTITIONED BY (\n{_listed(dialect, keys)}\n)\nSTORED AS PARQUET\nLOCATION '{place}';"
        )
        refresh = f"MSCK REPAIR TABLE `{DATABASE}`.`{table}`;"
    else:
        names = ", ".join(f"'{name}'" for name in keys)
        statement = (
            f'CREATE TABLE IF NOT EXISTS "{DATABASE}"."{table}" (\n{_listed(dialect, inside | keys)}\n)\n'
            f"WITH (format = 'PARQUET', external_location = '{place}', partitioned_by = ARRAY[{names}]);"
        )
        refresh = f"CALL system.sync_partition_metadata('{DATABASE}', '{table}', 'ADD');"
    return f"{statement}\n-- after each night: the folders that are new\n{refresh}"


def _listed(dialect: Dialect, fields: dict[str, pa.DataType]) -> str:
    quote, kind = ("`", 0) if dialect == "athena" else ('"', 1)
    return ",\n".join(f"  {quote}{name}{quote} {_TYPES[data][kind]}" for name, data in fields.items())


def main(arguments: list[str]) -> str:
    """Returns the statements for every table under an output.

    Raises:
        ValueError: The arguments are not a dialect and an output's URI.
    """
    if len(arguments) != 2 or arguments[0] not in get_args(Dialect) or "'" in arguments[1]:
        raise ValueError("usage: python -m pneumobatch.ddl athena|trino OUTPUT_URI")
    dialect: Dialect = "athena" if arguments[0] == "athena" else "trino"
    statements = [create(dialect, table, schema, arguments[1]) for table, schema in schemas().items()]
    database = "DATABASE" if dialect == "athena" else "SCHEMA"
    return "\n\n".join([f"CREATE {database} IF NOT EXISTS {DATABASE};", *statements])


if __name__ == "__main__":
    try:
        sys.stdout.write(main(sys.argv[1:]) + "\n")
    except ValueError as error:
        sys.exit(f"error: {error}")
