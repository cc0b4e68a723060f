"""What the README shows works: its SQL over real output, its verbs, its columns."""

import re
from pathlib import Path

import duckdb
import pytest

from pneumobatch import cli, cluster, tables

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.mark.engine
def test_the_sql_runs_over_what_the_command_line_writes(
    engine: cluster.Resources, films: Path, bundle_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--output.uri", str(tmp_path)]
    archive = ["--archive.uri", str(films), "--screening.bundle", bundle_uri, "--screening.failure_budget", "0.5"]
    assert cli.run(["screen", *archive, *place]) == 0
    assert cli.run(["evaluate", "--evaluation.bootstrap", "20", *place]) == 0
    assert str(tmp_path / "reports") in capsys.readouterr().out.replace("\n", "")
    blocks = re.findall(r"```sql\n(.*?)```", README, re.DOTALL)
    statements = [part for block in blocks for part in block.split(";\n") if part.strip()]
    assert len(statements) >= 4
    for statement in statements:
        rows = duckdb.execute(statement.replace("'out/", f"'{tmp_path}/")).fetchall()
        assert rows or "label IS NULL" in statement or "<> label" in statement, statement


def test_every_verb_and_column_is_described() -> None:
    for verb in ("catalog", "train", "screen", "evaluate", "bench", "doctor", "demo"):
        assert f"| `{verb}` |" in README
    missing = [name for name in tables.prediction_schema([]).names if f"`{name}`" not in README]
    assert missing == []
