"""Does the policy that acts fall below the one that the phase began with? Its own episodes say so.

    H0, after any change:  P(success) >= m = base - below.    For each bet f of (0.05, 0.1, 0.2, 0.4, 0.8)

    M_f <- max(M_f, 1) (1 + f (m - won) / (1 - m)),     alarm where the mean of the M_f reaches `false_alarm`

Each factor has mean <= 1 under H0, so this is an e-detector (Shin, Ramdas, Rinaldo, arXiv 2203.03532): on average at
least `false_alarm` episodes go by before a false alarm, however the bets are mixed."""

from __future__ import annotations

import numpy as np

BETS = np.array([0.05, 0.1, 0.2, 0.4, 0.8])
KNOWN = 50  # episodes from which a base is known


class Slump:
    """The alarm. `base` is the success of who began, `below` what it may fall by; without a base nothing is watched."""

    def __init__(self, below: float | None, false_alarm: float):
        self.below, self.false_alarm = below, false_alarm
        self.base: float | None = None
        self.evidence, self.tripped = np.ones(len(BETS)), False

    @property
    def watches(self) -> bool:
        """Is there a success that it could fall below?"""
        return self.below is not None and self.base is not None and self.base > self.below

    def saw(self, won: bool) -> bool:
        """An episode more of the acting policy; True from the alarm on, until `again`."""
        if self.watches and not self.tripped:
            m = self.base - self.below
            self.evidence = np.maximum(self.evidence, 1) * (1 + BETS * (m - won) / max(1 - m, 1e-6))
            self.tripped = bool(self.evidence.mean() >= self.false_alarm)
        return self.tripped

    def again(self) -> None:
        """Another policy acts from now on."""
        self.evidence, self.tripped = np.ones(len(BETS)), False

    @property
    def quiet(self) -> bool:
        """Is there no evidence of a fall?"""
        return not self.tripped and self.evidence.mean() < 2
