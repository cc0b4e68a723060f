"""How many films may fail before a run counts as failed, and which failures do not count."""

from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pneumobatch.config import Screening
from pneumobatch.screening.reconcile import Predictions
from pneumobatch.tables import Status

PASSING = ("unreadable", "missing", "not_finite")
"""Reasons of the moment: a later start tries such films again."""


class OverBudgetError(RuntimeError):
    """More films failed than the failure budget allows; nothing was published, and what was scored is kept."""


class Budget(NamedTuple):
    """A run's predictions against what may fail of them."""

    config: Screening
    found: Predictions

    def allowed(self, excused: int = 0) -> float:
        """Films that may fail of those that count: what is excused makes no room for others."""
        return max(self.config.failure_budget * (self.found.rows - excused), self.config.failures_allowed)

    def over(self, excused: int = 0) -> bool:
        """Whether too many failed, when so many of them do not count."""
        failures, counted = self.found.count(Status.FAILED) - excused, self.found.rows - excused
        # Where nothing could be read at all, no share of it is a success.
        return failures > (self.config.failures_allowed if failures == counted else self.allowed(excused))

    def excused(self, tried: pa.ChunkedArray, there: pa.ChunkedArray, accepted: pa.ChunkedArray) -> int:
        """Films that failed and do not count: as an earlier run has published, or mended by taking them away.

        Those that went before they were tried are no mending. Nor are more than the budget allows that the store could
        not give when they were tried: a folder that is not mounted takes its films away as well.

        Args:
            tried: Ids of the films that were tried.
            there: Ids of those that are in the archive.
            accepted: Ids of those that failed in a published run for a reason of the moment.
        """
        ids, passing = self._failed()
        known = pc.and_(passing, _among(ids, accepted))
        gone = pc.and_not(pc.and_not(_among(ids, tried), _among(ids, there)), known)
        vanished = min(_number(pc.and_(gone, passing)), int(self.allowed(_number(known))))
        return _number(known) + _number(pc.and_not(gone, passing)) + vanished

    def known(self, accepted: pa.ChunkedArray) -> int:
        """Films that failed for a reason of the moment, as an earlier run has published of them."""
        ids, passing = self._failed()
        return _number(pc.and_(passing, _among(ids, accepted)))

    def _failed(self) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        """The ids of the films that failed, and whether each did for a reason of the moment."""
        rows = pq.read_table(pa.BufferReader(self.found.data), columns=["image_id", "status", "reason"])
        rows = rows.filter(pc.equal(rows["status"], Status.FAILED.value))
        return rows["image_id"], pc.is_in(rows["reason"], pa.array(PASSING))

    def told(self) -> str:
        """What failed, and what can be done about it."""
        failed = [(reason, n) for (status, reason), n in self.found.reasons if status == Status.FAILED]
        return (
            f"{self.found.count(Status.FAILED)} of {self.found.rows} images failed "
            f"({', '.join(f'{reason} {n}' for reason, n in failed)}), more than screening.failure_budget = "
            f"{self.config.failure_budget:.0%} allows; nothing was published. Mend the bad films or take them away, or "
            "raise the budget (or screening.failures_allowed), and start the same run again: what was scored is kept"
        )


def _among(ids: pa.ChunkedArray, others: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.is_in(ids, others.combine_chunks())


def _number(chosen: pa.ChunkedArray) -> int:
    return int(pc.sum(chosen, min_count=0).as_py())
