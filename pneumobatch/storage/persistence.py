"""How long a store is asked again, and what its failures are called.

A store that refuses, slows down, resets, truncates or stalls is tried again with growing, jittered pauses for about
`PATIENCE` seconds: longer than an outage of a minute, and bounded. What asking again cannot change (missing, forbidden)
is raised at once.
"""

import random
import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE = 180.0
"""Seconds from the first failure after which a store is given up."""
PAUSE = 0.1
"""Seconds before the second try; each further pause is twice as long, up to LONGEST_PAUSE."""
LONGEST_PAUSE = 10.0

T = TypeVar("T")


class TooLargeError(OSError):
    """A file holds more bytes than the caller is ready to read; nothing of it was read."""


class PassingError(OSError):
    """A failure that asking again may cure."""


def persist(attempt: Callable[[], T]) -> T:
    """Returns what `attempt` returns, asking again while it raises `PassingError`.

    Raises:
        OSError: What the last attempt raised, or the first that is not passing.
    """
    started = time.monotonic()
    pause = PAUSE
    while True:
        try:
            return attempt()
        except PassingError:
            wait = pause * random.uniform(0.5, 1)  # noqa: S311 - spreads the load, keeps no secret
            if time.monotonic() - started + wait > PATIENCE:
                raise
        time.sleep(wait)
        pause = min(2 * pause, LONGEST_PAUSE)
