"""Shared by the operator's other packages: settings, errors, logs, metrics, probes and times."""
