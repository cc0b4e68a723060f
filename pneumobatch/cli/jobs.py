"""Verbs as jobs of a cluster: submit, status, logs, cancel."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import cyclopts

from pneumobatch.cli import verbs
from pneumobatch.cli.app import JobId, app, job_of, sections_of, show
from pneumobatch.config import Cluster, Section

submit = cyclopts.App(
    name="submit",
    help="Run a verb as a job of a cluster, and follow it: submit VERB JOB.toml --cluster.address http://HEAD:8265.",
)
app.command(submit)


def _submitted(verb: str, function: Callable[..., Any]) -> Callable[..., int]:
    """The verb's own command line, of which a cluster makes a job."""

    @functools.wraps(function)
    def command(job_file: Path | None = None, /, **sections: Section) -> int:
        from pneumobatch.submit import submit as run

        if "experiment" not in sections:
            return run(verb, job_of(**sections), sections_of(function))
        return run(verb, job_of(job_file, **sections), [*sections_of(function), "factors"])

    signature = inspect.signature(function)
    options = {name: option for name, option in signature.parameters.items() if name != "cluster"}
    cluster = inspect.Parameter("cluster", inspect.Parameter.KEYWORD_ONLY, default=Cluster(), annotation=Cluster)
    command.__signature__ = signature.replace(parameters=[*options.values(), cluster])  # type: ignore[attr-defined]
    command.__annotations__ = {**function.__annotations__, "cluster": Cluster}
    return command


# Not bench: beside a pipeline on a whole cluster it would set loops on its head.
for _verb in (verbs.catalog, verbs.train, verbs.experiment, verbs.screen, verbs.evaluate, verbs.doctor):
    submit.command(_submitted(_verb.__name__, _verb), name=_verb.__name__)


@app.command
def status(
    submission: Annotated[str | None, cyclopts.Parameter(name="ID", help="Id of a submitted job; none: all.")] = None,
    /,
    *,
    cluster: Cluster = Cluster(),
) -> None:
    """Say how a submitted job stands, or list all that a cluster knows."""
    from pneumobatch.submit import server

    show(*server.listed(server.status(server.connect(cluster), submission)))


@app.command
def logs(submission: JobId, /, *, cluster: Cluster = Cluster()) -> int:
    """Print a submitted job's log, follow it while it runs, and end with its exit code."""
    from pneumobatch.submit import log, server

    return log.follow(server.connect(cluster), submission)


@app.command
def cancel(submission: JobId, /, *, cluster: Cluster = Cluster()) -> None:
    """Stop a submitted job; what it staged stays, and the same job submitted again goes on from there."""
    from pneumobatch.submit import server

    show(f"{submission}: {server.cancel(server.connect(cluster), submission)}")
