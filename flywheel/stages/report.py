"""report: one self-contained HTML page about a store, as a person wants to see it in the morning: the answer first.

`build` writes <store>/report/index.html. It is no stage that is looked up: it is quick, and always tells of the newest state.
The page is a function of the store alone. A part that cannot be told says so in its place; the others are there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flywheel import store
from flywheel.log import say
from flywheel.stages import _ancestry, _report_data, _report_learning, _report_lineage
from flywheel.stages import _report_facts as facts
from flywheel.stages import _report_page as html
from flywheel.stages._report_page import esc


def build(place, nightly: dict[str, Any] | None = None, task: dict[str, Any] | None = None) -> Path:
    """Write the page of the store `place` and return its path.

    nightly   the record of a nightly that ends just now (default: the newest finished one)
    task      the task's config (default: that of the newest run)
    """
    seen = look(place, nightly, task)
    title = headline(seen)
    parts = [f"<header>{title['html']}</header>\n<main>\n"]
    for name, heading, tell in SECTIONS:
        try:
            parts.append(tell(seen))
        except Exception as error:  # the rest of the page is worth having
            say(f"  report: {heading}: {error!r}")
            parts.append(
                html.section(name, heading, "", html.card("Not shown", html.empty(f"This part failed: {error!r}")))
            )
    when = html.moment(seen["runs"][-1].get("finished", "")) if seen["runs"] else "before the first run"
    parts.append(f"</main>\n<footer>As of {when}. Store: <code>{esc(place.root)}</code></footer>\n")
    path = store.make_dirs(place.root / "report") / "index.html"
    store.write_atomic(path, html.page(title["text"], "".join(parts)).encode())
    return path


def look(place, nightly: dict | None = None, task: dict | None = None) -> dict[str, Any]:
    """What several sections need, read once."""
    runs = place.runs()
    night = facts.newest_night(runs, nightly)
    decisions = facts.gates(place)
    name = facts.subject(place, runs, night, decisions)
    task = facts.task_of(runs, name, task)
    held = facts.corpus(place)
    outcomes = facts.outcomes(place, facts.of_task(runs, "evaluate", task) if task else runs, night)
    return {
        "place": place, "runs": runs, "night": night, "gates": decisions, "name": name, "task": task, "corpus": held,
        "outcomes": outcomes, "scores": facts.scores(night, outcomes), "standing": facts.standing(place, name),
        "retrains": facts.of_task(runs, "retrain", task), "pretrains": facts.of_task(runs, "pretrain", task),
    }  # fmt: skip


LASTS = 0.05  # a success that is gone by the last step, so often, is told in the headline

# -- the answer -------------------------------------------------------------------------------------------------------


def verdict(seen: dict[str, Any]) -> dict[str, Any] | None:
    """The newest decision on the name that the page is about."""
    return next((g for g in seen["gates"] if g["name"] == seen["name"]), None)


def headline(seen: dict[str, Any]) -> dict[str, str]:
    """{"html", "text"}: NAME: 0.54 -> 0.88 (n = 300, p = 1e-12), promoted."""
    rows, last, name = seen["scores"], verdict(seen), seen["name"]
    now = f"{name}@{seen['standing']['id']}" if seen["standing"] else None
    word, chip, below = "", "", ""
    if last:
        word = {"promote": "promoted", "refuse": "refused", "rollback": "rolled back"}.get(last["op"], last["op"])
        chip = f'<span class="chip{" no" if last["op"] != "promote" else ""}">{esc(word)}</span>'
        below = f"<p>Gate, {html.moment(last['time'])}: {esc(last['reason'])}.</p>"
    if not rows:
        held = seen["corpus"]
        text = f"{len(held['table']['hash'])} episodes, no scored policy yet" if held else "Nothing here yet"
        todo = "flywheel evaluate" if now else "flywheel pretrain" if held else "flywheel nightly"
        name_ = f"<b>{esc(name)}</b> {chip}" if name else "<b>flywheel</b>"
        html_ = f'<h1>{name_}<span class="big">{esc(text)}</span></h1><p>Next: <code>{todo} store={esc(seen["place"].root)} …</code></p>'
        return {"html": html_ + below, "text": f"{name or 'flywheel'}: {text}"}
    base = next((r for r in rows if r["policy"] == "incumbent"), rows[0])
    told = f"{name}@{last['id']}" if last and last["op"] != "rollback" else now
    row = {r["checkpoint"]: r for r in reversed(rows)}
    new = row.get(told) or row.get(now) or rows[-1]
    if new is base:
        figures, how = html.rate(base["success"]), f"(n = {base['n']})"
    else:
        p = facts.better(new["checkpoint"], base["checkpoint"], seen["outcomes"])
        p = new.get("p") if p is None and base is rows[0] else p
        figures = f"{html.rate(base['success'])} → {html.rate(new['success'])}"
        how = f"(n = {new['n']})" if p is None else f"(n = {new['n']}, p = {html.p_value(p)})"
    end = new.get("success_at_end")
    if end is not None and abs(end - new["success"]) > LASTS:
        figures += f" ({html.rate(end)} at the last step)"
    words = f"success on report seeds, {base['policy']}" + ("" if new is base else f" → {new['policy']}")
    comma = ", " if word else ""
    html_ = (
        f'<h1><b>{esc(name)}:</b> <span class="big">{figures}</span> '
        f"<span>{how}{comma}{chip}</span></h1><p>{esc(words[0].upper() + words[1:])}.</p>{below}"
    )
    if now and now != new["checkpoint"]:
        html_ += f"<p>In production is <code>{esc(now)}</code>{'' if now in row else ', which is not scored here'}.</p>"
    return {"html": html_, "text": f"{name}: {figures} {how}{comma}{word}"}


def scores(seen: dict[str, Any]) -> str:
    """Pretrained, retrained, best-of-N: each once on the report seeds."""
    lead = "Each policy once on the same report seeds, which no other stage touches. Bars are 95 % Wilson intervals; p is the exact paired test."
    if not seen["scores"]:
        return html.section(
            "success",
            "Success",
            "",
            html.card(
                "Not scored yet",
                html.empty("No policy was scored on report seeds yet.", "flywheel evaluate checkpoint=NAME"),
            ),
        )
    now = seen["standing"]["id"] if seen["standing"] else None
    first, items = seen["scores"][0], []
    for row in seen["scores"]:
        low, high = row["ci95"]
        mark = ' <span class="chip">production</span>' if now and row["checkpoint"].endswith(f"@{now}") else ""
        p = f"p = {html.p_value(row['p'])} against {esc(first['policy'])}" if row.get("p") is not None else ""
        end = f"{row['success_at_end']:.2f} at the last step" if row.get("success_at_end") is not None else ""
        more = [
            f"{esc(k)}: {v['success']:.2f} [{v['ci95'][0]:.2f}, {v['ci95'][1]:.2f}]" for k, v in row["more"].items()
        ]
        items.append(
            f'<div class="name"><b>{esc(row["policy"])}</b>{mark}<span class="sub id">{esc(row["checkpoint"])}</span></div>'
            + html.interval(row["success"], low, high, str(row["policy"]))
            + f'<div class="num"><b>{row["success"]:.3f}</b> [{low:.2f}, {high:.2f}]<span class="sub">n = {row["n"]}</span></div>'
            f'<div class="sub" style="grid-column:1/-1">{"; ".join([x for x in (p, end, *more) if x])}</div>'
        )
    body = '<div class="rows">' + '<div class="sep"></div>'.join(items) + "</div>"
    return html.section("success", "Success", lead, html.card("On report seeds", body), tournament(seen))


def tournament(seen: dict[str, Any]) -> str:
    """The classes of policy of which the night's base is the best."""
    found = ((seen["night"] or {}).get("content") or {}).get("tournament") or []
    if len(found) < 2:
        return ""
    rows = [
        [
            esc(row["policy"]),
            f'<span class="id">{esc(row["checkpoint"])}</span>',
            f"{row['success']:.3f} of {row['n']}",
            "the base" if row["chosen"] else "",
        ]
        for row in sorted(found, key=lambda row: (not row["chosen"], -row["n"], -row["success"]))
    ]
    note = "Each class was trained to its plateau; the better half goes on to more episodes. Seeds of their own: on report seeds only the base was played."
    return html.card(
        "The best imitation there is", html.table(["class", "checkpoint", "success", ""], rows, "xmnx"), note
    )


