"""Plain single-file references, as the papers' pages read: no table, no loop of ours, nets written out. Oracles for tests."""
