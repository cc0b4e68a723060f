"""What the README shows works: its verbs, its columns. Its queries: tests/analytics."""

from pathlib import Path

from pneumobatch import tables

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_every_verb_and_column_is_described() -> None:
    for verb in ("catalog", "train", "experiment", "screen", "evaluate", "runs", "verify", "bench", "doctor", "demo"):
        assert f"| `{verb}` |" in README
    assert "| `submit`, `status`, `logs`, `cancel` |" in README
    missing = [name for name in tables.prediction_schema([]).names if f"`{name}`" not in README]
    assert missing == []
