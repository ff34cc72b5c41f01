"""Finds out what a file is from the names and shapes of its tensors."""
