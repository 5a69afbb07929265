"""Critics go on to differ: an ensemble whose members became one cannot say any more where it does not know."""


def guard(seen, *, share=0.01):
    """A reason where the members' deviation fell below `share` of what it was one look before."""
    if "q" not in seen.nets or len(seen.ensemble) < 2:
        return ""
    now = float(seen.ensemble.std(0).mean())
    before = seen.memory.get("disagreement", 0.0)
    seen.memory["disagreement"] = now
    return f"the critics' deviation fell from {before:.3g} to {now:.3g}" if now < share * before else ""
