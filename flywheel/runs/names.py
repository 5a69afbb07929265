"""Names of checkpoints, such as policy/lift: small append-only logs that a gate moves forward and a person moves back.

    <store>/names/policy/lift/00000007.json   {"op": make | promote | refuse | rollback | keep, "id", "run", ...}

Each entry is chained to the one before (flywheel.chain). Of two writers one takes the number, the other looks again: a
promotion that was decided against one incumbent is not made over another (`over`).
    policy/lift@production    what was promoted last and not rolled back
    policy/lift@9bd1c0        a checkpoint by its id, or a unique beginning of it
    policy/lift               production, or the newest checkpoint made where nothing was promoted yet
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flywheel import stats
from flywheel.runs import chain
from flywheel.runs.mirror import Folder

ID_DIGITS = 12
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


class NamesError(ValueError):
    """A name or a checkpoint that is not there; the message lists what there is."""


class Moved(NamesError):
    """Production is no longer what the decision was made against; decide again."""


class Names:
    """All names of one store. Every method reads the logs afresh; writers may be concurrent."""

    def __init__(self, store_dir: str | Path, mirror: Folder | None = None):
        self.path = Path(store_dir) / "names"
        self.mirror = mirror or Folder(store_dir)

    def make(self, name: str, id: str, path: str | Path, run: str, **more: Any) -> dict[str, Any]:
        """Record that a run made a checkpoint; its record. The same id by the same run again adds nothing.

        id     the weights' sha256 or its first 12 digits (the whole of it is kept under "sha256")
        path   the file, relative to the store
        more   what else to keep, such as parents=["policy/lift@..."]
        """
        sha256, short = id, id[:ID_DIGITS]
        if not re.fullmatch(r"[0-9a-f]{12,64}", id):
            raise NamesError(f"{name}: id {id!r}; expected the sha256 of the weights or its first {ID_DIGITS} digits")

        def entry(log: list[dict[str, Any]]) -> dict[str, Any]:
            for old in log:
                if old["op"] == "make" and (old["id"], old["run"]) == (short, run):
                    return old
            return {"op": "make", "id": short, "sha256": sha256, "path": str(path), "run": run, **more}

        return self._append(name, entry)

    def promote(
        self, name: str, id: str, run: str, reason: str, over: str | None = "any", **more: Any
    ) -> dict[str, Any]:
        """Make a checkpoint production; the entry. The same run promoting the same id again adds nothing.

        So a nightly that was killed and goes on does not undo a rollback made since. run="" (a person) always counts.
        `over` is the id that production must be at this moment (None: there is none yet): else Moved is raised, nothing
        added."""
        more |= {} if over == "any" else {"over": over}
        return self._decide("promote", name, id, run, reason, more, over)

    def refuse(
        self, name: str, id: str, run: str, reason: str, over: str | None = "any", **more: Any
    ) -> dict[str, Any]:
        """Record that the gate refused a checkpoint, and why; production does not move. `over` as in `promote`."""
        more |= {} if over == "any" else {"over": over}
        return self._decide("refuse", name, id, run, reason, more, over)

    def restore(self, name: str, id: str, run: str, reason: str, over: str, **more: Any) -> dict[str, Any]:
        """Move production, `over`, back to `id`, which stood there before. Moved if it is another one by now."""
        return self._decide("rollback", name, id, run, reason, {"over": over, "from": over, **more}, over)

    def keep(self, name: str, id: str, run: str, reason: str, **more: Any) -> dict[str, Any]:
        """Record that production, `id`, was not shown worse than what stood there before."""
        return self._decide("keep", name, id, run, reason, {"over": id, **more}, id)

    def high_water(self, name: str) -> tuple[str, list[int]] | None:
        """The best of what stood in production before and was not taken back: (id, [successes, episodes]), by the
        lower end of the interval of all that the gate saw of it; None where it saw none of them."""
        log = self.log(name)
        stack = _productions(log)
        seen: dict[str, list[int]] = {}
        for entry in log:
            counted = entry.get("success") or {}
            who = {"candidate": entry["id"], "incumbent": entry.get("over"), "production": entry.get("over")}
            for kind, id in {**who, "best": entry.get("best")}.items():
                if kind in counted and id in stack[:-1] and id != stack[-1]:
                    seen[id] = [a + b for a, b in zip(seen.get(id, [0, 0]), counted[kind], strict=True)]
        return max(seen.items(), key=lambda item: stats.wilson(*item[1])[0], default=None)

    def production(self, name: str) -> str | None:
        """The id in production, or None where nothing was promoted yet or there is no such name."""
        stack = _productions(self._entries(name))
        return stack[-1] if stack else None

    def rollback(self, name: str, reason: str) -> str:
        """Move production back to what it was before; that id. NamesError where there is nothing to go back to."""

        def entry(log: list[dict[str, Any]]) -> dict[str, Any]:
            stack = _productions(log)
            if len(stack) < 2:
                what = f"only {stack[0]} was ever promoted" if stack else "nothing was promoted yet"
                raise NamesError(f"{name}: cannot roll back, {what}; `flywheel lineage {name}` shows its history")
            return {"op": "rollback", "id": stack[-2], "from": stack[-1], "run": "", "reason": reason}

        return self._append(name, entry)["id"]

    def resolve(self, ref: str) -> dict[str, Any]:
        """The record of NAME, NAME@production or NAME@ID: name, id, sha256, path, run, time and what `make` was given.

        "production" in it says whether it is that now. NamesError lists what there is.
        """
        name, _, wanted = ref.partition("@")
        log = self.log(name)
        made = {entry["id"]: entry for entry in log if entry["op"] == "make"}  # of the same id the newest
        stack = _productions(log)
        if wanted in ("", "production"):
            if not stack and wanted:
                raise NamesError(f"{ref}: nothing was promoted yet. There are: {_listed(made)}")
            id = stack[-1] if stack else list(made)[-1]
        else:
            found = [id for id in made if id.startswith(wanted) or made[id]["sha256"].startswith(wanted)]
            if len(found) != 1:
                what = "no checkpoint of that id" if not found else f"{len(found)} begin so"
                raise NamesError(f"{ref}: {what}. There are: {_listed(made)}")
            id = found[0]
        return {**made[id], "name": name, "production": bool(stack) and id == stack[-1]}

    def log(self, name: str) -> list[dict[str, Any]]:
        """The entries of a name, oldest first. NamesError lists the names that there are."""
        entries = self._entries(name)
        if not entries:
            where, there = self.mirror.url or self.path, ", ".join(self.names()) or "none yet"
            raise NamesError(f"no name {name!r} in {where}. There are: {there}")
        return entries

    def names(self) -> list[str]:
        """All names, sorted."""
        self.mirror.refresh(self.path)
        found = self.path.rglob("0*.json")
        return sorted({path.parent.relative_to(self.path).as_posix() for path in found})

    def _decide(
        self, op: str, name: str, ref: str, run: str, reason: str, more: dict[str, Any], over: str | None = "any"
    ) -> dict[str, Any]:
        new = {"op": op, "id": self.resolve(f"{name}@{ref}")["id"], "run": run, "reason": reason, **more}

        def entry(log: list[dict[str, Any]]) -> dict[str, Any]:
            for old in log:
                if new["run"] and all(old[key] == new[key] for key in ("op", "id", "run")):
                    return old
            stack = _productions(log)
            now = stack[-1] if stack else None
            if over not in ("any", now):
                raise Moved(
                    f"{name}: production is {now or 'nothing'}, the decision was made against {over or 'nothing'}"
                )
            return new

        return self._append(name, entry)

    def _append(self, name: str, make: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> dict[str, Any]:
        return chain.append(self._folder(name), make, self.mirror)

    def _entries(self, name: str) -> list[dict[str, Any]]:
        self.mirror.refresh(folder := self._folder(name))
        return chain.entries(folder)

    def _folder(self, name: str) -> Path:
        return self.path / checked(name)


def checked(name: str) -> str:
    """The name, if it is one. NamesError says what a name is; stages ask before they begin."""
    if not NAME.fullmatch(name) or len(name) > 200:
        raise NamesError(
            f"name {name[:80]!r}; expected letters, digits, '.', '_', '-' and '/', such as policy/lift; at most 200 of "
            "them"
        )
    return name


def _productions(log: list[dict[str, Any]]) -> list[str]:
    """The ids that were production and would be again by rolling back, the present one last."""
    stack: list[str] = []
    for entry in log:
        if entry["op"] == "promote" and stack[-1:] != [entry["id"]]:
            stack.append(entry["id"])
        elif entry["op"] == "rollback":
            stack.pop()
            while len(stack) > 1 and stack[-1] != entry["id"]:  # back over several at once
                stack.pop()
    return stack


def _listed(made: dict[str, dict[str, Any]]) -> str:
    return ", ".join(f"{id} ({made[id]['time']})" for id in reversed(made)) or "none"
