"""A verb as a job of a Ray cluster: packaged, submitted once, followed to its end and to its exit code.

What travels is the job file as it was resolved here, flags included, and with `cluster.runtime = "package"` this
package's code. No secret does: the store's credentials and the site's key are those of the cluster's own environment,
and the token that opens the cluster's job server is read by Ray itself (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, or
~/.ray/auth_token).

    server.py   the job server: reached, asked, waited for
    log.py      a job's log, followed to the job's end
"""

import hashlib
import json
import os
import re
import shlex
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from pneumobatch.config import Cluster, Job, plain
from pneumobatch.lineage import code_hash
from pneumobatch.progress import say
from pneumobatch.submit import log, server

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient


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
    client = server.reached(job.cluster)
    given = job.model_dump(mode="json", include=read, exclude_unset=True, exclude_none=True)
    given["output"] = given.get("output", {}) | {"uri": job.output.uri}  # its default is a folder of this machine
    if "cluster" in sections:
        given["cluster"] = {"patience_minutes": job.cluster.patience_minutes}
    job_toml = tomli_w.dumps(given)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "job.toml").write_text(job_toml, encoding="utf-8")
        submission = _submitted(client, verb, name, folder, job.cluster)
    try:
        return log.follow(client, submission)
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
        environment |= {"py_modules": [str(Path(__file__).parents[1])], "excludes": ["__pycache__"]}
    command = shlex.join(["python", "-m", "pneumobatch", verb, "job.toml"])
    # Of a night that has not ended by the next one there is one all the same.
    same = re.compile(re.sub(r"\d{4}-\d\d-\d\d", r"\\d{4}-\\d\\d-\\d\\d", name) + r"(-\d+)?").fullmatch
    for pause in server.pauses():
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
        except server.failures() as error:
            # Where the answer was lost, or another submit came first, the next look finds the job running.
            if not server.passing(error):
                raise RuntimeError(f"{name} was not taken: {str(error).splitlines()[0]}") from None
            say(f"the cluster did not answer, trying again in {pause:.0f} s")
            time.sleep(pause)
        else:
            say(f"submitted {submission} to {os.environ['RAY_API_SERVER_ADDRESS']}")
            return submission
    raise RuntimeError(f"{name} was not submitted: the cluster does not answer")
