"""Numerical tricks, each with the failure that it prevents."""
