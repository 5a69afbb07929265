"""The ledger of a store: what may be given out only once. Numbers of nights, and seeds to decide on.

    night   each nightly has a number for ever, and with it its own 10,000 seeds of each block (seeds.py)
    gate    each question to the gate has seeds that no question before it had; one about a name also has a number
            among those of its kind, a rank t, and what was promoted until then (evalues.level)

The same run asks again and gets what it got. Nothing is ever given back, also when the run's folder is deleted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flywheel.runs import chain
from flywheel.runs.mirror import Folder


class Ledger:
    """Append-only, one log for each kind; writers may be concurrent."""

    def __init__(self, store_dir: str | Path, mirror: Folder | None = None):
        self.path = Path(store_dir) / "ledger"
        self.mirror = mirror or Folder(store_dir)

    def take(self, kind: str, run: str, count: int = 1, least: int = 0) -> int:
        """The first of `count` numbers of a kind that are this run's alone, at least `least`."""
        return self._take(kind, run, count, least, lambda log: {})["first"]

    def ask(
        self, run: str, count: int, kind: str, name: str, unspent: int, promotions: int, **more: Any
    ) -> chain.Entry:
        """The entry of a question about `name` (`kind`: "gate", "high water"): its seeds, `first` and `count`, its
        `number`, its rank `t`, which leaves out the `unspent` ones before, `promotions`, and what else decides it. One
        that was begun counts, however it ended."""

        def about(log):
            number = 1 + sum((old.get("kind"), old.get("name")) == (kind, name) for old in log)
            rank = {"number": number, "t": number - unspent, "promotions": promotions}
            return {"kind": kind, "name": name, **rank, **more}

        return self._take("gate", run, count, 0, about)

    def asked(self, run: str) -> chain.Entry | None:
        """The entry of a question that was asked before, or None."""
        return next((entry for entry in self.taken("gate") if entry["run"] == run), None)

    def _take(self, kind: str, run: str, count: int, least: int, about: Callable) -> chain.Entry:
        def entry(log):
            for old in log:
                if old["run"] == run:
                    return old
            end = max([least, *(old["first"] + old["count"] for old in log)])
            return {"run": run, "first": end, "count": count, **about(log)}

        return chain.append(self.path / kind, entry, self.mirror)

    def taken(self, kind: str) -> list[chain.Entry]:
        """What was given out: {"run", "first", "count", "time"}, oldest first."""
        self.mirror.refresh(self.path / kind)
        return chain.entries(self.path / kind)
