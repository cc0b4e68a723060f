"""The clients of s3://, and what their errors mean.

Credentials, region, endpoint and certificates come from boto3's standard chain: environment, profile, SSO, web
identity, container or instance role. Error texts hold a bucket, a status and the store's error code, never a key.
"""

import os
import re
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pneumobatch.storage.persistence import PassingError, persist

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Config, S3Store

STALL = 30
"""Seconds without a byte after which a request is given up and made again."""
CONCURRENCY = 16
"""Requests that one listing keeps open."""

Environment = tuple[tuple[str, str], ...]
T = TypeVar("T")
_lock = threading.Lock()


class Connection(NamedTuple):
    """Where the environment's standard chain leads."""

    session: Any
    endpoint: str | None
    region: str
    certificates: str | None


def connection() -> Connection:
    """Asks the standard chain, once for each state of the environment.

    Raises:
        PermissionError: There are no credentials.
    """
    return cached(_connection)


def cached(make: Callable[..., T], *arguments: Any) -> T:
    """Returns what `make` makes of the environment's AWS_ variables and the arguments, made once for each."""
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    with _lock:  # boto3's sessions are made by one thread at a time
        return make(environment, *arguments)


@lru_cache(maxsize=4)
def _connection(environment: Environment) -> Connection:
    import boto3
    import botocore.session
    from botocore.configprovider import ConfiguredEndpointProvider
    from botocore.exceptions import BotoCoreError

    inner = botocore.session.get_session()
    # Parsing the date of every key costs more than everything else in a listing, and no date is used.
    inner.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
    try:
        session = boto3.session.Session(botocore_session=inner)
        credentials = session.get_credentials()
        if credentials is not None:
            credentials.get_frozen_credentials()
    except BotoCoreError as error:
        raise _no_credentials(type(error).__name__) from None
    if credentials is None:
        raise _no_credentials("none found")
    endpoint = ConfiguredEndpointProvider(inner.full_config, inner.get_scoped_config(), "s3").provide()
    # boto3 alone does not know AWS_REGION, which every other client of S3 goes by.
    region = session.region_name or os.environ.get("AWS_REGION") or "us-east-1"
    return Connection(session, endpoint, region, inner.get_config_variable("ca_bundle"))


def _no_credentials(why: str) -> PermissionError:
    return PermissionError(
        f"s3://: no usable credentials in the environment ({why}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
        "AWS_PROFILE, or run where a role is attached"
    )


@lru_cache(maxsize=4)
def key_client(environment: Environment) -> Any:
    """boto3's client."""
    from botocore.config import Config

    where = _connection(environment)
    config = Config(
        connect_timeout=5,
        read_timeout=STALL,
        max_pool_connections=CONCURRENCY,
        retries={"total_max_attempts": 1},  # `persist` asks again
        request_checksum_calculation="when_required",  # older gateways do not know the newer checksums
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if where.endpoint else "auto"},
    )
    return where.session.client("s3", region_name=where.region, endpoint_url=where.endpoint, config=config)


@lru_cache(maxsize=16)
def bucket_store(environment: Environment, name: str, stall: int, retries: int) -> "S3Store":
    """obstore's client of a bucket.

    Args:
        environment: From `cached`.
        name: The bucket.
        stall: Seconds without a byte after which a request is given up.
        retries: Tries within obstore, for the requests of an upload in parts. Nothing can interrupt them, and they are
            0 elsewhere: `persist` asks again.
    """
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Store

    where = _connection(environment)
    options: ClientConfig = {
        "allow_http": bool(where.endpoint and where.endpoint.startswith("http://")),
        "connect_timeout": "5s",
        "read_timeout": f"{stall}s",
        "timeout": "1h",
    }
    if where.certificates:
        options["root_certificate"] = Path(where.certificates).read_bytes()
    place: S3Config = {"region": where.region}
    if where.endpoint:
        place["endpoint"] = where.endpoint
    return S3Store(
        name,
        config=place,
        # boto3 renews a token some ten minutes before it ends: it must not be kept for longer.
        credential_provider=Boto3CredentialProvider(where.session, ttl=timedelta(minutes=10)),
        client_options=options,
        retry_config={"max_retries": retries, "retry_timeout": timedelta(seconds=60)},
    )


def asked(name: str, attempt: Callable[[], T]) -> T:
    """Persists with an attempt whose errors get names of ours, without a key in them."""
    from botocore.exceptions import BotoCoreError, ClientError
    from obstore.exceptions import BaseError

    def once() -> T:
        try:
            return attempt()
        except (BaseError, BotoCoreError, ClientError, FileNotFoundError) as error:
            raise named(name, error) from None

    return persist(once)


_PASSING = {408, 409, 429, 500, 502, 503, 504}
_FINAL = {"SSLError", "ParamValidationError", "InvalidPathError", "NotSupportedError"}


def named(name: str, error: Exception) -> OSError:
    """What an error of obstore or boto3 means; its text names the bucket and the store's answer alone."""
    kind, text = type(error).__name__, str(error)
    response = getattr(error, "response", None)  # of boto3
    if response is not None:
        status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        code = str(response.get("Error", {}).get("Code", ""))
    else:
        status = int(found[1]) if (found := re.search(r"status code: (\d{3})", text)) else 0
        code = found[1] if (found := re.search(r"<Code>(\w{1,64})</Code>", text)) else ""
    answer = f"{status} {code}" if status and code.isalnum() and code != str(status) else str(status or kind)
    answer = "no complete answer" if answer == "GenericError" else answer
    kinds: list[tuple[bool, type[OSError], str]] = [
        (code == "NoSuchBucket", FileNotFoundError, "there is no such bucket"),
        (status == 404 and code.startswith("NoSuch"), FileNotFoundError, "no such object"),
        (  # a load balancer's page while the store is away: taken for an answer, it would empty an output
            status == 404,
            PassingError,
            "404 without the error code of a store, for so long that it was given up; check the endpoint "
            "(AWS_ENDPOINT_URL) and what stands before the store",
        ),
        (
            status in {401, 403} or "Credential" in kind or "Token" in kind or "Denied" in kind or "Unauth" in kind,
            PermissionError,
            f"the store refused access ({answer}); check the environment's credentials and the bucket's policy",
        ),
        (
            status in {301, 307, 308} or "BareRedirect" in text,
            OSError,
            "the bucket is in another region; set AWS_REGION or the profile's region",
        ),
        (kind in _FINAL or "Precondition" in kind, OSError, f"the request cannot be answered ({answer})"),
        (
            bool(status) and status not in _PASSING and code != "RequestTimeout",
            OSError,
            f"the store answered {answer}",
        ),
    ]
    what, message = next(
        ((what, message) for holds, what, message in kinds if holds),
        (PassingError, f"the store failed for so long that it was given up ({answer})"),
    )
    return what(f"s3://{name}: {message}")
