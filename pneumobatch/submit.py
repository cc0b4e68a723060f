"""A verb as a job of a Ray cluster: packaged, submitted once, followed to its end and to its exit code.

What travels is the job file as it was resolved here, flags included, and with `cluster.runtime = "package"` this
package's code. No secret does: the store's credentials and the site's key are those of the cluster's own environment,
and the token that opens the cluster's job server is read by Ray itself (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, or
~/.ray/auth_token).
"""

import asyncio
import hashlib
import json
import logging
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from pneumobatch.config import Cluster, Job, plain
from pneumobatch.lineage import code_hash
from pneumobatch.progress import say

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

REQUEST_SECONDS = 30.0
"""Longest wait for one answer of the job server."""

SILENCE_SECONDS = 60.0
"""Silence after which the log is asked for anew: a connection that was cut on the way says nothing either."""

LOST_SECONDS = 600.0
"""How long a job server that does not answer is tried again."""


def submit(verb: str, job: Job, sections: list[str]) -> int:
    """Starts a verb on a cluster, or joins the same job where it is running already, and follows it to its end.

    Args:
        verb: The verb.
        job: Its configuration.
        sections: The sections that the verb reads.

    Returns:
        The job's exit code.

    Raises:
        ValueError: The job names paths of this machine, or the cluster's address or token is wrong.
        RuntimeError: The job was cancelled or killed, or the cluster stopped answering.
    """
    read = set(sections) - {"cluster"}
    _refuse_local_paths(job, read)
    name = submission_id(verb, job, read)
    client = _reached(job.cluster)
    given = job.model_dump(mode="json", include=read, exclude_unset=True, exclude_none=True)
    given["output"] = given.get("output", {}) | {"uri": job.output.uri}  # its default is a folder of this machine
    if "cluster" in sections:
        given["cluster"] = {"patience_minutes": job.cluster.patience_minutes}
    job_toml = tomli_w.dumps(given)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "job.toml").write_text(job_toml, encoding="utf-8")
        submission = _submitted(client, verb, name, folder, job.cluster)
    try:
        return follow(client, submission)
    except ValueError:
        raise RuntimeError(
            f"{submission}: the cluster was restarted and no longer knows the job; submit it again: it goes on where "
            "it stopped"
        ) from None


def submission_id(verb: str, job: Job, sections: set[str]) -> str:
    """The same for the same verb, resolved configuration and sent code; a night's holds its date (UTC) as well."""
    resolved = json.dumps(job.model_dump(mode="json", include=sections), sort_keys=True)
    code = code_hash() if job.cluster.runtime == "package" else ""
    digest = hashlib.sha256(f"{verb}\n{resolved}{code}".encode()).hexdigest()[:12]
    nightly = verb == "screen" and job.screening.nightly
    return f"{verb}-{datetime.now(UTC):%Y-%m-%d}-{digest}" if nightly else f"{verb}-{digest}"


class NoServerError(ValueError):
    """No job server answers at the address."""


def _reached(config: Cluster) -> "JobSubmissionClient":
    """Reaches a cluster that may be coming up: a scheduler's night should not fail for a head that is on its way."""
    for pause in _pauses():
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


def status(client: "JobSubmissionClient", submission: str | None) -> list["JobDetails"]:
    """What the cluster knows of one job, or of all that were submitted to it, the latest first.

    Raises:
        ValueError: The cluster knows no such job.
    """
    if submission:
        return [_known(client, submission)]
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
    details = _known(client, submission)
    if not details.status.is_terminal():
        client.stop_job(submission)
    for _ in range(120):
        if details.status.is_terminal():
            return str(details.status.value)
        time.sleep(0.5)
        details = _known(client, submission)
    raise RuntimeError(f"{submission} was told to stop and has not ended within a minute")


