"""Plans of what is written, from headers alone: one module for each kind of model."""
