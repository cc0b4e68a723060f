from collections.abc import Callable

import pytest

from pneumobatch.screening import runs


@pytest.fixture
def calendar(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the date of the night."""

    def to(day: int) -> None:
        monkeypatch.setattr(runs, "default_id", lambda job, bundle: f"2026-01-{day:02d}-{runs.series(job, bundle)}")

    to(1)
    return to