def _refuse_local_paths(job: Job, sections: set[str]) -> None:
    def paths(value: Any, key: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict):
            for name, part in value.items():
                yield from paths(part, f"{key}.{name}" if key else name)
        elif isinstance(value, list):
            for part in value:
                yield from paths(part, key)
        elif isinstance(value, str) and value.startswith(("/", "file:")):
            yield key, plain(value)

    shared = [plain(path) for path in job.cluster.shared_paths]
    for key, path in paths(job.model_dump(mode="json", include=sections), ""):
        if not any(f"{path}/".startswith(f"{folder}/") for folder in shared):
            raise ValueError(
                f"{key}: {path} is a path of this machine, and the job runs on others; give a URI such as "
                "s3://BUCKET/PREFIX, or name a folder that every node mounts there in cluster.shared_paths"
            )


def _submitted(client: "JobSubmissionClient", verb: str, name: str, folder: str, config: Cluster) -> str:
    """Submits the job unless it is running; an earlier attempt that ended gives the new one a number."""
    environment: dict[str, Any] = {"working_dir": folder}
    if config.runtime == "package":
        environment |= {"py_modules": [str(Path(__file__).parent)], "excludes": ["__pycache__"]}
    command = shlex.join(["python", "-m", "pneumobatch", verb, "job.toml"])
    # Of a night that has not ended by the next one there is one all the same.
    same = re.compile(re.sub(r"\d{4}-\d\d-\d\d", r"\\d{4}-\\d\\d-\\d\\d", name) + r"(-\d+)?").fullmatch
    for pause in _pauses():
        try:
            jobs = [job for job in client.list_jobs() if job.submission_id]
            running = [
                str(job.submission_id) for job in jobs if same(str(job.submission_id)) and not job.status.is_terminal()
            ]
            if running:
                say(f"{running[0]} is running: following it")
                return running[0]
            earlier = [
                str(job.submission_id) for job in jobs if re.fullmatch(rf"{name}(-\d+)?", str(job.submission_id))
            ]
            attempts = [int(attempt.removeprefix(name)[1:] or 1) for attempt in earlier]
            submission = f"{name}-{max(attempts) + 1}" if attempts else name
            client.submit_job(entrypoint=command, submission_id=submission, runtime_env=environment)
        except _failures() as error:
            # Where the answer was lost, or another submit came first, the next look finds the job running.
            if not _passing(error):
                raise RuntimeError(f"{name} was not taken: {str(error).splitlines()[0]}") from None
            say(f"the cluster did not answer, trying again in {pause:.0f} s")
            time.sleep(pause)
        else:
            say(f"submitted {submission} to {os.environ['RAY_API_SERVER_ADDRESS']}")
            return submission
    raise RuntimeError(f"{name} was not submitted: the cluster does not answer")


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
    shown, pauses, details = 0, _pauses(), None
    while True:
        try:
            details = _known(client, submission)
            skip = shown
            async with asyncio.timeout(SILENCE_SECONDS) as limit:
                async for text in client.tail_job_logs(submission):
                    limit.reschedule(asyncio.get_running_loop().time() + SILENCE_SECONDS)
                    pauses = _pauses()
                    new, skip = text[skip:], max(skip - len(text), 0)
                    shown += len(new)
                    yield new
            if details.status.is_terminal():  # before its log was read: nothing came after it
                yield details
                return
            pauses = _pauses()
            await asyncio.sleep(0.5)  # its last words may come before its status does
        except TimeoutError:
            pauses = _pauses()
        except _failures() as error:
            pause = next(pauses, None)
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


def _known(client: "JobSubmissionClient", submission: str) -> "JobDetails":
    try:
        return client.get_job_info(submission)
    except RuntimeError as error:
        if "status code 404" in str(error):
            raise ValueError(f"{submission}: the cluster knows no such job; pneumobatch status lists them") from None
        raise


def _failures() -> tuple[type[Exception], ...]:
    """What a lost connection looks like: over HTTP, over a web socket, or as Ray's own words."""
    import aiohttp
    import requests

    return (OSError, RuntimeError, requests.RequestException, aiohttp.ClientError)


def _passing(error: Exception) -> bool:
    """Whether a request that failed may succeed when it is made again."""
    return "status code 4" not in str(error) or "already exists" in str(error)


def _pauses() -> Iterator[float]:
    """Seconds between tries: doubled up to half a minute, for as long as a job server may be away."""
    pause, ends = 1.0, time.monotonic() + LOST_SECONDS
    while time.monotonic() < ends:
        yield pause
        pause = min(2 * pause, 30.0)
