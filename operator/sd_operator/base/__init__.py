"""Shared by all packages: settings, errors, logs, metrics, times and texts for people."""
