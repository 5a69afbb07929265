"""Outcomes by one rule: the table of cases, what the docs say of it, and the same answer out of every format."""

from pathlib import Path

import numpy as np
import outcome_cases
import pytest

import flywheel
from flywheel import outcome
from flywheel.episode import EpisodeError

DOCS = Path(flywheel.__file__).parent.parent / "docs" / "formats.md"


@pytest.mark.parametrize("case", outcome_cases.CASES, ids=lambda case: case.words)
def test_the_rule(case):
    """findings C1: success, termination and reward of what a recording says."""
    made = outcome_cases.decided(case)
    assert (made.success, made.terminated) == (case.success, case.terminated)
    assert np.flatnonzero(made.reward).tolist() == ([] if case.at is None else [case.at])
    assert made.reward.dtype == np.float32 and made.reward.shape == (4,) and made.reward.sum() in (0, 1)
    if made.flags is not None:
        assert made.flags.dtype == bool and made.flags.shape == (4,) and made.flags.any() == made.success
        assert not made.success or made.flags.argmax() == case.at


def test_the_docs_have_this_table():
    """findings C1: docs/formats.md says what the rule does, from the same cases."""
    assert outcome_cases.table() in DOCS.read_text(encoding="utf-8")


def test_a_reward_of_a_whole_data_set_says_who_succeeded_or_nothing():
    """findings C1"""
    zeros, ones = np.zeros(3), np.array([0, 0, 1.0])
    assert outcome.sparse([zeros, ones]) and outcome.sparse([ones.astype(bool)])
    for dense in ([], [zeros], [ones, np.array([0.5])], [ones, np.array([np.nan])], [np.array(["a"])]):
        assert not outcome.sparse(dense)


@pytest.mark.parametrize(
    "told",
    [
        "", {"success_when": "__import__('os')"}, {"success_when": "reward > x"}, {"success_when": "reward > 1.2.3"},
        {"key": "a", "success_when": "reward > 1"}, 3, ["reward"], {"success_when": "reward > 0.9 or 1"},
    ],
)  # fmt: skip
def test_what_is_no_rule_is_refused_in_words(told):
    """findings C1: no eval, no guessing."""
    with pytest.raises(ValueError, match="expected last_reward, the name of a recorded array"):
        outcome.rule(told)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"flag": 0.3}, "success is 0.3; expected 0 or 1. Where it is a score"),
        ({"flag": "perhaps"}, "success is 'perhaps'; expected true or false"),
        ({"flags": np.array([0, 2, 0, 0])}, "success is 2; expected 0 or 1"),
        ({"flags": np.array([0, 1])}, "success has 2 rows; expected 4"),
        ({"flags": np.array(["a"] * 4)}, "success is of <U1"),
    ],
)
def test_what_is_no_flag_is_no_success(said, words):
    """findings C1: a text, a score or a list of another length is not taken for true."""
    with pytest.raises(EpisodeError, match=f"demo_3: {words}"):
        outcome.decide(outcome.Said(**said), 4, where="demo_3")
    for word, success in (
        (b"False", False),
        ("true", True),
        ("", None),
        (np.float32("nan"), None),
        (np.array([1]), True),
    ):
        assert outcome.decide(outcome.Said(flag=word), 4).success is success


def test_a_rule_that_asks_for_what_is_not_there():
    """findings C1"""
    for told, words in (("last_reward", "no reward was recorded"), ("lifted", "'lifted', which was not recorded")):
        with pytest.raises(EpisodeError, match=words):
            outcome.decide(outcome.Said(), 4, rule=outcome.rule(told))
