"""Templates -> self-contained pages: no network, no script; light and dark, phone and desktop."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .svg_chart import STYLE

if TYPE_CHECKING:
    from markupsafe import Markup

NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
TEMPLATES = Path(__file__).parent / "templates"


def fill(template: str, *, title: str, **values: Any) -> str:
    """The whole HTML document. Values are escaped; it is well-formed XML too, so that any parser reads it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=_shown,
    )
    (style,) = drawn([STYLE])
    return environment.get_template(template).render(title=title, chart_style=style, **values)


def _shown(value: Any) -> Any:
    """A value as it stands in a page."""
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    return NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", value) if type(value) is str else value


def drawn(charts: Iterable[str]) -> list[Markup]:
    """Markup made by `svg_chart`, which escapes what it is given, as it is."""
    from markupsafe import Markup

    return [Markup(chart) for chart in charts]  # noqa: S704
