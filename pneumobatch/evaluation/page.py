"""How the templates of this folder become pages."""

from collections.abc import Callable, Mapping
from typing import Any

import jinja2


def template(name: str, filters: Mapping[str, Callable[..., Any]]) -> jinja2.Template:
    """Loads a template; what it inserts is escaped, and a name that it does not know is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pneumobatch", "evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(name)
