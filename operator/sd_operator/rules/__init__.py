"""What to do about a model: pure functions of its resource, its Jobs and the clock."""
