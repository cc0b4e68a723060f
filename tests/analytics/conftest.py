"""An output as it grows over months: two models, an older schema version, and a file whose run was never published."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pneumobatch import cli, cluster
from pneumobatch.models import bundle as bundles

TEXT, REAL = pa.string(), pa.float32()
VERSION_1 = {
    "image_id": TEXT, "uri": TEXT, "status": TEXT, "reason": TEXT, "duplicate_of": TEXT, "probability": pa.float64(),
    "predicted_label": pa.int8(), "threshold": pa.float64(), "model_id": TEXT, "run_id": TEXT, "label": pa.int8(),
    "patient": TEXT, "format": TEXT, "scored_at": pa.timestamp("us", tz="UTC"), "width": pa.int32(),
    "height": pa.int32(), "mean_intensity": REAL, "contrast": REAL, "sharpness": REAL, "noise": REAL, "modality": TEXT,
    "view": TEXT, "age_years": pa.int16(), "sex": TEXT, "manufacturer": TEXT, "photometric": TEXT,
    "transfer_syntax": TEXT, "study_month": TEXT, "etiology": TEXT,
}  # fmt: skip
"""The predictions of schema version 1, with one subgroup, as they were written then."""

GONE = "0" * 32
"""An image that only the oldest run saw."""


def version_1() -> pa.Schema:
    return pa.schema(list(VERSION_1.items()), metadata={"pneumobatch.schema": "1"})


class Tree(NamedTuple):
    """A job's output."""

    root: Path
    old: str  # the model of the older file
    new: str  # the other one

    def rows(self, run_id: str) -> list[dict[str, Any]]:
        """The run's predictions, read by its record."""
        record = json.loads((self.root / "runs" / f"{run_id}.json").read_text())
        return [row for path in record["predictions"] for row in pq.ParquetFile(self.root / path).read().to_pylist()]

    def latest(self) -> set[tuple[str, str, str, float | None]]:
        """The latest published row of every image and model: (model, image, run, probability)."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for run_id in ("first", "second", "third"):
            found.update({(row["model_id"], row["image_id"]): row for row in self.rows(run_id)})
        return {(*key, row["run_id"], row["probability"]) for key, row in found.items()}


@pytest.fixture(scope="session")
def tree(
    engine: cluster.Resources,
    films: Path,
    make_bundle: Callable[..., bundles.Bundle],
    tmp_path_factory: pytest.TempPathFactory,
) -> Tree:
    """Runs `second` and `third` by the command line; `first` made of `second`, as version 1 would have written it."""
    root = tmp_path_factory.mktemp("analytics") / "out"
    models = []
    for run_id, seed in (("second", 1), ("third", 2)):
        bundle = str(root / "bundles" / run_id)
        models.append(make_bundle(bundle, seed=seed).model_id)
        place = ["--archive.uri", str(films), "--output.uri", str(root)]
        options = ["--screening.failure_budget", "0.5", "--screening.block_images", "7", "--screening.run_id", run_id]
        assert cli.run(["screen", *place, "--screening.bundle", bundle, *options]) == 0
        evaluation = ["--evaluation.run_id", run_id, "--evaluation.bootstrap", "20", "--evaluation.min_cell", "2"]
        assert cli.run(["evaluate", *place, *evaluation]) == 0
    found = Tree(root, *models)
    _write_first(found)
    (file,) = root.glob("predictions/*/*/third*.parquet")
    unpublished = _with(pq.ParquetFile(file).read(), run_id=pa.scalar("unpublished"))
    pq.write_table(unpublished, file.with_name("unpublished.parquet"))
    return found


def _with(table: pa.Table, **constants: pa.Scalar) -> pa.Table:
    for name, value in constants.items():
        index = table.column_names.index(name)
        table = table.set_column(index, table.schema.field(name), pa.repeat(value, len(table)))
    return table


def _write_first(tree: Tree) -> None:
    record = json.loads((tree.root / "runs" / "second.json").read_text())
    (path,) = record["predictions"]
    rows = pq.ParquetFile(tree.root / path).read().select(list(VERSION_1)).cast(version_1())
    rows = _with(rows, run_id=pa.scalar("first"))
    rows = rows.set_column(
        rows.column_names.index("probability"), "probability", pc.multiply(rows["probability"], 0.5)
    ).cast(version_1())
    gone = _with(rows.slice(0, 1), image_id=pa.scalar(GONE))
    path = re.sub(r"run_date=[^/]+/second", "run_date=2026-01-02/first", path)
    (tree.root / path).parent.mkdir()
    pq.write_table(pa.concat_tables([rows, gone]), tree.root / path)
    record |= {"schema": 1, "run_id": "first", "predictions": [path]}
    record |= {"finished_at": "2026-01-02T04:00:00+00:00", "started_at": "2026-01-02T03:00:00+00:00"}
    (tree.root / "runs" / "first.json").write_text(json.dumps(record, indent=2))
    (summary,) = tree.root.glob("summaries/*/second*.parquet")
    older = pq.ParquetFile(summary).read().drop_columns(["scope", "label_version"])
    pq.write_table(_with(older, run_id=pa.scalar("first")), summary.with_name("first.parquet"))


@pytest.fixture(scope="module")  # its virtual machine must not stay for the tests that follow
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Spark session with a Hive metastore in memory; it skips where Java or PySpark is missing."""
    if not shutil.which("java"):
        pytest.skip("java is not here: install a Java runtime (Debian: default-jre-headless)")
    pyspark = pytest.importorskip("pyspark", reason="pyspark is not installed")
    from pyspark.sql import SparkSession

    folder = tmp_path_factory.mktemp("spark")
    options = {
        "spark.ui.enabled": "false",
        "spark.log.level": "ERROR",
        "spark.driver.memory": "512m",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.extraJavaOptions": f"-Dderby.stream.error.file={folder}/derby.log",
        "spark.local.dir": str(folder),
        "spark.sql.warehouse.dir": str(folder / "warehouse"),
        "spark.sql.shuffle.partitions": "1",
        "spark.hadoop.javax.jdo.option.ConnectionURL": "jdbc:derby:memory:metastore;create=true",
        "spark.hadoop.datanucleus.schema.autoCreateAll": "true",
        "spark.hadoop.hive.metastore.schema.verification": "false",
    }
    builder = SparkSession.builder.master("local[1]").enableHiveSupport()
    for key, value in options.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    gateway = pyspark.SparkContext._gateway
    yield session
    session.stop()
    gateway.shutdown()
    gateway.proc.stdin.close()  # its end of file is what makes the virtual machine leave
    gateway.proc.wait(30)
    pyspark.SparkContext._gateway = pyspark.SparkContext._jvm = None
