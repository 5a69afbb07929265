"""A policy gradient stays near the policy that acted."""


def guard(seen, *, most=3.0):
    """A reason where the mean divergence that the surrogate logged in this round is beyond `most` nats."""
    kl = seen.logged("policy.kl")
    return f"KL to the policy that acted is {kl:.3g}" if kl is not None and not kl <= most else ""
