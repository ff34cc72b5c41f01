"""Plans the files to write, from headers alone. One module for each kind of model."""
