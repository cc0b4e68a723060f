"""How the templates of this folder become pages."""

from collections.abc import Callable, Mapping
from typing import Any

import jinja2

from pneumobatch.evaluation.figures import three


def template(name: str, filters: Mapping[str, Callable[..., Any]]) -> jinja2.Template:
    """Loads a template; what it inserts is escaped, and a name that it does not know is an error.

    Args:
        name: Its file.
        filters: What it uses besides `rate`, `span` and `signed`.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pneumobatch", "evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"rate": three, "span": span, "signed": signed, **filters}
    return environment.get_template(name)


def span(row: Mapping[str, Any], name: str) -> str:
    """An interval of a row; nothing where there is none."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "" if low is None else f"{low:.3f}–{high:.3f}"


def signed(value: float | None) -> str:
    """A difference, with its sign."""
    return "–" if value is None else f"{value:+.3f}".replace("-", "−")
