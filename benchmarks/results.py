"""The learning results of docs/results.md: real nightlies from fresh stores, each a job; finished rows are kept and committed.

    python benchmarks/results.py                 run the jobs that have no row yet, then write docs/results.md
    python benchmarks/results.py lift-1 ...      only these jobs;  --again: even if there is a row;  --page: only the page

A job that was killed goes on where it stopped (its store is kept under stores/results/).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
ROWS = ROOT / "benchmarks" / "results"
SEEDS = (1, 2, 3)
NAMES = ("pretrained", "retrained", "best-of-N")

JOBS: dict[str, list[str]] = {}
for _seed in SEEDS:
    JOBS[f"lift-{_seed}"] = [f"seed={_seed}"]
for _seed in SEEDS:
    JOBS[f"door-policy-{_seed}"] = ["experiment=adroit_door_policy", f"seed={_seed}"]
JOBS["door-human-1"] = ["experiment=adroit_door", "seed=1"]
JOBS["lift-diffusion-1"] = ["policy=diffusion", "seed=1"]
for _seed in SEEDS:
    JOBS[f"lift-anchor-{_seed}"] = [f"seed={_seed}", "retrain.restart=anchor"]
    JOBS[f"lift-recap-{_seed}"] = [f"seed={_seed}", "policy.condition=true", "retrain.algorithm=recap"]


def run(job: str) -> dict:
    """Run one nightly in a process of its own; its row."""
    place = ROOT / "stores" / "results" / job
    command = [sys.executable, "-m", "flywheel.app", "nightly", *JOBS[job], "--json"]
    began = time.monotonic()
    out = subprocess.run([*command, f"store={place}"], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if out.returncode:
        sys.exit(f"{job} failed: {out.stdout}")
    result = json.loads(out.stdout.splitlines()[-1])
    from flywheel.run import Store

    store = Store(place)
    night = store.find(result["run"])
    parts = {name.split("/")[0]: store.find(name) for name in night["content"]["runs"]}
    return {
        "job": job,
        "command": "flywheel nightly " + " ".join(JOBS[job]),
        "status": night["result"]["status"],
        "seconds": round(time.monotonic() - began) if result["status"] != "noop" else night["result"]["seconds"],
        "table": night["content"]["table"],
        "curve": parts["pretrain"]["content"]["curve"],
        "history": parts["retrain"]["content"]["history"],
        "retrain": parts["retrain"]["result"]["metrics"],
        "ingest": parts["ingest"]["result"]["metrics"],
        "gate": parts["promote"]["result"]["metrics"],
        "steps": spent(store, night),
        "machine": machine(),
    }


def spent(store, night: dict) -> dict[str, int]:
    """Environment steps of the gate and of the report, from the episodes' lengths."""
    steps = {"promote": 0, "evaluate": 0}
    for name in night["content"]["runs"]:
        stage = name.split("/")[0]
        for path in (store.root / "runs" / name / "out").glob("*.npz") if stage in steps else []:
            steps[stage] += int(np.load(path)["length"].sum())
    return {"gate": steps["promote"], "report": steps["evaluate"]}


def machine() -> dict[str, str]:
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    names = ("torch", "mujoco", "gymnasium", "gymnasium-robotics", "numpy")
    return {"cpu": f"{os.cpu_count()} cores, {cpu}", "python": platform.python_version()} | {
        n: metadata.version(n) for n in names
    }


def rate(row: dict) -> str:
    low, high = row["ci95"]
    return f"{row['success']:.3f} [{low:.3f}, {high:.3f}]"


