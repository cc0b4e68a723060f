"""The application that all verbs are registered with, and what they share."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
from rich.console import Console

from pneumobatch import __version__
from pneumobatch.config import Job, Section, read_job

if TYPE_CHECKING:
    from rich.console import RenderableType

EPILOGUE = (
    "Every verb takes a job file and flags; flags win over the file, the file over the defaults. A file may hold the "
    "sections of other verbs too. Lists follow their flag or repeat it; the job file comes first. Research use only; "
    "not a medical device."
)

app = cyclopts.App(
    name="pneumobatch",
    help="Screens archives of chest X-rays for pneumonia, and trains the network that does it, on Ray.",
    help_epilogue=EPILOGUE,
    help_format="plaintext",
    version=__version__,
    default_parameter=cyclopts.Parameter(name_transform=lambda name: name, negative_iterable=(), consume_multiple=True),
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)

JobFile = Annotated[Path | None, cyclopts.Parameter(name="JOB.toml", help="Job file (TOML).")]
JobId = Annotated[str, cyclopts.Parameter(name="ID", help="Id of a submitted job, as submit and status tell it.")]


def job_of(grid: Path | None = None, /, **sections: Section) -> Job:
    """Puts the sections together again as they were given, so that a preset only fills what was not.

    `grid` is the job file of an experiment: its factors have no flags and are read from there.
    """
    given: dict[str, Any] = {name: section.model_dump(exclude_unset=True) for name, section in sections.items()}
    return Job.model_validate({**given, "factors": read_job(grid).get("factors", {})} if grid else given)


def show(*lines: "RenderableType") -> None:
    """Prints lines of text, unwrapped, and tables."""
    console = Console(highlight=False)
    for line in lines:
        text = isinstance(line, str)  # as it is: a path may hold what looks like markup
        console.print(line, soft_wrap=text, markup=not text, emoji=not text)


def sections_of(function: Callable[..., Any] | None) -> list[str]:
    """Names of the sections that a verb takes."""
    assert function is not None
    return [name for name in function.__annotations__ if name in Job.model_fields]
