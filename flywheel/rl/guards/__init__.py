"""Guards of learning, a file each: `guard(seen, **args) -> reason`, empty where nothing is wrong."""
