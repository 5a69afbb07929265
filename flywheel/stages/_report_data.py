"""The report's sections on data: where the failures start, with a clip of each kind, and how the corpus grew."""

from __future__ import annotations

from typing import Any

from flywheel import stats
from flywheel.stages import _report_charts as charts
from flywheel.stages import _report_clip, _report_starts
from flywheel.stages import _report_facts as facts
from flywheel.stages import _report_page as html
from flywheel.stages._report_page import esc


def failures(seen: dict[str, Any]) -> str:
    """Where the failures start, and a clip of each kind."""
    name, heading = "failures", "Where the failures start"
    now = f"{seen['name']}@{seen['standing']['id']}" if seen["standing"] else None
    ref = now if now in seen["outcomes"] else next(reversed(seen["outcomes"]), None)
    if ref is None:
        return html.section(
            name, heading, "", html.card("Not known yet", html.empty("No policy was scored on report seeds yet."))
        )
    columns = seen["outcomes"][ref]["columns"]
    cards, first = [], None
    found = _report_starts.where(columns, seen["task"], seen["outcomes"][ref].get("names"))
    if "why" in found:
        lead = esc(found["why"])
    else:
        lead = esc(_report_starts.advice(found))
        note = (
            f"{len(columns['seed'])} report episodes of <code>{esc(ref)}</code>. Boxed: the success rate of each cell. Chosen among "
            f"{found['pairs']} pair{'s' if found['pairs'] > 1 else ''} of {esc(found['source'])}."
        )
        cards.append(html.chart("Success by initial condition", charts.starts(found), note))
        (_, vx, ex), (_, vy, ey), (i, j) = found["x"], found["y"], found["worst"]
        first = (ex[j] <= vx) & (vx <= ex[j + 1]) & (ey[i] <= vy) & (vy <= ey[i + 1])
    config = {"num_envs": 1, "threads": 1, **seen["outcomes"][ref]["config"], "task": seen["task"]}
    clips = _report_clip.film(seen["place"], ref, config, columns, _report_clip.choose(columns, first))
    if all(isinstance(clip, str) for clip in clips.values()):
        cards += [html.card("Clips", html.empty(text)) for text in dict.fromkeys(clips.values())]
        clips = {}
    for kind, clip in clips.items():
        title = f"A {kind}"
        if isinstance(clip, str):
            cards.append(html.card(title, html.empty(clip)))
            continue
        moving, still, seed = clip
        picture = (
            f'<figure><picture><source media="(prefers-reduced-motion:reduce)" srcset="{still}">'
            f'<img src="{moving}" width="320" height="240" alt="{kind}: the episode of seed {seed}, filmed"></picture></figure>'
        )
        cards.append(html.card(title, picture, f"Seed {seed}, <code>{esc(ref)}</code>."))
    return html.section(name, heading, lead, html.grid(*cards))


def corpus(seen: dict[str, Any]) -> str:
    """How the corpus grew, how good it is, what was kept out."""
    held, bad = seen["corpus"], facts.quarantined(seen["runs"])
    if held is None:
        body = html.card(
            "Empty",
            html.empty(
                "There are no episodes yet.", "flywheel ingest source='demos/*.hdf5' format=robomimic_hdf5 task=lift"
            ),
        )
        return html.section("corpus", "Corpus", "", body + _kept_out(bad))
    table, rows = held["table"], facts.quality(held)
    removed = sum(line["removed"] for line in held["log"])
    lead = f"Version {held['version']}: {len(table['hash'])} episodes, {int(table['length'].sum()):,} steps"
    lead += f"; {removed} removed by tombstones. Failures are kept." if removed else ". Failures are kept."
    items = []
    for row in rows:
        low, high = stats.wilson(row["k"], row["known"])
        share = row["k"] / row["known"] if row["known"] else None
        bar = (
            html.interval(share, low, high, str(row["who"]))
            if row["known"]
            else '<div class="sub">outcome unknown</div>'
        )
        told = f"<b>{share:.2f}</b> of {row['known']}" if row["known"] else f"{row['episodes']}"
        items.append(f'<div class="name">{esc(row["who"], 60)}</div>{bar}<div class="num">{told}</div>')
    fps = float(table["fps"].max()) if len(table["fps"]) else 0.0
    share = html.card(
        "Success by who acted",
        '<div class="rows">' + '<div class="sep"></div>'.join(items) + "</div>",
        "With 95 % intervals; exploration included.",
    )
    note = f"The middle episode, and the range of the middle 80 %.{f' {fps:g} steps are a second.' if fps else ''}"
    cards = html.grid(
        html.chart("Episodes by version", charts.growth(*facts.growth(held)), "Those that are alive today, by the version that added them."),
        share, html.chart("Length of episodes", charts.lengths(rows, fps), note),
    )  # fmt: skip
    return html.section("corpus", "Corpus", esc(lead), cards, _kept_out(bad))


def _kept_out(bad: list[dict[str, Any]]) -> str:
    if not bad:
        return ""
    rows = [[esc(b.get("file")), esc(b.get("episode")), esc(b.get("reason"))] for b in bad[:25]]
    more = f"and {len(bad) - 25} more, in the ingest runs' out/quarantine.json" if len(bad) > 25 else ""
    return html.card(
        f"Quarantined: {len(bad)}", html.table(["file", "episode", "why it was kept out"], rows, "mn"), more
    )
