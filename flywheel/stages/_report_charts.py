"""Charts as SVG for the page: matplotlib draws them 360 px wide, colours are the page's own (light and dark), text stays text."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from flywheel import stats
from flywheel.stages._report_page import esc

WIDTH = 360
NAMES = ("ink", "soft", "line", "blue", "green", "orange", "violet", "grey", "teal", "rose", "card")
COLOUR = {name: f"#0badc{i:x}" for i, name in enumerate(NAMES)}  # stand-ins that become var(--name)
ORDER = ("blue", "green", "violet", "orange", "teal", "rose", "grey")
RC = {
    "svg.fonttype": "none", "svg.hashsalt": "flywheel", "text.parse_math": False, "font.family": "DejaVu Sans", "font.size": 12,
    "axes.edgecolor": COLOUR["line"], "axes.labelcolor": COLOUR["soft"], "axes.titlesize": 12, "axes.labelsize": 12,
    "axes.spines.left": False, "axes.spines.right": False, "axes.spines.top": False, "axes.grid": True, "axes.grid.axis": "y",
    "axes.axisbelow": True, "grid.color": COLOUR["line"], "grid.linewidth": 1, "text.color": COLOUR["ink"],
    "xtick.color": COLOUR["soft"], "ytick.color": COLOUR["soft"], "xtick.labelsize": 12, "ytick.labelsize": 12,
    "xtick.major.size": 0, "ytick.major.size": 0, "xtick.minor.size": 0, "ytick.minor.size": 0, "legend.frameon": False,
    "legend.fontsize": 12, "legend.handlelength": 1.2, "legend.borderpad": 0, "legend.columnspacing": 1.2,
    "legend.handletextpad": 0.5, "lines.linewidth": 2, "lines.markersize": 5, "savefig.facecolor": "none", "axes.facecolor": "none",
}  # fmt: skip


def draw(name: str, label: str, paint: Callable[[Any], None], height: int = 150, left: int = 44) -> str:
    """One set of axes, `height` px high, painted by `paint(ax)`, as inline SVG; `label` says in words what it shows."""
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
    return inline(file.getvalue(), name, label)


def inline(svg: str, name: str, label: str) -> str:
    """matplotlib's SVG file as an element of our page: no prolog, no fixed size, ids and colours of its own."""
    svg = svg[svg.index("<svg") :]
    head, _, body = svg.partition(">")
    box = re.search(r'viewBox="[^"]*"', head)[0]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.S)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r"'DejaVu Sans'(, [^;\"]*)?|DejaVu Sans\b", "system-ui, 'DejaVu Sans', sans-serif", body)
    for key, stand_in in COLOUR.items():
        body = body.replace(stand_in, f"var(--{key})")
    return f'<svg role="img" aria-label="{esc(label, 1500)}" {box}>{body}'


def _whole(ax) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


def _shares(ax) -> None:
    ax.set_ylim(-0.02, 1.02)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])


def _with_intervals(ax, x, points: list[tuple[float, float, float]], colour: str, label: str | None = None) -> None:
    """A line of rates and their intervals: `points` are (rate, low, high)."""
    value, low, high = np.array(points, float).T
    ax.fill_between(x, low, high, color=COLOUR[colour], alpha=0.18, linewidth=0)
    ax.vlines(x, low, high, color=COLOUR[colour], alpha=0.45, linewidth=1.5)
    ax.plot(x, value, "o-", color=COLOUR[colour], label=label, clip_on=False)


def success(lines: list[dict[str, Any]], base: float | None) -> str:
    """Success over rounds from the environment's own resets, and from demonstrations' states where rounds began there."""

    def paint(ax):
        _shares(ax)
        _whole(ax)
        if own := [r for r in lines if r["n"]]:
            points = [(r["success"], *stats.wilson(r["k"], r["n"])) for r in own]
            _with_intervals(ax, [r["at"] for r in own], points, "blue", "own resets")
        if far := [r for r in lines if r.get("from_demos") is not None]:
            at = [r["at"] for r in far]
            ax.plot(at, [r["from_demos"] for r in far], "s--", color=COLOUR["violet"], label="from demonstrations")
            if any(r.get("window_low") is not None for r in far):
                low = [r.get("window_low") for r in far]
                ax.plot(at, low, color=COLOUR["grey"], label="start")
        if base is not None:
            ax.axhline(base, color=COLOUR["orange"], linewidth=1.5, dashes=(4, 3), label="before")
        for at in [b["at"] for a, b in pairwise(lines) if a["run"] != b["run"]]:
            ax.axvline(at - 0.5, color=COLOUR["line"], linewidth=1)
        ax.set_xlabel("round")

    told = ", ".join(f"round {r['at']}: {r['success']:.2f}" for r in lines if r["success"] is not None)
    return draw("rounds", f"Success of the episodes collected in each round. {told}", paint)


def nights(rows: list[dict[str, Any]]) -> str:
    def paint(ax):
        _shares(ax)
        _whole(ax)
        _with_intervals(ax, range(1, len(rows) + 1), [(r["success"], *r["ci95"]) for r in rows], "blue")
        ax.set_xlabel("night")

    told = ", ".join(f"night {i}: {r['success']:.2f}" for i, r in enumerate(rows, 1))
    return draw("nights", f"Success of the policy in production after each nightly. {told}", paint)


