"""The verb `doctor`: what machine and cluster offer, what works on them, and the remedy for what does not.

machine.py   what is there: software, CPUs, memory, GPUs, the engine
trials.py    what works when it is tried: network, precisions, decoders, places
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from pneumobatch.config import Job
from pneumobatch.doctor import machine, trials
from pneumobatch.doctor.findings import Findings

if TYPE_CHECKING:
    from rich.console import RenderableType


def doctor(job: Job) -> tuple[list["RenderableType"], bool]:
    """Examines everything a job meets.

    Returns:
        What to show, and whether nothing was found that would make a job fail.
    """
    examinations: tuple[Callable[[Job], Findings], ...] = (
        machine.software, machine.processors, machine.memory, machine.accelerators, machine.engine,
        trials.network, trials.precisions, trials.decoders, trials.places,
    )  # fmt: skip
    found = [finding for examine in examinations for finding in examine(job)]
    table = Table("", "what", "found", box=SIMPLE_HEAD)
    mark = {"ok": Text("ok", "green"), "note": Text("note", "yellow"), "problem": Text("problem", "bold red")}
    for finding in found:
        text = f"{finding.text}\n→ {finding.remedy}" if finding.remedy else finding.text
        table.add_row(mark[finding.state], finding.topic, Text(text))
    problems = [finding for finding in found if finding.state == "problem"]
    notes = sum(finding.state == "note" for finding in found)
    verdict = "healthy" if not problems else "not healthy: " + ", ".join(finding.topic for finding in problems)
    return [table, f"{verdict}; {len(problems)} problems, {notes} notes"], not problems
