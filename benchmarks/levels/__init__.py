"""Benchmark of rules that choose levels: see run.py."""