# -- decisions and history ----------------------------------------------------------------------------------------------------------


def gate(seen: dict[str, Any]) -> str:
    """What the gate decided, newest first."""
    if not seen["gates"]:
        return html.section(
            "gate",
            "Gate decisions",
            "",
            html.card("None yet", html.empty("Nothing was promoted or refused yet.", "flywheel promote NAME@ID")),
        )
    words = {"promote": "promoted", "refuse": "refused", "rollback": "rolled back to"}
    items = []
    for g in seen["gates"][:15]:
        chip = f'<span class="chip{" no" if g["op"] != "promote" else ""}">{words.get(g["op"], esc(g["op"]))}</span>'
        by = f", by <code>{esc(g['run'])}</code>" if g.get("run") else ", by hand"
        items.append(
            f'<li>{chip} <span class="id">{esc(g["name"])}@{esc(g["id"])}</span><div>{esc(g["reason"])}</div><span class="sub">{html.moment(g["time"])}{by}</span></li>'
        )
    left = len(seen["gates"]) - len(items)
    more = f'<p class="more">{left} earlier ones: <code>flywheel lineage NAME</code>.</p>' if left else ""
    return html.section(
        "gate",
        "Gate decisions",
        "What the gate decided, newest first.",
        html.card("", f'<ol class="log">{"".join(items)}</ol>{more}'),
    )


