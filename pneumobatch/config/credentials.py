"""URIs that hold a credential: configurations are written beside every output, so none is taken."""

import re

from pydantic_core import PydanticCustomError

NOT_REPEATED = "not_repeated"
"""Kind of the error whose input must not be repeated."""

_AUTHORITY = re.compile(r"([a-z0-9+.-]+)://([^/?#]*?)(?=[/?#]|::[a-z0-9+.-]+://|$)", re.IGNORECASE)
_NAMED = {"abfs", "abfss", "ftp", "hdfs", "oci", "sftp", "smb", "ssh", "wasb", "wasbs", "webhdfs"}
"""Protocols in which a bare name before the host is a user or a container; elsewhere it is a key or a token."""
_STORES = {"s3", "s3a", "gs", "gcs"}
"""They have no ports, and a question mark is part of a key."""
_SIGNED = re.compile(r"(?i)[?&;#](x-(amz|goog)-[\w-]+|secret[\w-]*)=")
_SECRET = re.compile(r"(?i)[?&;#][\w.-]*(sig|signature|token|secret|password|key|keyid|credential)=")


def without_password(uri: str) -> str:
    """Refuses a URI with a credential in it."""
    if _holds_credential(uri):
        raise PydanticCustomError(
            NOT_REPEATED,
            "holds a password, token, key or signature, which would be written into records; leave it out of the URI: "
            "credentials come from the environment (for fsspec's protocols from variables such as "
            "FSSPEC_SFTP_PASSWORD)",
        )
    return uri


def _holds_credential(uri: str) -> bool:
    scheme = ""
    for found in _AUTHORITY.finditer(uri):  # several, where fsspec's protocols are chained
        scheme = found[1].lower()
        user, _, host = found[2].rpartition("@")
        if user and (scheme not in _NAMED or re.search(":|%3A", user, re.IGNORECASE)):
            return True
        # A slash in a password ends what looks like the host; what then follows the colon is no port.
        port = host.rpartition("]")[2].partition(":")[2]
        if port and (scheme in _STORES or not port.isdecimal()) and "@" in uri[found.end() :]:
            return True
    return bool(_SIGNED.search(uri) or (scheme not in _STORES and _SECRET.search(uri)))
