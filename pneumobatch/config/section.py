"""What all sections share: their base, and the kinds of values in them."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pneumobatch.config.credentials import without_password

Fraction = Annotated[float, Field(ge=0, le=1)]

Positive = Annotated[float, Field(gt=0)]

Count = Annotated[int, Field(ge=1)]


def absolute(uri: str) -> str:
    """Makes a path absolute: workers have working folders of their own, and a relative one means the starting one's."""
    if not uri:
        raise ValueError("is empty; name a folder, file or URI, or leave the key out")
    if "://" in uri:
        return without_password(uri)
    if found := re.match(r"([a-z][a-z0-9+.-]+):/", uri):
        raise ValueError(f"has one slash after {found[1]}:, which would be a folder here; write {found[1]}://")
    try:
        # Not Path.resolve: a link to an archive is a name that its user chose.
        return os.path.abspath(Path(uri).expanduser())  # noqa: PTH100
    except RuntimeError:
        raise ValueError("begins with the home of a user whom this machine does not know; write it out") from None


def plain(uri: str) -> str:
    """A path or URI in the one way in which places are compared: without `file://` and a slash at its end, local ones
    absolute."""
    path = uri.removeprefix("file://")
    return (path if "://" in path else os.path.abspath(path)).rstrip("/")  # noqa: PTH100 - .. goes, links stay


Uri = Annotated[str, AfterValidator(absolute)]


class Section(BaseModel):
    """A frozen section of a job file that knows only its own keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        for field in cls.model_fields.values():  # so that --help tells the range that validation enforces
            limits = " and ".join(dict.fromkeys(_limits([field.annotation, *field.metadata])))
            field.description = f"{field.description or ''}{f' [range: {limits}]' if limits else ''}"


def _limits(parts: list[Any]) -> list[str]:
    """Collects the bounds in a field's annotation, such as `>= 1`."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    found = [f"{sign} {getattr(part, name):g}" for part in parts for name, sign in signs.items() if hasattr(part, name)]
    inner = [
        child
        for part in parts
        for child in (*get_args(part), *getattr(part, "metadata", ()))
        if not isinstance(child, str) and child is not part
    ]
    return found + (_limits(inner) if inner else [])
