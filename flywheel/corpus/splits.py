"""Splits that never move: on which side an episode lies follows from its content hash alone.

So a version and all that grow from it agree, on every machine, whatever was added, removed or added again. What is
nearly the same (quality "near") may lie on both sides; drop it first where that matters."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from flywheel.corpus.version import Version


def bucket(hashes: Sequence[str], salt: str = "") -> np.ndarray:
    """A number in [0, 1) for each episode hash [E], uniform; another salt gives an unrelated one."""
    digests = [hashlib.sha256(f"{salt} {one}".encode()).digest() for one in hashes]
    return np.asarray([int.from_bytes(one[:8], "big") >> 11 for one in digests], np.float64) * 2.0**-53


def split(version: Version, shares: dict[str, float], salt: str = "") -> dict[str, Version]:
    """{"train": 0.9, "val": 0.1} -> the episodes of each part; in expectation that share of them.

    A part begins where the one before it ends, in the order given. ValueError unless the shares are positive with sum
    1."""
    ends = np.cumsum(list(shares.values()))
    if not shares or min(shares.values()) <= 0 or abs(ends[-1] - 1) > 1e-9:
        raise ValueError(f"split: shares {shares}; expected positive numbers with sum 1, such as train: 0.9, val: 0.1")
    part = np.minimum(np.searchsorted(ends, bucket(version.hashes, salt), side="right"), len(shares) - 1)
    return {name: version.select(part == number) for number, name in enumerate(shares)}
