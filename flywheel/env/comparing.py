"""Candidate against incumbent, look by look, until the answer stands or a cap is met (flywheel/evalues.py has the
test)."""

from __future__ import annotations

import dataclasses
import io
import time
import zipfile
from typing import Any

import numpy as np

from flywheel import evalues, store
from flywheel.args import arg, seconds
from flywheel.env.scoring import Columns, joined, score
from flywheel.log import progress

ENDED = {  # why a comparison ended, in words
    "better": "shown better",
    "futile": "a gain worth having is excluded",
    "pairs": "all pairs were played",
    "steps": "its environment steps are spent",
    "budget": "its time is spent",
}


@dataclasses.dataclass(frozen=True)
class Gate:
    """What an answer may cost, and how sure it has to be."""

    alpha: float = arg(0.05, "the expected share of false promotions, of all that are made", least=1e-6, most=0.1)
    worth: float = arg(0.01, "given up once the gain is shown to be less than this", least=0, most=1)
    pairs: int = arg(1000, "at most, one a seed", least=1, most=1e5)
    look: int = arg(20, "pairs from one look at the answer to the next", least=1, most=1e5)
    steps: int | None = arg(None, "no look is begun after so many environment steps", least=1)
    budget: str | None = arg(None, "5m, 90s: no look is begun after so much time")

    def __post_init__(self) -> None:
        seconds(self.budget)


def compare(
    run, env, policies: dict[str, Any], what: dict[str, str], seeds: list[int], gate: Gate, *, needed: float,
    before: dict[str, Any] | None = None, part: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Play two policies, {"candidate": ..., "incumbent": ...}, on the same seeds until E >= `needed`; the figures.

    They are those of evalues.told, and `needed`, `looks`, `steps`, `ended` (a key of ENDED) and `success`, {kind:
    [successes, episodes]}. Each look's episodes are kept in run.out, so that a killed run goes on there. `before` are
    the figures of the same comparison, done before: where time ended that, it ends again. `part` tells this comparison
    from others of the run."""
    played = _held(run, list(policies), seeds)
    late = time.monotonic() + (seconds(gate.budget) or float("inf"))
    with progress("pairs", gate.pairs, _count(played)) as tick:
        while True:
            told = _told(played, gate)
            n = told["pairs"]
            if n and (ended := _ended(told, needed, gate) or _out_of_time(run, part, told, before, late)):
                break
            for kind, policy in policies.items():
                new = score(policy, env, seeds[n : n + gate.look], what=what[kind], stop_at_success=True)
                played[kind] = joined([played[kind], new] if kind in played else [new])
            for kind, columns in played.items():
                _keep(run.out / f"{kind}.npz", columns)
            tick(_count(played) - n, note=f"E = {told['e']:.3g} of {needed:.3g}")
    success = {kind: [int(columns["success"].sum()), n] for kind, columns in played.items()}
    return {**told, "needed": needed, "looks": -(-n // gate.look), "ended": ended, "success": success}


def _told(played: dict[str, Columns], gate: Gate) -> dict[str, Any]:
    """The figures so far."""
    if not played:
        return {**evalues.told(0, 0, 0, gate.alpha), "steps": 0}
    won, lost = (columns["success"] for columns in played.values())
    counts = int((won & ~lost).sum()), int((lost & ~won).sum()), len(won)
    return {
        **evalues.told(*counts, gate.alpha),
        "steps": sum(int(columns["length"].sum()) for columns in played.values()),
    }


def _ended(told: dict[str, Any], needed: float, gate: Gate) -> str | None:
    """Why no further look is begun, by what was played: a key of ENDED; None: go on."""
    if answer := evalues.decided(told, needed, gate.worth):
        return answer
    if told["pairs"] >= gate.pairs:
        return "pairs"
    return "steps" if gate.steps and told["steps"] >= gate.steps else None


def _out_of_time(run, part: int, told: dict[str, Any], before: dict[str, Any] | None, late: float) -> str | None:
    """ "budget" where the run's time is spent, or this comparison's own, or was at this look."""
    if run.out_of_time([part, told["pairs"]]):
        return "budget"
    if before:
        return "budget" if before["ended"] == "budget" and told["pairs"] >= before["pairs"] else None
    return "budget" if time.monotonic() > late else None


def _count(played: dict[str, Columns]) -> int:
    """How many pairs are whole."""
    return min((len(columns["seed"]) for columns in played.values()), default=0)


def _keep(path, columns: Columns) -> None:
    """Write the columns, whole or not at all."""
    data = io.BytesIO()
    np.savez(data, **columns)
    store.write_atomic(path, data.getvalue())


def _held(run, kinds: list[str], seeds: list[int]) -> dict[str, Columns]:
    """What was played of these very seeds before the run was interrupted; {} where nothing was, or not by both."""
    found: dict[str, Columns] = {}
    for kind in kinds:
        try:
            with np.load(run.out / f"{kind}.npz") as file:
                found[kind] = {name: file[name] for name in file.files}
        except (OSError, ValueError, zipfile.BadZipFile):
            return {}
    n = _count(found)
    if any(columns["seed"][:n].tolist() != seeds[:n] for columns in found.values()):
        return {}  # another question's: production moved meanwhile
    return {kind: {name: column[:n] for name, column in columns.items()} for kind, columns in found.items()}
