"""Decides what to do about a model: pure functions of its resource, what is observed, and time."""
