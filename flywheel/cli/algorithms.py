"""The map of algorithms: where the data comes from x how often the policy is updated; as text, and as a picture."""

from __future__ import annotations

from html import escape
from typing import Any

from flywheel.cli import config

SOURCES = {
    "offline": "offline: the corpus as it is",
    "off_policy": "off-policy: own episodes are added",
    "on_policy": "on-policy: only what it does now",
}
CADENCES = {"one-step": "once", "multi-step": "a few rounds", "iterative": "all the time"}


def tables() -> dict[str, dict[str, Any]]:
    """algorithm/NAME.yaml by name."""
    import yaml

    return {name: yaml.safe_load(path.read_text()) for name, path in sorted(config.options("algorithm").items())}


def cadence(table: dict[str, Any]) -> str:
    """one-step: the data is evaluated, then the policy improved, once; multi-step: a few rounds of it; iterative:
    many."""
    rounds = table["cadence"]["rounds"]
    return "one-step" if rounds == 1 else "multi-step" if rounds <= 20 else "iterative"


def cells(known: dict[str, dict[str, Any]]) -> dict[tuple[str, str], list[str]]:
    """{(cadence, source): names}; a cell that nobody is in is empty."""
    return {
        (c, s): [name for name, table in known.items() if (cadence(table), table["source"]) == (c, s)]
        for c in CADENCES
        for s in SOURCES
    }


def told(table: dict[str, Any]) -> tuple[str, str]:
    """How an algorithm evaluates and how it improves, in one line each."""

    def losses(act: str) -> list[str]:
        rows = table.get(act) or {}
        return [f"{net}: " + " + ".join(_loss(name, args) for name, args in each.items()) for net, each in rows.items()]

    advantage = [_loss(name, {}) for name in table.get("advantage") or {}]
    improve = losses("improve") or ["argmax"]
    act = ["act: best of N"] if table.get("act") else []
    return ", ".join(losses("evaluate") + advantage) or "-", ", ".join(improve + act)


def _loss(name: str, args: dict[str, Any] | None) -> str:
    """td(soft), conservative, clipped_surrogate: a loss, and the function that it is given."""
    for part in ("next_value", "baseline"):
        if part in (args or {}):
            value = args[part]
            return f"{name}({next(iter(value)) if isinstance(value, dict) else value})"
    return name


def text(known: dict[str, dict[str, Any]]) -> str:
    """The map for a terminal, and beneath it each algorithm's cadence, evaluation and improvement."""
    grid = cells(known)
    lines = []
    for source, words in SOURCES.items():
        lines.append(f"data {words}")
        for c, often in CADENCES.items():
            lines.append(f"    {c:10} ({often}){'':{14 - len(often)}}{', '.join(grid[c, source]) or '-'}")
    lines += ["", f"{'algorithm':14} {'rounds x (evaluate, improve)':30} {'evaluate':62} improve"]
    for name, table in known.items():
        c = table["cadence"]
        lines.append(
            f"{name:14} {c['rounds']} x ({c['evaluate']}, {c['improve']})".ljust(46)
            + f"{told(table)[0]:62} {told(table)[1]}"
        )
    return "\n".join(lines)


def svg(known: dict[str, dict[str, Any]]) -> str:
    """The map as a picture: three columns of sources, three rows of cadences, each algorithm with its two acts."""
    grid, width, head, line = cells(known), 440, 44, 40
    heights = {c: 26 + line * max(1, *(len(grid[c, s]) for s in SOURCES)) for c in CADENCES}
    left, total = 130, head + sum(heights.values())
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + 3 * width} {total}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{left + 3 * width}" height="{total}" fill="#ffffff"/>',
    ]
    for i, words in enumerate(SOURCES.values()):
        out.append(
            f'<text x="{left + i * width + 14}" y="28" font-size="16" font-weight="bold" '
            f'fill="#1f3044">{escape(words)}</text>'
        )
    top = head
    for c, often in CADENCES.items():
        out.append(f'<text x="14" y="{top + 26}" font-size="16" font-weight="bold" fill="#1f3044">{c}</text>')
        out.append(f'<text x="14" y="{top + 46}" fill="#5b6b7c">{often}</text>')
        for i, source in enumerate(SOURCES):
            x, names = left + i * width, grid[c, source]
            fill = "#eef4fa" if names else "#f7f7f7"
            out.append(
                f'<rect x="{x + 4}" y="{top + 4}" width="{width - 8}" height="{heights[c] - 8}" rx="6" fill="{fill}"/>'
            )
            for k, name in enumerate(names):
                y = top + 26 + k * line
                evaluate, improve = (escape(part) for part in told(known[name]))
                out.append(f'<text x="{x + 14}" y="{y}" font-weight="bold" fill="#12507b">{name}</text>')
                out.append(f'<text x="{x + 124}" y="{y}" fill="#333333" font-size="11.5">{evaluate}</text>')
                out.append(f'<text x="{x + 124}" y="{y + 15}" fill="#8a4b08" font-size="11.5">{improve}</text>')
        top += heights[c]
    return "\n".join([*out, "</svg>"]) + "\n"
