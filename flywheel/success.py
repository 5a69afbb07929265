"""When has a task been done? What an environment says at each step is a flag; the task's mode says which flags count.

    mode       decided at                                              with flags  0 1 1 0 1 1 1
    any        the first true flag                                                   ^ 1
    held:3     the first step that ends 3 true flags in a row                                  ^ 6
    last       the episode's last step, if its flag is true                                    ^ 6
    last:2     the same episodes, but decided as soon as 2 flags of those that
               stay true to the end are: how soon it was there is learnt too                 ^ 5

Learning (reward 1 there, and the episode ends), collection, the gate and the report all ask here.
"""

from __future__ import annotations

import re

import numpy as np

MODES = "any (at any step), last or last:N (at the episode's last step) or held:N (N steps in a row)"
NEVER = 10**6  # more steps than an episode has


def parse(mode: str | None) -> tuple[str, int]:
    """ "any" -> ("any", 1), "held:10" -> ("held", 10), "last:10" -> ("last", 10); None is any, and last as many as
    there are. ValueError for anything else."""
    text = "any" if mode is None else str(mode)
    found = re.fullmatch(r"(any|last)|(held|last):([1-9]\d{0,5})", text)
    if not found:
        raise ValueError(f"task.success={text}; expected {MODES}, such as task.success=held:10")
    return (found[2], int(found[3])) if found[2] else (found[1], NEVER if found[1] == "last" else 1)


def decide(flags: np.ndarray, mode: str | None) -> int | None:
    """The step at which flags [T] of a whole episode decide that it succeeded; None where they do not."""
    kind, steps = parse(mode)
    flags = np.asarray(flags, bool)
    if kind == "last":
        return arrived(flags, steps) if len(flags) and flags[-1] else None
    at = np.flatnonzero(streaks(flags) >= steps)
    return int(at[0]) if len(at) else None


def arrived(flags: np.ndarray, steps: int) -> int:
    """The step at which flags [T] that are true at the end have been so for `steps`, the last one at the latest."""
    return len(flags) - max(1, int(streaks(flags)[-1]) - steps + 1)


def recorded(flags: np.ndarray, mode: str | None, label: bool | None = None) -> int | None:
    """As `decide`, for a recording: where it was labelled a success and ends while it holds, it was only stopped too
    early.

    That counts, at its last step; so does a labelled success without any flag (nobody wrote down when).
    """
    flags = np.asarray(flags, bool)
    at = decide(flags, mode)
    if at is None and label and len(flags) and (flags[-1] or not flags.any()):
        return len(flags) - 1
    return at


def streaks(flags: np.ndarray) -> np.ndarray:
    """How many flags in a row are true, up to each step; [T] int."""
    flags = np.asarray(flags, bool)
    count = np.cumsum(flags)
    return count - np.maximum.accumulate(np.where(flags, 0, count)) if len(flags) else count