def lineage(seen: dict[str, Any]) -> str:
    """From the name back to the demonstrations."""
    lead = "From the policy back to its demonstrations."
    if not seen["standing"]:
        return html.section(
            "lineage", "Lineage", "", html.card("Nothing to trace", html.empty("No checkpoint was made yet."))
        )
    ref = f"{seen['name']}@{seen['standing']['id']}"
    return html.section(
        "lineage",
        "Lineage",
        lead,
        html.card(ref, _report_lineage.draw(*_ancestry.graph(seen["place"], seen["runs"], ref))),
    )


def work(seen: dict[str, Any]) -> str:
    """What ran, and what lies on the disk."""
    wanted = (seen["night"] or {}).get("content", {}).get("runs") or []
    ran = [r for r in seen["runs"] if f"{r['stage']}/{r['key']}" in wanted] or seen["runs"][-10:]
    rows = [
        [
            f"{esc(r['stage'])}/{esc(r['key'])}",
            esc(r["result"].get("status", "")),
            f"{r['result'].get('seconds', 0):,.0f} s",
        ]
        for r in ran
    ]
    runs = html.card(
        "What ran",
        html.table(["run", "status", "time"], rows, "mxn") if rows else html.empty("No run has finished yet."),
    )
    used = facts.disk(seen["place"].root)
    most = max([size for _, size, _ in used], default=0) or 1
    items = [
        f'<div class="name">{esc(n)}/</div>{html.bar(b / most)}<div class="num">{html.size(b)}<span class="sub">{f:,} files</span></div>'
        for n, b, f in used
    ]
    disk = html.card(
        "On disk",
        '<div class="rows">' + "".join(items) + "</div>" if items else html.empty("Nothing."),
        f"{html.size(sum(b for _, b, _ in used))} in all. <code>flywheel gc</code> says what could go.",
    )
    return html.section("work", "Runs and disk", "", html.grid(runs, disk))


SECTIONS: list[tuple[str, str, Callable[[dict[str, Any]], str]]] = [
    ("success", "Success", scores),
    ("learning", "Learning", _report_learning.learning),
    ("failures", "Where the failures start", _report_data.failures),
    ("corpus", "Corpus", _report_data.corpus),
    ("gate", "Gate decisions", gate),
    ("lineage", "Lineage", lineage),
    ("work", "Runs and disk", work),
]
