"""What an examination yields."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    topic: str
    text: str
    state: Literal["ok", "note", "problem"] = "ok"
    """A note costs speed or something that not every job needs; a problem makes a job fail."""
    remedy: str = ""


Findings = Iterator[Finding]


def gib(size: float) -> str:
    """Bytes for reading."""
    return f"{size / 2**30:.1f} GiB"
