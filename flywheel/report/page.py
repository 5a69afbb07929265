"""The page as one HTML file: a section is a function of `sections` and a template of the same name.

Text from a store (an origin, a reason, a file's name) is never trusted: templates escape whatever they are given, and
`words.clean` cuts it. The page runs no script and its policy forbids any, so that it is the same offline, in a mail and
in a browser.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from flywheel.log import say
from flywheel.report import sections, words
from flywheel.report.facts import Facts

SECTIONS = {
    "success": "Success",
    "flips": "What the last gate turned on",
    "learning": "Learning",
    "failures": "Where the failures start",
    "corpus": "Corpus",
    "gate": "Gate decisions",
    "lineage": "Lineage",
    "work": "Runs and disk",
}  # a function of `sections` and a template: heading


def render(facts: Facts) -> str:
    """Return the whole page; a section that fails says so in its place, and the others are there."""
    headline = sections.headline(facts)
    return fill(
        "page",
        title=headline["title"],
        headline=fill("headline", **headline),
        sections=[section(name, heading, facts) for name, heading in SECTIONS.items()],
        finished=facts.runs[-1].get("finished", "") if facts.runs else None,
        root=facts.place,
    )


def section(name: str, heading: str, facts: Facts) -> Markup:
    """Return one section, or what was wrong with it under the same heading."""
    try:
        return fill(name, id=name, heading=heading, **getattr(sections, name)(facts))
    except Exception as error:  # the rest of the page is worth having
        say(f"  report: {heading}: {error!r}")
        return fill("section", id=name, heading=heading, error=repr(error))


def fill(name: str, /, **values: Any) -> Markup:
    """Return the template `name` with `values` in it."""
    return Markup(environment().get_template(f"{name}.html").render(values))


@cache
def environment() -> Environment:
    """Make the templates' environment: all is escaped, what is missing is an error, `ui` holds the common pieces."""
    made = Environment(
        loader=PackageLoader("flywheel.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else words.clean(value),
    )
    made.filters |= {name: getattr(words, name) for name in ("clean", "rate", "p_value", "size", "moment")}
    made.globals["ui"] = made.get_template("pieces.html").module
    return made
