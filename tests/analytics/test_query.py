"""Every query that the README shows runs over an output with two models and two schema versions, and agrees."""

import re
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pneumobatch import ddl, metrics, tables

from .conftest import GONE, Tree

pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning"),
]
README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SECTION = README.partition("## Query it\n")[2].partition("\n## ")[0]
PUBLISHED, *ENGINES = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
KEY = ["model_id", "image_id", "run_id", "probability"]


def run(engine: str, tree: Tree) -> dict[str, Any]:
    """Runs the block of the README that imports the engine; returns its variables."""
    (block,) = [block for block in ENGINES if re.search(rf"^(import|from) {engine}\b", block, re.MULTILINE)]
    variables: dict[str, Any] = {}
    exec(f"{PUBLISHED}\n{block}".replace('"out/', f'"{tree.root}/'), variables)
    return variables


def as_rows(found: list[tuple[Any, ...]]) -> set[tuple[Any, ...]]:
    rows = {tuple(None if value != value else value for value in row) for row in found}
    assert len(rows) == len(found)
    return rows


def by_status(tree: Tree) -> set[tuple[str, str, int]]:
    rows = [(row["model_id"], row["status"]) for run in ("second", "third") for row in tree.rows(run)]
    gone = next(row for row in tree.rows("first") if row["image_id"] == GONE)
    rows.append((gone["model_id"], gone["status"]))
    return {(*key, rows.count(key)) for key in rows}


def test_the_sql_runs_and_sees_the_latest_published_rows(tree: Tree) -> None:
    statements = [
        part for block in re.findall(r"```sql\n(.*?)```", SECTION, re.DOTALL) for part in block.split(";\n") if part
    ]
    assert len(statements) >= 8
    with duckdb.connect() as connection:
        # Athena's and Trino's query is plain SQL: it runs on a table with the same columns.
        connection.execute("CREATE SCHEMA pneumobatch")
        connection.execute(
            "CREATE VIEW pneumobatch.predictions AS SELECT * FROM "
            f"read_parquet('{tree.root}/predictions/**/*.parquet', union_by_name = true)"
        )
        for statement in statements:
            found = connection.sql(statement.replace("'out/", f"'{tree.root}/"))
            if "CREATE" not in statement and "label IS NULL" not in statement:  # every film here is labelled
                assert found.to_arrow_table().num_rows, statement
        assert as_rows(connection.execute(f"SELECT {', '.join(KEY)} FROM latest").fetchall()) == tree.latest()


def test_the_sql_of_another_prevalence_is_the_packages_own() -> None:
    (query,) = [part for part in SECTION.split(";\n") if "probability_here" in part]
    probabilities = [0.0, 0.01, 0.3, 0.74, 0.999, 1.0]
    with duckdb.connect() as connection:
        rows = ", ".join(f"('{i}', {p}::DOUBLE, 'scored')" for i, p in enumerate(probabilities))
        connection.execute(f"CREATE TABLE latest AS FROM (VALUES {rows}) AS t(image_id, probability, status)")
        found = dict(connection.execute(query).fetchall())
    wanted = metrics.shift_prior(probabilities, 0.74, 0.05)
    assert [found[str(i)] for i in range(len(probabilities))] == pytest.approx(wanted.tolist())


def test_pandas(tree: Tree) -> None:
    found = run("pandas", tree)
    assert as_rows(list(found["latest"][KEY].itertuples(index=False, name=None))) == tree.latest()
    assert as_rows(found["counts"].fetchall()) == by_status(tree)
    files = (tree.root / "predictions").rglob("*.parquet")
    assert len(found["everything"]) == sum(pq.ParquetFile(file).metadata.num_rows for file in files)


def test_polars(tree: Tree) -> None:
    found = run("polars", tree)
    assert as_rows(found["latest"].select(KEY).collect().rows()) == tree.latest()
    assert as_rows(found["counts"].collect().rows()) == by_status(tree)


def test_pyarrow(tree: Tree) -> None:
    found = run("pyarrow", tree)
    runs = [row for run_id in ("first", "second", "third") for row in tree.rows(run_id)]
    assert found["scored"].num_rows == [row["status"] for row in runs].count("scored")
    assert set(found["files"].schema.names) >= {*tables.prediction_schema([]).names, "etiology"}
    assert sum(count for *_, count in found["counts"].fetchall()) == len(runs)


def test_spark(tree: Tree, spark: Any) -> None:
    found = run("pyspark", tree)
    assert as_rows([tuple(row) for row in found["latest"].select(KEY).collect()]) == tree.latest()
    assert len(set(found["latest"].columns)) == len(found["latest"].columns)


def test_the_whole_tree_opens_in_one_line(tree: Tree, spark: Any) -> None:
    root = f"{tree.root}/predictions"
    opened = {
        "duckdb": duckdb.sql(f"FROM read_parquet('{root}/**/*.parquet', union_by_name = true)").columns,
        "pandas": list(pd.read_parquet(root, partitioning=ds.partitioning(flavor="hive")).columns),
        "pyarrow": ds.dataset(root, partitioning="hive").to_table().column_names,
        "polars": pl.scan_parquet(root, missing_columns="insert", extra_columns="ignore").collect().columns,
        "spark": spark.read.parquet(root, mergeSchema=True).columns,
    }
    for engine, names in opened.items():
        assert len(set(names)) == len(names), engine
        assert {"model_id", "run_date", "image_id", "etiology"} <= set(names), engine


def test_a_run_is_one_file_whatever_its_blocks(tree: Tree) -> None:
    assert len(tree.rows("second")) > 7 * 3  # blocks of 7 images
    assert len(list(tree.root.glob("predictions/*/*/second*"))) == 1


def test_hive_reads_the_files_by_athenas_definitions(tree: Tree, spark: Any) -> None:
    for statement in ddl.main(["athena", str(tree.root)]).removesuffix(";").split(";"):
        spark.sql(statement)
    table = spark.table("pneumobatch.predictions")
    assert len(set(table.columns)) == len(table.columns)
    rows = table.where("run_id <> 'unpublished'").collect()  # every column is read
    wanted = [row for run_id in ("first", "second", "third") for row in tree.rows(run_id)]
    assert sorted((row.run_id, row.image_id, row.probability or -1) for row in rows) == sorted(
        (row["run_id"], row["image_id"], row["probability"] or -1) for row in wanted
    )
    (gone,) = (row for row in rows if row.image_id == GONE)
    assert (gone.model_id, str(gone.run_date), gone.version) == (tree.old, "2026-01-02", None)
    for name in ("summaries", "discrepancies", "review"):
        files = list(tree.root.glob(f"{name}/**/*.parquet"))
        assert spark.table(f"pneumobatch.{name}").count() == sum(
            pq.ParquetFile(file).metadata.num_rows for file in files
        )
