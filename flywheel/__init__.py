"""flywheel: robot learning that keeps getting better by itself, with proof.

policy = flywheel.load("policy/lift@production", store="store")
policy.reset()
action = policy.act(obs)          # evaluation uses this same path
"""

from __future__ import annotations

import os

__version__ = "0.1.0"


def not_intel(told: str = "/proc/cpuinfo") -> bool:
    """Is it known that the processor is someone else's?"""
    try:
        with open(told, encoding="utf-8", errors="replace") as file:
            known = file.read(400)
    except OSError:
        return False
    return "vendor_id" in known and "GenuineIntel" not in known


def _same_bits(told: str = "/proc/cpuinfo") -> None:
    """Ask MKL, before anybody multiplies, for its reproducible mode where the processor is not Intel's.

    By itself it sums every other row of a narrow product in another order there (8 columns, 16 rows), so that the last
    bit of an action would depend on which slot it is for, and an episode on those beside it."""
    if not_intel(told):
        os.environ.setdefault("MKL_CBWR", "AUTO")


_same_bits()


def load(ref: str, store: str | None = None, device: str = "cpu"):
    """The policy that NAME, NAME@production or NAME@ID names in a store (default: $FLYWHEEL_STORE, else ./store)."""
    from flywheel.runs.run import Store

    return Store(store or os.environ.get("FLYWHEEL_STORE") or "store").load(ref, device)
