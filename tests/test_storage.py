"""Storage: the same behaviour on a local folder, on S3 (moto) and through fsspec."""

import os
from collections.abc import Iterator
from pathlib import Path

import boto3
import pyarrow as pa
import pytest

from pneumobatch import storage


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    storage._remote.cache_clear()
    boto3.client("s3").create_bucket(Bucket="archive")
    yield "s3://archive/base"
    storage._remote.cache_clear()
    server.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@pytest.fixture(params=["local", "s3", "memory"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("s3"))
    return str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}"


def test_bytes_and_tables_round_trip(base: str) -> None:
    uri = storage.join(base, "a", "b c.bin")
    assert not storage.is_file(uri)
    storage.write_bytes(uri, b"one")
    storage.write_bytes(uri, b"two")
    assert storage.read_bytes(uri) == b"two"
    table = pa.table({"x": [1, None, 3]})
    storage.write_table(storage.join(base, "t.parquet"), table)
    assert storage.read_table(storage.join(base, "t.parquet")).equals(table)
    assert storage.is_folder(storage.join(base, "a"))


def test_listing_leaves_hidden_files_out_and_deleting_takes_all(base: str) -> None:
    for name in ("x/1.png", "x/y/2.png", "x/_staging/3", "x/.hidden"):
        storage.write_bytes(storage.join(base, name), b"12")
    found = sorted(storage.list_files(storage.join(base, "x")))
    assert found == [("1.png", 2), ("y/2.png", 2)]
    storage.delete(storage.join(base, "x"))
    storage.delete(storage.join(base, "x"))
    assert list(storage.list_files(storage.join(base, "x"))) == []


def test_a_missing_file_is_missing(base: str) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(base, "nothing"))


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(ValueError, match="nope://"):
        storage.filesystem("nope://x")
