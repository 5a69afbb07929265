"""Runs and what they are known by: keys, names, lineage, replay, nights."""
