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

from flywheel.stages._report_page import esc, moment

MOST = 40  # nodes shown
LANE = 18  # px between two rails
MARKS = {  # kind: colour and shape
    "checkpoint": ("--blue", "border-radius:50%"),
    "run": ("--violet", "border-radius:2px"),
    "corpus": ("--green", "border-radius:2px;rotate:45deg"),
    "file": ("--grey", "border-radius:6px 6px 0 0"),
}


def graph(place, runs: list[dict], ref: str) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """Nodes in an order in which each comes before what it was made from, and {node: what it was made from}."""
    by_name = {f"{r['stage']}/{r['key']}": r for r in runs}
    ingests = [r for r in runs if r["stage"] == "ingest"]
    nodes: dict[str, dict[str, Any]] = {}
    parents: dict[str, list[str]] = {}
    done: list[str] = []

    def add(kind: str, title: str, detail: str, made_from: list[tuple]) -> str:
        node = f"{kind} {title}"
        if node not in nodes:
            nodes[node] = {"kind": kind, "title": title, "detail": detail}
            parents[node] = []
            for visit in made_from:
                parents[node].append(visit[0](*visit[1:]))
            done.append(node)
        return node

    def checkpoint(name: str) -> str:
        try:
            record = place.names.resolve(name)
        except ValueError:
            return add("checkpoint", name, "no longer in the store", [])
        title = f"{record['name']}@{record['id']}"
        detail = ", ".join(
            [str(record.get("kind") or "checkpoint"), *(["in production"] if record["production"] else [])]
            + ([f"{record['updates']} updates"] if record.get("updates") else [])
        )
        return add("checkpoint", title, detail, [(run, record["run"])])

    def run(name: str) -> str:
        record = by_name.get(name)
        if record is None:
            return add("run", name, "not finished, or pruned", [])
        made: list[tuple] = []
        for kind, value in record["inputs"].items():
            if kind in ("checkpoint", "against"):
                made.append((checkpoint, value["ref"]))
            elif kind == "corpus":
                made.append((corpus, value))
            elif kind == "source":
                made += [(file, name) for name in value.get("files", [])]
        told = record["result"].get("metrics", {})
        words = [f"{told[k]} {k}" for k in ("rounds", "added", "demonstrations") if k in told]
        return add("run", name, ", ".join([*words, moment(record.get("finished", ""))]), made)

    def corpus(value: dict[str, Any]) -> str:
        files = set(value.get("files", []))
        feeding = [r for r in ingests if files & set(r["inputs"].get("source", {}).get("files", []))]
        origins = ", ".join(f"{n} {origin}" for origin, n in value.get("origins", {}).items())
        made = [(run, f"{r['stage']}/{r['key']}") for r in feeding] or [(file, name) for name in sorted(files)]
        return add("corpus", f"corpus@{value.get('version')} ({str(value['id'])[:12]})", origins, made)

    def file(name: str) -> str:
        return add("file", name, "demonstrations", [])

    checkpoint(ref)
    return [{"node": n, **nodes[n]} for n in reversed(done)], parents


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
