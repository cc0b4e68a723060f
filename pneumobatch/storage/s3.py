"""s3://: obstore moves bytes (many at once, for little CPU), boto3 answers about keys and takes them as they are.

obstore's listing is not used: it cannot pass a key with an empty part (a//b), and takes folder markers for files.
"""

import re
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pyarrow as pa

from pneumobatch.storage import listing
from pneumobatch.storage.parts import opened
from pneumobatch.storage.persistence import PassingError, TooLargeError
from pneumobatch.storage.s3_clients import CONCURRENCY, STALL, asked, bucket_store, cached, key_client

if TYPE_CHECKING:
    from obstore import GetOptions

PAGE = 1_000
"""Keys in a page of a listing and in a request that deletes."""
PART = 16 << 20
"""Bytes in a part of a large upload; what has four parts is sent in parts."""
SLOWEST = 1 << 20
"""Bytes a second: a request that sends more than STALL of these may take longer."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
FEW = 8
"""A prefix whose first page lies in so few folders has large ones: they are listed side by side."""


def _split(path: str) -> tuple[str, str]:
    """Splits BUCKET/KEY."""
    bucket, _, key = path.partition("/")
    if not bucket:
        raise ValueError("s3://: give the bucket, as in s3://bucket/prefix")
    return bucket, key


def get(path: str, limit: int | None) -> bytes:
    """Reads an object of at most `limit` bytes."""
    import obstore

    bucket, key = _split(path)
    parts = key.split("/")
    if "." in parts or ".." in parts:
        raise OSError("an object whose key has a part . or .. cannot be asked for: clients would take it for a way")
    if "" in parts or _CONTROL.search(key):
        return _get_by_boto3(bucket, key, limit)  # obstore cannot name it
    store = cached(bucket_store, bucket, STALL, 0)

    def once() -> bytes:
        found = obstore.get(store, key)
        if limit is not None and found.meta["size"] > limit:
            raise TooLargeError(f"an object is larger than {limit} bytes")
        return bytes(found.bytes())

    return asked(bucket, once)


def _get_by_boto3(bucket: str, key: str, limit: int | None) -> bytes:
    client = cached(key_client)

    def once() -> bytes:
        found = client.get_object(Bucket=bucket, Key=key)
        with found["Body"] as body:
            if limit is not None and found["ContentLength"] > limit:
                raise TooLargeError(f"an object is larger than {limit} bytes")
            return bytes(body.read())

    return asked(bucket, once)


def _patience(size: int) -> int:
    """Seconds that a request which sends so many bytes may take, by powers of two of STALL."""
    return STALL << (size // (STALL * SLOWEST)).bit_length()


def put(path: str, data: bytes) -> None:
    """Writes an object, which appears whole."""
    import obstore

    bucket, key = _split(path)
    in_parts = len(data) >= 4 * PART
    store = cached(bucket_store, bucket, _patience(PART if in_parts else len(data)), 3 if in_parts else 0)
    asked(bucket, lambda: obstore.put(store, key, data, use_multipart=in_parts, chunk_size=PART))


def create(path: str, data: bytes) -> bool:
    """Writes an object unless there is one, as a single PUT: gateways ignore the condition on uploads in parts.

    Looked up first, for stores that do not know the condition, and read back, as a lost reply makes our own second
    try look like a conflict.
    """
    import obstore
    from obstore.exceptions import AlreadyExistsError, PreconditionError

    bucket, key = _split(path)
    store = cached(bucket_store, bucket, _patience(len(data)), 0)

    def once() -> None:
        try:
            obstore.put(store, key, data, mode="create", use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            return

    try:
        return get(path, None) == data
    except FileNotFoundError:
        asked(bucket, once)
    return get(path, None) == data


def kind(path: str) -> Literal["file", "folder"] | None:
    """What a path leads to."""
    bucket, key = _split(path)
    client = cached(key_client)
    try:
        if key:
            stat(path)
            return "file"
    except FileNotFoundError:
        pass
    try:
        found = asked(bucket, lambda: client.list_objects_v2(Bucket=bucket, Prefix=_prefix(key), MaxKeys=1))
    except FileNotFoundError:
        return None
    return "folder" if found.get("KeyCount") or not key else None


def stat(path: str) -> tuple[int, str]:
    """Size and version of an object."""
    found = _head(*_split(path))
    return int(found["ContentLength"]), str(found.get("ETag", "")).strip('"')


def _head(bucket: str, key: str) -> dict[str, Any]:
    from botocore.exceptions import ClientError

    client = cached(key_client)

    def once() -> dict[str, Any]:
        try:
            found: dict[str, Any] = client.head_object(Bucket=bucket, Key=key)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                raise
            found = client.get_object(Bucket=bucket, Key=key)  # which says in its body whether the store answers
            found["Body"].close()
        if "ContentLength" not in found:  # boto3 takes headers that end too early for all there are
            raise PassingError(f"s3://{bucket}: the store's answer ends too early")
        return found

    return asked(bucket, once)


def _prefix(key: str) -> str:
    return f"{key}/" if key else ""


class _Part(NamedTuple):
    """What is still to list: a prefix, from a page on; `level` is how often it was split."""

    prefix: str
    token: str | None = None
    level: int = 0


def _page(client: Any, bucket: str, part: _Part) -> tuple[list[dict[str, Any]], list[_Part]]:
    """Lists one page; returns its objects and what is then still to list."""

    def ask(**more: Any) -> dict[str, Any]:
        found: dict[str, Any] = asked(
            bucket, lambda: client.list_objects_v2(Bucket=bucket, Prefix=part.prefix, MaxKeys=PAGE, **more)
        )
        return found

    try:
        found = ask(**({"ContinuationToken": part.token} if part.token else {}))
    except FileNotFoundError:
        if part.token or part.level:  # a listing that was begun must not end as if it were whole
            raise
        return [], []  # no such bucket: nothing there
    objects: list[dict[str, Any]] = found.get("Contents", [])
    if not found["IsTruncated"]:
        return objects, []
    if part.token is None and part.level < 3:
        start = len(part.prefix)
        folders = {key[start : key.index("/", start)] for entry in objects if "/" in (key := entry["Key"])[start:]}
        if 0 < len(folders) <= FEW:
            level = ask(Delimiter="/")
            if not level["IsTruncated"]:
                prefixes = [_Part(entry["Prefix"], None, part.level + 1) for entry in level.get("CommonPrefixes", [])]
                return level.get("Contents", []), prefixes
    return objects, [part._replace(token=found["NextContinuationToken"])]


def _pages(bucket: str, prefix: str) -> Iterator[list[dict[str, Any]]]:
    """Lists every object below a prefix, page by page in no order, large folders side by side."""
    client = cached(key_client)
    pool = ThreadPoolExecutor(CONCURRENCY, thread_name_prefix="list")
    try:
        running: set[Future[tuple[list[dict[str, Any]], list[_Part]]]]
        running = {pool.submit(_page, client, bucket, _Part(prefix))}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                objects, rest = future.result()
                running |= {pool.submit(_page, client, bucket, part) for part in rest}
                yield objects
    finally:
        pool.shutdown(cancel_futures=True)


def scan(path: str) -> Iterator[pa.RecordBatch]:
    """Lists a prefix; folder markers (keys that end with /) are no files."""
    bucket, key = _split(path)
    start = len(_prefix(key))
    for page in _pages(bucket, _prefix(key)):
        if files := [entry for entry in page if not entry["Key"].endswith("/")]:
            yield listing.batch(
                [entry["Key"][start:] for entry in files],
                [entry["Size"] for entry in files],
                [entry.get("ETag", "").strip('"') for entry in files],
            )


def delete(path: str) -> None:
    """Deletes an object and everything below it."""
    bucket, key = _split(path)
    client = cached(key_client)

    def remove(keys: list[str]) -> None:
        if not keys:
            return
        wanted = {"Objects": [{"Key": name} for name in keys], "Quiet": True}
        answer = client.delete_objects(Bucket=bucket, Delete=wanted)
        if answer.get("Errors"):
            code = str(answer["Errors"][0].get("Code", ""))
            kind = OSError if code == "AccessDenied" else PassingError
            raise kind(f"s3://{bucket}: not every object was deleted ({code if code.isalnum() else 'unknown'})")

    if key:
        with suppress(FileNotFoundError):
            asked(bucket, lambda: client.delete_object(Bucket=bucket, Key=key))
    for page in _pages(bucket, _prefix(key)):
        keys = [entry["Key"] for entry in page]
        asked(bucket, lambda keys=keys: remove(keys))  # type: ignore[misc]


def open_file(path: str) -> pa.NativeFile:
    """Opens an object for reading here and there."""
    import obstore

    bucket, key = _split(path)
    store, found = cached(bucket_store, bucket, STALL, 0), _head(bucket, key)

    def part(start: int, end: int) -> bytes:
        # Of an object that is replaced meanwhile, parts of two must not be mixed.
        options: GetOptions = {"range": (start, end), "if_match": found.get("ETag")}
        return asked(bucket, lambda: bytes(obstore.get(store, key, options=options).bytes()))

    return opened(int(found["ContentLength"]), part)