def page(rows: dict[str, dict]) -> str:
    """docs/results.md from the rows there are."""
    from flywheel.stats import wilson

    lines = ["# Results", "", "Made by `make results` (benchmarks/results.py); rows in benchmarks/results/.", ""]
    if rows:
        facts = next(iter(rows.values()))["machine"]
        lines += [
            ", ".join(f"{k} {v}" for k, v in facts.items()) + ". Success: the predicate was true at any control step;"
        ]
        lines += [
            "95 % Wilson intervals; report seeds from 200,000,000, each scored once; p: exact one-sided McNemar test against",
            "the pretrained policy on the same seeds.",
            "",
        ]

    def table(prefix: str) -> None:
        lines.extend(
            [
                "| seed | pretrained | retrained | best-of-N | p | gate | steps: collection | gate | report | minutes |",
                "|---|---|---|---|---|---|---|---|---|---|",
            ]
        )
        for seed in SEEDS:
            if row := rows.get(f"{prefix}-{seed}"):
                by = {r["policy"]: r for r in row["table"]}
                cells = [rate(by[n]) if n in by else "-" for n in NAMES]
                p = by["best-of-N"].get("p") if "best-of-N" in by else None
                verdict = "promoted" if row["status"] == "done" else row["status"]
                lines.append(
                    f"| {seed} | {' | '.join(cells)} | {p:.1g} | {verdict} | {row['retrain']['steps']:,} | {row['steps']['gate']:,} | {row['steps']['report']:,} | {row['seconds'] / 60:.1f} |"
                )
        for name in NAMES:
            found = [
                r for s in SEEDS if (row := rows.get(f"{prefix}-{s}")) for r in row["table"] if r["policy"] == name
            ]
            if len(found) == len(SEEDS):
                n = sum(r["n"] for r in found)
                k = round(sum(r["success"] * r["n"] for r in found))
                low, high = wilson(k, n)
                lines.append(f"\nPooled, {name}: {k / n:.3f} [{low:.3f}, {high:.3f}], n = {n}.")
        lines.append("")

    lines += [
        "## The default nightly: lift",
        "",
        "`make nightly`, i.e. `flywheel nightly seed=S`. Pretrained is the best of behaviour cloning along its own curve (12,000 updates, a point every 2,000, 100 gate seeds each); retraining begins at the best point up to 6,000 and adds 6 rounds of 1,000 updates, so that it never has more behind it.",
        "",
    ]
    table("lift")
    if "lift-diffusion-1" in rows:
        lines += [
            "### With a diffusion policy",
            "",
            "`flywheel nightly policy=diffusion seed=S`: it predicts the action.",
            "",
        ]
        table("lift-diffusion")
    lines += [
        "## Six episodes of a trained policy: Adroit door",
        "",
        "`flywheel nightly experiment=adroit_door_policy seed=S` (at 1.35 rad, 200 steps).",
        "",
    ]
    table("door-policy")
    for seed in SEEDS:
        if row := rows.get(f"door-policy-{seed}"):
            steps = ", ".join(f"{h['steps']:,}: {h['success']:.2f}" for h in row["history"])
            lines.append(f"- seed {seed}, success of each round's 64 collected episodes by environment steps: {steps}")
    if row := rows.get("door-human-1"):
        back = row["ingest"]["replay"]
        palm, hinge = back["palm_m median error"]["all"], back["hinge_rad peak error"]["all"]
        lines += [
            "",
            "## 25 human demonstrations: Adroit door",
            "",
            "`flywheel nightly experiment=adroit_door seed=1`.",
            "",
        ]
        lines += [
            f"Replayed open-loop: median palm error at most {max(palm) * 1000:.2f} mm in all {len(palm)}; largest hinge angle within 0.02 rad of the recording in {sum(h <= 0.02 for h in hinge)} (worst {max(hinge):.2f}).",
            "",
        ]
        lines += [
            "| policy | " + " | ".join(k for k in row["table"][0] if "_within_" in k) + " |",
            "|---" * (1 + sum("_within_" in k for k in row["table"][0])) + "|",
        ]
        for r in row["table"]:
            lines.append(f"| {r['policy']} | " + " | ".join(rate(v) for k, v in r.items() if "_within_" in k) + " |")
        lines += [
            "",
            f"{row['retrain']['steps']:,} environment steps of collection (gate {row['steps']['gate']:,}, report {row['steps']['report']:,}) in {row['retrain']['rounds']} rounds; {row['seconds'] / 60:.0f} minutes in all.",
            "",
        ]
        lines += [
            "Success over rounds; scored: best-of-N without noise on 96 gate seeds, from the task's own reset. The base: "
            + rate(row["curve"][-1])
            + ".",
            "",
            "| environment steps | scored | collected from the own reset (12 episodes) | collected along demonstrations | the window begins at |",
            "|---|---|---|---|---|",
        ]
        for h in row["history"]:
            low = "-" if h.get("window_low") is None else f"{h['window_low']:.2f}"
            own = "-" if h["success"] is None else f"{h['success']:.2f}"
            far = "-" if h["from_demos"] is None else f"{h['from_demos']:.2f}"
            lines.append(f"| {h['steps']:,} | {rate(h['scored']) if 'scored' in h else ''} | {own} | {far} | {low} |")
    study = [
        ("lift", "from the last round (the default)"),
        ("lift-anchor", "from the anchor (`retrain.restart=anchor`)"),
        (
            "lift-recap",
            "from the last round, advantage-conditioned (`retrain.algorithm=recap`, which has 4 rounds of 1,500 and 1,500 updates)",
        ),
    ]
    if all(rows.get(f"{p}-{s}") for p, _ in study for s in SEEDS):
        lines += [
            "",
            "## Where a round's policy begins, and on what it trains: lift",
            "",
            "| policy starts | retrained, 3 seeds pooled | best-of-N, 3 seeds pooled |",
            "|---|---|---|",
        ]
        for prefix, words in study:
            cells = []
            for name in NAMES[1:]:
                found = [r for s in SEEDS for r in rows[f"{prefix}-{s}"]["table"] if r["policy"] == name]
                n, k = sum(r["n"] for r in found), round(sum(r["success"] * r["n"] for r in found))
                cells.append(f"{k / n:.3f} [{wilson(k, n)[0]:.3f}, {wilson(k, n)[1]:.3f}]")
            lines.append(f"| {words} | {' | '.join(cells)} |")
    import offline
    import scores

    return "\n".join([*lines, "", *offline.section(), *scores.section(scores.read())]).rstrip("\n") + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", help=f"of: {', '.join(JOBS)}")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--page", action="store_true")
    args = parser.parse_args()
    if unknown := set(args.jobs) - set(JOBS):
        parser.error(f"no job {', '.join(unknown)}; there are: {', '.join(JOBS)}")
    wanted = [] if args.page else args.jobs or list(JOBS)
    ROWS.mkdir(exist_ok=True)
    for job in wanted:
        path = ROWS / f"{job}.json"
        if path.exists() and not args.again:
            continue
        if "door" in job and not Path(os.environ.get("FLYWHEEL_DEMOS") or "/nowhere").is_dir():
            sys.exit(f"{job} needs the demonstrations: FLYWHEEL_DEMOS names no folder")
        print(f"== {job}", flush=True)
        path.write_text(
            json.dumps(run(job), indent=1, default=lambda x: x.item() if isinstance(x, np.generic) else str(x)) + "\n"
        )
    rows = {job: json.loads(path.read_text()) for job in JOBS if (path := ROWS / f"{job}.json").exists()}
    (ROOT / "docs" / "results.md").write_text(page(rows))
    print("docs/results.md")


if __name__ == "__main__":
    main()
