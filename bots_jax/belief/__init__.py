"""Beliefs: what is known of the success probability of each task."""
