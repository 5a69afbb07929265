"""What each section of the page says: a function of the facts for each template, which puts it into words."""

from __future__ import annotations

from typing import Any

from flywheel import regret, stats
from flywheel.report import charts, clips, episodes, facts, rails, results, starts, words
from flywheel.report import flips as strips
from flywheel.report.facts import Facts
from flywheel.rl.validation import PHASES

BY = ("error_by_phase", "error_by_dimension")
LASTS = 0.02  # a success that is gone by the last step, so often, is told as loud as that at any step


def headline(known: Facts) -> dict[str, Any]:
    """Answer first: NAME: 0.54 -> 0.88 (n = 300, p = 1e-12), promoted; or what there is, and what to do next."""
    name, production = known.name, known.production
    decision = next((e for e in known.decisions if e["name"] == name and e["op"] != "keep"), None)
    wanted = known.night.get("wanted")  # of a robot's night: which trials come next, until the gate has answered
    finished = next((run.get("finished", "") for run in reversed(known.runs) if run["stage"] == "nightly"), "")
    answered = decision is not None and decision["time"] > finished
    common = {
        "name": name, "decision": decision, "root": known.place, "figures": None, "elsewhere": None, "end": None,
        "wanted": wanted["words"] if wanted and not answered else None, "recorded": wanted is not None,
    }  # fmt: skip
    if not known.table:
        corpus = known.corpus
        text = f"{len(corpus['table']['hash'])} episodes, no scored policy yet" if corpus else "Nothing here yet"
        command = "evaluate" if production else "pretrain" if corpus else "nightly"
        return {**common, "title": f"{name or 'flywheel'}: {text}", "text": text, "next": command}
    base = next((row for row in known.table if row["policy"] == "incumbent"), known.table[0])
    decided = f"{name}@{decision['id']}" if decision and decision["op"] != "rollback" else production
    by_ref = {row["checkpoint"]: row for row in reversed(known.table)}
    new = by_ref.get(decided) or by_ref.get(production) or known.table[-1]
    figures, how, test = words.rate(base["success"]), f"n = {new['n']}", None
    if new is not base:
        figures += f" → {words.rate(new['success'])}"
        own = (new["p"], new["test"]) if base is known.table[0] and new.get("p") is not None else (None, None)
        p, test = results.better(new["checkpoint"], base["checkpoint"], known.outcomes) or own
        how += f", {'unpaired ' if test == 'unpaired' else ''}p = {words.p_value(p)}" if test else ""
    shown = [base] if new is base else [base, new]
    end = " → ".join(words.rate(row.get("success_at_end")) for row in shown) if any(map(_fades, shown)) else None
    done = {"promote": "promoted", "refuse": "refused", "rollback": "rolled back"}
    outcome = f", {done.get(decision['op'], decision['op'])}" if decision else ""
    return {
        **common, "title": f"{name}: {figures}{f', at the end {end}' if end else ''} ({how}){outcome}",
        "figures": figures, "how": f"({how})", "end": end, "test": test,
        "base": base["policy"], "candidate": new["policy"] if new is not base else None,
        "elsewhere": production if production != new["checkpoint"] else None, "scored": production in by_ref,
    }  # fmt: skip


def success(known: Facts) -> dict[str, Any]:
    """Compare the policies on report seeds, and the classes of policy of which the base is the best."""
    tournament = known.night.get("tournament") or []
    rows = [
        {
            **row,
            "production": row["checkpoint"] == known.production,
            "end": _at_end(row),
            "remarks": _remarks(row, known.table[0]),
        }
        for row in known.table
    ]
    return {
        "rows": rows,
        "recorded": "wanted" in known.night,
        "seeded": results.pairing(list(known.outcomes), known.outcomes) == "paired",
        "tests": sorted({row["test"] for row in rows if row["test"]}),
        "sweep": next((run["content"] for run in reversed(known.runs) if run["stage"] == "sweep"), None),
        "tournament": sorted(tournament, key=lambda row: (not row["chosen"], -row["n"], -row["success"])),
    }


def _fades(row: dict[str, Any]) -> bool:
    """Is success at the last step another than at any step?"""
    end = row.get("success_at_end")
    return end is not None and abs(end - row["success"]) > LASTS


def _at_end(row: dict[str, Any]) -> dict[str, Any] | None:
    """The rate at the last step with its interval, where it is another."""
    if not _fades(row):
        return None
    end = row["success_at_end"]
    return {"success": end, "ci95": list(stats.wilson(round(end * row["n"]), row["n"]))}


