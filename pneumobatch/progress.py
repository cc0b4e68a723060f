"""Progress of long work on standard error: a bar on a terminal, a plain line now and then otherwise."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_SECONDS = 10.0
"""Least time between two plain lines."""

console = Console(stderr=True, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """Prints one line of progress."""
    console.print(message, markup=False)


@contextmanager
def track(title: str, total: int, unit: str) -> Iterator[Callable[[int, str], None]]:
    """Yields a function to call with (done so far, a short note)."""
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(title, total=total, note="")
            yield lambda done, note="": bar.update(task, completed=done, note=note)
        return
    last = 0.0

    def line(done: int, note: str = "") -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_SECONDS or done == total:
            last = time.monotonic()
            say(f"{title}: {done}/{total} {unit}" + (f", {note}" if note else ""))

    yield line
