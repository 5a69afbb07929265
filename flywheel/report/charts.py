"""Charts as SVG: matplotlib draws them 360 px wide, colours are the page's own (light and dark), text stays text."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from flywheel import stats
from flywheel.report.words import clean

WIDTH = 360
NAMES = ("ink", "soft", "line", "blue", "green", "orange", "violet", "grey", "teal", "rose", "card")
COLOUR = {name: f"#0badc{i:x}" for i, name in enumerate(NAMES)}  # stand-ins that become var(--name)
ORDER = ("blue", "green", "violet", "orange", "teal", "rose", "grey")
RC = {
    "svg.fonttype": "none", "svg.hashsalt": "flywheel", "text.parse_math": False,
    "font.family": "DejaVu Sans", "font.size": 12,
    "axes.edgecolor": COLOUR["line"], "axes.labelcolor": COLOUR["soft"], "axes.titlesize": 12, "axes.labelsize": 12,
    "axes.spines.left": False, "axes.spines.right": False, "axes.spines.top": False,
    "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True,
    "grid.color": COLOUR["line"], "grid.linewidth": 1, "text.color": COLOUR["ink"],
    "xtick.color": COLOUR["soft"], "ytick.color": COLOUR["soft"], "xtick.labelsize": 12, "ytick.labelsize": 12,
    "xtick.major.size": 0, "ytick.major.size": 0, "xtick.minor.size": 0, "ytick.minor.size": 0, "legend.frameon": False,
    "legend.fontsize": 12, "legend.handlelength": 1.2, "legend.borderpad": 0, "legend.columnspacing": 1.2,
    "legend.handletextpad": 0.5, "lines.linewidth": 2, "lines.markersize": 5,
    "savefig.facecolor": "none", "axes.facecolor": "none",
}  # fmt: skip


class Chart(NamedTuple):
    """A chart as the template draws it: what it shows in words, its viewBox, and the SVG inside."""

    label: str
    box: str
    body: Markup


def draw(name: str, label: str, paint: Callable[[Any], None], height: int = 150, left: int = 44) -> Chart:
    """Draw one set of axes, `height` px high, painted by `paint(ax)`; `name` makes its ids its own on the page."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(RC), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that matplotlib's font lacks is the browser's to draw
        figure = Figure()
        ax = figure.add_subplot()
        paint(ax)
        names = ax.get_legend_handles_labels()[1]
        columns = 3 if max(map(len, names), default=0) <= 12 else 2
        rows = -(-len(names) // columns)
        whole = height + 42 + 10 + 18 * rows
        figure.set_size_inches(WIDTH / 72, whole / 72)
        wide = WIDTH - left - 14
        ax.set_position((left / WIDTH, 42 / whole, wide / WIDTH, height / whole))
        if names:
            at = (-(left - 4) / wide, 1 + 8 / height)
            ax.legend(loc="lower left", bbox_to_anchor=at, ncols=columns, borderaxespad=0, labelspacing=0.3)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Chart(label, *inline(file.getvalue(), name))


def inline(svg: str, name: str) -> tuple[str, Markup]:
    """Take matplotlib's SVG file apart: its viewBox, and what is inside, with ids and colours of the page's own."""
    head, _, body = svg[svg.index("<svg") :].partition(">")
    box = re.search(r'viewBox="([^"]*)"', head)[1]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|</svg>\s*$", "", body, flags=re.S)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r"'DejaVu Sans'(, [^;\"]*)?|DejaVu Sans\b", "system-ui, 'DejaVu Sans', sans-serif", body)
    for key, stand_in in COLOUR.items():
        body = body.replace(stand_in, f"var(--{key})")
    return box, Markup(body)  # matplotlib has escaped every text in it


def _ticks(axis, whole: bool = False) -> None:
    """Ask for few ticks; with `whole`, at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1) if whole else MaxNLocator(nbins=5))


def _rates(ax, xlabel: str, whole: bool = True) -> None:
    """Prepare axes for rates between 0 and 1."""
    ax.set_ylim(-0.02, 1.02)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    ax.set_xlabel(xlabel)
    if whole:
        _ticks(ax.xaxis, whole=True)


def _with_intervals(ax, x, points: list[tuple[float, float, float]], label: str | None = None) -> None:
    """Draw a line of rates with their intervals: `points` are (rate, low, high)."""
    value, low, high = np.array(points, float).T
    ax.fill_between(x, low, high, color=COLOUR["blue"], alpha=0.18, linewidth=0)
    ax.vlines(x, low, high, color=COLOUR["blue"], alpha=0.45, linewidth=1.5)
    ax.plot(x, value, "o-", color=COLOUR["blue"], label=label, clip_on=False)


def success(rounds: list[dict[str, Any]], base: float | None) -> Chart:
    """Draw success over rounds: from the environment's resets and, where rounds began there, from demonstrations."""

    def paint(ax):
        _rates(ax, "round")
        if played := [r for r in rounds if r["n"]]:
            points = [(r["success"], *stats.wilson(r["k"], r["n"])) for r in played]
            _with_intervals(ax, [r["at"] for r in played], points, "own resets")
        if along := [r for r in rounds if r.get("from_demos") is not None]:
            at = [r["at"] for r in along]
            ax.plot(at, [r["from_demos"] for r in along], "s--", color=COLOUR["violet"], label="from demonstrations")
            if any(r.get("window_low") is not None for r in along):
                ax.plot(at, [r.get("window_low") for r in along], color=COLOUR["grey"], label="start")
        if base is not None:
            ax.axhline(base, color=COLOUR["orange"], linewidth=1.5, dashes=(4, 3), label="before")
        for at in [after["at"] for before, after in pairwise(rounds) if before["run"] != after["run"]]:
            ax.axvline(at - 0.5, color=COLOUR["line"], linewidth=1)

    rates = ", ".join(f"round {r['at']}: {r['success']:.2f}" for r in rounds if r["success"] is not None)
    return draw("rounds", f"Success of the episodes collected in each round. {rates}", paint)


def windows(found: list[tuple[int, int, int]], base: float) -> Chart:
    """Draw the success of each window (first, successes, episodes) of practice, and of who began."""

    def paint(ax):
        _rates(ax, "episode of practice")
        points = [(won / n, *stats.wilson(won, n)) for _, won, n in found]
        _with_intervals(ax, [first + n / 2 for first, _, n in found], points, "windows")
        ax.axhline(base, color=COLOUR["orange"], linewidth=1.5, dashes=(4, 3), label="who began")
        ax.set_xlim(left=0)

    rates = ", ".join(f"from {first}: {won / n:.2f}" for first, won, n in found)
    return draw("windows", f"Success of practice in windows of episodes, against {base:.2f} at first. {rates}", paint)


def nights(rows: list[dict[str, Any]]) -> Chart:
    """Draw the success of production night by night."""

    def paint(ax):
        _rates(ax, "night")
        _with_intervals(ax, range(1, len(rows) + 1), [(r["success"], *r["ci95"]) for r in rows])

    rates = ", ".join(f"night {i}: {r['success']:.2f}" for i, r in enumerate(rows, 1))
    return draw("nights", f"Success of the policy in production after each nightly. {rates}", paint)


def curve(points: list[dict[str, Any]], chosen: int | None) -> Chart:
    """Draw the success of imitation over its updates, with the point that was chosen."""

    def paint(ax):
        _rates(ax, "thousand updates", whole=False)
        x = np.array([p["updates"] for p in points]) / 1000
        _with_intervals(ax, x, [(p["success"], *p["ci95"]) for p in points])
        best = {"color": COLOUR["orange"], "markersize": 9, "label": "chosen", "clip_on": False}
        for p in points:
            if p["updates"] == chosen:
                ax.plot(p["updates"] / 1000, p["success"], "o", **best)
        ax.set_xlim(left=0)

    rates = ", ".join(f"{p['updates']} updates: {p['success']:.2f}" for p in points)
    return draw("curve", f"Success along imitation's training curve. {rates}", paint)


def line(
    name: str, title: str, key: str, x: list[float], y: list[float], xlabel: str, band: list[float] | None = None
) -> Chart:
    """Draw a number called `key` over rounds or updates; `band` is a spread around it."""
    x, y = np.asarray(x, float), np.asarray(y, float)

    def paint(ax):
        ax.plot(x, y, "o-", color=COLOUR["blue"], label=key if band else None)
        if band:
            edges, how = (y - band, y + band), {"color": COLOUR["blue"], "alpha": 0.18, "linewidth": 0}
            ax.fill_between(x, *edges, **how, label="spread of members")
        if xlabel == "round":
            _ticks(ax.xaxis, whole=True)
        else:
            ax.set_xlim(left=0)
        ax.margins(y=0.15)
        ax.set_xlabel(xlabel)

    return draw(name, f"{title}: {key} from {y[0]:.3g} to {y[-1]:.3g}", paint, left=50)


def actions(name: str, label: str, several: dict[str, np.ndarray], most: int) -> Chart:
    """Draw the executed actions [T, Da] of one or two policies over steps: the `most` numbers that move most, the
    second policy dashed."""
    first = next(iter(several.values()))
    moved = np.sum([np.std(rows, axis=0) for rows in several.values()], axis=0)
    chosen = sorted(np.argsort(-moved, kind="stable")[:most].tolist())

    def paint(ax):
        for style, rows in zip(("-", "--"), several.values(), strict=False):
            for colour, number in zip(ORDER, chosen, strict=False):
                told = f"action[{number}]" if rows is first else None
                ax.plot(rows[:, number], style, color=COLOUR[colour], label=told, linewidth=1.6)
        ax.set_xlabel("step" + (", dashed: incumbent" if len(several) > 1 else ""))
        _ticks(ax.xaxis)
        _ticks(ax.yaxis)

    return draw(name, label, paint, height=110)


def growth(versions: np.ndarray, groups: dict[str, np.ndarray]) -> Chart:
    """Draw the number of episodes by version, stacked by who acted."""

    def paint(ax):
        edges = np.append(versions, versions[-1] + 1) - 0.5
        below = np.zeros(len(versions))
        for (who, count), colour in zip(groups.items(), ORDER, strict=False):
            how = {"baseline": below, "fill": True, "color": COLOUR[colour], "alpha": 0.85}
            ax.stairs(below + count, edges, label=_short(who), **how)
            below = below + count
        _ticks(ax.xaxis, whole=True)
        ax.set_ylim(0)
        ax.margins(x=0)
        ax.set_xlabel("version")

    counts = ", ".join(f"{count[-1]} {who}" for who, count in groups.items())
    return draw("growth", f"Episodes in the corpus by version; in the newest: {counts}", paint, left=50)


def lengths(rows: list[dict[str, Any]]) -> Chart:
    """Draw how long episodes are, by who acted: the middle one, and where 80 % lie."""

    def paint(ax):
        ax.grid(axis="y", visible=False)
        ax.grid(axis="x", visible=True)
        for i, row in enumerate(rows):
            low, middle, high = row["length"]
            ax.plot([low, high], [i, i], color=COLOUR["blue"], alpha=0.35, linewidth=9, solid_capstyle="round")
            ax.plot(middle, i, "o", color=COLOUR["blue"], markersize=9)
            ax.text(0, i - 0.32, _short(row["who"], 40), va="bottom", fontsize=12)
        ax.set_ylim(len(rows) - 0.5, -0.75)
        ax.set_yticks([])
        ax.set_xlim(left=0)
        ax.set_xlabel("steps")

    medians = ", ".join(f"{r['who']}: {r['length'][1]:.0f} steps" for r in rows)
    return draw("lengths", f"Median length of episodes. {medians}", paint, left=12, height=40 * max(3, len(rows)))


def starts(pattern: dict[str, Any]) -> Chart:
    """Draw successes and failures by where they began, over the success rate of each cell."""
    x, y, success = pattern["x"], pattern["y"], pattern["success"]
    cells = [(i, j, pattern["k"][i, j] / n) for (i, j), n in np.ndenumerate(pattern["n"]) if n]

    def paint(ax):
        from matplotlib.patches import Rectangle

        ax.grid(visible=False)
        for i, j, rate in cells:
            size = x.edges[j + 1] - x.edges[j], y.edges[i + 1] - y.edges[i]
            shade = {"facecolor": COLOUR["orange"], "alpha": 0.55 * (1 - rate), "linewidth": 0}
            ax.add_patch(Rectangle((x.edges[j], y.edges[i]), *size, **shade))
        dot, cross = (
            {"color": COLOUR["blue"], "ms": 3.5, "alpha": 0.75},
            {"color": COLOUR["orange"], "ms": 5.5, "mew": 1.6},
        )
        ax.plot(x.values[success], y.values[success], "o", label="success", **dot)
        ax.plot(x.values[~success], y.values[~success], "x", label="failure", **cross)
        box = {"facecolor": COLOUR["card"], "edgecolor": "none", "alpha": 0.85, "boxstyle": "round,pad=0.25"}
        for i, j, rate in cells:
            middle = (x.edges[j] + x.edges[j + 1]) / 2, (y.edges[i] + y.edges[i + 1]) / 2
            ax.text(*middle, f"{rate:.2f}", ha="center", va="center", fontsize=13, fontweight="bold", bbox=box)
        ax.set(xlim=x.edges[[0, -1]], ylim=y.edges[[0, -1]])
        ax.set(xlabel=_short(x.label, 32), ylabel=_short(y.label, 32))
        _ticks(ax.xaxis)
        _ticks(ax.yaxis)

    worst = f"{pattern['k'][pattern['worst']]} of {pattern['n'][pattern['worst']]}"
    label = f"Successes and failures by {x.name} and {y.name}; the least success is {worst}"
    return draw("starts", label, paint, left=62, height=280)


def _short(text: str, most: int = 18) -> str:
    return clean(text, most)
