"""The lineage of a checkpoint as a graph that reads like `git log --graph`: newest first, rails on the left, words beside.

    o  policy/lift@9bd1c0        a checkpoint
    |
    #  retrain/41f0              the run that made it
    |\
    | o  policy/lift@77aa01      what that run read: a checkpoint ...
    +--.
    v                            ... and a corpus, which ingest filled from files

Each row draws its own piece of the rails, stretched to the height of its words, so that nothing shrinks on a small screen.
"""

from __future__ import annotations

from typing import Any

from flywheel.stages._report_page import esc

MOST = 40  # nodes shown
LANE = 18  # px between two rails
MARKS = {  # kind: colour and shape
    "checkpoint": ("--blue", "border-radius:50%"),
    "run": ("--violet", "border-radius:2px"),
    "corpus": ("--green", "border-radius:2px;rotate:45deg"),
    "file": ("--grey", "border-radius:6px 6px 0 0"),
}


def rails(nodes: list[dict[str, Any]], parents: dict[str, list[str]]) -> tuple[list[tuple[int, list]], int]:
    """For each node its lane and its lines [(x0, y0, x1, y1)] in lanes and in shares of the row (0 top, 1 bottom); width."""
    lanes: list[str | None] = []
    rows = []

    def free() -> int:
        if None not in lanes:
            lanes.append(None)
        return lanes.index(None)

    for node in (n["node"] for n in nodes):
        here = [i for i, goal in enumerate(lanes) if goal == node]
        lane = here[0] if here else free()
        lines = [(i, 0.0, lane, 0.5) for i in here]
        lines += [(i, 0.0, i, 1.0) for i, goal in enumerate(lanes) if goal not in (None, node)]
        for i in here:
            lanes[i] = None
        for number, parent in enumerate(dict.fromkeys(parents[node])):
            if parent in lanes:
                lines.append((lane, 0.5, lanes.index(parent), 1.0))
                continue
            if number == 0:
                goal = lane
                while goal >= len(lanes):
                    lanes.append(None)
            else:
                goal = free()
            lanes[goal] = parent
            lines.append((lane, 0.5, goal, 1.0))
        rows.append((lane, lines))
    return rows, max(1, len(lanes))


def draw(nodes: list[dict[str, Any]], parents: dict[str, list[str]]) -> str:
    """The graph as HTML."""
    rows, width = rails(nodes, parents)
    gutter = width * LANE + 6
    items = []
    for node, (lane, lines) in list(zip(nodes, rows, strict=True))[:MOST]:
        paths = "".join(
            f'<path d="M{LANE * (a + 0.5):g} {100 * y0:g}'
            + (f"V{100 * y1:g}" if a == b else _curve(LANE * (a + 0.5), 100 * y0, LANE * (b + 0.5), 100 * y1))
            + '" vector-effect="non-scaling-stroke"/>'
            for a, y0, b, y1 in lines
        )
        colour, shape = MARKS[node["kind"]]
        mark = f'<span class="mark" style="left:{LANE * (lane + 0.5):g}px;background:var({colour});{shape}"></span>'
        items.append(
            f'<li style="padding-left:{gutter}px"><svg aria-hidden="true" width="{width * LANE}" viewBox="0 0 {width * LANE} 100" '
            'preserveAspectRatio="none"><g fill="none" stroke="var(--grey)" stroke-width="1.5">'
            f"{paths}</g></svg>{mark}"
            f'<p class="what id">{esc(node["title"])}</p><p class="sub">{esc(node["kind"])}: {esc(node["detail"])}</p></li>'
        )
    left = len(nodes) - len(items)
    more = (
        f'<p class="more">{left} older ones are left out; <code>flywheel lineage NAME</code> lists them all.</p>'
        if left > 0
        else ""
    )
    return f'<ol class="graph" aria-label="lineage, newest first">{"".join(items)}</ol>{more}'


def _curve(x0: float, y0: float, x1: float, y1: float) -> str:
    middle = (y0 + y1) / 2
    return f"C{x0:g} {middle:g} {x1:g} {middle:g} {x1:g} {y1:g}"
