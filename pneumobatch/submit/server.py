"""A cluster's job server: reached, asked, waited for while it is away."""

import logging
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pneumobatch.config import Cluster
from pneumobatch.progress import say

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

REQUEST_SECONDS = 30.0
"""Longest wait for one answer of the job server."""

LOST_SECONDS = 600.0
"""How long a job server that does not answer is tried again."""


class NoServerError(ValueError):
    """No job server answers at the address."""


def reached(config: Cluster) -> "JobSubmissionClient":
    """Reaches a cluster that may be coming up: a scheduler's night should not fail for a head that is on its way."""
    for pause in pauses():
        try:
            return connect(config)
        except NoServerError as error:
            say(f"{error}, trying again in {pause:.0f} s")
            time.sleep(pause)
    return connect(config)


def connect(config: Cluster) -> "JobSubmissionClient":
    """Reaches the cluster's job server.

    Raises:
        NoServerError: Nothing answers.
        ValueError: It is no such address, or it wants another token.
    """
    address = config.address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or ""
    if not address.startswith(("http://", "https://")):
        raise ValueError("cluster.address: give the address of the cluster's job server, such as http://HEAD:8265")
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray prefers the environment to what it is told
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if given or (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # as Ray does where it starts a cluster
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        """Ray's, with an end to waiting, and with the remedy for a wrong token."""

        def _do_request(self, *arguments: Any, **options: Any) -> Any:
            try:
                return super()._do_request(*arguments, timeout=REQUEST_SECONDS, **options)
            except AuthenticationError:  # at any time: a cluster that is made anew has another token
                raise ValueError(
                    f"cluster.address: {address} wants a token, and another one than it was given: name the file that "
                    "holds it by RAY_AUTH_TOKEN_PATH"
                ) from None

    for logger in ("ray", "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    try:
        return Client(address)
    except (OSError, requests.RequestException):
        raise NoServerError(f"cluster.address: no job server answers at {address}") from None


def status(client: "JobSubmissionClient", submission: str | None) -> list["JobDetails"]:
    """What the cluster knows of one job, or of all that were submitted to it, the latest first.

    Raises:
        ValueError: The cluster knows no such job.
    """
    if submission:
        return [known(client, submission)]
    jobs = [job for job in client.list_jobs() if job.submission_id]
    return sorted(jobs, key=lambda job: job.start_time or 0, reverse=True)


def listed(jobs: list["JobDetails"]) -> list[str]:
    """One line a job: id, status, exit code where it has one, and start (UTC)."""
    lines = []
    for job in jobs:
        code = "" if job.driver_exit_code is None else f" ({job.driver_exit_code})"
        started = datetime.fromtimestamp((job.start_time or 0) / 1000, UTC)
        lines.append(f"{job.submission_id}  {job.status.value}{code}  {started:%Y-%m-%d %H:%M:%S}")
    return lines


def cancel(client: "JobSubmissionClient", submission: str) -> str:
    """Stops a job, if it is running, and returns the status in which it ended.

    Raises:
        ValueError: The cluster knows no such job.
        RuntimeError: It did not end.
    """
    details = known(client, submission)
    if not details.status.is_terminal():
        client.stop_job(submission)
    for _ in range(120):
        if details.status.is_terminal():
            return str(details.status.value)
        time.sleep(0.5)
        details = known(client, submission)
    raise RuntimeError(f"{submission} was told to stop and has not ended within a minute")


def known(client: "JobSubmissionClient", submission: str) -> "JobDetails":
    """What the cluster knows of a job.

    Raises:
        ValueError: The cluster knows no such job.
    """
    try:
        return client.get_job_info(submission)
    except RuntimeError as error:
        if "status code 404" in str(error):
            raise ValueError(f"{submission}: the cluster knows no such job; pneumobatch status lists them") from None
        raise


def failures() -> tuple[type[Exception], ...]:
    """What a lost connection looks like: over HTTP, over a web socket, or as Ray's own words."""
    import aiohttp
    import requests

    return (OSError, RuntimeError, requests.RequestException, aiohttp.ClientError)


def passing(error: Exception) -> bool:
    """Whether a request that failed may succeed when it is made again."""
    return "status code 4" not in str(error) or "already exists" in str(error)


def pauses() -> Iterator[float]:
    """Seconds between tries: doubled up to half a minute, for as long as a job server may be away."""
    pause, ends = 1.0, time.monotonic() + LOST_SECONDS
    while time.monotonic() < ends:
        yield pause
        pause = min(2 * pause, 30.0)
