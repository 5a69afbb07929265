"""flywheel: robot learning that keeps getting better by itself, with proof.

policy = flywheel.load("policy/lift@production", store="store")
policy.reset()
action = policy.act(obs)          # evaluation uses this same path
"""

from __future__ import annotations

import os

__version__ = "0.1.0"


def load(ref: str, store: str | None = None, device: str = "cpu"):
    """The policy that NAME, NAME@production or NAME@ID names in a store (default: $FLYWHEEL_STORE, else ./store)."""
    from flywheel.runs.run import Store

    return Store(store or os.environ.get("FLYWHEEL_STORE") or "store").load(ref, device)
