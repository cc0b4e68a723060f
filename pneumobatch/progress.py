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


Advance = Callable[[int, str], None]
"""Called with what is done so far and a short note."""


@contextmanager
def track(title: str, total: int, unit: str, *, every: float = LINE_SECONDS) -> Iterator[Advance]:
    """Shows how far a piece of work is.

    Args:
        title: What is being done.
        total: Units in all.
        unit: What is counted.
        every: Least seconds between two plain lines; the last one always comes.
    """
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(title, total=total, note="")

            def move(done: int, note: str) -> None:
                bar.update(task, completed=done, note=note)

            yield move
        return
    last = float("-inf")

    def line(done: int, note: str) -> None:
        nonlocal last
        if time.monotonic() - last >= every or done == total:
            last = time.monotonic()
            say(f"{title}: {done}/{total} {unit}" + (f", {note}" if note else ""))

    yield line
