"""sweep: a stage again and again, with other values; what came out is played on the same seeds, and stands in one
table.

    flywheel sweep pretrain 'algorithm.lr=1e-4,3e-4' 'policy=flow,gaussian' executor=processes workers=2

Each trial is a run of its own, looked up if it is done. The seeds are those on which a night chooses its base."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

from flywheel import env as envs
from flywheel import executors, stats
from flywheel.args import Acting, UsageError, arg
from flywheel.cli import config
from flywheel.log import say
from flywheel.runs import run as runs
from flywheel.seeds import seeds
from flywheel.stages.choose import OFFSET

OWN = ("executor", "workers", "resources", "episodes", "log")  # keys of the sweep; others are its trials'
BOTH = ("task", "night", "device", "threads", "num_envs", "guard", "seed")  # both need them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(Acting):
    """Trials of a stage with other values, compared on the same seeds: sweep STAGE 'key=a,b' ..."""

    of: str = arg(help="the stage", typed=True)
    trials: list[Any] = arg(help="the words of each trial; made of 'key=a,b'", typed=True)
    episodes: int = arg(200, "that each checkpoint plays, the same for all", least=1, most=2500)


def spelled(words: list[str]) -> list[str]:
    """STAGE 'key=a,b' ... -> the sweep's own words; UsageError where nothing varies."""
    stage = next((word for word in words if "=" not in word), None)
    if stage is None:
        return words
    if stage not in config.stages() or stage in ("nightly", "sweep"):
        raise UsageError(f"sweep {stage}; expected a stage with one checkpoint: {', '.join(config.stages())}")
    own, grid = [f"of={stage}"], []
    for word in [word for word in words if word != stage]:
        key, _, told = word.partition("=")
        first, several = key.lstrip("+").split(".")[0], parts(told)
        if first not in OWN:
            grid.append([f"{key}={one}" for one in several])
        if first in OWN or (first in BOTH and len(several) == 1):
            own.append(word)
    trials = [list(trial) for trial in itertools.product(*grid)]
    if len(trials) < 2:
        raise UsageError(f"sweep {stage}: nothing varies; expected 'key=a,b', such as 'algorithm.lr=1e-4,3e-4'")
    return [*own, f"trials={json.dumps(trials)}"]


def parts(text: str) -> list[str]:
    """Split at commas that no bracket or quote holds: "1,[2,3]" -> ["1", "[2,3]"]."""
    found, depth, quote = [""], 0, ""
    for letter in text:
        if quote or letter in "'\"":
            quote = "" if letter == quote else quote or letter
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and not depth and not quote:
            found.append("")
        else:
            found[-1] += letter
    return found


def inputs(args: Args, store) -> dict[str, Any]:
    planned = [runs.plan(args.of, config.load(args.of, words, store.root), store)["run"] for words in args.trials]
    return {"trials": {"id": " ".join(planned), "runs": planned}}


def run(args: Args, inputs: dict[str, Any], run) -> dict[str, Any]:
    tasks = [(args.of, words, str(run.store)) for words in args.trials]
    results = executors.bound(args.executor, args.workers, args.resources)(trial, tasks)
    common = set.intersection(*map(set, args.trials))
    rows = [
        {
            "trial": " ".join(word for word in words if word not in common),
            **{key: result.get(key) for key in ("run", "status", "error") if result.get(key)},
            "checkpoint": (result.get("outputs") or {}).get("checkpoint"),
        }
        for words, result in zip(args.trials, results, strict=True)
    ]
    table = compared(rows, args, run)
    for row in table:
        how = (
            f"{row['success']:.3f} of {row['n']}, p {row['p']:.3g}"
            if "success" in row
            else row.get("error", "no checkpoint")
        )
        say(f"  {row['trial']:50} {how}{', the best' if row.get('best') else ''}")
    failed = [row for row in table if row["status"] == "failed"]
    made = {"metrics": {"table": table}, "content": {"of": args.of, "table": table}}
    if failed:
        text = f"sweep: {len(failed)} of {len(table)} trials failed, first {failed[0]['trial']}: {failed[0]['error']}"
        return {"status": "failed", "error": f"{text}. The same command does only these again", **made}
    best = next((row["checkpoint"] for row in table if row.get("best")), None)
    return {"outputs": {"checkpoint": best} if best else {}, **made}


def trial(stage: str, words: list[str], root: str) -> dict[str, Any]:
    """A run of the stage, in whatever process; {"status": "failed", "error"} where it fails."""
    place = runs.Store(root)
    try:
        return runs.execute(stage, config.load(stage, words, place.root), place)
    except (ValueError, RuntimeError, ArithmeticError, OSError) as error:
        return {"status": "failed", "error": str(error)}


def compared(rows: list[dict[str, Any]], args: Args, run) -> list[dict[str, Any]]:
    """The rows with their success on the same seeds, the best first; p says how likely it is that the best is better
    than the row by chance alone."""
    from flywheel.env.scoring import score

    there = dict.fromkeys(row["checkpoint"] for row in rows if row["checkpoint"])
    if not there or args.task.recorded:
        return rows
    env, chosen = envs.opened(args), seeds("gate", args, OFFSET["base"], args.episodes)
    won = {ref: score(run.store.load(ref), env, chosen, what=ref, stop_at_success=True)["success"] for ref in there}
    env.close()
    best = max(won, key=lambda ref: won[ref].sum())
    for row in rows:
        if (ref := row["checkpoint"]) is not None:
            row |= {**stats.rate(won[ref]), **stats.mcnemar(won[best], won[ref])}
    rows.sort(key=lambda row: -row.get("success", -1.0))
    first = next(row for row in rows if row["checkpoint"] == best)
    return [{**row, "best": row is first} for row in [first, *(row for row in rows if row is not first)]]
