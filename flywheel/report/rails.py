"""The lineage of a checkpoint laid out as a graph that reads like `git log --graph`: newest first, rails at the left.

    o  policy/lift@9bd1c0        a checkpoint
    |
    #  retrain/41f0              the run that made it
    |\
    | o  policy/lift@77aa01      what that run read: a checkpoint ...
    +--.
    v                            ... and a corpus, which ingest filled from files

Each row draws its own piece of the rails, stretched to the height of its words, so that nothing shrinks on a small
screen.
"""

from __future__ import annotations

from typing import Any

MOST = 40  # nodes shown
LANE = 18  # px between two rails

Line = tuple[int, float, int, float]  # x0, y0, x1, y1: x in lanes, y in shares of the row (0 top, 1 bottom)


def rails(nodes: list[dict[str, Any]], parents: dict[str, list[str]]) -> tuple[list[tuple[int, list[Line]]], int]:
    """Give each node its lane and the lines that cross its row; and how many lanes there are."""
    lanes: list[str | None] = []  # the node that each lane leads to
    rows = []

    def free() -> int:
        if None not in lanes:
            lanes.append(None)
        return lanes.index(None)

    for node in (n["node"] for n in nodes):
        here = [i for i, goal in enumerate(lanes) if goal == node]
        lane = here[0] if here else free()
        lines: list[Line] = [(i, 0.0, lane, 0.5) for i in here]
        lines += [(i, 0.0, i, 1.0) for i, goal in enumerate(lanes) if goal not in (None, node)]
        for i in here:
            lanes[i] = None
        for number, parent in enumerate(dict.fromkeys(parents[node])):
            goal = lanes.index(parent) if parent in lanes else lane if number == 0 else free()
            lanes[goal] = parent
            lines.append((lane, 0.5, goal, 1.0))
        rows.append((lane, lines))
    return rows, max(1, len(lanes))


def path(line: Line) -> str:
    """Write a line as the `d` of an SVG path, in a row 100 high."""
    x0, y0, x1, y1 = LANE * (line[0] + 0.5), 100 * line[1], LANE * (line[2] + 0.5), 100 * line[3]
    middle = (y0 + y1) / 2
    return f"M{x0:g} {y0:g}" + (f"V{y1:g}" if x0 == x1 else f"C{x0:g} {middle:g} {x1:g} {middle:g} {x1:g} {y1:g}")


def layout(nodes: list[dict[str, Any]], parents: dict[str, list[str]]) -> dict[str, Any]:
    """Return what the template draws: the newest nodes with `x` and `paths`, the rails' `width`, and `left_out`."""
    rows, lanes = rails(nodes, parents)
    drawn = [
        {**node, "x": f"{LANE * (lane + 0.5):g}", "paths": [path(line) for line in lines]}
        for node, (lane, lines) in zip(nodes[:MOST], rows, strict=False)
    ]
    return {"nodes": drawn, "width": LANE * lanes, "left_out": len(nodes) - len(drawn)}
