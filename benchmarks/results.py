"""The learning results of docs/results.md: real nightlies from fresh stores, each a job; finished rows are kept and
committed.

    python benchmarks/results.py                 run the jobs that have no row yet, then write docs/results.md
    python benchmarks/results.py lift-1 ...      only these jobs;  --again: even if there is a row;  --page: only the page

A job that was killed goes on where it stopped (its store is kept under stores/results/); with `--again` it begins in a fresh one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np

from flywheel.args import Guard
from flywheel.regret import WINDOW, by_chance

ROOT = Path(__file__).parent.parent
ROWS = ROOT / "benchmarks" / "results"
SEEDS = (1, 2, 3)
BELOW = Guard().below  # what practice may be below its start
NAMES = ("pretrained", "retrained", "best-of-N", "online")

TASKS = ("lift", "insert", "push")

JOBS: dict[str, list[str]] = {
    f"{task}-{seed}": [f"task={task}", "distil={}", f"seed={seed}"] for task in TASKS for seed in SEEDS
}
ALL = "policy=[flow,deterministic,diffusion,gaussian]"
FEW = ["experiment=wheel", ALL, "demos.first=20", "distil={}"]  # and 60,000 steps in all
MONTE_CARLO = [
    "retrain.algorithm.cadence={rounds: 12, evaluate: 3000, improve: 1500}", "retrain.max_steps=47000", "online.max_steps=6000",
]  # fmt: skip
IQL = [  # critics that bootstrap, a round every 32 episodes, and no steps online: of what begins at 0.3, few episodes succeed
    "retrain.algorithm.evaluate={v: {expectile: {tau: 0.8}}, q: {td: {next_value: state_value}}}", "retrain.collect.episodes=32",
    "retrain.algorithm.cadence={rounds: 60, evaluate: 2000, improve: 1500}", "retrain.max_steps=59000", "retrain.score_every=4", "online=null",
]  # fmt: skip
PRACTICE = {"lift": MONTE_CARLO, "insert": IQL, "push": MONTE_CARLO}
JOBS |= {f"few-{task}-{s}": [*FEW, *PRACTICE[task], f"task={task}", f"seed={s}"] for task in TASKS for s in SEEDS}
JOBS["rl100-1"] = ["experiment=rl100", "seed=1"]
JOBS["door-policy-1"] = ["experiment=adroit_door_policy", "seed=1"]
OFTEN = [  # begun with a class that can do several things; a quarter of the episodes a round, more updates for each, critics
    # that bootstrap, and are no lower than what came of it; a rate that falls at the end; in use the critics must be sure
    "online=null", "retrain.collect.episodes=24", "retrain.algorithm.cadence={rounds: 60, evaluate: 1000, improve: 1000}", "retrain.score_every=6",
    "retrain.algorithm.evaluate={v: {expectile: {tau: 0.8}}, q: {td: {next_value: state_value, lower_bound: true}}}",
    "retrain.algorithm.schedule=decay", "begin=diffusion", "retrain.collect.guarded_in_use=true",
]  # fmt: skip
JOBS |= {f"door-human-{seed}": ["experiment=adroit_door", f"seed={seed}", *OFTEN] for seed in SEEDS}


def begun(path: Path, place: Path) -> Path:
    """Begin a job that has its row, `path`, in a fresh store, unless it was begun so and killed: a second night in a
    store goes on from the first one's policy. The mark of that, for `write`."""
    mark = place.with_name(f"{place.name}.again")
    if path.exists() and not mark.exists():
        shutil.rmtree(place, ignore_errors=True)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    return mark


def write(path: Path, row: dict, mark: Path) -> None:
    """Keep a finished row."""
    path.write_text(
        json.dumps(row, indent=1, default=lambda x: x.item() if isinstance(x, np.generic) else str(x)) + "\n"
    )
    mark.unlink(missing_ok=True)


