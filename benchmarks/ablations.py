"""What each part of practice is worth: `lift` from its first 20 demonstrations, with one part left out at a time.

    python benchmarks/ablations.py                     # two seeds, nine variants: two hours on two cores; resumable
    python benchmarks/ablations.py full ppo --seeds 1  # only these

Each begins from the flow policy that a nightly trains on these, practises about 48,000 steps, and is scored on 300 report
seeds, the same for all. Rows are kept in benchmarks/results/ablations/ and committed; `benchmarks/results.py --page`
puts them into docs/results.md."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import results
from results import flywheel

ROWS = results.ROWS / "ablations"
STEPS = 48_000
ROUNDS = ["rounds=6", "collect.episodes=96", "algorithm.cadence.evaluate=1500", "algorithm.cadence.improve=1000"]
ONLINE = ["algorithm=ogpo", "rounds=6", "score_every=3", "score_episodes=100"]
ALONE = ["score_every=6", "score_episodes=100", f"max_steps={STEPS}"]
GROUP = "algorithm.advantage.group_advantage={states: 16, samples: 16, consensus: false}"
VARIANTS: dict[str, tuple[str, list[tuple[str, list[str]]]]] = {
    "full": ("rounds, then ogpo, as the nightly does", [("retrain", ROUNDS), ("online", ONLINE)]),
    "no-guard": (
        "without the guard",
        [("retrain", [*ROUNDS, "guard=none"]), ("online", [*ONLINE, "guard=none"])],
    ),
    "no-base": (
        "without the base among the candidates",
        [
            ("retrain", [*ROUNDS, "collect.anchored=false"]),
            ("online", [*ONLINE, "algorithm.collect.anchored=false"]),
        ],
    ),
    "one-spread": (
        "candidates as far apart as the policy was trained to, always",
        [
            ("retrain", [*ROUNDS, "collect.spreads=[1.0]"]),
            ("online", [*ONLINE, "algorithm.collect.spreads=[1.0]"]),
        ],
    ),
    "no-consensus": ("without consensus", [("retrain", ROUNDS), ("online", [*ONLINE, GROUP])]),
    "rounds": ("rounds alone, as many steps", [("retrain", [*ROUNDS[1:], "rounds=40", f"max_steps={STEPS}"])]),
    "ogpo": ("ogpo alone", [("online", ["algorithm=ogpo", "rounds=40", *ALONE])]),
    "imitation": (
        "ogpo alone without its surrogate: imitation of successes, and the best of N",
        [
            (
                "online",
                ["algorithm=ogpo", "algorithm.improve={policy: {imitate: {successes: true}}}", "rounds=40", *ALONE],
            )
        ],
    ),
    "ppo": ("PPO over the chain alone (dppo)", [("online", ["algorithm=dppo", "rounds=40", *ALONE])]),
}


def base_of(seed: int) -> tuple[Path, str, str]:
    """(store, base, anchor) of a nightly from 20 demonstrations, of whose practice there is as little as can be. A flow
    policy: the best imitation of so few knows no chance, and what is compared here needs some."""
    from flywheel.runs.run import Store

    place = results.ROOT / "stores" / "ablations" / f"base-{seed}"
    words = [*results.FEW, "policy=flow", "task=lift", f"seed={seed}", "distil=null", "online=null"]
    little = ["retrain.max_steps=1", "retrain.score_episodes=0", "promote.gate.pairs=20", "evaluate.episodes=20"]
    told = flywheel("nightly", f"store={place}", *words, *little)
    store = Store(place)
    base = store.find(told["run"])["content"]["table"][0]["checkpoint"]
    (made,) = [r["result"]["outputs"] for r in store.runs("pretrain") if r["result"]["outputs"]["checkpoint"] == base]
    return place, base, made["anchor"]


def job(variant: str, seed: int) -> dict:
    """Practise as the variant does; its row."""
    place, base, anchor = base_of(seed)
    store = place.with_name(f"{place.name}-{variant}")
    shutil.rmtree(store, ignore_errors=True)
    shutil.copytree(place, store)
    common = [f"store={store}", f"seed={seed}", "task=lift", "demos.first=20", "night=500", f"name=policy/{variant}"]
    began, ref, cost = time.monotonic(), anchor, []
    for stage, words in VARIANTS[variant][1]:
        told = flywheel(stage, f"checkpoint={ref}", *common, *words)
        ref, metrics = told["outputs"]["checkpoint"], told["metrics"]
        keys = ("steps", "base", "regret", "regret_ci95", "worst_window", "worst_by_chance", "guard")
        cost.append({"stage": stage, **{k: metrics[k] for k in keys if k in metrics}})
    scored = flywheel("evaluate", f"checkpoint={ref}", f"against={base}", *common[:3], "night=500", "episodes=300")
    return {
        "variant": variant, "seed": seed, "base": scored["metrics"]["against"], "cost": cost,
        **{k: scored["metrics"][k] for k in ("success", "ci95", "n")},
        "minutes": round((time.monotonic() - began) / 60, 1), "machine": results.machine(),
    }  # fmt: skip


def section() -> list[str]:
    """The rows, for docs/results.md."""
    rows = [json.loads(path.read_text()) for path in sorted(ROWS.glob("*.json"))]
    if not rows:
        return []
    lines = [
        "## What each part is worth", "",
        f"`python benchmarks/ablations.py`: lift from 20 demonstrations, about {STEPS:,} steps of practice, from a flow policy.", "",
        "| variant | seed | base | success | steps | regret below the start | worst 50 | guard | minutes |", "|---" * 9 + "|",
    ]  # fmt: skip
    for name, (words, _) in VARIANTS.items():
        for row in (row for row in rows if row["variant"] == name):
            steps = sum(part["steps"] for part in row["cost"])
            regret = ", ".join(f"{part['regret']:g}" if "regret" in part else "-" for part in row["cost"])
            worst = ", ".join(f"{part['worst_window']:.2f}" if "regret" in part else "-" for part in row["cost"])
            trips = sum(part.get("guard", 0) for part in row["cost"])
            lines.append(
                f"| {words} | {row['seed']} | {row['base']['success']:.3f} | {results.rate(row)} | {steps:,} | {regret} | "
                f"{worst} | {trips} | {row['minutes']} |"
            )
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", help=f"of: {', '.join(VARIANTS)}")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2])
    args = parser.parse_args()
    if unknown := set(args.variants) - set(VARIANTS):
        parser.error(f"no variant {', '.join(unknown)}; there are: {', '.join(VARIANTS)}")
    ROWS.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for variant in args.variants or VARIANTS:
            path = ROWS / f"{variant}-{seed}.json"
            if not path.exists():
                print(f"== {variant}, seed {seed}", flush=True)
                path.write_text(json.dumps(job(variant, seed), indent=1) + "\n")


if __name__ == "__main__":
    main()
