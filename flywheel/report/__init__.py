"""The page that tells a person in the morning what a store has learnt: `page.render` makes it of `facts.look`.

`facts`, `results` and `episodes` read the store; `sections` chooses what each section says; `starts`, `charts`, `clips`
and `rails` make what it shows; `templates/` holds every word of HTML, a file a section. The page is a function of the
store alone."""

from __future__ import annotations

from pathlib import Path


def build(place) -> Path:
    """Write the page of the store `place`, <store>/report/index.html, and return its path."""
    from flywheel import store
    from flywheel.report import facts, page

    path = store.make_dirs(place.root / "report") / "index.html"
    store.write_atomic(path, page.render(facts.look(place)).encode())
    place.mirror.hand_over(path)
    return path
