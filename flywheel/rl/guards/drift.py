"""A policy that began from a checkpoint moves by small steps: from the same noise it acts nearly as it did a look
before."""


def guard(seen, *, most=0.3):
    """A reason where actions changed since the last look by more than `most` of half the action range (root mean
    square over the batch)."""
    if not seen.anchored or "policy" not in seen.learner.optim or seen.learner.anchor is not None:
        return ""  # from scratch it has to move; where each round begins at the anchor, it jumps
    moved = seen.moved()
    return f"actions moved by {moved:.2g} of half the action range" if not moved <= most else ""
