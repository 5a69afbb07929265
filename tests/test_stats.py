"""Intervals and the paired test, by hand."""

import numpy as np
import pytest

from flywheel import stats


def test_wilson_by_hand():
    # 8 of 10: middle (0.8 + 3.841459 / 20) / 1.3841459 = 0.716738, half 0.226568 -> (0.490162, 0.943318)
    assert stats.wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-5)
    assert stats.wilson(0, 50)[0] == 0.0 and stats.wilson(50, 50)[1] == pytest.approx(1.0)
    assert stats.wilson(0, 0) == (0.0, 1.0)


def test_mcnemar_by_hand():
    # the candidate alone wins 4 seeds, the incumbent alone 1: P(Binomial(5, 1/2) >= 4) = (5 + 1) / 32
    candidate = np.array([1, 1, 1, 1, 0, 1, 0], bool)
    incumbent = np.array([0, 0, 0, 0, 1, 1, 0], bool)
    assert stats.mcnemar(candidate, incumbent) == {"won": 4, "lost": 1, "p": 6 / 32}
    assert stats.mcnemar(incumbent, incumbent)["p"] == 1.0
    with pytest.raises(ValueError, match="paired test of 7 and 3 episodes"):
        stats.mcnemar(candidate, incumbent[:3])
