"""HTTP: a client that checks every address, and downloads that can be resumed."""
