"""What a recording says and what follows: the cases that test_outcome.py checks, and the table of docs/formats.md.

Each: words, what is said (rows of which the last has no step of its own where `steps` is one less), how it is decided,
and what follows: success, whether it ended for good, the step at which the reward is 1."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flywheel import outcome

NAN = float("nan")


@dataclass(frozen=True)
class Case:
    words: str
    said: dict[str, Any]
    success: bool | None
    terminated: bool
    at: int | None
    told: dict[str, Any] = field(default_factory=dict)  # steps (4 unless said), sparse, outcome, keys


CASES = [
    Case("nothing", {}, None, False, None),
    Case("`success` true, no reward", {"flag": True}, True, False, 3),
    Case("`success` false, reward 1 in it", {"flag": False, "reward": [0, 1, 0, 0]}, False, False, None),
    Case("`success` true, reward 0 0 1 1", {"flag": np.True_, "reward": [0, 0, 1, 1]}, True, False, 2),
    Case("`success` NaN", {"flag": NAN}, None, False, None),
    Case("`success` NaN, a step says true", {"flag": NAN, "flags": [0, 1, 0, 0]}, True, False, 1),
    Case("steps say false false true false", {"flags": [False, False, True, False]}, True, False, 2),
    Case("steps say only false", {"flags": [False] * 4}, False, False, None),
    Case("steps say only NaN", {"flags": [NAN] * 4}, None, False, None),
    Case("steps say NaN and true", {"flags": [NAN, 1, 0, 0]}, True, False, 1),
    Case("only the row whose action is lost says true", {"flags": [0, 0, 0, 0, 1]}, True, False, 3),
    Case("reward 0 0 1 0, only 0 and 1 in the data set", {"reward": [0, 0, 1, 0]}, True, False, 2, {"sparse": True}),
    Case("... 1 only in the row whose action is lost", {"reward": [0, 0, 0, 0, 1]}, True, False, 3, {"sparse": True}),
    Case("... all 0, while others in the data set have a 1", {"reward": [0.0] * 4}, False, False, None, {"sparse": True}),
    Case("reward all 0 in the whole data set", {"reward": [0.0] * 4}, None, False, None),
    Case("dense reward", {"reward": [0.1, 0.2, 0.9, 1.0]}, None, False, None),
    Case("dense reward, `success` true", {"flag": True, "reward": [0.1, 0.2, 0.9, 1.0]}, True, False, 3),
    Case("steps say false, reward has a 1", {"flags": [0] * 4, "reward": [0, 1, 0, 0]}, False, False, None, {"sparse": True}),
    Case("ended for good, `success` true", {"flag": True, "terminal": True}, True, True, 3),
    Case("ended for good, `success` false (a fall)", {"flag": False, "terminal": True}, False, True, None),
    Case("cut off, `success` true", {"flag": True, "terminal": False}, True, False, 3),
    Case("the recording ends (`dones`, `next.done`), success", {"flag": True, "done": True}, True, True, 3),
    Case("the recording ends, no success", {"flag": False, "done": True}, False, False, None),
    Case("the recording ends, unknown", {"done": True}, None, False, None),
    Case(
        'dense reward, `outcome={success_when: "reward > 0.85"}`', {"reward": [0.1, 0.2, 0.9, 1.0]}, True, False, 2,
        {"outcome": {"success_when": "reward > 0.85"}},
    ),
    Case(
        '..., `outcome={success_when: "return >= 3"}`', {"reward": [0.1, 0.2, 0.9, 1.0]}, False, False, None,
        {"outcome": {"success_when": "return >= 3"}},
    ),
    Case("..., `outcome=last_reward`", {"reward": [-0.1, -0.2, -0.9, 1.0]}, True, False, 3, {"outcome": "last_reward"}),
    Case("..., `outcome=last_reward`, the last is 0", {"reward": [1, 1, 1, 0]}, False, False, None, {"outcome": "last_reward"}),
    Case("`success` false, `outcome=lifted`, which says true at step 1", {"flag": False}, True, False, 1, {"outcome": "lifted"}),
    Case("`outcome={key: grade}`, one NaN an episode", {}, None, False, None, {"outcome": {"key": "grade"}}),
    Case('`outcome={success_when: "height > 0.3"}`', {}, True, False, 2, {"outcome": {"success_when": "height > 0.3"}}),
]  # fmt: skip
KEYS = {"lifted": np.array([0, 1, 1, 0]), "grade": np.float64(NAN), "height": np.array([0.1, 0.2, 0.4, NAN])}


def decided(case: Case) -> outcome.Outcome:
    """What the rule makes of a case."""
    said = {k: np.asarray(v) if k in ("flags", "reward") else v for k, v in case.said.items()}
    rule = outcome.rule(case.told.get("outcome"))
    return outcome.decide(
        outcome.Said(**said), 4, sparse=case.told.get("sparse", False), rule=rule, find=KEYS.get, where="demo_3"
    )


def table() -> str:
    """The cases as docs/formats.md has them."""
    word = {True: "yes", False: "no", None: "unknown"}
    lines = ["| what a recording of 4 steps says | success | ended for good | reward 1 at step |", "|---|---|---|---|"]
    for case in CASES:
        at = "" if case.at is None else str(case.at)
        lines.append(f"| {case.words} | {word[case.success]} | {word[case.terminated]} | {at} |")
    return "\n".join(lines) + "\n"
