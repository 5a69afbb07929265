"""A policy gradient that is clipped nearly everywhere says no more than noise does."""


def guard(seen, *, most=0.8):
    """A reason where the surrogate clipped more than this share of its ratios in this round."""
    share = seen.logged("policy.clipped")
    return f"{share:.0%} of the ratios were clipped" if share is not None and not share <= most else ""
