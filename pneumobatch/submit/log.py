"""A job's log, followed to the job's end over lost connections."""

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

from pneumobatch.progress import say
from pneumobatch.submit.server import failures, known, pauses

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

SILENCE_SECONDS = 60.0
"""Silence after which the log is asked for anew: a connection that was cut on the way says nothing either."""


def follow(client: "JobSubmissionClient", submission: str) -> int:
    """Prints a job's log until it ends, over lost connections; interrupted, it leaves the job running.

    Returns:
        The job's exit code.

    Raises:
        ValueError: The cluster knows no such job.
        RuntimeError: The job was cancelled or killed, or the cluster stopped answering.
    """
    try:
        details = asyncio.run(_followed(client, submission))
    except KeyboardInterrupt:
        say(f"left {submission}, which goes on: pneumobatch logs {submission} follows it, cancel {submission} stops it")
        raise
    code = details.driver_exit_code
    if details.status.value == "SUCCEEDED":
        return 0
    if details.status.value == "STOPPED":
        raise RuntimeError(f"{submission} was cancelled")
    if code and code > 0:
        return int(code)
    # What follows in the message is the end of the log, which was shown.
    raise RuntimeError(f"{submission}: {(details.message or 'it did not start').partition(', last available logs')[0]}")


async def _followed(client: "JobSubmissionClient", submission: str) -> "JobDetails":
    """Prints the log as it comes; returns the job once it has ended and its log is whole."""
    async with aclosing(_told(client, submission)) as told:
        async for text in told:
            if not isinstance(text, str):
                return text
            sys.stdout.write(text)  # not where connections are mended: a reader that goes away is none of them
            sys.stdout.flush()
    raise AssertionError("a log ends with its job")


async def _told(client: "JobSubmissionClient", submission: str) -> "AsyncGenerator[str | JobDetails, None]":
    """Yields the log as it comes, over lost connections; last the job, once it has ended and its log is whole."""
    shown, waits, details = 0, pauses(), None
    while True:
        try:
            details = known(client, submission)
            skip = shown
            async with asyncio.timeout(SILENCE_SECONDS) as limit:
                async for text in client.tail_job_logs(submission):
                    limit.reschedule(asyncio.get_running_loop().time() + SILENCE_SECONDS)
                    waits = pauses()
                    new, skip = text[skip:], max(skip - len(text), 0)
                    shown += len(new)
                    yield new
            if details.status.is_terminal():  # before its log was read: nothing came after it
                yield details
                return
            waits = pauses()
            await asyncio.sleep(0.5)  # its last words may come before its status does
        except TimeoutError:
            waits = pauses()
        except failures() as error:
            pause = next(waits, None)
            if details and details.status.is_terminal() and (pause or 30) > 4:
                say("the end of its log cannot be read")
                yield details
                return
            if pause is None:
                raise RuntimeError(
                    f"the cluster does not answer; if it comes back, pneumobatch logs {submission} follows the job"
                ) from error
            say(f"connection lost, trying again in {pause:.0f} s; the job goes on")
            await asyncio.sleep(pause)
