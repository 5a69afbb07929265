"""How well each class of policy clones the shipped demonstrations of each task; rows are kept, docs/results.md shows
them.

    python benchmarks/cloning.py                    the flow policy, every task, three training seeds
    python benchmarks/cloning.py --kinds gaussian   another class;  --tasks lift;  --again

Each is `flywheel pretrain` as it stands (the best of its own curve on gate seeds), then 300 episodes on report seeds,
played once."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROWS = ROOT / "benchmarks" / "results" / "cloning.json"
TASKS, KINDS, SEEDS = ("lift", "insert", "push"), ("flow", "deterministic", "diffusion", "gaussian"), (1, 2, 3)
AHEAD = ["policy.ahead=2"]  # as a nightly lays it over every class


def flywheel(*words: str) -> dict:
    """Run a command; its result."""
    command = [sys.executable, "-m", "flywheel.cli.app", *words, "--json"]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if out.returncode:
        sys.exit(f"{' '.join(words)}: {out.stdout}")
    return json.loads(out.stdout.splitlines()[-1])


def row(task: str, kind: str, seed: int) -> dict:
    """Clone, and play the report seeds once: {"success", "n", "ci95", "updates", "curve"}."""
    from flywheel.runs.run import Store

    store = ROOT / "stores" / "cloning" / task
    at = [f"store={store}", f"task={task}", f"seed={seed}"]
    flywheel("ingest", at[0], at[1], f"source={ROOT / 'datasets' / f'{task}_demos.hdf5'}")
    made = flywheel("pretrain", *at, f"policy={kind}", *AHEAD)
    scored = flywheel("evaluate", *at, f"checkpoint={made['outputs']['checkpoint']}", "episodes=300")["metrics"]
    curve = Store(store).find(made["run"])["content"]["curve"]
    kept = {k: scored[k] for k in ("success", "n", "ci95", "success_at_end")}
    return {**kept, "updates": made["metrics"]["updates"], "curve": [[p["updates"], p["success"]] for p in curve]}


def section(rows: dict[str, dict]) -> list[str]:
    """The part of docs/results.md."""
    from flywheel.stats import wilson

    if not rows:
        return []
    lines = [
        "## Imitation alone", "",
        "`python benchmarks/cloning.py`: `flywheel pretrain task=TASK policy=CLASS policy.ahead=2 seed=S` on the "
        "shipped demonstrations, three in ten of "
        "which fail and are left out; then 300 report episodes a seed, three training seeds pooled. The curve: 100 gate seeds every 2,000 updates, seeds 1, 2, 3. These rows are from before the one reader; the bases of the nightlies above, flow policies too, were made after it.", "",
        "| task | class | success | curves |", "|---|---|---|---|",
    ]  # fmt: skip
    for task in TASKS:
        for kind in KINDS:
            found = [r for s in SEEDS if (r := rows.get(f"{task} {kind} {s}"))]
            if len(found) < len(SEEDS):
                continue
            n, k = sum(r["n"] for r in found), round(sum(r["success"] * r["n"] for r in found))
            low, high = wilson(k, n)
            curves = "; ".join(" ".join(f"{s:.2f}" for _, s in r["curve"]) for r in found)
            lines.append(f"| {task} | {kind} | {k / n:.3f} [{low:.3f}, {high:.3f}], n = {n} | {curves} |")
    return [*lines, ""]


def read() -> dict[str, dict]:
    return json.loads(ROWS.read_text()) if ROWS.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=TASKS, choices=TASKS)
    parser.add_argument("--kinds", nargs="*", default=["flow"], choices=KINDS)
    parser.add_argument("--again", action="store_true")
    args = parser.parse_args()
    for seed in SEEDS:
        for task in args.tasks:
            for kind in args.kinds:
                rows = read()
                if args.again or f"{task} {kind} {seed}" not in rows:
                    rows[f"{task} {kind} {seed}"] = row(task, kind, seed)
                    ROWS.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
                    print(task, kind, seed, rows[f"{task} {kind} {seed}"]["success"], flush=True)


if __name__ == "__main__":
    main()