def curve(points: list[dict[str, Any]], chosen: int | None) -> str:
    """Success of imitation over its updates."""
    points = [p for p in points if "success" in p]

    def paint(ax):
        _shares(ax)
        x = np.array([p["updates"] for p in points]) / 1000
        _with_intervals(ax, x, [(p["success"], *p["ci95"]) for p in points], "blue")
        for p in points:
            if p["updates"] == chosen:
                ax.plot(
                    p["updates"] / 1000,
                    p["success"],
                    "o",
                    color=COLOUR["orange"],
                    markersize=9,
                    label="chosen",
                    clip_on=False,
                )
        ax.set_xlim(left=0)
        ax.set_xlabel("thousand updates")

    told = ", ".join(f"{p['updates']} updates: {p['success']:.2f}" for p in points)
    return draw("curve", f"Success along imitation's training curve. {told}", paint)


def lines(
    name: str, label: str, x, series: dict[str, list[float]], xlabel: str, band: list[float] | None = None
) -> str:
    """Some numbers over rounds or updates; `band` is a spread around the first of them."""
    x = np.asarray(x, float)

    def paint(ax):
        for (key, values), colour in zip(series.items(), ORDER, strict=False):
            values = np.asarray(values, float)
            ax.plot(x, values, "o-", color=COLOUR[colour], label=key if len(series) > 1 or band else None)
            if band is not None and colour == ORDER[0]:
                spread = np.asarray(band, float)
                ax.fill_between(
                    x,
                    values - spread,
                    values + spread,
                    color=COLOUR[colour],
                    alpha=0.18,
                    linewidth=0,
                    label="spread of members",
                )
        if xlabel == "round":
            _whole(ax)
        else:
            ax.set_xlim(left=0)
        ax.margins(y=0.15)
        ax.set_xlabel(xlabel)

    told = "; ".join(f"{k} from {v[0]:.3g} to {v[-1]:.3g}" for k, v in series.items())
    return draw(name, f"{label}: {told}", paint, left=50)


def growth(versions: np.ndarray, groups: dict[str, np.ndarray]) -> str:
    """Episodes by version, stacked by who acted."""

    def paint(ax):
        edges = np.append(versions, versions[-1] + 1) - 0.5
        below = np.zeros(len(versions))
        for (who, count), colour in zip(groups.items(), ORDER, strict=False):
            ax.stairs(
                below + count, edges, baseline=below, fill=True, color=COLOUR[colour], alpha=0.85, label=_short(who)
            )
            below = below + count
        _whole(ax)
        ax.set_ylim(0)
        ax.margins(x=0)
        ax.set_xlabel("version")

    told = ", ".join(f"{count[-1]} {who}" for who, count in groups.items())
    return draw("growth", f"Episodes in the corpus by version; in the newest: {told}", paint, left=50)


def lengths(rows: list[dict[str, Any]], fps: float) -> str:
    """How long episodes are, by who acted: the middle one, and where 80 % lie."""

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

    told = ", ".join(f"{r['who']}: {r['length'][1]:.0f} steps" for r in rows)
    return draw("lengths", f"Median length of episodes. {told}", paint, left=12, height=40 * max(3, len(rows)))


def starts(found: dict[str, Any]) -> str:
    """Successes and failures by where they began, over the success rate of each cell."""
    (x, vx, ex), (y, vy, ey) = found["x"], found["y"]

    def paint(ax):
        ax.grid(visible=False)
        for (i, j), n in np.ndenumerate(found["n"]):
            if n:
                share = found["k"][i, j] / n
                box = (ex[j], ey[i]), ex[j + 1] - ex[j], ey[i + 1] - ey[i]
                ax.add_patch(_rectangle(*box, COLOUR["orange"], 0.55 * (1 - share)))
        won = found["success"]
        ax.plot(vx[won], vy[won], "o", color=COLOUR["blue"], markersize=3.5, alpha=0.75, label="success")
        ax.plot(vx[~won], vy[~won], "x", color=COLOUR["orange"], markersize=5.5, markeredgewidth=1.6, label="failure")
        for (i, j), n in np.ndenumerate(found["n"]):
            if n:
                middle = (ex[j] + ex[j + 1]) / 2, (ey[i] + ey[i + 1]) / 2
                box = {"facecolor": COLOUR["card"], "edgecolor": "none", "alpha": 0.85, "boxstyle": "round,pad=0.25"}
                ax.text(
                    *middle,
                    f"{found['k'][i, j] / n:.2f}",
                    ha="center",
                    va="center",
                    fontsize=13,
                    fontweight="bold",
                    bbox=box,
                )
        ax.set_xlim(ex[0], ex[-1])
        ax.set_ylim(ey[0], ey[-1])
        ax.set_xlabel(_short(x))
        ax.set_ylabel(_short(y))
        ax.xaxis.set_major_locator(_few())
        ax.yaxis.set_major_locator(_few())

    i, j = found["worst"]
    label = f"Successes and failures by {x} and {y}; the least success is {found['k'][i, j]} of {found['n'][i, j]}"
    return draw("starts", label, paint, left=62, height=280)


def _rectangle(corner, width, height, colour: str, alpha: float):
    from matplotlib.patches import Rectangle

    return Rectangle(corner, width, height, facecolor=colour, alpha=alpha, linewidth=0)


def _few():
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=5)


def _short(text: str, most: int = 18) -> str:
    text = str(text)
    return text if len(text) <= most else text[: most - 1] + "…"
