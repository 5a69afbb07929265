"""promote: the gate. Candidate against incumbent on the same seeds; only a better one moves the name.

Accepted if the exact paired test says "better" at `alpha`. Refused: it stays in the store with the reason.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flywheel import stats
from flywheel.log import say
from flywheel.stages import _inputs, evaluate


def inputs(cfg: dict[str, Any], store) -> dict[str, Any]:
    candidate = _inputs.checkpoint(cfg["checkpoint"], store)
    found = {"checkpoint": candidate}
    name = candidate["ref"].partition("@")[0]
    log = store.names.log(name)
    incumbent = cfg.get("against") or (f"{name}@production" if any(e["op"] == "promote" for e in log) else None)
    if incumbent:
        found["against"] = _inputs.checkpoint(incumbent, store)
    return found


def run(cfg: dict[str, Any], run) -> dict[str, Any]:
    ref = run.inputs["checkpoint"]["ref"]
    name, _, id_ = ref.partition("@")
    names = run.store.names
    against = run.inputs.get("against")
    if cfg.get("force"):
        names.promote(name, id_, run.name, f"forced: {cfg['force']}")
        return {"outputs": {"checkpoint": ref}, "metrics": {}, "content": {"reason": f"forced: {cfg['force']}"}}
    if against and against["id"] == run.inputs["checkpoint"]["id"]:
        return {
            "outputs": {"checkpoint": ref},
            "metrics": {},
            "content": {"reason": "it is the incumbent"},
            "status": "noop",
        }
    if not against:
        reason = "the first of its name: there is no incumbent to beat"
        names.promote(name, id_, run.name, reason)
        return {"outputs": {"checkpoint": ref}, "metrics": {}, "content": {"reason": reason}}
    env = _inputs.open_env(cfg)
    seeds = _inputs.seeds("gate", cfg, 0, int(cfg["episodes"]))
    results = {}
    for kind, entry in (("candidate", run.inputs["checkpoint"]), ("incumbent", against)):
        policy = evaluate.load(entry["ref"], run.store, cfg)
        results[kind] = evaluate.score(policy, env, seeds, what=f"{kind} {entry['ref']}", stop_at_success=True)
        np.savez(run.out / f"{kind}.npz", **results[kind])
    env.close()
    test = stats.mcnemar(results["candidate"]["success"], results["incumbent"]["success"])
    rates = {kind: stats.rate(result["success"]) for kind, result in results.items()}
    better = test["p"] < float(cfg["alpha"])
    words = ", ".join(f"{k} {r['success']:.3f} [{r['ci95'][0]:.2f}, {r['ci95'][1]:.2f}]" for k, r in rates.items())
    reason = f"{words} on {len(seeds)} paired gate seeds; won {test['won']}, lost {test['lost']}, p = {test['p']:.2g}"
    (names.promote if better else names.refuse)(name, id_, run.name, reason)
    say(f"  {'accepted' if better else 'refused'}: {reason}")
    steps = sum(int(result["length"].sum()) for result in results.values())
    metrics = {**rates["candidate"], "incumbent": rates["incumbent"], **test, "environment_steps": steps}
    run.log("gate", accepted=better, **{k: v for k, v in metrics.items() if not isinstance(v, dict)})
    outputs = {"checkpoint": ref if better else against["ref"]}
    return {
        "status": "done" if better else "refused",
        "outputs": outputs,
        "metrics": metrics,
        "content": {"reason": reason},
    }
