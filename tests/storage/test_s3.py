"""What only S3 does."""

from pathlib import Path

import boto3
import pytest

from pneumobatch import storage
from tests.storage.buckets import bucket, put_all


@pytest.mark.parametrize("base", ["s3", "ceph_s3"], indirect=True)
def test_keys_are_taken_as_they_are(base: str) -> None:
    """Folder markers are no files, an empty part is a part, and a prefix ends with a slash."""
    client = boto3.session.Session().client("s3")
    for key in (
        "base/a//b.png",
        "base/folder/",
        "base/",
        "base-evil/x.png",
        "base/ü +%41?#.png",
        "base/c.png",
        "base/d\t.png",
    ):
        client.put_object(Bucket=bucket(base), Key=key, Body=b"1" if key.endswith(".png") else b"")
    found = sorted(file.path for file in storage.list_files(base))
    assert found == ["a//b.png", "c.png", "d\t.png", "ü +%41?#.png"]
    assert [storage.read_bytes(f"{base}/{path}") for path in found] == [b"1"] * 4
    with pytest.raises(storage.TooLargeError):
        storage.read_bytes(f"{base}/a//b.png", limit=0)
    storage.delete(base)
    left = client.list_objects_v2(Bucket=bucket(base))["Contents"]
    assert [entry["Key"] for entry in left] == ["base-evil/x.png"]


def test_a_large_listing_is_what_was_written(ceph_s3: str) -> None:
    names = [f"{year}/{month:02}/{i:05}.png" for year in (2024, 2025) for month in (1, 2, 3) for i in range(400)]
    names += [f"2024/top-{i:04}.png" for i in range(300)] + [f"root-{i:04}.png" for i in range(300)]
    put_all(ceph_s3, names)
    found = list(storage.list_files(ceph_s3))
    assert sorted(file.path for file in found) == sorted(names)
    assert {(file.size, file.version) for file in found} == {(2, "c20ad4d76fe97759aa27a0c99bff6710")}
    storage.delete(ceph_s3)
    assert not storage.is_folder(ceph_s3)


@pytest.mark.parametrize("folders", [1, 3, 40])
def test_a_listing_of_many_pages(folders: int, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One flat folder, few large ones, many small ones, with files beside them at every level."""
    monkeypatch.setattr(storage.s3, "PAGE", 10)
    names = [f"{i % folders:02}/{i % 2}/{i:04}.png" for i in range(100)] + [f"{i:04}.png" for i in range(5)]
    put_all(s3, names)
    assert sorted(file.path for file in storage.list_files(s3)) == sorted(names)
    storage.delete(s3)
    assert not storage.is_folder(s3)


@pytest.mark.parametrize("base", ["s3", "ceph_s3"], indirect=True)
def test_a_bucket_that_is_not_there(base: str) -> None:
    assert not storage.is_folder("s3://no-such-bucket-here/x")
    assert list(storage.scan("s3://no-such-bucket-here/x")) == []
    storage.delete("s3://no-such-bucket-here/x")
    for act in (storage.read_bytes, lambda uri: storage.write_bytes(uri, b"")):
        with pytest.raises(FileNotFoundError, match="no such bucket"):
            act("s3://no-such-bucket-here/x")


def test_wrong_credentials_are_refused_at_once(ceph_s3: str, ceph: object, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(f"{ceph_s3}/DOE^JANE.dcm", b"1")
    for name, value in (("AWS_SECRET_ACCESS_KEY", "wrong-secret"), ("AWS_ACCESS_KEY_ID", "wrong-key")):
        monkeypatch.setenv(name, value)
        for ask in (
            lambda: storage.read_bytes(f"{ceph_s3}/DOE^JANE.dcm"),
            lambda: storage.write_bytes(f"{ceph_s3}/DOE^JANE.dcm", b"2"),
            lambda: storage.create_bytes(f"{ceph_s3}/DOE^JANE.dcm", b"2"),
            lambda: storage.is_file(f"{ceph_s3}/DOE^JANE.dcm"),
            lambda: list(storage.scan(ceph_s3)),
            lambda: storage.delete(ceph_s3),
            lambda: storage.open_file(f"{ceph_s3}/DOE^JANE.dcm"),
        ):
            with pytest.raises(PermissionError, match="refused access.*check the environment's credentials") as caught:
                ask()
            text = str(caught.value) + repr(caught.value.__context__ if caught.value.__cause__ else "")
            assert "wrong" not in text
            assert "DOE" not in text


def test_no_credentials_are_named(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(PermissionError, match="no usable credentials.*AWS_PROFILE"):
        storage.read_bytes(f"{s3}/x")


def test_the_profile_leads_to_the_store(moto: str, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(f"{s3}/x", b"1")
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    text = f"[profile site]\nregion = eu-central-1\nendpoint_url = {moto}\naws_access_key_id = a\n"
    (tmp_path / "config").write_text(text + "aws_secret_access_key = b\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "site")
    assert storage.read_bytes(f"{s3}/x") == b"1"
    assert [file.path for file in storage.list_files(s3)] == ["x"]
    assert storage.filesystem(s3)[0].get_file_info(f"{s3.removeprefix('s3://')}/x").size == 1
