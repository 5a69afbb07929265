"""The nets that a table may name beside the policy: a file each, `make(policy, algorithm, reward)`, found by its
name."""
