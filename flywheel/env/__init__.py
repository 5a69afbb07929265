"""Whatever acts: environments in batches, the rollout, what guards it and what it is scored by."""

from flywheel.env.rollout import drawn, honours_seeds, make, opened, rollout

__all__ = ["drawn", "honours_seeds", "make", "opened", "rollout"]