def _remarks(row: dict[str, Any], first: dict[str, Any]) -> list[str]:
    """List what else is known of a score."""
    remarks = []
    if row.get("p") is not None:
        remarks.append(f"p = {words.p_value(row['p'])} against {first['policy']}")
    if row.get("success_at_end") is not None and not _fades(row) and row["policy"] != "tried":
        remarks.append(f"{row['success_at_end']:.2f} at the last step")
    for name, rate in row["more"].items():
        remarks.append(f"{name}: {rate['success']:.2f} [{rate['ci95'][0]:.2f}, {rate['ci95'][1]:.2f}]")
    if faults := row.get("faults"):
        remarks.append(f"{len(faults)} failed by a fault of the environment, first {faults[0]}")
    return remarks


def flips(known: Facts) -> dict[str, Any]:
    """Show the episodes that only one of the two won, in the last question to the gate."""
    asked = strips.last(known.place, known.runs, known.name)
    if asked is None:
        return {"lead": "", "flips": [], "why": "The gate was not asked yet."}
    found = strips.flips(known.place, asked)
    robot = asked["task"].get("name") == "robot"
    words = "the candidate's newest trials" if robot else "what only one of the two won, played again"
    lead = f"{asked['candidate']} against {asked['incumbent']}: {words}."
    return {"lead": lead, "flips": found, "why": "No episode differs, or none can be played again."}


def learning(known: Facts) -> dict[str, Any]:
    """Show success over rounds and nights, imitation's curve, losses, values."""
    pretrain = imitation([] if "wanted" in known.night else known.table, known.pretrains)
    points = pretrain["content"].get("curve", []) if pretrain else []
    scored = [point for point in points if "success" in point]
    chosen = pretrain["result"]["metrics"].get("updates") if scored else None
    nights = results.nights(known.runs, known.name)
    curves = _rounds_curves(results.learned(known.place, known.practices), known.practices)
    if points and (loss := results.policy_loss(pretrain, points[0])):
        x, y = [point["updates"] / 1000 for point in points], [point[loss] for point in points]
        chart = charts.line("imitation", "Imitation loss", loss, x, y, "thousand updates")
        curves.insert(0, {"title": "Imitation loss", "chart": chart, "note": "Mean since the point before."})
    if held := [point for point in points if "error" in point]:
        curves.insert(0, _held_out(held, pretrain["result"]["metrics"]))
    return {
        "recorded": "wanted" in known.night,
        "rounds": _rounds(known),
        "regret": _regret(known.practices),
        "nights": charts.nights(nights) if len(nights) > 1 else None,
        "scored": {"chart": charts.curve(scored, chosen), "n": points[-1].get("n")} if scored else None,
        "pretrained": bool(points),
        "curves": curves,
    }


def _held_out(points: list[dict[str, Any]], best: dict[str, Any]) -> dict[str, Any]:
    """The next-action error of episodes held out, over the training: what chose the checkpoint of a robot."""
    x, y = [point["updates"] / 1000 for point in points], [point["error"] for point in points]
    chart = charts.line("held-out", "Next-action error of episodes held out", "error", x, y, "thousand updates")
    order = {name: number for number, name in enumerate(PHASES)}
    told = [sorted(best.get(key, {}).items(), key=lambda item: order.get(item[0], 0)) for key in BY]
    by = [", ".join(f"{name} {value:.2f}" for name, value in one) for one in told]
    note = f"Of {points[-1]['n']} episodes, in deviations of the recorded actions; the least is taken, at "
    note += f"{best['updates']} updates. By phase: {by[0]}. By dimension: {by[1]}."
    return {"title": "Next-action error", "chart": chart, "note": note}


def imitation(table: list[dict], pretrains: list[dict]) -> dict[str, Any] | None:
    """Return the pretraining to show: the one that made the base of the scores, else the newest."""
    base = table[0]["checkpoint"] if table else None
    made = [run for run in pretrains if base in run["result"]["outputs"].values()]
    return next(iter([*made, *reversed(pretrains)]), None)


def _rounds(known: Facts) -> dict[str, Any] | None:
    """Sum up the rounds of practice; None before the first."""
    rounds = results.rounds(known.practices, known.corpus["table"] if known.corpus else None)
    if not rounds:
        return None
    return {
        "chart": charts.success(rounds, known.table[0]["success"] if known.table else None),
        "number": len(rounds), "steps": rounds[-1]["steps"], "guard": results.guarded(rounds),
        "start": any(r.get("window_low") is not None for r in rounds),
    }  # fmt: skip


