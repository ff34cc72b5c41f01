"""HTTP: one guarded client, and downloads that resume."""
