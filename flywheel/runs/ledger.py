"""The ledger of a store: what may be given out only once. Numbers of nights, and seeds to decide on.

    night   each nightly has a number for ever, and with it its own 10,000 seeds of each block (seeds.py)
    gate    each question to the gate has seeds that no question before it had

The same run asks again and gets what it got. Nothing is ever given back, also when the run's folder is deleted.
"""

from __future__ import annotations

from pathlib import Path

from flywheel.runs import chain


class Ledger:
    """Append-only, one log for each kind; writers may be concurrent."""

    def __init__(self, store_dir: str | Path):
        self.path = Path(store_dir) / "ledger"

    def take(self, kind: str, run: str, count: int = 1, least: int = 0) -> int:
        """The first of `count` numbers of a kind that are this run's alone, at least `least`."""

        def entry(log):
            for old in log:
                if old["run"] == run:
                    return old
            end = max([least, *(old["first"] + old["count"] for old in log)])
            return {"run": run, "first": end, "count": count}

        return chain.append(self.path / kind, entry)["first"]

    def taken(self, kind: str) -> list[chain.Entry]:
        """What was given out: {"run", "first", "count", "time"}, oldest first."""
        return chain.entries(self.path / kind)