def run(job: str, words: list[str], place: Path) -> dict:
    """Run one nightly in a process of its own, with the store `place`; its row."""
    command = [sys.executable, "-m", "flywheel.cli.app", "nightly", *words, "--json"]
    began = time.monotonic()
    out = subprocess.run([*command, f"store={place}"], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if out.returncode:
        sys.exit(f"{job} failed: {out.stdout}")
    result = json.loads(out.stdout.splitlines()[-1])
    from flywheel.runs.run import Store, source_commit

    store = Store(place)
    night = store.find(result["run"])
    runs = [store.find(name) for name in night["content"]["runs"]]
    parts = {done["stage"]: done for done in runs}
    base = night["content"]["table"][0]["checkpoint"]
    curves = {
        d["identity"]["config"]["policy"]["kind"]: d["content"]["curve"] for d in runs if d["stage"] == "pretrain"
    }
    log = (store.dir(parts["retrain"]["result"]["run"]) / "log.jsonl").read_text().splitlines()
    return {
        "job": job,
        "command": "flywheel nightly " + " ".join(words),
        "commit": source_commit(),
        "base": next((r["policy"] for r in night["content"]["tournament"] if r["checkpoint"] == base), None),
        "tournament": night["content"]["tournament"],
        "curves": {kind: [[p["updates"], p.get("success")] for p in curve] for kind, curve in curves.items()},
        "status": night["result"]["status"],
        "production": night["result"]["outputs"]["checkpoint"],
        "seconds": round(time.monotonic() - began) if result["status"] != "noop" else night["result"]["seconds"],
        "table": night["content"]["table"],
        "history": parts["retrain"]["content"]["history"],
        "retrain": parts["retrain"]["result"]["metrics"],
        "online_history": parts["online"]["content"]["history"] if "online" in parts else [],
        "online": parts["online"]["result"]["metrics"] if "online" in parts else None,
        "advice": [line for line in map(json.loads, log) if line["kind"] == "gate"],
        "events": [event for part in parts.values() for event in part["content"].get("guard") or []],
        "ingest": parts["ingest"]["result"]["metrics"],
        "gate": parts["promote"]["result"]["metrics"],
        "steps": spent(store, night),
        "machine": machine(),
    }


def flywheel(stage: str, *words: str) -> dict:
    """Run a stage in a process of its own; its result."""
    command = [sys.executable, "-m", "flywheel.cli.app", stage, *words, "--json"]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    told = json.loads(out.stdout.splitlines()[-1])
    if told["status"] == "failed":
        sys.exit(f"{stage} {' '.join(words)}: {told['error']}")
    return told


def spent(store, night: dict) -> dict[str, int]:
    """Environment steps of the gate and of the report, from the episodes' lengths."""
    steps = {"promote": 0, "evaluate": 0}
    for name in night["content"]["runs"]:
        stage = name.split("/")[0]
        for path in (store.root / "runs" / name / "out").glob("*.npz") if stage in steps else []:
            steps[stage] += int(np.load(path)["length"].sum())
    return {"gate": steps["promote"], "report": steps["evaluate"]}


def machine() -> dict[str, str]:
    import torch

    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    names = ("torch", "mujoco", "gymnasium", "gymnasium-robotics", "numpy")
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {"cpu": f"{os.cpu_count()} cores, {cpu}", **gpu, "python": platform.python_version()} | {
        n: metadata.version(n) for n in names
    }


def rate(row: dict) -> str:
    low, high = row["ci95"]
    return f"{row['success']:.3f} [{low:.3f}, {high:.3f}]"


def elsewhere(row: dict) -> str:
    """The machine of a row that was not made on two cores."""
    cores = row["machine"]["cpu"].partition(",")[0]
    return "" if cores == "2 cores" else f" ({cores}, torch {row['machine']['torch']})"


def pooled(found: list[dict]) -> str:
    from flywheel.stats import wilson

    n, k = sum(r["n"] for r in found), round(sum(r["success"] * r["n"] for r in found))
    low, high = wilson(k, n)
    return f"{k / n:.3f} [{low:.3f}, {high:.3f}], n = {n}"


def cells_of(metrics: dict | None) -> tuple[str, str]:
    """Regret below the start with its interval, and the worst 50 episodes in a row, of a stage that practised."""
    if not metrics or "regret" not in metrics:
        return "-", "-"
    low, high = metrics["regret_ci95"]
    base, found, n = metrics["base"], metrics["worst_window"], metrics["episodes"]
    promised = by_chance(n, min(WINDOW, n), max(0.0, base - BELOW), found)
    worst = f"{found:.2f} of {base:.2f} (chance {metrics['worst_by_chance']:.2f}; as promised {promised:.2f})"
    return f"{metrics['regret']:g} [{low:g}, {high:g}]", worst


def night_table(rows: dict[str, dict], prefix: str) -> list[str]:
    """One line a seed: the policies on report seeds, what the gate said, and what it cost."""
    some = [row for seed in SEEDS if (row := rows.get(f"{prefix}-{seed}"))]
    taught = any(r["policy"] == "one-step" for row in some for r in row["table"])
    names = (*NAMES, *["one-step"] * taught)
    lines = [
        f"| seed, commit | base | {' | '.join(names)} | in production | p | gate | regret: retrain | online | worst 50: "
        "retrain | online | steps: collection | gate | report | minutes |",
        "|---" * (13 + len(names)) + "|",
    ]
    for seed in SEEDS:
        if row := rows.get(f"{prefix}-{seed}"):
            by = {r["policy"]: r for r in row["table"]}
            cells = [rate(by[n]) if n in by else "-" for n in names]
            last = row["table"][-1]
            p = f"{last['p']:.1g}" if "p" in last else "-"
            cost = [cells_of(row.get(stage)) for stage in ("retrain", "online")]
            collected = sum((row.get(stage) or {}).get("steps", 0) for stage in ("retrain", "online"))
            standing = standing_of(row)
            verdict = "promoted" if row["status"] == "done" else row["status"]
            lines.append(
                f"| {seed}, {row['commit'][:7]} | {row['base'] or '-'} | {' | '.join(cells)} | {standing['policy'] if standing else '-'} | {p} | {verdict} | "
                f"{cost[0][0]} | {cost[1][0]} | {cost[0][1]} | {cost[1][1]} | "
                f"{collected:,} | {row['steps']['gate']:,} | "
                f"{row['steps']['report']:,} | {row['seconds'] / 60:.1f}{elsewhere(row)} |"
            )
    lines.append("")
    for name in names:
        found = [r for s in SEEDS if (row := rows.get(f"{prefix}-{s}")) for r in row["table"] if r["policy"] == name]
        if len(found) == len(SEEDS):
            lines.append(f"Pooled, {name}: {pooled(found)}.  ")
    stand = [one for s in SEEDS if (one := standing_of(rows.get(f"{prefix}-{s}")))]
    if len(stand) == len(SEEDS):
        lines.append(f"Pooled, what stands in production: {pooled(stand)}.  ")
    return [*lines, ""]


def spelt(command: str) -> list[str]:
    """The words of a row's command; {a: 1, b: {c: 2}} is one word."""
    return re.findall(r"(?:\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}|\S)+", command)


def standing_of(row: dict | None) -> dict | None:
    """The line of a night's table that stands in production after it, where its row tells."""
    return next((r for r in row["table"] if r["checkpoint"] == row.get("production")), None) if row else None


def tournaments(rows: dict[str, dict]) -> list[str]:
    """The classes of policy that each night compared, on the seeds that it chose by."""
    lines = ["| task, seed | flow | deterministic | diffusion | gaussian | the base |", "|---|---|---|---|---|---|"]
    for job in (f"{task}-{seed}" for task in TASKS for seed in SEEDS):
        if job in rows:
            by = {r["policy"]: r for r in rows[job]["tournament"]}
            cells = [
                f"{by[k]['success']:.2f} of {by[k]['n']}" if k in by else "-"
                for k in ("flow", "deterministic", "diffusion", "gaussian")
            ]
            lines.append(f"| {job.replace('-', ', ')} | {' | '.join(cells)} | {rows[job]['base']} |")
    lines += ["", "Training curves on 100 gate seeds, success by updates:", ""]
    lines += [
        "| task, seed, class | " + " | ".join(f"{u:,}" for u in range(2000, 16001, 2000)) + " |",
        "|---" * 9 + "|",
    ]
    for job in (f"{task}-{seed}" for task in TASKS for seed in SEEDS):
        for kind, curve in rows.get(job, {}).get("curves", {}).items():
            seen = {u: f"{s:.2f}" for u, s in curve}
            lines.append(
                f"| {job.replace('-', ', ')}, {kind} | "
                + " | ".join(seen.get(u, "") for u in range(2000, 16001, 2000))
                + " |"
            )
    return [*lines, ""]


def human(rows: dict[str, dict]) -> list[str]:
    """The door from 25 human demonstrations: where imitation alone does not get, and how the rounds got there."""
    back = next(iter(rows.values()))["ingest"]["replay"]
    palm, hinge = back["palm_m median error"]["all"], back["hinge_rad peak error"]["all"]
    lines = [
        "## 25 human demonstrations: Adroit door", "",
        f"Replayed open-loop: median palm error at most {max(palm) * 1000:.2f} mm in all {len(palm)}; largest hinge "
        "angle within 0.02 rad of the "
        f"recording in {sum(h <= 0.02 for h in hinge)} (worst {max(hinge):.2f}). Each row names its words. Regret and "
        "the worst 50 episodes are of where practice began: with `begin=diffusion` that is below the base. Rows of earlier words, "
        "in the history, had 0.920, 0.940 and 0.953 in production (seeds 1 to 3), and seed 2 with jitter in place of guarded use 0.903 (3cf148a).", "",
    ]  # fmt: skip
    for row in rows.values():
        lines += one_human(row)
    if all(found := [standing_of(row) for row in rows.values()]):
        lines += [f"Pooled, what stands in production: {pooled(found)}.", ""]
    return lines


def one_human(row: dict) -> list[str]:
    """One seed of it."""
    regret, worst = cells_of(row["retrain"])
    limits = [k for k in row["table"][0] if "_within_" in k]
    lines = [
        f"`{shlex.join(spelt(row['command']))}` ({row['commit'][:7]}):", "",
        "| policy | " + " | ".join(limits) + " |", "|---" * (1 + len(limits)) + "|",
    ]  # fmt: skip
    lines += [f"| {r['policy']} | " + " | ".join(rate(r[k]) for k in limits) + " |" for r in row["table"]]
    lines += [
        "",
        f"{row['retrain']['steps']:,} environment steps of collection (gate {row['steps']['gate']:,}, report "
        f"{row['steps']['report']:,}) in "
        f"{row['retrain']['rounds']} rounds; {row['seconds'] / 60:.0f} minutes in all. The base is of the class {row['base']}; in "
        f"production: {(standing_of(row) or {'policy': '-'})['policy']}. Regret {regret}, worst 50 {worst}. Scored on 96 seeds to choose by: "
        + ", ".join(f"{h['steps']:,}: {h['scored']['success']:.2f}" for h in row["history"] if "scored" in h) + ".",
    ]  # fmt: skip
    return [*lines, ""]


GONE = """Gone from this page since the base is the best imitation there is, trained to its plateau: the rows of the Adroit door from six episodes of
a trained policy (imitation stopped at 3,000 updates, 0.558, and what came after was imitation's own), those that compared where a round's policy
begins (from the anchor, from the last round, advantage-conditioned) on such a base, and a diffusion policy against it."""


def page(rows: dict[str, dict]) -> str:
    """docs/results.md from the rows there are."""
    import cloning
    import lerobot_policies
    import wheel

    lines = ["# Results", "", "Made by `make results` (benchmarks/results.py); rows in benchmarks/results/.", ""]
    if rows:
        facts = dict(next(iter(rows.values()))["machine"])
        facts["cpu"] = " or ".join(
            sorted({c for row in rows.values() if (c := row["machine"]["cpu"]).startswith("2 ")})
        )
        lines += [
            ", ".join(f"{k} {v}" for k, v in facts.items())
            + ". Success: what the task says (ours: the predicate held for 10 steps; Fetch: at the "
            "last step); 95 % Wilson intervals; report seeds from 200,000,000, each scored once; p: exact one-sided "
            "McNemar test against the base on the same seeds.",
            "",
        ]
    lines += [
        "## The default nightly",
        "",
        "Regret: episodes that failed in practice and would not have by its start, with the windows' intervals; chance: "
        "how often the start alone has a worst window as low; as promised: how often what does 5 points worse has, the "
        "least that the guard allows (under 0.05 it was below that). Beside each seed the commit that made its row. In production: which of the night's policies the gate let through, chosen on 500 seeds of their own (200 in older rows). "
        "Until 2d09a36 the rounds imitated as many demonstrations as own successes, not one in ten: in production `insert` was "
        "0.983 [0.973, 0.990] then and `push` 0.980 [0.969, 0.987], without students, `lift` with one 0.993 [0.986, 0.997] (rows in the history). "
        "The new share was taken after report episodes of `push` 3, `insert` 2 and `lift` 3 had been seen; what stands in "
        "production in the six others: `insert` 597, `push` 598, `lift` 592 of 600. Minutes are those of one thread beside other jobs on two cores.",
        "",
        "`flywheel nightly task=TASK distil={} seed=S`: the default, and a student of its best of N at the end (without `distil={}` "
        "it is the same night without that row, and what stands in production is one of the others). The base is the best of four classes of policy, each trained to the "
        "plateau of its own curve.",
        "",
    ]
    for task in TASKS:
        if any(f"{task}-{seed}" in rows for seed in SEEDS):
            lines += [f"### {task}", "", *night_table(rows, task)]
    some, few = by_task(rows, "few")
    if few:
        lines += [
            "## From 20 demonstrations",
            "",
            *some,
            "On 100 seeds to choose by, by environment steps of practice:",
            "",
        ]
        for job in (f"few-{task}-{seed}" for task in few for seed in SEEDS):
            if job in rows:
                points = ", ".join(f"{p[0]:,}: {p[1]:.2f} ({p[3]})" for p in wheel.by_steps(rows[job]))
                lines.append(f"* {job.removeprefix('few-').replace('-', ', seed ')}: {points}.")
        lines.append("")
    import ablations

    lines += ablations.section()
    if "rl100-1" in rows:
        lines += ["## RL-100 whole", "", "`flywheel nightly experiment=rl100 seed=1` (lift).", ""]
        lines += [f"* {r['policy']}: {rate(r)}" for r in rows["rl100-1"]["table"]] + [""]
        lines += advised(rows["rl100-1"].get("advice") or [])
    lines += [
        "## The tournament that the base comes from",
        "",
        "Successive halving on seeds of its own: the better half plays on.",
        "",
        *tournaments(rows),
    ]
    lines += cloning.section(cloning.read())
    lines += lerobot_policies.section(lerobot_policies.kept())
    if any(job.startswith("door-policy") for job in rows):
        lines += [
            "## Six episodes of a trained policy: Adroit door",
            "",
            "`flywheel nightly experiment=adroit_door_policy seed=1` (at 1.35 rad, 200 steps; half of what the rounds imitated was demonstrations then).",
            "",
        ]
        lines += night_table(rows, "door-policy")
    if found := {job: row for job, row in rows.items() if job.startswith("door-human")}:
        lines += human(found)
    lines += [GONE, ""]
    import offline
    import scores
    import seeing

    parts = [*seeing.section(), *wheel.section(wheel.read()), *offline.section(), *scores.section(scores.read())]
    return "\n".join([*lines, *parts]).rstrip("\n") + "\n"


def by_task(rows: dict[str, dict], prefix: str) -> tuple[list[str], list[str]]:
    """The tables of jobs PREFIX-TASK-SEED, and the tasks that have one."""
    lines, tasks = [], [task for task in TASKS if any(f"{prefix}-{task}-{seed}" in rows for seed in SEEDS)]
    for task in tasks:
        first = next(row for s in SEEDS if (row := rows.get(f"{prefix}-{task}-{s}")))
        command = shlex.join(w for w in spelt(first["command"]) if not w.startswith("seed="))
        lines += [f"### {task}", "", f"`{command} seed=S`.", "", *night_table(rows, f"{prefix}-{task}")]
    return lines, tasks


def advised(advice: list[dict]) -> list[str]:
    """The table of what the model expected of each round of RL-100, and what was true."""
    if not advice:
        return []
    lines = [
        "What its model expected of each round's policy (J, the mean of least Q; its standard error), and the truth: success before and after on the same gate seeds, which decides nothing.",
        "",
        "| round | gain of J | standard error | the round was | success before | after | gain | won, lost |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for number, line in enumerate(advice):
        true, what = line["truth"], "undone" if line["refused"] else "kept"
        gain = true["after"] - true["before"]
        lines.append(
            f"| {number} | {line['gain']:+.4f} | {line['error']:.4f} | {what} | {true['before']:.3f} | {true['after']:.3f} | {gain:+.3f} | {true['won']}, {true['lost']} |"
        )
    off = [line["gain"] - (line["truth"]["after"] - line["truth"]["before"]) for line in advice]
    told = f"Expected less true gain: {np.mean(off):+.3f} on average, {np.mean(np.abs(off)):.3f} in size."
    return [*lines, "", told, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", help=f"of: {', '.join(JOBS)}")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--page", action="store_true")
    args = parser.parse_args()
    if unknown := set(args.jobs) - set(JOBS):
        parser.error(f"no job {', '.join(unknown)}; there are: {', '.join(JOBS)}")
    ROWS.mkdir(exist_ok=True)
    for job in [] if args.page else args.jobs or list(JOBS):
        path, place = ROWS / f"{job}.json", ROOT / "stores" / "results" / job
        if path.exists() and not args.again:
            continue
        if "door" in job and not Path(os.environ.get("FLYWHEEL_DEMOS") or "/nowhere").is_dir():
            sys.exit(f"{job} needs the demonstrations: FLYWHEEL_DEMOS names no folder")
        print(f"== {job}", flush=True)
        mark = begun(path, place)
        write(path, run(job, JOBS[job], place), mark)
    rows = {job: json.loads(path.read_text()) for job in JOBS if (path := ROWS / f"{job}.json").exists()}
    (ROOT / "docs" / "results.md").write_text(page(rows))
    print("docs/results.md")


if __name__ == "__main__":
    main()
