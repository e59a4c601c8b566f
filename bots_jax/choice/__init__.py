"""Choices: which tasks to train on next, given the belief."""
