"""No value lies beyond what the reward allows: a critic that explodes promises more than there is."""


def guard(seen, *, margin=1.0, share=0.05):
    """Of the rewards seen in batches so far, r to R a chunk, any return lies in [min(r, 0), max(R, 0)] / (1 - gamma^n);
    success is at most 1 an episode. A reason where more than `share` of a batch's values lie outside by `margin` of
    that range."""
    if "q" not in seen.nets or "reward" not in seen.batch:
        return ""
    least, most = seen.possible()
    span = margin * (most - least)
    value = seen.values()
    out = ~((value >= least - span) & (value <= most + span))
    if out.float().mean() <= share:
        return ""
    return f"values from {value.min():.3g} to {value.max():.3g}, where the reward allows {least:.3g} to {most:.3g}"
