"""Forty real questions to the gate, one after the other in one store, and what was true.

    python benchmarks/promotions.py             # about half an hour of a core; goes on where it stopped
    python benchmarks/promotions.py --small     # four questions at toy size, to see that it runs; keeps nothing

Policies of `lift` as they were after so many updates, of four training seeds, are candidates in an order that a fixed
seed draws; production is what the gate promoted until then. The truth is each policy's success on 1,000 report seeds,
which neither the gate nor training has. The row is benchmarks/results/promotions.json."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import results
from results import flywheel

ROOT = Path(__file__).parent.parent
ROW = results.ROWS / "promotions.json"
UPDATES, SEEDS, QUESTIONS, TRUTH = (2000, 4000, 7000), (1, 2, 3, 4), 40, 1000
STATUS = {"promote": "done", "refuse": "refused"}
MOVES = ("promote", "rollback")


def policies(store: Path, tiny: bool) -> dict[str, list[float]]:
    """{checkpoint: [success, low, high]} of all candidates, on report seeds."""
    at, found = [f"store={store}", "task=lift"], {}
    flywheel("ingest", *at, f"source={ROOT / 'datasets' / 'lift_demos.hdf5'}")
    for seed in SEEDS[: 1 if tiny else None]:
        for updates in (2, 4) if tiny else UPDATES:
            own = [f"seed={seed}", f"algorithm.cadence.improve={updates}", f"score_every={updates}", "score_episodes=0"]
            ref = flywheel("pretrain", *at, *own, "policy=flow", "policy.ahead=2")["outputs"]["checkpoint"]
            told = flywheel("evaluate", *at, f"checkpoint={ref}", f"episodes={8 if tiny else TRUTH}", "seed=0")[
                "metrics"
            ]
            found[ref] = [told["success"], *told["ci95"]]
    return found


def asked(store: Path, truth: dict[str, list[float]], questions: int, *words: str) -> list[dict]:
    """Ask, but for what the names' log has the answer to; a line a question: who, over whom, the answer, pairs, and by
    how much the candidate is better in truth."""
    rng, refs, lines, standing = np.random.default_rng(0), list(truth), [], None
    name = refs[0].partition("@")[0]
    for number in range(questions):
        ref = refs[int(rng.integers(len(refs)))]
        if ref == standing:
            ref = refs[(refs.index(ref) + 1) % len(refs)]
        if number == len(answers(store, name)):
            flywheel("promote", f"store={store}", "task=lift", f"checkpoint={ref}", f"night={number}", *words)
        entries = answers(store, name)[number]
        entry = next(one for one in entries if one["op"] in STATUS)
        line = {"candidate": ref, "over": standing, "status": STATUS[entry["op"]], "pairs": entry.get("pairs", 0)}
        line["back"] = {one["op"]: one["pairs"] for one in entries if "best" in one}  # is the best so far better still?
        line["gain"] = round(truth[ref][0] - truth[standing][0], 4) if standing else None
        lines.append(line | {"why": entry.get("reason", "")[:200]})
        standing = next((f"{name}@{one['id']}" for one in reversed(entries) if one["op"] in MOVES), standing)
        print(f"{number + 1:3} {line}", flush=True)
    return lines


def answers(store: Path, name: str) -> list[list[dict]]:
    """What the names' log has of each question, in the order in which they were asked."""
    from flywheel.runs.run import Store

    found: dict[str, list[dict]] = {}
    for entry in Store(store).names.log(name):
        found.setdefault(entry["run"], []).append(entry)
    return [several for several in found.values() if any(entry["op"] in STATUS for entry in several)]


def summary(lines: list[dict]) -> dict:
    """Counts: promoted, of these worse in truth; and of those that were better by 5 points and more, how many."""
    real = [line for line in lines if line["gain"] is not None]
    promoted = [line for line in real if line["status"] == "done"]
    return {
        "questions": len(real), "promoted": len(promoted),
        "promoted_worse": sum(line["gain"] < 0 for line in promoted),
        "better_by_5": sum(line["gain"] >= 0.05 for line in real),
        "better_by_5_promoted": sum(line["gain"] >= 0.05 for line in promoted),
        "worse_by_5": sum(line["gain"] <= -0.05 for line in real),
        "pairs": sum(line["pairs"] for line in real),
        "looks_back": sum(len(line["back"]) for line in lines),
        "rolled_back": sum("keep" not in line["back"] for line in lines if line["back"]),
        "pairs_looking_back": sum(sum(line["back"].values()) for line in lines),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    args, began = parser.parse_args(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) if args.small else ROOT / "stores" / "promotions"
        truth = policies(store, args.small)
        lines = asked(store, truth, *((4, "gate.pairs=40") if args.small else (QUESTIONS,)))
        fsck = flywheel("fsck", f"store={store}")["metrics"]["findings"]
    row = {"truth": truth, "lines": lines, **summary(lines), "fsck": fsck, "machine": results.machine()}
    print({**summary(lines), "fsck": fsck, "minutes": round((time.monotonic() - began) / 60, 1)})
    if not args.small:
        ROW.write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
