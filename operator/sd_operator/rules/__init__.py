"""Decides what to do about a model: pure functions of resource, observed state and time."""
