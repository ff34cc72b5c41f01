"""Plans what is written, from headers alone. One module for each kind of model."""
