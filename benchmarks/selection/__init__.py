"""Benchmarks of selection: scripts that state how good a rule is, and on what."""
