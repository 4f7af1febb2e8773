"""HTML pages that need nothing but themselves, from templates that lie beside the code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def render_template(package: str, filters: Mapping[str, Callable[..., str]], **values: Any) -> str:
    """`page.html.j2` of a package with these values; what they hold is escaped, and a name without a value is an
    error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(package, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template("page.html.j2").render(**values)
