"""Which of an environment's flags make an episode a success, worked out by hand."""

import numpy as np
import pytest

from flywheel import success


def flags(text):
    return np.array([c == "1" for c in text])


@pytest.mark.parametrize(
    ("mode", "text", "at"),
    [
        (None, "0110", 1),
        ("any", "0000", None),
        ("any", "0001", 3),
        ("last", "0110", None),
        ("last", "0101", 3),
        ("held:1", "0110", 1),
        ("held:3", "0110111", 6),
        ("held:3", "0111111", 3),
        ("held:3", "110110", None),
        ("held:10", "1111", None),
        ("last", "", None),
        ("last:2", "0110111", 5),
        ("last:5", "0110111", 6),
        ("last:1", "1111", 0),
        ("last:2", "1110", None),
        ("held:2", "", None),
    ],
)
def test_which_step_decides(mode, text, at):
    """findings F3: success at any step, at the last one, or held for n steps: the task says which."""
    assert success.decide(flags(text), mode) == at


def test_a_recording_that_stopped_at_success_counts():
    assert success.recorded(flags("0011"), "held:10", label=True) == 3
    assert success.recorded(flags("0011"), "held:10", label=False) is None
    assert success.recorded(flags("0010"), "held:10", label=True) is None  # it was lost again
    assert success.recorded(flags("0000"), "held:10", label=True) == 3  # labelled, without a flag at any step
    assert success.recorded(flags("0111"), "held:2", label=True) == 2


@pytest.mark.parametrize("mode", ["held", "held:0", "held:-3", "held:2.5", "last:0", "any:2", "first", "", "held:", 3])
def test_other_modes_are_refused_by_name(mode):
    with pytest.raises(ValueError, match=r"task\.success=.*expected any .* last .* or held:N"):
        success.parse(mode)


def test_streaks_by_hand():
    assert success.streaks(flags("0110111")).tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert success.streaks(flags("")).tolist() == []
