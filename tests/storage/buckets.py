"""What tests put into buckets past the code that they test."""

from concurrent.futures import ThreadPoolExecutor

import boto3


def bucket(uri: str) -> str:
    return uri.removeprefix("s3://").split("/")[0]


def put_all(base: str, names: list[str]) -> None:
    client = boto3.session.Session().client("s3")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: client.put_object(Bucket=bucket(base), Key=f"base/{name}", Body=b"12"), names))