def _regret(practices: list[dict]) -> dict[str, Any] | None:
    """Hold the newest practice whose start's success is known against it; None before the first."""
    done = next((run for run in reversed(practices) if "regret" in run["result"]["metrics"]), None)
    if done is None:
        return None
    content, metrics = done["content"], done["result"]["metrics"]
    found = regret.windows(content["outcomes"])
    return {
        "chart": charts.windows(found, metrics["base"]), "stage": done["stage"], "number": len(content["outcomes"]),
        "events": content.get("guard") or [], "window": regret.WINDOW, **{k: metrics[k] for k in regret.FIGURES},
    }  # fmt: skip


def _rounds_curves(lines: list[dict[str, float]], practices: list[dict]) -> list[dict[str, Any]]:
    """Draw loss, value and error after each round, as far as they were logged."""
    loss = results.policy_loss(practices[-1] if practices else None, lines[-1] if lines else {})
    value = "What the critics expect of the data's actions: 1 is success now. The band is how much the members differ."
    curves = []
    for name, title, key, spread, note in (
        ("policy", "Policy loss in rounds", loss, None, f"{loss}, mean over the round."),
        ("value", "Value (Q) and its spread", "q.q", "q.q_std", value),
        ("critic", "Critics' error", "q.td", None, "Squared temporal-difference error, mean over the round."),
    ):
        logged = [line for line in lines if key in line and (spread is None or spread in line)]
        if logged:
            x, y = [line["at"] for line in logged], [line[key] for line in logged]
            band = [line[spread] for line in logged] if spread else None
            chart = charts.line(name, title, key if key == loss else "mean", x, y, "round", band)
            curves.append({"title": title, "chart": chart, "note": note})
    return curves


def failures(known: Facts) -> dict[str, Any]:
    """Show where the failures start, and a clip of each kind."""
    ref = known.production if known.production in known.outcomes else next(reversed(known.outcomes), None)
    if ref is None:
        return {"lead": "", "checkpoint": None}
    score = known.outcomes[ref]
    columns = score["columns"]
    pattern = starts.where(columns, score["task"], score["names"], score["units"])
    shown, first = None, None  # the pattern with its chart, and the episodes that began in its worst cell
    if "why" not in pattern:
        shown, first = {**pattern, "chart": charts.starts(pattern)}, starts.inside(pattern)
    filmed = clips.film(known.place, ref, score["task"], columns, clips.choose(columns, first))
    moving = any(isinstance(clip, clips.Clip) for clip in filmed.values())
    return {
        "lead": starts.advice(pattern) if shown else pattern["why"], "starts": shown, "checkpoint": ref,
        "episodes": len(columns["seed"]), "clips": filmed if moving else {},
        "no_clips": [] if moving else list(dict.fromkeys(filmed.values())),
    }  # fmt: skip


def corpus(known: Facts) -> dict[str, Any]:
    """Show how the corpus grew, how good it is, what was kept out."""
    held, quarantined = known.corpus, facts.quarantined(known.runs)
    if held is None:
        return {"version": None, "quarantined": quarantined}
    columns, actors = held["table"], episodes.actors(held)
    return {
        "version": held["version"], "episodes": len(columns["hash"]), "steps": int(columns["length"].sum()),
        "removed": sum(entry["removed"] for entry in held["log"]), "growth": charts.growth(*episodes.growth(held)),
        "actors": actors, "lengths": charts.lengths(actors), "quarantined": quarantined,
        "fps": float(columns["fps"].max()) if len(columns["fps"]) else 0.0,
    }  # fmt: skip


def gate(known: Facts) -> dict[str, Any]:
    """List what was decided, newest first."""
    return {"decisions": known.decisions}


def lineage(known: Facts) -> dict[str, Any]:
    """Trace what is in production back to the demonstrations."""
    from flywheel.runs import ancestry

    if not known.production:
        return {"nodes": []}
    graph = ancestry.graph(known.place, known.runs, known.production)
    return {"checkpoint": known.production, **rails.layout(*graph)}


def work(known: Facts) -> dict[str, Any]:
    """List what ran, and what lies on the disk."""
    wanted = known.night.get("runs") or []
    runs = [run for run in known.runs if f"{run['stage']}/{run['key']}" in wanted] or known.runs[-10:]
    return {"runs": runs, "folders": facts.disk(known.place.root)}
