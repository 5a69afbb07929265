"""The report's section on learning: success over rounds and nights, imitation's curve, losses and values."""

from __future__ import annotations

from typing import Any

from flywheel.stages import _report_charts as charts
from flywheel.stages import _report_facts as facts
from flywheel.stages import _report_page as html
from flywheel.stages._report_page import esc


def _imitation(seen: dict[str, Any]) -> dict[str, Any] | None:
    """The pretraining to tell of: the one that made the base of the scores, else the newest."""
    base = seen["scores"][0]["checkpoint"] if seen["scores"] else None
    made = [r for r in seen["pretrains"] if base in r["result"]["outputs"].values()]
    return next(iter([*made, *reversed(seen["pretrains"])]), None)


def learning(seen: dict[str, Any]) -> str:
    """Success over rounds and nights, imitation's curve, losses, values."""
    place, retrains, pretrains = seen["place"], seen["retrains"], [r for r in [_imitation(seen)] if r]
    done = facts.rounds(retrains, seen["corpus"]["table"] if seen["corpus"] else None)
    cards = []
    if done:
        base = seen["scores"][0]["success"] if seen["scores"] else None
        last = done[-1]
        held = sum(int(r.get("held") or 0) for r in done)
        note = (
            f"{len(done)} rounds, {last['steps']:,} environment steps. Collection explores; the scores above do not. "
            f"The guard clipped {sum(int(r.get('clipped') or 0) for r in done):,} steps and held {held:,}."
        )
        if any(r.get("window_low") is not None for r in done):
            note += " Start: how far along a demonstration episodes begin, from 1, its end, to 0, its beginning."
        cards.append(html.chart("Success over rounds", charts.success(done, base), note))
    else:
        cards.append(
            html.card("Success over rounds", html.empty("No rounds yet.", "flywheel retrain checkpoint=NAME rounds=3"))
        )
    if len(past := facts.nights(seen["runs"], seen["name"])) > 1:
        cards.append(
            html.chart(
                "Success night by night",
                charts.nights(past),
                "What was in production after each, on that night's report seeds.",
            )
        )
    curve = pretrains[-1]["content"].get("curve", []) if pretrains else []
    chosen = pretrains[-1]["result"]["metrics"].get("updates") if pretrains else None
    if [p for p in curve if "success" in p]:
        note = f"Scored on {curve[-1].get('n')} gate seeds each time; the best is the pretrained policy. Training ends where it no longer rises."
        cards.append(html.chart("Imitation's training curve", charts.curve(curve, chosen), note))
    if curve and (loss := facts.policy_loss(pretrains[-1], curve[0])):
        x = [p["updates"] / 1000 for p in curve]
        cards.append(
            html.chart(
                "Imitation loss",
                charts.lines("imitation", "Imitation loss", x, {loss: [p[loss] for p in curve]}, "thousand updates"),
                "Mean since the point before.",
            )
        )
    elif not curve:
        cards.append(
            html.card(
                "Imitation's training curve", html.empty("Nothing was pretrained yet.", "flywheel pretrain task=lift")
            )
        )
    cards += curves(facts.learned(place, retrains), retrains)
    return html.section("learning", "Learning", "", html.grid(*cards))


def curves(lines: list[dict[str, float]], retrains: list[dict]) -> list[str]:
    """Loss, value and error after each round."""
    loss = facts.policy_loss(retrains[-1] if retrains else None, lines[-1] if lines else {})
    cards = []
    for title, key, spread, note in (
        (
            "Policy loss in rounds",
            loss,
            None,
            f"{esc(loss)}, mean over the round.",
        ),
        (
            "Value (Q) and its spread",
            "q.q",
            "q.q_std",
            "What the critics expect of the data's actions: 1 is success now. The band is how much the members differ.",
        ),
        ("Critics' error", "q.td", None, "Squared temporal-difference error, mean over the round."),
    ):
        told = [line for line in lines if key in line and (spread is None or spread in line)]
        if told:
            band = [line[spread] for line in told] if spread else None
            name = title.split()[0].lower().strip("'s")
            svg = charts.lines(
                name,
                title,
                [line["at"] for line in told],
                {key if key == loss else "mean": [line[key] for line in told]},
                "round",
                band,
            )
            cards.append(html.chart(title, svg, note))
    return cards
